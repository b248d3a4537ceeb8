"""Bad lines and damaged files: where they are told of, and what is kept."""

import errno
import gzip
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from dmt.preprocess import criteo
from dmt.preprocess.criteo import ConversionOptions, Hashing
from dmt.preprocess.criteo_manifest import Splits
from dmt.preprocess.criteo_run import convert_sources
from dmt.preprocess.sources import PlainText, find_sources
from tests.preprocess.criteo_cases import ROWS, Lines, assert_split, convert, draw_lines, write_log


def test_bad_lines_end_the_run_or_are_left_out(tmp_path: Path) -> None:
    lines = draw_lines(np.random.default_rng(3), 4000)
    bad = {17: b"", 1500: lines[1500] + b"\t", 3999: lines[3999][:50]}
    file = write_log(tmp_path / "train.txt", [bad.get(index, line) for index, line in enumerate(lines)])
    for part_bytes in (100_000, 10_000_000):
        with pytest.raises(ValueError, match=r"train.txt, line 18: it is empty; mend it, or give --on-bad-lines skip"):
            convert([file], tmp_path / f"out{part_bytes}", fractions=(1, 0, 0), part_bytes=part_bytes)
        # As the message says, in the folder that was begun; and not back again.
        output = tmp_path / f"out{part_bytes}"
        done = convert([file], output, fractions=(1, 0, 0), part_bytes=part_bytes, skip_bad_lines=True)
        assert done["bad_lines"] == 3
        assert [told.split(":")[0].split("line ")[1] for told in done["first_bad_lines"]] == ["18", "1501", "4000"]
        assert_split(output, "train", [line for index, line in enumerate(lines) if index not in bad])
        with pytest.raises(ValueError, match="it was begun with other --on-bad-lines; give another folder"):
            convert([file], output, fractions=(1, 0, 0), part_bytes=part_bytes)
    # Not only in the first part.
    late = write_log(tmp_path / "late.txt", [line if index != 3000 else b"1" for index, line in enumerate(lines)])
    with pytest.raises(ValueError, match=r"late.txt, line 3001: 1 columns, not 40"):
        convert([late], tmp_path / "late", fractions=(1, 0, 0), part_bytes=100_000)
    with gzip.open(tmp_path / "late.gz", "wb") as zipped:
        zipped.write(late.read_bytes())
    with pytest.raises(ValueError, match=r"late.gz, line 3001: 1 columns, not 40"):
        convert([tmp_path / "late.gz"], tmp_path / "late_gzip", fractions=(1, 0, 0), part_bytes=100_000)


@pytest.mark.parametrize("damage", ["cut", "wrong block", "wrong checksum"])
@pytest.mark.parametrize("part_bytes", [100_000, 10_000_000])
def test_a_damaged_gzip_file_is_read_as_far_as_it_goes(tmp_path: Path, damage: str, part_bytes: int) -> None:
    lines = draw_lines(np.random.default_rng(4), 4000)
    text = write_log(tmp_path / "log", lines).read_bytes()
    zipped = bytearray(gzip.compress(text, compresslevel=0 if damage == "wrong block" else 9))
    if damage == "cut":
        zipped = zipped[: len(zipped) // 2]
    elif damage == "wrong block":
        start = 10  # of the first block, behind the file's header
        for _ in range(5):
            start += 5 + int.from_bytes(zipped[start + 1 : start + 3], "little")
        zipped[start + 1] ^= 0xFF  # its length, of which there is a second copy
    else:
        zipped[-6] ^= 0xFF
    (tmp_path / "log.gz").write_bytes(zipped)
    output = tmp_path / "out"
    wanted = r"log.gz, line [0-9]+: damaged gzip file \(.*\), fetch it again; mend it, or give --on-bad-lines skip"
    with pytest.raises(ValueError, match=wanted):
        convert([tmp_path / "log.gz"], output, fractions=(1, 0, 0), part_bytes=part_bytes)
    done = convert([tmp_path / "log.gz"], output, fractions=(1, 0, 0), part_bytes=part_bytes, skip_bad_lines=True)
    assert done["bad_lines"] == 1  # in place of all that follow
    (num_kept,) = (source["rows"] for source in done["sources"])
    assert (num_kept == 4000) == (damage == "wrong checksum") and num_kept > 1000
    assert f"log.gz, line {num_kept + 1}: damaged gzip file (" in done["first_bad_lines"][0]
    assert_split(output, "train", lines[:num_kept])


def test_damage_is_told_of_behind_any_number_of_bad_lines(tmp_path: Path) -> None:
    lines = [b"1"] * 30 + draw_lines(np.random.default_rng(4), 4000)
    zipped = gzip.compress(write_log(tmp_path / "log", lines).read_bytes())
    (tmp_path / "log.gz").write_bytes(zipped[: len(zipped) // 2])
    for part_bytes in (100_000, 10_000_000):
        output = tmp_path / str(part_bytes)
        done = convert([tmp_path / "log.gz"], output, fractions=(1, 0, 0), part_bytes=part_bytes, skip_bad_lines=True)
        assert done["bad_lines"] == 31 and len(done["first_bad_lines"]) == 11
        assert "damaged gzip file" in done["first_bad_lines"][-1]


def test_errors_of_reading_name_what_was_read(
    days: tuple[Path, list[Lines]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object, **options: object) -> Iterator[bytes]:
        raise OSError(errno.EIO, "Input/output error")
        yield

    with monkeypatch.context() as patched:
        patched.setattr(criteo, "chunks", broken)
        with pytest.raises(ValueError, match=r"day_0: \[Errno 5\] Input/output error; check the file"):
            convert([days[0]], tmp_path / "out")
    log = write_log(tmp_path / "log", days[1][0])
    sources = find_sources([log])
    log.unlink()
    monkeypatch.setattr(PlainText, "identity", lambda self: [])
    monkeypatch.setattr(PlainText, "num_bytes", 100)
    options = ConversionOptions(categories=Hashing(num_embeddings=ROWS))
    with pytest.raises(ValueError, match=r"log: No such file or directory; check the file"):
        convert_sources(sources, tmp_path / "gone", options=options, splits=Splits(fractions=(1, 0, 0)))


def test_a_file_without_rows_is_named(days: tuple[Path, list[Lines]], tmp_path: Path) -> None:
    write_log(tmp_path / "day_0", days[1][0])
    (tmp_path / "day_1.gz").write_bytes(gzip.compress(b""))
    with pytest.raises(ValueError, match=r"day_1.gz: there are no rows in it; fetch it again, or leave it out"):
        convert([tmp_path], tmp_path / "out")
