"""Checksums are compared once, and again where a file has changed."""

import json
import os
import zlib
from pathlib import Path

import numpy as np
import pytest

from dmt.datamodules import checksums
from dmt.datamodules.checksums import check_once, find_damage, write_checksums


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "log"
    (folder / "train").mkdir(parents=True)
    for number in range(3):
        np.save(folder / "train" / f"{number}.npy", np.random.default_rng(number).integers(0, 9, 100))
    write_checksums(folder)
    return folder


def test_files_are_read_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    crc32 = zlib.crc32  # of the module before it is replaced
    monkeypatch.setattr(checksums.zlib, "crc32", lambda data, value: read.append(len(data)) or crc32(data, value))
    assert find_damage(folder) is None
    assert len(read) == 3
    assert find_damage(folder) is None
    assert len(read) == 3
    os.utime(folder / "train" / "1.npy", ns=(1, 1))
    assert find_damage(folder) is None
    assert len(read) == 4


def test_a_changed_file_is_told_of_each_time(folder: Path) -> None:
    assert find_damage(folder) is None
    file = folder / "train" / "1.npy"
    values = np.load(file)
    values[7] += 1
    np.save(file, values)
    for _ in range(2):
        assert find_damage(folder) == f"{file} has another checksum than it had"
    file.write_bytes(b"")
    assert find_damage(folder) == f"{file} has another checksum than it had"
    file.unlink()
    assert "No such file" in str(find_damage(folder))


@pytest.mark.parametrize("text", ["{", "[1]", None])
def test_checksums_may_be_damaged_themselves(folder: Path, text: str | None) -> None:
    file = folder / "checksums.json"
    file.unlink() if text is None else file.write_text(text)
    assert find_damage(folder) == f"{file} is missing or damaged"


def test_a_file_is_checked_again_for_something_else(folder: Path) -> None:
    file, checked = folder / "train" / "0.npy", []
    for wanted in ([1, 2], [1, 2], [1, 3]):
        check_once({file: wanted}, checked.append)
    assert len(checked) == 2


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_memory_that_is_damaged_or_cannot_be_kept(folder: Path, cache_home: Path, text: str) -> None:
    assert find_damage(folder) is None
    (memory,) = (cache_home / "dmt").iterdir()
    assert len(json.loads(memory.read_text())) == 3
    memory.write_text(text)
    assert find_damage(folder) is None
    memory.unlink()
    memory.parent.rmdir()
    memory.parent.touch()
    with pytest.raises(ValueError, match=r"dmt: .*; set XDG_CACHE_HOME to a folder that can be written"):
        find_damage(folder)
