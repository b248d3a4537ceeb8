"""Whole conversions of Criteo's logs: values, splits, restarts, bad lines and bad files."""

import errno
import gzip
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dmt.cli import main
from dmt.datamodules import CriteoDataModule
from dmt.preprocess import criteo
from dmt.preprocess.criteo import ConversionOptions, Hashing, PartReport, Vocabularies
from dmt.preprocess.criteo_run import Splits, preprocess_criteo
from dmt.preprocess.sources import PlainText, find_sources
from tests.preprocess.criteo_cases import ROWS, draw_lines, expected, write_log

Lines = list[bytes]
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def days(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Lines]]:
    """Two days of 10,000 lines each."""
    folder = tmp_path_factory.mktemp("days")
    lines = [draw_lines(np.random.default_rng(day), 10_000) for day in range(2)]
    for day, of_day in enumerate(lines):
        write_log(folder / f"day_{day}", of_day)
    return folder, lines


def convert(
    inputs: Sequence[str | Path],
    output: Path,
    *,
    categories: Hashing | Vocabularies = Hashing(num_embeddings=ROWS),  # noqa: B008 - frozen
    part_bytes: int = 300_000,
    skip_bad_lines: bool = False,
    fractions: tuple[float, float, float] | None = None,
    workers: int = 1,
    on_part: Callable[[str, PartReport], None] = lambda stage, report: None,
) -> Mapping[str, Any]:
    options = ConversionOptions(categories=categories, part_bytes=part_bytes, skip_bad_lines=skip_bad_lines)
    return preprocess_criteo(
        find_sources(inputs),
        output,
        options=options,
        splits=Splits(fractions=fractions),
        workers=workers,
        on_part=on_part,
    )


def contents(output: Path) -> dict[str, bytes]:
    return {str(path.relative_to(output)): path.read_bytes() for path in output.rglob("*") if path.is_file()}


def arrays(output: Path, split: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A split as its DataModule has it, in stored order."""
    data = CriteoDataModule(path=output)
    data.setup()
    dataset = data._split(split)
    batch = dataset.batch(np.arange(len(dataset)))
    ids = batch.sparse_features.values().reshape(26, -1).T.numpy().astype(np.int32)
    return batch.dense_features.numpy(), ids, batch.labels.numpy().astype(np.uint8)


def assert_split(output: Path, split: str, lines: Lines) -> None:
    for found, wanted in zip(arrays(output, split), expected(lines), strict=True):
        # Logarithms in float32 and in float64 differ by a rounding each of argument and result.
        np.testing.assert_allclose(found, wanted, rtol=2**-22)


def test_days_are_split_as_is_the_custom(days: tuple[Path, list[Lines]], tmp_path: Path) -> None:
    folder, (first, last) = days
    done = convert([folder], tmp_path / "out")
    assert len(done["parts"]) > 10
    assert_split(tmp_path / "out", "train", first)
    assert_split(tmp_path / "out", "valid", last[:5000])
    assert_split(tmp_path / "out", "test", last[5000:])
    size = sum(path.stat().st_size for path in (tmp_path / "out").rglob("*.npy"))
    assert size - 128 * len(done["parts"]) == 160 * 20_000  # bytes a row, beside a header for each part


@pytest.mark.parametrize("categories", [Hashing(num_embeddings=ROWS), Vocabularies(min_count=2)])
def test_any_number_of_workers_and_gzip_give_the_same_bytes(
    days: tuple[Path, list[Lines]], tmp_path: Path, categories: Hashing | Vocabularies
) -> None:
    folder, _ = days
    convert([folder], tmp_path / "one")
    convert([folder], tmp_path / "two", workers=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    for day in range(2):
        with gzip.open(tmp_path / f"day_{day}.gz", "wb", compresslevel=1) as file:
            file.write((folder / f"day_{day}").read_bytes())
    done = convert([tmp_path / "day_1.gz", tmp_path / "day_0.gz"], tmp_path / "zipped")
    assert [source["file"] for source in done["sources"]] == ["day_0.gz", "day_1.gz"]
    for split in ("train", "valid", "test"):
        for found, wanted in zip(arrays(tmp_path / "zipped", split), arrays(tmp_path / "one", split), strict=True):
            assert np.array_equal(found, wanted)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("is_zipped", [False, True])
def test_each_part_is_told_of(days: tuple[Path, list[Lines]], tmp_path: Path, workers: int, is_zipped: bool) -> None:
    text = (days[0] / "day_0").read_bytes()
    log = tmp_path / "day_0.gz"
    log.write_bytes(gzip.compress(text, compresslevel=1))
    told = []
    done = convert(
        [log if is_zipped else days[0] / "day_0"],
        tmp_path / "out",
        fractions=(1, 0, 0),
        categories=Vocabularies(min_count=2),
        workers=workers,
        on_part=lambda stage, report: told.append((stage, report.part, report.num_bytes)),
    )
    parts = range(len(done["parts"]))
    for stage in ("values", "parts"):
        of_stage = sorted(one for one in told if one[0] == stage)
        assert [part for _, part, _ in of_stage] == list(parts)
        assert sum(size for _, _, size in of_stage) == len(text)


def test_one_file_is_split_by_shares(days: tuple[Path, list[Lines]], tmp_path: Path) -> None:
    folder, (lines, _) = days
    convert([folder / "day_0"], tmp_path / "out", fractions=(0.7, 0.2, 0.1), part_bytes=2**30)
    assert_split(tmp_path / "out", "train", lines[:7000])
    assert_split(tmp_path / "out", "valid", lines[7000:9000])
    assert_split(tmp_path / "out", "test", lines[9000:])


@pytest.mark.parametrize(
    ("stage", "categories"), [("parts", Hashing(num_embeddings=ROWS)), ("values", Vocabularies(min_count=2))]
)
@pytest.mark.parametrize("killed_in", ["first", "last"])
def test_a_killed_run_goes_on_without_redoing_parts(
    days: tuple[Path, list[Lines]],
    tmp_path: Path,
    stage: str,
    categories: Hashing | Vocabularies,
    killed_in: str,
) -> None:
    folder, _ = days
    output = tmp_path / "out"
    parts = output / (stage if killed_in == "first" else "parts")
    code = (
        "from pathlib import Path; from dmt.preprocess.criteo import Hashing, Vocabularies;"
        "from tests.preprocess.test_criteo import convert;"
        f"convert([Path({str(folder)!r})], Path({str(output)!r}), part_bytes=50_000, categories={categories!r})"
    )
    process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    deadline = time.monotonic() + 180
    while len(list(parts.glob("[0-9]*"))) < 5 and time.monotonic() < deadline:
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    finished = {path: path.stat().st_mtime_ns for path in parts.glob("[0-9]*/part.json")}
    assert len(finished) >= 5 and not (output / "manifest.json").exists()
    found: dict[Path, int] = {}

    def note(told_stage: str, report: PartReport) -> None:
        # At once: parts of values are gone when all is done.
        path = output / told_stage / f"{report.source:03d}-{report.part:05d}" / "part.json"
        found[path] = path.stat().st_mtime_ns

    convert([folder], output, part_bytes=50_000, categories=categories, on_part=note)
    assert all(found[path] == at for path, at in finished.items())
    convert([folder], tmp_path / "at_once", part_bytes=50_000, categories=categories)
    assert contents(output) == contents(tmp_path / "at_once")


def test_a_killed_command_leaves_no_workers_and_goes_on(days: tuple[Path, list[Lines]], tmp_path: Path) -> None:
    output = tmp_path / "out"
    code = (
        "from pathlib import Path; from tests.preprocess.test_criteo import convert;"
        f"convert([Path({str(days[0])!r})], Path({str(output)!r}), part_bytes=50_000, workers=2)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, start_new_session=True)
    deadline = time.monotonic() + 180
    while not list(output.glob("parts/[0-9]*")) and time.monotonic() < deadline:
        time.sleep(0.002)
    process.kill()  # it alone, as when memory is short, and not its workers
    process.wait()
    while _session(process.pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not _session(process.pid)
    convert([days[0]], output, part_bytes=50_000)
    convert([days[0]], tmp_path / "at_once", part_bytes=50_000)
    assert contents(output) == contents(tmp_path / "at_once")


def _session(number: int) -> list[str]:
    """Processes of a session; those that have ended and wait for their parent to ask are not."""
    found = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, session, *_ = file.read_text().rpartition(") ")[2].split()
        except OSError:
            continue  # just ended
        if session == str(number) and state != "Z":
            found.append(file.parent.name)
    return found


def test_one_command_at_a_time_writes_a_folder(days: tuple[Path, list[Lines]], tmp_path: Path) -> None:
    def meanwhile(stage: str, report: PartReport) -> None:
        with pytest.raises(ValueError, match=r"--output .*out: another command is writing it; wait for that one"):
            convert([days[0]], tmp_path / "out")

    convert([days[0]], tmp_path / "out", on_part=meanwhile)


def test_ctrl_c_ends_with_a_word_and_a_killed_worker_with_another(tmp_path: Path) -> None:
    lines = draw_lines(np.random.default_rng(5), 2000)
    file = write_log(tmp_path / "train.txt", lines * 600)  # 260 MB: some seconds on any machine
    words = [sys.executable, "-m", "dmt.cli", "preprocess", "criteo", str(file), "--workers", "2", "--output"]

    def workers(pid: int) -> list[int]:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [int(child) for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]

    def interrupt(output: Path, how: Callable[[int], None]) -> tuple[int, str]:
        process = subprocess.Popen(
            [*words, str(output)], start_new_session=True, stderr=subprocess.PIPE, text=True, cwd=tmp_path
        )
        deadline = time.monotonic() + 60
        while len(workers(process.pid)) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.5)  # they have begun, and are not done
        how(process.pid)
        _, told = process.communicate(timeout=60)
        return process.returncode, told

    code, told = interrupt(tmp_path / "one", lambda pid: os.killpg(pid, signal.SIGINT))
    assert (code, told) == (130, "dmt: interrupted; the same command goes on from here\n")
    code, told = interrupt(tmp_path / "two", lambda pid: os.kill(workers(pid)[0], signal.SIGKILL))
    assert code == 2 and told.startswith("dmt: error: --workers 2: one of them was killed") and told.count("\n") == 1


@pytest.mark.parametrize("fractions", [None, (0.6, 0.2, 0.2)])
def test_vocabularies_are_of_the_training_rows(
    days: tuple[Path, list[Lines]], tmp_path: Path, fractions: tuple[float, float, float] | None
) -> None:
    # Only 8 bits of a value differ, so that values recur.
    lines = [re.sub(rb"[0-9a-f]{6}([0-9a-f]{2})(?=\t|$)", rb"0000ff\1", line) for of_day in days[1] for line in of_day]
    folder = tmp_path / "logs"
    folder.mkdir()
    for day in range(2):
        write_log(folder / f"day_{day}", lines[day * 10_000 : (day + 1) * 10_000])
    convert([folder], tmp_path / "out", categories=Vocabularies(min_count=30), fractions=fractions, workers=2)
    num_train = 10_000 if fractions is None else 12_000
    values = [[int(value or b"0", 16) for value in line.split(b"\t")[14:]] for line in lines]
    wanted = np.zeros((20_000, 26), np.int32)
    for column in range(26):
        of_column = [row[column] for row in values]
        counts = Counter(value for value in of_column[:num_train] if value)
        frequent = sorted((v for v, count in counts.items() if count >= 30), key=lambda v: (-counts[v], v))
        assert 20 < len(frequent) < 256
        rows = {value: row for row, value in enumerate(frequent, start=2)} | {0: 0}
        wanted[:, column] = [rows.get(value, 1) for value in of_column]
        schema = json.loads((tmp_path / "out" / "manifest.json").read_text())["schema"]
        assert schema["categorical"][column]["num_embeddings"] == 2 + len(frequent)
    found = [arrays(tmp_path / "out", split) for split in ("train", "valid", "test")]
    assert np.array_equal(np.concatenate([ids for _, ids, _ in found]), wanted)
    dense, _, labels = expected(lines)
    np.testing.assert_allclose(np.concatenate([part for part, _, _ in found]), dense, rtol=2**-22)
    assert np.array_equal(np.concatenate([part for _, _, part in found]), labels)
    assert not (tmp_path / "out" / "values").exists()


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


def test_parts_that_were_removed_are_made_again(days: tuple[Path, list[Lines]], tmp_path: Path) -> None:
    for name, categories in (("hashed", Hashing(num_embeddings=ROWS)), ("named", Vocabularies(min_count=2))):
        convert([days[0]], tmp_path / name, categories=categories)
        before = contents(tmp_path / name)
        shutil.rmtree(tmp_path / name / "parts" / "000-00001")
        convert([days[0]], tmp_path / name, categories=categories)
        assert contents(tmp_path / name) == before
    # With none of them left, other options are another conversion.
    shutil.rmtree(tmp_path / "hashed" / "parts")
    done = convert([days[0]], tmp_path / "hashed", categories=Hashing(num_embeddings=(5,) * 26))
    assert done["schema"]["categorical"][0]["num_embeddings"] == 5


def test_workers_end_with_an_error_and_one_may_try_again(tmp_path: Path) -> None:
    lines = draw_lines(np.random.default_rng(6), 2000)
    (tmp_path / "day_0.gz").write_bytes(gzip.compress(b"1\n" + b"\n".join(lines) + b"\n", compresslevel=1))
    (tmp_path / "day_1.gz").write_bytes(gzip.compress(b"\n".join(lines * 300) + b"\n", compresslevel=1))
    logs = [tmp_path / "day_0.gz", tmp_path / "day_1.gz"]
    with pytest.raises(ValueError, match=r"day_0.gz, line 1: 1 columns, not 40"):
        convert(logs, tmp_path / "out", part_bytes=10_000_000, workers=2)
    # The other day's worker was in the middle of it.
    assert len(list((tmp_path / "out" / "parts").glob("001-*"))) < 13
    done = convert(logs, tmp_path / "out", part_bytes=10_000_000, workers=2, skip_bad_lines=True)
    assert done["bad_lines"] == 1 and sum(source["rows"] for source in done["sources"]) == 602_000


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
        preprocess_criteo(sources, tmp_path / "gone", options=options, splits=Splits(fractions=(1, 0, 0)))


def test_a_file_without_rows_is_named(days: tuple[Path, list[Lines]], tmp_path: Path) -> None:
    write_log(tmp_path / "day_0", days[1][0])
    (tmp_path / "day_1.gz").write_bytes(gzip.compress(b""))
    with pytest.raises(ValueError, match=r"day_1.gz: there are no rows in it; fetch it again, or leave it out"):
        convert([tmp_path], tmp_path / "out")


def test_more_parts_than_files_may_be_open(tmp_path: Path) -> None:
    log = write_log(tmp_path / "log", draw_lines(np.random.default_rng(7), 3000))
    code = (
        "import resource; from pathlib import Path; from dmt.preprocess.criteo import Vocabularies;"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (128, resource.getrlimit(resource.RLIMIT_NOFILE)[1]));"
        "from tests.preprocess.test_criteo import arrays, convert;"
        f"done = convert([Path({str(log)!r})], Path({str(tmp_path / 'out')!r}), part_bytes=5000,"
        "fractions=(1, 0, 0), categories=Vocabularies(min_count=2)); assert len(done['parts']) > 128;"
        f"assert len(arrays(Path({str(tmp_path / 'out')!r}), 'train')[2]) == 3000"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_the_command_tells_what_it_did(
    days: tuple[Path, list[Lines]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, lines = days
    bad = write_log(tmp_path / "train.txt", [b"what?", *lines[0][:99]])
    main(
        [
            "preprocess",
            "criteo",
            str(bad),
            "--output",
            str(tmp_path / "out"),
            "--on-bad-lines",
            "skip",
            "--workers",
            "1",
        ]
    )
    told = capsys.readouterr().out
    assert "train.txt, line 1: 1 columns" in told and "lines left out: 1;" in told
    assert "99 rows (79 train, 10 valid, 10 test)" in told
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["schema"]["categorical"][0] == {
        "name": "C1", "num_embeddings": 1_000_000, "multi_hot": False, "mean_length": 1.0, "table": "C1"
    }  # fmt: skip


@pytest.mark.parametrize("is_zipped", [False, True])
def test_a_terminal_shows_rows_bytes_and_time_left(
    days: tuple[Path, list[Lines]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    is_zipped: bool,
) -> None:
    text = (days[0] / "day_0").read_bytes()
    log = tmp_path / "day_0.gz"
    log.write_bytes(gzip.compress(text) if is_zipped else text)
    if not is_zipped:
        log = log.rename(tmp_path / "day_0")
    monkeypatch.setenv("FORCE_COLOR", "1")  # for rich, a terminal
    main(["preprocess", "criteo", str(log), "--output", str(tmp_path / "out"), "--workers", "1"])
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", capsys.readouterr().err)
    megabytes = f"{len(text) / 1e6:.1f}"
    assert f"{megabytes}/{megabytes} MB parts: 10,000 rows 0:00:00" in " ".join(shown.split())


@pytest.mark.parametrize("ranks", [["--trainer.devices=1"], ["--trainer.devices=2", "--trainer.strategy=sptt"]])
def test_models_train_on_it(days: tuple[Path, list[Lines]], tmp_path: Path, ranks: list[str]) -> None:
    convert([days[0]], tmp_path / "out")
    words = ["--config=configs/criteo.yaml", f"--data.path={tmp_path / 'out'}", "--data.global_batch_size=512"]
    words += ["--trainer.accelerator=cpu", "--ranks_per_host=1", *ranks]
    done = subprocess.run(
        [sys.executable, "-m", "dmt.cli", "fit", *words],
        cwd=ROOT,
        env=os.environ | {"DMT_SAVE_DIR": str(tmp_path / "run")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "test/auroc" in done.stdout


def test_the_command_starts_without_torch() -> None:
    code = "import sys; from dmt.cli import main; main(['preprocess', 'criteo', '--help'])\n"
    subprocess.run(
        [sys.executable, "-c", f"try:\n    {code}except SystemExit:\n    assert 'torch' not in sys.modules"], check=True
    )


@pytest.mark.parametrize(
    ("names", "options", "told"),
    [
        (["day_9"], [], "day_9: no such file"),
        (["empty"], [], "empty: it is empty; fetch it again"),
        (["plain.gz"], [], "plain.gz: not a gzip file; rename it if it is plain text"),
        (["cut.gz"], [], ": damaged gzip file (Compressed file ended before"),
        (["one_line"], [], "one_line: no line end in a mebibyte"),
        (["day_0", "day_2"], [], "day_1 is missing between"),
        (["day_0", "log", "day_2"], [], "day_1 is missing between"),
        (
            ["blank"],
            ["--on-bad-lines", "skip"],
            "blank: no rows for training, of 0 rows and 3 lines that",
        ),
        (["day_0", "more/day_0"], [], "day 0 is given twice"),
        (["more/none"], [], "none: no day_0 to day_23, no train.txt, no *_dense.npy and no saved dataset"),
        (["day_0"], ["--num-embeddings", "0"], "--num-embeddings 0: give a number from 1"),
        (["day_0"], ["--num-embeddings", "1,2"], "--num-embeddings 1,2: give a number from 1"),
        (["day_0"], ["--min-count", "0"], "--min-count 0: give at least 1"),
        (["day_0"], ["--min-count", "2", "--num-embeddings", "9"], "--num-embeddings 9: with --min-count the"),
        (["day_0"], ["--split", "0.5,0.1,0.1"], "--split 0.5,0.1,0.1: give three numbers that sum to 1"),
        (["day_0"], ["--split", "nan,0.5,0.5"], "--split nan,0.5,0.5: give three numbers that sum to 1"),
        (["day_0"], ["--workers", "0"], "--workers 0: give at least 1"),
        (["day_0"], ["--output", "day_0"], "it exists and is not of dmt preprocess; give another folder"),
        (["day_0"], ["--output", "day_0/x"], "Not a directory"),
    ],
)
def test_wrong_input_is_named(
    names: list[str],
    options: list[str],
    told: str,
    days: tuple[Path, list[Lines]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "more" / "none").mkdir(parents=True)
    text = (days[0] / "day_0").read_bytes()[:100_000].rpartition(b"\n")[0] + b"\n"
    for name in ("day_0", "day_2", "more/day_0", "plain.gz", "log"):
        Path(name).write_bytes(text)
    Path("blank").write_bytes(b"\n" * 3)
    Path("empty").touch()
    Path("cut.gz").write_bytes(gzip.compress(text)[:-2000])
    Path("one_line").write_bytes(b"0" * 18 * 2**20)
    output = [] if "--output" in options else ["--output", "out"]
    workers = [] if "--workers" in options else ["--workers", "1"]
    with pytest.raises(SystemExit, match="2"):
        main(["preprocess", "criteo", *names, *options, *output, *workers])
    assert told in capsys.readouterr().err
    assert not Path("out/manifest.json").exists()


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError("20000 requested and 14304 written"),  # as numpy says it, in two ways
        OSError("Not enough free space to write 29948472 bytes after offset 128"),
    ],
)
def test_a_full_disk_leaves_whole_parts_from_which_it_goes_on(
    days: tuple[Path, list[Lines]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    save, saved = np.save, []

    def save_until_full(file: Path, array: np.ndarray) -> None:
        saved.append(file)
        if len(saved) == 4:
            file.write_bytes(b"half")
            raise error
        save(file, array)

    output = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(np, "save", save_until_full)
        with pytest.raises(ValueError, match=r"--output .*out: the disk is full \(.*\); free some space; the same"):
            convert([days[0]], output)
    parts = sorted(path.name for path in (output / "parts").iterdir() if not path.name.startswith("."))
    assert parts == ["000-00000", "000-00001", "000-00002"] and not (output / "manifest.json").exists()
    convert([days[0]], output)
    convert([days[0]], tmp_path / "at_once")
    assert contents(output) == contents(tmp_path / "at_once")


def test_another_conversion_is_not_mixed_in(days: tuple[Path, list[Lines]], tmp_path: Path) -> None:
    folder, _ = days
    convert([folder], tmp_path / "out")
    before = contents(tmp_path / "out")
    with pytest.raises(ValueError, match="begun with other part_bytes; give another folder or remove it"):
        convert([folder], tmp_path / "out", part_bytes=1000)
    with pytest.raises(ValueError, match="begun with other input files and --split; give"):
        convert([folder / "day_0"], tmp_path / "out", fractions=(1, 0, 0))
    assert contents(tmp_path / "out") == before
    # Where nothing was made yet, another may begin: as after an error in the first part, or a kill at once.
    for path in ("parts", "manifest.json"):
        (tmp_path / "out" / path).rename(tmp_path / f"former_{path}")
    (tmp_path / "out" / ".options.json").write_text("half")
    convert([folder], tmp_path / "out", part_bytes=100_000)
    (tmp_path / "killed").mkdir()
    (tmp_path / "killed" / ".options.json").write_text("half")
    convert([folder], tmp_path / "killed", part_bytes=100_000)
    assert contents(tmp_path / "killed") == contents(tmp_path / "out")


def test_training_refuses_what_the_manifest_does_not_tell_of(days: tuple[Path, list[Lines]], tmp_path: Path) -> None:
    output = tmp_path / "out"
    with pytest.raises(ValueError, match=r"no manifest.json in it; run `dmt preprocess criteo"):
        CriteoDataModule(path=output)
    convert([days[0]], output)
    rows = output / "parts" / "000-00001" / "rows.npy"
    right = np.load(rows)
    wrong = right.copy()
    wrong[5, 20] += 1
    np.save(rows, wrong)
    with pytest.raises(ValueError, match=r"000-00001/rows.npy: its checksum is not the manifest's; copy it again, or"):
        CriteoDataModule(path=output).setup()
    np.save(rows, right)
    CriteoDataModule(path=output).setup()
    np.save(rows, right[1:])
    with pytest.raises(
        ValueError,
        match=r"000-00001/rows.npy: int32 of shape .* tells of int32 .*; copy it again, or remove .*000-00001 and",
    ):
        CriteoDataModule(path=output).setup()
    rows.unlink()
    with pytest.raises(ValueError, match="No such file"):
        CriteoDataModule(path=output).setup()
    (output / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match=r"manifest.json is damaged"):
        CriteoDataModule(path=output)
