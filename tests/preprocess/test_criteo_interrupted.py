"""Conversions that are killed, stopped or started again, full disks, and two in one folder."""

import errno
import gzip
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dmt.preprocess.criteo import Hashing, PartReport, Vocabularies
from tests.preprocess.criteo_cases import ROWS, Lines, contents, convert, draw_lines, write_log

ROOT = Path(__file__).parents[2]


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
    killed_stage = stage if killed_in == "first" else "parts"
    parts = output / killed_stage
    # It ends itself, at a random moment after five parts: whoever watches it may be late, on a busy machine.
    code = f"""
import os, random, signal, threading
from pathlib import Path
from dmt.preprocess.criteo import Hashing, Vocabularies
from tests.preprocess.criteo_cases import convert

stages = []

def note(stage, report):
    stages.append(stage)
    if stages.count({killed_stage!r}) == 5:
        threading.Timer(random.random() / 100, os.killpg, [0, signal.SIGKILL]).start()

convert([Path({str(folder)!r})], Path({str(output)!r}), part_bytes=50_000, categories={categories!r}, on_part=note)
"""
    process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    assert process.wait(timeout=180) == -signal.SIGKILL
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
        "from pathlib import Path; from tests.preprocess.criteo_cases import convert;"
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


def test_a_kill_at_the_very_end_leaves_no_half_of_the_values(
    days: tuple[Path, list[Lines]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(folder: Path, **options: object) -> None:
        if folder.exists():
            next(folder.glob("*_ordered.u4")).unlink()
            raise SystemExit

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(shutil, "rmtree", killed)
        convert([days[0]], tmp_path / "out", categories=Vocabularies(min_count=2))
    shutil.rmtree(tmp_path / "out" / "parts")
    convert([days[0]], tmp_path / "out", categories=Vocabularies(min_count=2))
    convert([days[0]], tmp_path / "at_once", categories=Vocabularies(min_count=2))
    assert contents(tmp_path / "out") == contents(tmp_path / "at_once")
