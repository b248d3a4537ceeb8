"""Raw columns to embedding rows and normalised numbers, as learned from the training file.

Shape legend: n rows, F categorical columns, C numeric columns of the output.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import polars as pl

from dmt.datamodules.arrays import Bags, offsets_of
from dmt.datamodules.columns import ColumnNames, count_categories, flatten, is_list, to_number
from dmt.errors import UserInputError
from dmt.schema import CategoricalFeature, FeatureSchema

MISSING_ID = 0
UNSEEN_ID = 1
NUM_RESERVED_IDS = 2

# Counts and amounts often have a tail of large values, and on a linear scale most samples would be one point.
LARGEST_SKEWNESS = 1.0
LARGEST_DENSE = 10.0  # standard deviations


@dataclass(frozen=True, kw_only=True)
class NumericScale:
    """How one numeric column becomes a dense one.

    ``sign(x) * log(1 + |x|)`` if ``is_log``, then minus ``mean``, over ``std``, cut at 10 standard
    deviations; a missing value becomes 0, the mean.

    Args:
        name: the column.
        is_log: whether the training values have so long a tail of large values (skewness above 1) that their
            logarithm is taken.
        mean: mean of the training values after the logarithm.
        std: standard deviation of those, 1 for a constant column.
        has_missing: whether training values are missing; then a second dense column ``NAME:missing`` tells
            1 where they are, since a missing value is not an average one.
    """

    name: str
    is_log: bool
    mean: float
    std: float
    has_missing: bool

    @classmethod
    def fit(cls, column: pl.Series) -> "NumericScale":
        """Learn the scale from the training values.

        Raises:
            UserInputError: no value is present.
        """
        number = to_number(column)
        present = number.drop_nulls().to_numpy()
        if not len(present):
            raise UserInputError(f"column {column.name!r}: every value is missing; leave it out of numeric")
        is_log = not _skewness(present) <= LARGEST_SKEWNESS
        scaled = _signed_log(present) if is_log else present
        return cls(
            name=column.name,
            is_log=is_log,
            mean=float(scaled.mean()),
            std=float(scaled.std()) or 1.0,
            has_missing=len(present) < len(number),
        )

    @property
    def dense_names(self) -> list[str]:
        """Names of the one or two dense columns."""
        return [self.name, f"{self.name}:missing"] if self.has_missing else [self.name]

    def encode(self, column: pl.Series) -> list[np.ndarray]:
        """The one or two dense columns, float32 (n,) each."""
        values = to_number(column).to_numpy()  # NaN where missing
        is_missing = np.isnan(values)
        scaled = ((_signed_log(values) if self.is_log else values) - self.mean) / self.std
        scaled = np.where(is_missing, 0, np.clip(scaled, -LARGEST_DENSE, LARGEST_DENSE))
        dense = [scaled, is_missing] if self.has_missing else [scaled]
        return [part.astype(np.float32) for part in dense]


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

    @classmethod
    def fit(cls, frame: pl.DataFrame, *, columns: ColumnNames, min_count: int) -> "TabularEncoder":
        """Learn from the training rows.

        Raises:
            UserInputError: a column has an unsupported type, or a numeric one has no value.
        """
        for name in columns.weights:
            if not is_list(frame[name]):
                raise UserInputError(f"column {name!r}: has weights, but holds no lists; leave it out of weights")
        flat = {name: flatten(frame[name]) for name in columns.categorical}
        return cls(
            vocabularies={name: _vocabulary(values, min_count=min_count) for name, (values, _) in flat.items()},
            scales=[NumericScale.fit(frame[name]) for name in columns.numeric],
            mean_lengths={name: float(lengths.mean()) for name, (_, lengths) in flat.items() if is_list(frame[name])},
            weights=columns.weights,
        )

    def equals(self, other: "TabularEncoder") -> bool:
        """Whether all rows become the same."""
        return (
            (list(self.scales), self.mean_lengths.keys(), self.weights)
            == (list(other.scales), other.mean_lengths.keys(), other.weights)
            and list(self.vocabularies) == list(other.vocabularies)
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

    def encode(self, frame: pl.DataFrame) -> tuple[np.ndarray, np.ndarray, dict[str, Bags]]:
        """Encode rows with the types of any file.

        Returns:
            dense float32 (n, C), ids int32 (n, number of single-hot columns), and the multi-hot columns by name.

        Raises:
            UserInputError: a column has an unsupported type, text that is not a number, lists where training has none,
                or weights that do not fit.
        """
        ids = np.empty((len(frame), len(self.vocabularies) - len(self.mean_lengths)), dtype=np.int32)
        single = iter(ids.T)
        bags = {}
        for name, vocabulary in self.vocabularies.items():
            if name in self.mean_lengths:
                bags[name] = self._bags(frame, name)
            elif is_list(frame[name]):
                raise UserInputError(f"column {name!r}: holds lists, but none in training; convert the column")
            else:
                next(single)[:] = _lookup(frame[name], vocabulary)
        dense = np.empty((len(frame), len(self.schema.dense)), dtype=np.float32)
        parts = (part for scale in self.scales for part in scale.encode(frame[scale.name]))
        for index, part in enumerate(parts):
            dense[:, index] = part
        return dense, ids, bags

    def _bags(self, frame: pl.DataFrame, name: str) -> Bags:
        values, lengths = flatten(frame[name])
        weights = None
        if name in self.weights:
            weights = _weights(frame[self.weights[name]], of=frame[name], lengths=lengths)
        return Bags(
            values=_lookup(values, self.vocabularies[name]).astype(np.int32),
            offsets=offsets_of(lengths),
            weights=weights,
        )


def _vocabulary(column: pl.Series, *, min_count: int) -> pl.DataFrame:
    counts = count_categories(column).group_by(pl.col("category").alias("value")).agg(pl.col("count").sum())
    kept = counts.filter(pl.col("value").is_not_null() & (pl.col("count") >= min_count))
    kept = kept.sort("count", "value", descending=[True, False])
    return kept.with_row_index("id", offset=NUM_RESERVED_IDS).select("value", "count", "id")


def _lookup(column: pl.Series, vocabulary: pl.DataFrame) -> np.ndarray:
    """Embedding rows (n,) of a column."""
    distinct = count_categories(column)
    known = pl.col("category").replace_strict(
        vocabulary["value"], vocabulary["id"], default=UNSEEN_ID, return_dtype=pl.Int32
    )
    is_missing = pl.col("category").is_null()
    ids = distinct.select("value", pl.when(is_missing).then(MISSING_ID).otherwise(known).alias("id"))
    rows = column.alias("value").to_frame()
    return rows.join(ids, on="value", how="left", nulls_equal=True, maintain_order="left")["id"].to_numpy()


def _weights(column: pl.Series, *, of: pl.Series, lengths: np.ndarray) -> np.ndarray:
    """Weights float32 (m,) of the elements of another column; the one of a missing list is 1."""
    flat, found = flatten(column)
    differs = found != lengths
    if differs.any():
        row = int(differs.argmax())
        raise UserInputError(
            f"column {column.name!r}: row {row + 1} has {found[row]} weights for {lengths[row]} ids of {of.name!r}; "
            "give one for each"
        )
    weights = to_number(flat).to_numpy().copy()
    weights[np.repeat(of.is_null().to_numpy(), lengths)] = 1.0
    if np.isnan(weights).any():
        row = int(np.searchsorted(np.cumsum(lengths), int(np.isnan(weights).argmax()), side="right"))
        raise UserInputError(f"column {column.name!r}: a weight of row {row + 1} is missing; give a number")
    return weights.astype(np.float32)


def _signed_log(values: np.ndarray) -> np.ndarray:
    return np.sign(values) * np.log1p(np.abs(values))


def _skewness(values: np.ndarray) -> float:
    """Third standardised moment; NaN for a constant column or on overflow, where a logarithm is safe."""
    with np.errstate(all="ignore"):
        centred = values - values.mean()
        return float((centred * centred * centred).mean() / (centred * centred).mean() ** 1.5)
