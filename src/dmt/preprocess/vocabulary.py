"""Vocabularies of categories by frequency: counts that can be merged, and rows of values.

Row 0 is for missing values, row 1 for those that are too rare or were not in training; the others follow by frequency,
equally frequent ones by value. A value of 0 counts as missing.

Shape legend: n values of a column, V of its vocabulary.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from dmt.whole_files import flush_to_disk, whole

NUM_SPECIAL = 2
# Some 400 MB while they are added up and put in order.
ROWS_AT_A_TIME = 2**22
_SAMPLES_A_RANGE = 256
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
            starts = _starts(ordered)
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
) -> Iterator[np.ndarray]:
    """The values of a column that occur so often in all parts together, and how often.

    Args:
        folders: where the counts of the parts are saved.
        column: index of the column.
        min_count: occurrences that keep a value. Missing ones, 0, are not kept.
        rows_at_a_time: counts that are held in memory together, about.

    Yields:
        uint32 (n, 2), some of the values at a time, in their order.
    """
    # The values of a range from all parts, range after range.
    for first, end in pairwise([1, *_limits(folders, column, rows_at_a_time), 2**32]):
        # Each part is mapped anew, so that what was read of it does not stay in memory.
        pieces = [_between(ValueCounts.load(folder).column(column), first, end) for folder in folders]
        counted = _add_up(np.concatenate([np.empty((0, 2), np.uint32), *pieces]))
        yield counted[counted[:, 1] >= min_count]


def _limits(folders: Sequence[Path], column: int, rows_at_a_time: int) -> list[int]:
    """Values between which about so many counts lie in all parts together, from a sample of them."""
    num_counts = sum(len(ValueCounts.load(folder).column(column)) for folder in folders)
    num_ranges = 1 + num_counts // rows_at_a_time
    step = max(num_counts // (num_ranges * _SAMPLES_A_RANGE), 1)
    sample = [np.array(ValueCounts.load(folder).column(column)[::step, 0]) for folder in folders]
    ordered = np.sort(np.concatenate([np.empty(0, np.uint32), *sample]))
    places = np.arange(1, num_ranges) * len(ordered) // num_ranges
    return [limit for limit in np.unique(ordered[places]).tolist() if limit > 1]


def _between(counted: np.ndarray, first: int, end: int) -> np.ndarray:
    """A copy of the counts of the values from one on and below another."""
    # With limits of another type than theirs numpy would cast all values each time.
    start = np.searchsorted(counted[:, 0], np.uint32(first))
    stop = np.searchsorted(counted[:, 0], np.uint32(end - 1), side="right")
    return np.array(counted[start:stop])


def _add_up(counted: np.ndarray) -> np.ndarray:
    """uint32 (V, 2), distinct values, in order, and the sums of their counts, of (m, 2)."""
    if not len(counted):
        return counted
    values, counts = _ordered(counted[:, 0], counted[:, 1])
    starts = _starts(values)
    sums = np.add.reduceat(counts.astype(np.int64), starts)
    # In four billion rows one more occurrence changes no order that matters.
    return np.stack([values[starts], np.minimum(sums, 2**32 - 1).astype(np.uint32)], axis=1)


@dataclass(frozen=True, kw_only=True)
class VocabularyFiles:
    """Where a vocabulary is kept, as bytes of uint32.

    Args:
        by_row: the values (V,), from row 2 on: the most frequent one first, equally frequent ones in their own order.
        ordered: the values (V,) in their own order.
        rows: the row (V,) of each of these.
    """

    by_row: Path
    ordered: Path
    rows: Path

    @classmethod
    def of(cls, folder: Path, name: str) -> "VocabularyFiles":
        """Those of a column."""
        by_row, ordered, rows = (folder / f"{name}_{kind}.u4" for kind in ("by_row", "ordered", "rows"))
        return cls(by_row=by_row, ordered=ordered, rows=rows)


def save_vocabulary(counted: Iterable[np.ndarray], files: VocabularyFiles) -> None:
    """Give values rows by frequency; ``by_row`` is there when all is done.

    Args:
        counted: uint32 (n, 2), by :func:`merge_counts`.
        files: to write.
    """
    sizes, frequency = [], Counter[int]()
    with files.ordered.open("wb") as ordered, files.rows.open("wb") as rows:
        for piece in counted:
            ordered.write(piece[:, 0].tobytes())
            rows.write(piece[:, 1].tobytes())  # the counts, for now
            sizes.append(len(piece))
            counts, times = np.unique(piece[:, 1], return_counts=True)
            frequency.update(dict(zip(counts.tolist(), times.tolist(), strict=True)))
        flush_to_disk(ordered)
    # Values that are equally frequent have rows one after the other; here, the next one for each frequency.
    next_row, num_before = dict[int, int](), NUM_SPECIAL
    for count in sorted(frequency, reverse=True):
        next_row[count] = num_before
        num_before += frequency[count]
    with (
        whole(files.by_row) as unfinished,
        unfinished.open("wb") as by_row,
        files.ordered.open("rb") as ordered,
        files.rows.open("r+b") as rows,
    ):
        for size in sizes:
            values = np.fromfile(ordered, dtype=np.uint32, count=size)
            of_piece = np.fromfile(files.rows, dtype=np.uint32, count=size, offset=rows.tell())
            of_place, places = _ordered(of_piece, np.arange(size, dtype=np.uint32))
            for run in _runs(of_place):
                count, here = int(of_place[run.start]), places[run]
                by_row.seek(4 * (next_row[count] - NUM_SPECIAL))
                by_row.write(values[here].tobytes())
                of_piece[here] = np.arange(next_row[count], next_row[count] + len(here), dtype=np.uint32)
                next_row[count] += len(here)
            rows.write(of_piece.tobytes())
        # Before by_row has its name, which says that all three are there.
        flush_to_disk(rows)
        flush_to_disk(by_row)


def _runs(ordered: np.ndarray) -> list[slice]:
    """Where equal ones of the numbers uint32 (n,), which are in order, lie."""
    starts = _starts(ordered).tolist()
    return [slice(start, end) for start, end in pairwise([*starts, len(ordered)])]


def _starts(ordered: np.ndarray) -> np.ndarray:
    """Where each of the distinct numbers of uint32 (n,), which are in order, begins."""
    return np.flatnonzero(np.diff(ordered, prepend=ordered[:1] + np.uint32(1)))


def find_rows(files: VocabularyFiles, values: np.ndarray, *, values_at_a_time: int = ROWS_AT_A_TIME) -> np.ndarray:
    """The rows of values in a vocabulary, 1 for those that it does not have.

    Args:
        files: by :func:`save_vocabulary`.
        values: uint32 (n,), in order.
        values_at_a_time: of the vocabulary; what was read of the others is let go of.

    Returns:
        int32 (n,).
    """
    rows = np.full(len(values), _UNSEEN, dtype=np.int32)
    size = files.ordered.stat().st_size // 4
    for first in range(0, size, values_at_a_time):
        some = slice(first, first + values_at_a_time)
        known, their_rows = (np.memmap(file, np.uint32, mode="r")[some] for file in (files.ordered, files.rows))
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
