"""Checksums are compared once, and again where a file has changed."""

import os
import zlib
from pathlib import Path

import numpy as np
import pytest

from dmt.datamodules import checksums
from dmt.datamodules.checksums import check_checksums


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[Path, int]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    right = {}
    for number in range(3):
        values = np.random.default_rng(number).integers(0, 9, 100)
        np.save(file := tmp_path / f"{number}.npy", values)
        right[file] = zlib.crc32(values.data)
    return right


def check(right: dict[Path, int]) -> None:
    check_checksums({file: np.load(file, mmap_mode="r") for file in right}, right)


def test_files_are_read_once(files: dict[Path, int], monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    crc32 = zlib.crc32  # of the module before it is replaced
    monkeypatch.setattr(checksums.zlib, "crc32", lambda data: read.append(len(data)) or crc32(data))
    check(files)
    assert len(read) == 3
    check(files)
    assert len(read) == 3
    os.utime(next(iter(files)), ns=(1, 1))
    check(files)
    assert len(read) == 4


def test_a_changed_file_is_refused_each_time(files: dict[Path, int]) -> None:
    check(files)
    file = list(files)[1]
    values = np.load(file)
    values[7] += 1
    np.save(file, values)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"1.npy: its checksum is not the manifest's; copy it again"):
            check(files)


def test_a_memory_that_is_damaged_or_cannot_be_kept(files: dict[Path, int], tmp_path: Path) -> None:
    check(files)
    (memory,) = (tmp_path / "cache" / "dmt").iterdir()
    memory.write_text("{")
    check(files)
    memory.unlink()
    memory.parent.rmdir()
    memory.parent.touch()
    with pytest.raises(ValueError, match=r"dmt: .*; set XDG_CACHE_HOME to a folder that can be written"):
        check(files)
