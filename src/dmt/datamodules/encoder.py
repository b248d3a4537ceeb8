"""Raw columns to embedding rows and normalised numbers, as learned from the training file.

Shape legend: n rows, F categorical columns, C numeric columns of the output.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from dmt.datamodules.columns import ColumnNames, count_categories, to_number
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

    Args:
        vocabularies: by column, a frame of ``value`` (text), ``count`` and ``id``, sorted by id.
        scales: one for every numeric column.
    """

    vocabularies: Mapping[str, pl.DataFrame]
    scales: Sequence[NumericScale]

    @classmethod
    def fit(cls, frame: pl.DataFrame, *, columns: ColumnNames, min_count: int) -> "TabularEncoder":
        """Learn from the training rows.

        Raises:
            UserInputError: a column has an unsupported type, or a numeric one has no value.
        """
        return cls(
            vocabularies={name: _vocabulary(frame[name], min_count=min_count) for name in columns.categorical},
            scales=[NumericScale.fit(frame[name]) for name in columns.numeric],
        )

    @property
    def schema(self) -> FeatureSchema:
        """The columns of the output; missing-value columns stand beside the column they tell about."""
        return FeatureSchema(
            categorical=[
                CategoricalFeature(name=name, num_embeddings=NUM_RESERVED_IDS + len(vocabulary))
                for name, vocabulary in self.vocabularies.items()
            ],
            dense=[name for scale in self.scales for name in scale.dense_names],
        )

    def encode(self, frame: pl.DataFrame) -> tuple[np.ndarray, np.ndarray]:
        """Encode rows with the types of any file.

        Returns:
            dense float32 (n, C) and ids int32 (n, F).

        Raises:
            UserInputError: a column has an unsupported type, or text that is not a number.
        """
        ids = np.empty((len(frame), len(self.vocabularies)), dtype=np.int32)
        for index, (name, vocabulary) in enumerate(self.vocabularies.items()):
            ids[:, index] = _lookup(frame[name], vocabulary)
        dense = np.empty((len(frame), len(self.schema.dense)), dtype=np.float32)
        parts = (part for scale in self.scales for part in scale.encode(frame[scale.name]))
        for index, part in enumerate(parts):
            dense[:, index] = part
        return dense, ids


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


def _signed_log(values: np.ndarray) -> np.ndarray:
    return np.sign(values) * np.log1p(np.abs(values))


def _skewness(values: np.ndarray) -> float:
    """Third standardised moment; NaN for a constant column or on overflow, where a logarithm is safe."""
    with np.errstate(all="ignore"):
        centred = values - values.mean()
        return float((centred * centred * centred).mean() / (centred * centred).mean() ** 1.5)
