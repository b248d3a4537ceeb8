"""Vocabularies of categories by frequency: counts that can be merged, and rows of values.

Row 0 is for missing values, row 1 for those that are too rare or were not in training; the others follow by frequency,
equally frequent ones by value. A value of 0 counts as missing.

Shape legend: n values of a column, V of its vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dmt.open_files import allow_open_files

NUM_SPECIAL = 2
# Some 600 MB while they are added up.
ROWS_AT_A_TIME = 2**24
_UNSEEN = 1
_ROWS_IN_CACHE = 4096
# A 32-bit number whose product with others spreads them well over the upper bits (Knuth's multiplicative hashing).
_FACTOR = np.uint32(2654435761)


@dataclass(frozen=True)
class ValueCounts:
    """How often each value of each of F columns occurs.

    Args:
        table: uint32 (m, 2), values and how often they occur, column after column, in the order of the values.
        ends: int64 (F + 1,), where each column begins in it, and the last one ends.
    """

    table: np.ndarray
    ends: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray) -> "ValueCounts":
        """Count the values uint32 (n, F)."""
        counted = []
        for ordered in transposed(values):
            # Sorting and measuring runs takes a third of the time of polars' group_by.
            ordered.sort()
            starts = np.flatnonzero(np.diff(ordered, prepend=ordered[:1] + 1))
            counts = np.diff(starts, append=len(ordered)).astype(np.uint32)
            counted.append(np.stack([ordered[starts], counts], axis=1))
        return cls(np.concatenate(counted), np.cumsum([0, *map(len, counted)]))

    def save(self, folder: Path) -> None:
        """Write ``counts.npy`` and ``count_ends.npy``."""
        np.save(folder / "counts.npy", self.table)
        np.save(folder / "count_ends.npy", self.ends)

    @classmethod
    def load(cls, folder: Path) -> "ValueCounts":
        """Memory-map what :meth:`save` wrote."""
        return cls(np.load(folder / "counts.npy", mmap_mode="r"), np.load(folder / "count_ends.npy"))

    def column(self, index: int) -> np.ndarray:
        """uint32 (V, 2) of one column."""
        return self.table[self.ends[index] : self.ends[index + 1]]


def transposed(table: np.ndarray) -> np.ndarray:
    """(n, F) as a copy of shape (F, n)."""
    columns = np.empty(table.shape[::-1], dtype=table.dtype)
    for rows in rows_in_cache(len(table)):
        columns[:, rows] = table[rows].T
    return columns


def rows_in_cache(num_rows: int) -> Iterator[slice]:
    """As many rows at a time as a cache holds: columns of all of them would each be read from all of the memory."""
    for start in range(0, num_rows, _ROWS_IN_CACHE):
        yield slice(start, start + _ROWS_IN_CACHE)


def merge_counts(
    folders: Sequence[Path], *, column: int, min_count: int, rows_at_a_time: int = ROWS_AT_A_TIME
) -> np.ndarray:
    """The values of a column that occur so often in all parts together, most frequent first.

    Args:
        folders: where the counts of the parts are saved.
        column: index of the column.
        min_count: occurrences that keep a value. Missing ones, 0, are not kept.
        rows_at_a_time: counts that are held in memory together, about.

    Returns:
        uint32 (V,); equally frequent values are in their own order.
    """
    allow_open_files(len(folders))
    parts = [ValueCounts.load(folder).column(column) for folder in folders]
    num_ranges = 1 + sum(map(len, parts)) // rows_at_a_time
    # The values of a range from all parts, range after range: as many of each as random values would have.
    limits = np.linspace(1, 2**32, num_ranges + 1).astype(np.int64)
    found = []
    places = [np.searchsorted(part[:, 0], limits) for part in parts]
    for index in range(num_ranges):
        pieces = [part[at[index] : at[index + 1]] for part, at in zip(parts, places, strict=True)]
        values, counts = _add_up(np.concatenate(pieces) if pieces else np.empty((0, 2), np.uint32))
        is_frequent = counts >= min_count
        order = np.uint64(2**32 - 1) - counts[is_frequent].astype(np.uint64)  # the most frequent first
        found.append((order << np.uint64(32)) | values[is_frequent])
    # A count and its value as one number: sorting these in place takes no memory besides.
    packed = np.concatenate(found)
    packed.sort()
    return packed.astype(np.uint32)


def _add_up(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct values uint32 (V,), in order, and sums int64 (V,) of their counts, of uint32 (m, 2)."""
    if not len(table):
        return np.empty(0, np.uint32), np.empty(0, np.int64)
    values, counts = _ordered(table[:, 0], table[:, 1])
    starts = np.flatnonzero(np.diff(values, prepend=values[:1] + np.uint32(1)))
    return values[starts], np.add.reduceat(counts.astype(np.int64), starts)


def save_rows(values: np.ndarray, file: Path) -> None:
    """Write which row each value of a vocabulary has, for :func:`find_rows`.

    Args:
        values: uint32 (V,), most frequent first.
        file: to write: uint32 (2, V), the values in order and their rows.
    """
    rows = np.arange(NUM_SPECIAL, NUM_SPECIAL + len(values), dtype=np.uint32)
    np.save(file, np.stack(_ordered(values, rows)))


def find_rows(file: Path, values: np.ndarray, *, values_at_a_time: int = ROWS_AT_A_TIME) -> np.ndarray:
    """The rows of values in a vocabulary, 1 for those that it does not have.

    Args:
        file: by :func:`save_rows`.
        values: uint32 (n,), in order.
        values_at_a_time: of the vocabulary; what was read of the others is let go of.

    Returns:
        int32 (n,).
    """
    rows = np.full(len(values), _UNSEEN, dtype=np.int32)
    size = np.load(file, mmap_mode="r").shape[1]
    for first in range(0, size, values_at_a_time):
        known, their_rows = np.load(file, mmap_mode="r")[:, first : first + values_at_a_time]
        begin, end = np.searchsorted(values, known[0]), np.searchsorted(values, known[-1], side="right")
        here = slice(begin, end)
        places = np.minimum(np.searchsorted(known, values[here]), len(known) - 1)
        rows[here] = np.where(known[places] == values[here], their_rows[places], rows[here])
    return rows


class ValueTable:
    """Rows of values, many at a time.

    A hash table without chains: a value that finds its place taken by a more frequent one is looked up by bisection.

    Args:
        values: uint32 (n,), distinct, not 0.
        rows: int32 (n,); of frequent values lower ones.

    Example:
        >>> table = ValueTable(np.array([10, 20, 30], dtype=np.uint32), np.array([3, 4, 2], dtype=np.int32))
        >>> table.rows(np.array([10, 30, 0, 40], dtype=np.uint32))
        array([3, 2, 0, 1], dtype=int32)
    """

    def __init__(self, values: np.ndarray, rows: np.ndarray) -> None:
        rows, values = _ordered(rows, values)
        self._shift = np.uint32(32 - max(4, int(np.ceil(np.log2(max(len(values), 1)))) + 1))
        places = self._places(values)
        size = 1 << (32 - int(self._shift))
        self._values, self._rows = np.zeros(size, dtype=np.uint32), np.full(size, _UNSEEN, dtype=np.int32)
        # The last one written stays: the most frequent one.
        self._values[places[::-1]] = values[::-1]
        self._rows[places[::-1]] = rows[::-1]
        is_late = self._values[places] != values
        self._late_values, self._late_rows = _ordered(values[is_late], rows[is_late])

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


def _ordered(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of 32-bit numbers, not negative, by the first of them."""
    # As one number each: sorting these is several times as fast as sorting by the first.
    packed = (first.astype(np.uint64) << np.uint64(32)) | second.astype(np.uint64)
    packed.sort()
    return (packed >> np.uint64(32)).astype(first.dtype), packed.astype(np.uint32).astype(second.dtype)
