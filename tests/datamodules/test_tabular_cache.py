"""Logs are prepared once, by several processes at once, and again where the result is damaged."""

import json
import resource
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from dmt.datamodules import prepare
from dmt.errors import UserInputError
from tests.datamodules.tabular_cases import SIZES, arrays, assert_same, draw, folders, make, ready


def test_the_log_is_prepared_once(folder, cache_home, caplog):
    make(folder).prepare_data()
    assert "Prepared 60 train, 20 valid, 15 test samples of 4 categorical and 2 numeric" in caplog.text
    (prepared,) = folders(cache_home)
    changed = (prepared / "meta.json").stat().st_mtime_ns
    caplog.clear()
    data = ready(folder, global_batch_size=3, seed=5)
    assert data.prepared_folder() == prepared
    assert (prepared / "meta.json").stat().st_mtime_ns == changed
    assert not caplog.text
    meta = json.loads((prepared / "meta.json").read_text())
    assert meta["num_samples"] == SIZES
    assert [file["file"] for file in meta["sources"]["test"]] == [str(folder / "test.parquet")]


def test_other_options_or_files_are_prepared_anew(folder, cache_home):
    first = ready(folder)
    make(folder, min_count=1).prepare_data()
    make(folder, numeric=[]).prepare_data()
    draw("valid").head(7).write_parquet(folder / "valid.parquet")
    assert str(ready(folder)) == "TabularClicks(train: 60, valid: 7, test: 15)"
    assert len(folders(cache_home)) == 4
    assert len(first._splits["valid"]) == 20


def test_two_processes_may_prepare_at_once(folder, tmp_path, monkeypatch):
    alone = ready(folder, cache_dir=tmp_path / "alone")
    encode = prepare._encode

    def overtaken(*args, **options):
        monkeypatch.setattr(prepare, "_encode", encode)
        make(folder).prepare_data()  # another process starts later and is ready first
        return encode(*args, **options)

    monkeypatch.setattr(prepare, "_encode", overtaken)
    assert_same(ready(folder), alone)
    assert len(folders(tmp_path / "cache")) == 1


def test_many_threads_prepare_at_once(folder, cache_home):
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: make(folder).prepare_data(), range(4)))
    assert len(folders(cache_home)) == 1


def test_a_failure_leaves_nothing_behind(folder, cache_home):
    draw("test").with_columns(label=7).write_parquet(folder / "test.parquet")
    with pytest.raises(UserInputError, match=r"test.parquet: column 'label': the label of row 1 is 7"):
        make(folder).prepare_data()
    assert list((cache_home / "dmt").iterdir()) == []


def cut(file):
    file.write_bytes(file.read_bytes()[:-20])


def flip(file):
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def write_foreign_ids(file):
    np.save(file, np.full_like(np.load(file), 10**6))


@pytest.mark.parametrize(
    ("damage", "name"),
    [
        (cut, "train/ids.npy"),
        (cut, "vocabulary.parquet"),
        (cut, "meta.json"),
        (cut, "checksums.json"),
        (Path.unlink, "valid/dense.npy"),
        (Path.unlink, "meta.json"),
        (Path.unlink, "checksums.json"),
        (flip, "test/labels.npy"),
        (write_foreign_ids, "train/ids.npy"),
    ],
)
def test_a_damaged_cache_is_prepared_again(folder, cache_home, caplog, damage, name):
    wanted = ready(folder)
    wanted = {key: np.array(array) for key, array in arrays(wanted).items()}
    (prepared,) = folders(cache_home)
    damage(prepared / name)
    caplog.clear()
    data = make(folder)
    data.prepare_data()
    notice, *others = [record.message for record in caplog.records]
    assert str(prepared / name) in notice and notice.endswith(f": making {prepared} again") and "\n" not in notice
    assert len(others) == 1
    data.setup()
    assert len(caplog.records) == 2
    for key, array in arrays(data).items():
        np.testing.assert_array_equal(array, wanted[key])
    assert folders(cache_home) == [prepared]


def test_a_log_is_checked_by_the_rank_that_prepares_it(folder, monkeypatch):
    make(folder).prepare_data()
    monkeypatch.setattr("dmt.datamodules.checksums._checksum", lambda file: pytest.fail(f"{file} is read again"))
    make(folder).setup()


def test_threads_that_find_the_cache_damaged_together(folder, cache_home):
    wanted = {key: np.array(array) for key, array in arrays(ready(folder)).items()}
    (prepared,) = folders(cache_home)
    flip(prepared / "train" / "labels.npy")
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: make(folder).prepare_data(), range(4)))
    for key, array in arrays(ready(folder)).items():
        np.testing.assert_array_equal(array, wanted[key])
    assert folders(cache_home) == [prepared]


def test_a_damaged_cache_without_its_source_is_told_of(folder, cache_home):
    data = ready(folder)
    cut(data.prepared_folder() / "meta.json")
    (folder / "valid.parquet").unlink()
    with pytest.raises(UserInputError, match=r"valid.parquet: cannot be read as parquet \(.*No such file"):
        data.prepare_data()


def test_a_full_disk(folder, cache_home, monkeypatch):
    def write_parquet(frame, file):
        file.write_bytes(b"half")
        raise pl.exceptions.ComputeError("parquet: underlying IO error: No space left on device (os error 28)")

    with monkeypatch.context() as patch:
        patch.setattr(pl.DataFrame, "write_parquet", write_parquet)
        with pytest.raises(UserInputError, match=r"^cache_dir=.*dmt: No space left on device; free some space$"):
            make(folder).prepare_data()
    assert folders(cache_home) == []
    # Numpy says nothing but that a write was short.
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    draw("train").sample(20_000, with_replacement=True, seed=0).write_parquet(folder / "train.parquet")
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    try:
        with pytest.raises(UserInputError, match=r"^cache_dir=.*dmt: No space left on device; free some space$"):
            make(folder).prepare_data()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert folders(cache_home) == []
    make(folder).prepare_data()


def test_other_errors_of_polars_are_not_taken_for_a_full_disk(folder, monkeypatch):
    def write_parquet(frame, file):
        raise pl.exceptions.ComputeError("a fault of ours")

    monkeypatch.setattr(pl.DataFrame, "write_parquet", write_parquet)
    with pytest.raises(pl.exceptions.ComputeError, match="a fault of ours"):
        make(folder).prepare_data()
