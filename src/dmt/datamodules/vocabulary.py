"""Categorical columns to ids, by the values that training rows have often enough.

Shape legend: n rows.
"""

import numpy as np
import polars as pl

from dmt.datamodules.columns import categories_of, count_values

MISSING_ID = 0
UNSEEN_ID = 1
NUM_RESERVED_IDS = 2

# Counts of parts wait until there are so many, or as many as distinct values: merging them each time would take most of
# a preparation where values are many.
_MAX_WAITING = 2**16


class VocabularyLearner:
    """The vocabulary of a categorical column, from its training values some at a time.

    Memory is for the distinct values, however many rows there are.
    """

    def __init__(self) -> None:
        self._merged: pl.DataFrame | None = None
        self._waiting: list[pl.DataFrame] = []

    def add(self, column: pl.Series) -> None:
        """Count more values, of the same type.

        Raises:
            UserInputError: the column has an unsupported type.
        """
        self._waiting.append(_with_own_text(count_values(column)))
        num_merged = 0 if self._merged is None else len(self._merged)
        if sum(map(len, self._waiting)) > max(_MAX_WAITING, num_merged):
            self._merge()

    def vocabulary(self, *, min_count: int) -> pl.DataFrame:
        """The values that occur so often: ``value`` (text), ``count`` and ``id``, sorted by id."""
        self._merge()
        assert self._merged is not None
        # Several values may be of one category.
        counts = categories_of(self._merged).group_by(pl.col("category").alias("value")).agg(pl.col("count").sum())
        kept = counts.filter(pl.col("value").is_not_null() & (pl.col("count") >= min_count))
        kept = kept.sort("count", "value", descending=[True, False])
        return kept.with_row_index("id", offset=NUM_RESERVED_IDS).select("value", "count", "id")

    def _merge(self) -> None:
        parts = self._waiting if self._merged is None else [self._merged, *self._waiting]
        self._merged = _with_own_text(pl.concat(parts).group_by("value").agg(pl.col("count").sum()))
        self._waiting = []


def _with_own_text(counts: pl.DataFrame) -> pl.DataFrame:
    """A copy that keeps no more than its own text in memory: polars' points into that of all rows it was found in."""
    return counts.with_columns(pl.col(pl.String) + "")


class IdLookup:
    """Ids of values of any type.

    Args:
        vocabulary: ``value`` (text) and ``id``.
    """

    def __init__(self, vocabulary: pl.DataFrame) -> None:
        # In order, so that to find the few values of a part of the rows takes no hash table of all.
        self._ordered = vocabulary.select("value", pl.col("id").cast(pl.Int32)).sort("value")

    def ids(self, column: pl.Series) -> np.ndarray:
        """int32 (n,).

        Raises:
            UserInputError: the column has an unsupported type.
        """
        # NaN and null are of one category, and where polars knows a column to be in order its join does not find NaN.
        values = column.fill_nan(None) if column.dtype.is_float() else column
        distinct = categories_of(count_values(values))
        places = self._ordered["value"].search_sorted(distinct["category"])
        found = self._ordered.select(pl.all().gather(places, null_on_oob=True))
        is_known = found["value"] == distinct["category"]
        ids = distinct.select(
            "value",
            pl.when(pl.col("category").is_null())
            .then(MISSING_ID)
            .when(is_known)
            .then(found["id"])
            .otherwise(UNSEEN_ID)
            .cast(pl.Int32)
            .alias("id"),
        )
        rows = values.alias("value").to_frame()
        return rows.join(ids, on="value", how="left", nulls_equal=True, maintain_order="left")["id"].to_numpy()
