"""Raw columns to embedding rows and normalised numbers, as learned from the training rows.

Shape legend: n rows, F categorical columns, C numeric columns of the output.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import polars as pl

from dmt.datamodules.arrays import Bags, offsets_of
from dmt.datamodules.columns import ColumnNames, flatten, is_list, to_number
from dmt.datamodules.scales import NumericScale, ScaleLearner
from dmt.datamodules.vocabulary import NUM_RESERVED_IDS, IdLookup, VocabularyLearner
from dmt.errors import UserInputError
from dmt.schema import CategoricalFeature, FeatureSchema


@dataclass(frozen=True, kw_only=True)
class TabularEncoder:
    """Vocabularies and scales of a click log.

    The ids of a categorical column are: 0 missing (null, NaN, empty text), 1 unseen in training or rarer
    there than ``min_count``, then the other training values by descending frequency, ties by their text.

    A column that holds lists in training is multi-hot. A missing list is a list of one missing element.

    Args:
        vocabularies: by column, a frame of ``value`` (text), ``count`` and ``id``, sorted by id.
        scales: one for every numeric column.
        mean_lengths: of the multi-hot columns, the mean number of ids of a training row.
        weights: for multi-hot columns, the column of their weights.
    """

    vocabularies: Mapping[str, pl.DataFrame]
    scales: Sequence[NumericScale]
    mean_lengths: Mapping[str, float] = field(default_factory=dict)
    weights: Mapping[str, str] = field(default_factory=dict)

    def equals(self, other: "TabularEncoder") -> bool:
        """Whether all rows become the same."""
        return (
            (self.mean_lengths.keys(), self.weights) == (other.mean_lengths.keys(), other.weights)
            and (len(self.scales), list(self.vocabularies)) == (len(other.scales), list(other.vocabularies))
            and all(mine.equals(theirs) for mine, theirs in zip(self.scales, other.scales, strict=True))
            and all(
                mine["value"].equals(theirs["value"])
                for mine, theirs in zip(self.vocabularies.values(), other.vocabularies.values(), strict=True)
            )
        )

    @property
    def columns(self) -> list[str]:
        """The columns that it reads."""
        return list(dict.fromkeys([*self.vocabularies, *(scale.name for scale in self.scales), *self.weights.values()]))

    @property
    def schema(self) -> FeatureSchema:
        """The columns of the output; missing-value columns stand beside the column they tell about."""
        return FeatureSchema(
            categorical=[
                CategoricalFeature(
                    name=name,
                    num_embeddings=NUM_RESERVED_IDS + len(vocabulary),
                    multi_hot=name in self.mean_lengths,
                    mean_length=self.mean_lengths.get(name, 1.0),
                )
                for name, vocabulary in self.vocabularies.items()
            ],
            dense=[name for scale in self.scales for name in scale.dense_names],
            weighted=bool(self.weights),
        )

    def encode(self, frame: pl.DataFrame, *, rows_before: int = 0) -> tuple[np.ndarray, np.ndarray, dict[str, Bags]]:
        """Encode rows with the types of any file.

        Args:
            frame: some of the rows.
            rows_before: how many rows come before these, for messages.

        Returns:
            dense float32 (n, C), ids int32 (n, number of single-hot columns), and the multi-hot columns by name.

        Raises:
            UserInputError: a column has an unsupported type, text that is not a number, lists where training has none,
                or weights that do not fit.
        """
        ids = np.empty((len(frame), len(self.vocabularies) - len(self.mean_lengths)), dtype=np.int32)
        single = iter(ids.T)
        bags = {}
        for name in self.vocabularies:
            if name in self.mean_lengths:
                bags[name] = self._bags(frame, name, rows_before=rows_before)
            elif is_list(frame[name]):
                raise UserInputError(f"column {name!r}: holds lists, but none in training; convert the column")
            else:
                next(single)[:] = self._lookups[name].ids(frame[name])
        dense = np.empty((len(frame), len(self.schema.dense)), dtype=np.float32)
        parts = (part for scale in self.scales for part in scale.encode(frame[scale.name]))
        for index, part in enumerate(parts):
            dense[:, index] = part
        return dense, ids, bags

    @cached_property
    def _lookups(self) -> dict[str, IdLookup]:
        return {name: IdLookup(vocabulary) for name, vocabulary in self.vocabularies.items()}

    def _bags(self, frame: pl.DataFrame, name: str, *, rows_before: int) -> Bags:
        values, lengths = flatten(frame[name])
        weights = None
        if name in self.weights:
            weights = _weights(frame[self.weights[name]], of=frame[name], lengths=lengths, rows_before=rows_before)
        return Bags(values=self._lookups[name].ids(values), offsets=offsets_of(lengths), weights=weights)


class TabularLearner:
    """A :class:`TabularEncoder` from the training rows, some at a time.

    Memory is for the distinct values, however many rows there are.

    Args:
        columns: which columns are what.
    """

    def __init__(self, columns: ColumnNames) -> None:
        self._weights = columns.weights
        self._vocabularies = {name: VocabularyLearner() for name in columns.categorical}
        self._scales = {name: ScaleLearner(name) for name in columns.numeric}
        self._num_rows = 0
        self._num_ids: dict[str, int] = {}  # of multi-hot columns

    def add(self, frame: pl.DataFrame) -> None:
        """Learn from more rows, whose columns are of the same types.

        Raises:
            UserInputError: a column has an unsupported type.
        """
        for name in self._weights:
            if not is_list(frame[name]):
                raise UserInputError(f"column {name!r}: has weights, but holds no lists; leave it out of weights")
        for name, vocabulary in self._vocabularies.items():
            values, _ = flatten(frame[name])
            vocabulary.add(values)
            if is_list(frame[name]):
                self._num_ids[name] = self._num_ids.get(name, 0) + len(values)
        for name, scale in self._scales.items():
            scale.add(frame[name])
        self._num_rows += len(frame)

    def encoder(self, *, min_count: int) -> TabularEncoder:
        """What was learned.

        Args:
            min_count: occurrences below which a value shares the row of the unseen ones.

        Raises:
            UserInputError: a numeric column has no value.
        """
        return TabularEncoder(
            vocabularies={
                name: learner.vocabulary(min_count=min_count) for name, learner in self._vocabularies.items()
            },
            scales=[scale.scale() for scale in self._scales.values()],
            mean_lengths={name: num_ids / self._num_rows for name, num_ids in self._num_ids.items()},
            weights=self._weights,
        )


def _weights(column: pl.Series, *, of: pl.Series, lengths: np.ndarray, rows_before: int) -> np.ndarray:
    """Weights float32 (m,) of the elements of another column; the one of a missing list is 1."""
    flat, found = flatten(column)
    differs = found != lengths
    if differs.any():
        row = int(differs.argmax())
        raise UserInputError(
            f"column {column.name!r}: row {rows_before + row + 1} has {found[row]} weights for {lengths[row]} ids of "
            f"{of.name!r}; give one for each"
        )
    weights = to_number(flat).to_numpy().copy()
    weights[np.repeat(of.is_null().to_numpy(), lengths)] = 1.0
    if np.isnan(weights).any():
        row = int(np.searchsorted(np.cumsum(lengths), int(np.isnan(weights).argmax()), side="right"))
        raise UserInputError(
            f"column {column.name!r}: a weight of row {rows_before + row + 1} is missing; give a number"
        )
    return weights.astype(np.float32)
