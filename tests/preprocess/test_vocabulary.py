"""Vocabularies against counting and looking up with Python's own dictionaries."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from dmt.preprocess.vocabulary import ValueCounts, ValueTable, VocabularyFiles, find_rows, merge_counts, save_vocabulary


def draw_values(rng: np.random.Generator, num_distinct: int, count: int) -> np.ndarray:
    """Values of which some are frequent and most are rare, 0 among them."""
    distinct = np.unique(rng.integers(0, 2**32, num_distinct, dtype=np.uint32))
    distinct[0] = 0
    return distinct[np.minimum(rng.zipf(1.2, count) - 1, len(distinct) - 1)]


@pytest.mark.parametrize("min_count", [1, 3])
def test_counts_of_parts_add_up(tmp_path: Path, min_count: int) -> None:
    rng = np.random.default_rng()
    columns = [draw_values(rng, size, 5000) for size in (3, 50, 3000)]
    values = np.stack(columns, axis=1)
    folders = []
    for number, part in enumerate(np.array_split(values, [100, 100, 2000])):  # one of them is empty
        folders.append(tmp_path / str(number))
        folders[-1].mkdir()
        ValueCounts.of(part).save(folders[-1])
    for column, of_column in enumerate(columns):
        counts = Counter(value for value in of_column.tolist() if value)
        wanted = sorted((v for v, count in counts.items() if count >= min_count), key=lambda v: (-counts[v], v))
        for rows_at_a_time in (10**9, 100):
            found = merge_counts(folders, column=column, min_count=min_count, rows_at_a_time=rows_at_a_time)
            files = VocabularyFiles.of(tmp_path, "C1")
            save_vocabulary(found, files)
            by_row, ordered, rows = (np.fromfile(file, np.uint32).tolist() for file in vars(files).values())
            assert by_row == wanted
            assert [*zip(ordered, rows, strict=True)] == sorted(zip(wanted, range(2, 2 + len(wanted)), strict=True))


@pytest.mark.parametrize("size", [0, 1, 2, 7, 1000, 50_000])
def test_values_find_their_rows(tmp_path: Path, size: int) -> None:
    rng = np.random.default_rng()
    vocabulary = rng.permutation(np.unique(rng.integers(1, 2**32, size, dtype=np.uint32)))
    rows = {value: row for row, value in enumerate(vocabulary.tolist(), start=2)} | {0: 0}
    values = np.concatenate([vocabulary, vocabulary + np.uint32(1), np.zeros(3, np.uint32)])
    files = VocabularyFiles.of(tmp_path, "C1")
    np.sort(vocabulary).tofile(files.ordered)
    (np.argsort(vocabulary) + 2).astype(np.uint32).tofile(files.rows)
    distinct = np.unique(values)
    for values_at_a_time in (10**9, 100):
        found = find_rows(files, distinct, values_at_a_time=values_at_a_time)
        assert found.tolist() == [rows.get(value, 1) if value else 1 for value in distinct.tolist()]
    table = ValueTable(distinct[found > 1], found[found > 1])
    shuffled = rng.permutation(values)
    assert table.rows(shuffled).dtype == np.int32
    assert table.rows(shuffled).tolist() == [rows.get(value, 1) for value in shuffled.tolist()]


@pytest.mark.parametrize("spread", [1, 1000])
def test_counts_come_some_at_a_time_however_values_are_spread(tmp_path: Path, spread: int) -> None:
    values = np.arange(1, 20_001, dtype=np.uint32) * np.uint32(spread)  # ids of another tool, or hashes
    folders = [tmp_path / str(part) for part in range(4)]
    for folder in folders:
        folder.mkdir()
        ValueCounts.of(np.random.default_rng().permutation(values)[:, None]).save(folder)
    pieces = list(merge_counts(folders, column=0, min_count=1, rows_at_a_time=8000))
    assert np.concatenate(pieces).tolist() == [[value, 4] for value in values.tolist()]
    # Limits are from one count in 28; each part may be off by as many.
    assert max(map(len, pieces)) * 4 <= 8000 + 4 * 28
