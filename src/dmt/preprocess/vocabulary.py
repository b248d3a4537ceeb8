"""Vocabularies of categories by frequency: counts that can be merged, and rows of values.

Row 0 is for missing values, row 1 for those that are too rare or were not in training; the others follow by frequency,
equally frequent ones by value. A value of 0 counts as missing.

Shape legend: n values of a column, V of its vocabulary.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl

NUM_SPECIAL = 2
_UNSEEN = 1
# A 32-bit number whose product with others spreads them well over the upper bits (Knuth's multiplicative hashing).
_FACTOR = np.uint32(2654435761)


def count_values(values: np.ndarray) -> pl.DataFrame:
    """How often each value of each column occurs.

    Args:
        values: uint32 (n, F).

    Returns:
        ``column``, ``value`` and ``count``, sorted.
    """
    counted = []
    for column in range(values.shape[1]):
        # Sorting and measuring runs takes a third of the time of a group_by.
        ordered = np.sort(values[:, column])
        starts = np.flatnonzero(np.diff(ordered, prepend=ordered[:1] + 1))
        counts = np.diff(starts, append=len(ordered))
        counted.append(
            pl.DataFrame({"value": ordered[starts], "count": counts.astype(np.uint32)}).select(
                pl.lit(column, pl.UInt8).alias("column"), pl.all()
            )
        )
    return pl.concat(counted)


def merge_counts(files: Sequence[Path], *, column: int, min_count: int) -> np.ndarray:
    """The values of a column that occur so often in all files together, most frequent first; uint32 (V,)."""
    counts = pl.scan_parquet(list(files)).filter(pl.col("column") == column, pl.col("value") != 0)
    total = counts.group_by("value").agg(pl.col("count").cast(pl.UInt64).sum())
    frequent = total.filter(pl.col("count") >= min_count)
    ordered = frequent.sort("count", "value", descending=[True, False])
    return ordered.select("value").collect(engine="streaming")["value"].to_numpy()


class ValueTable:
    """Rows of values, many at a time.

    A hash table without chains: a value that finds its place taken by a more frequent one is looked up by bisection.

    Args:
        values: the vocabulary, uint32 (V,), most frequent first.

    Example:
        >>> ValueTable(np.array([30, 10, 20], dtype=np.uint32)).rows(np.array([10, 30, 0, 40], dtype=np.uint32))
        array([3, 2, 0, 1], dtype=int32)
    """

    def __init__(self, values: np.ndarray) -> None:
        self._shift = np.uint32(32 - max(4, int(np.ceil(np.log2(max(len(values), 1)))) + 1))
        rows = np.arange(NUM_SPECIAL, NUM_SPECIAL + len(values), dtype=np.int32)
        places = self._places(values)
        size = 1 << (32 - int(self._shift))
        self._values, self._rows = np.zeros(size, dtype=np.uint32), np.full(size, _UNSEEN, dtype=np.int32)
        # The last one written stays: the most frequent one.
        self._values[places[::-1]] = values[::-1]
        self._rows[places[::-1]] = rows[::-1]
        is_late = self._values[places] != values
        order = np.argsort(values[is_late])
        self._late_values, self._late_rows = values[is_late][order], rows[is_late][order]

    def rows(self, values: np.ndarray) -> np.ndarray:
        """int32 (n,) of uint32 (n,)."""
        places = self._places(values)
        rows = np.where(self._values[places] == values, self._rows[places], np.int32(_UNSEEN))
        if len(self._late_values):
            unknown = np.flatnonzero(rows == _UNSEEN)
            found = np.searchsorted(self._late_values, values[unknown])
            found = np.minimum(found, len(self._late_values) - 1)
            is_late = self._late_values[found] == values[unknown]
            rows[unknown[is_late]] = self._late_rows[found[is_late]]
        rows[values == 0] = 0
        return rows

    def _places(self, values: np.ndarray) -> np.ndarray:
        return (values * _FACTOR) >> self._shift
