"""A sweep that is killed leaves nothing running and nothing half done, and goes on where it was."""

import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

Write = Callable[..., Path]


def start(dmt: str, path: Path, folder: Path, *options: str) -> subprocess.Popen[str]:
    command = [dmt, "sweep", str(path), "--output", str(folder), *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def trial_processes(folder: Path) -> list[int]:
    """Processes that run a trial below a folder."""
    mark = f"DMT_SAVE_DIR={folder}/".encode()
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if any(entry.startswith(mark) for entry in path.read_bytes().split(b"\0")):
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def wait_until(condition: Callable[[], bool], *, within_s: float = 20) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def states(folder: Path) -> dict[str, str]:
    with (folder / "results.csv").open() as file:
        return {row["trial"]: row["state"] for row in csv.DictReader(file)}


def test_sigkill_and_resume(dmt: str, write_sweep: Write, tmp_path: Path) -> None:
    folder, record = tmp_path / "out", tmp_path / "starts.txt"
    path = write_sweep(
        # Each with a child that would outlive it.
        command=["bash", "-c", 'sleep 100 & exec "$0" "$@"', "${interpreter}", "-S", "${program}", "${args}"],
        parameters={"x": {"values": [1, 2, 3, 4, 5, 6]}, "seconds": {"value": 0.4}},
    )
    sweep = start(dmt, path, folder, "--workers", "2")
    wait_until(lambda: record.exists() and len(record.read_text().split()) == 4)
    sweep.kill()
    sweep.communicate()
    wait_until(lambda: trial_processes(folder) == [], within_s=2)  # the kernel ended them
    finished = {path.parent.name for path in folder.glob("*/result.json")}
    before = record.read_text().split()
    assert 2 <= len(finished) <= 4 and finished <= set(before)

    resumed = start(dmt, path, folder, "--workers", "2")
    output, errors = resumed.communicate(timeout=60)
    assert resumed.returncode == 0, errors
    assert "6 trials: 6 finished" in output
    after = record.read_text().split()[len(before) :]
    assert not finished & set(after)
    assert len(after) == 6 - len(finished) and set(after) | finished == set(states(folder))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_end_trials_with_their_children(
    number: int, code: int, dmt: str, write_sweep: Write, tmp_path: Path
) -> None:
    folder, deaf = tmp_path / "out", "trap '' TERM;"
    path = write_sweep(
        # A shell that waits for a child; neither hears SIGTERM in one of the two cases.
        command=["bash", "-c", f"{deaf if number == signal.SIGTERM else ''} sleep 100 & wait", "${args}"],
        parameters={"x": {"values": [1, 2]}},
    )
    sweep = start(dmt, path, folder, "--workers", "2")
    wait_until(lambda: len(trial_processes(folder)) == 6)  # and what waits for each shell
    sweep.send_signal(number)
    begun = time.monotonic()
    _, errors = sweep.communicate(timeout=30)
    assert sweep.returncode == code and "Traceback" not in errors
    assert time.monotonic() - begun < 8
    wait_until(lambda: trial_processes(folder) == [], within_s=2)
    assert set(states(folder).values()) == {"interrupted"}


def test_what_a_killed_sweep_left_is_ended_first(dmt: str, write_sweep: Write, tmp_path: Path) -> None:
    """A process that has outlived its parents, such as a rank or a service of a run."""
    folder, path = tmp_path / "out", write_sweep(parameters={"x": {"value": 1}})
    environment = {**os.environ, "DMT_SAVE_DIR": f"{folder}/0123456789"}
    orphan = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(100)"], env=environment)
    sweep = start(dmt, path, folder)
    _, errors = sweep.communicate(timeout=60)
    assert sweep.returncode == 0, errors
    assert orphan.wait(timeout=5) == -signal.SIGKILL
