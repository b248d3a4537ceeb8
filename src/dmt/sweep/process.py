"""A trial as a process group of its own: start, end with all its children, and find what a killed sweep left."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from dmt.errors import UserInputError
from dmt.sweep import launch
from dmt.sweep.commandline import environment_path

# `dmt fit` puts a run's logs there, and it marks the processes of a trial.
SAVE_DIR = "DMT_SAVE_DIR"
# Checkpoints and logs are of no use any more, so a run gets little time to end by itself.
_GRACE_S = 3.0


class TrialProcess:
    """A trial's command, running.

    Args:
        words: of the command.
        folder: of the trial; output goes to its ``log.txt``.
        environment: variables beside those of this process.
    """

    def __init__(self, *, words: Sequence[str], folder: Path, environment: dict[str, str]) -> None:
        variables = {**os.environ, "PATH": environment_path(), SAVE_DIR: str(folder), **environment}
        with (folder / "log.txt").open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", launch.__file__, str(os.getpid()), *words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # A group of its own: the terminal's Ctrl-C reaches the sweep alone, which then ends all of it.
                start_new_session=True,
                env=variables,
            )
        self._started = time.monotonic()

    def code(self) -> int | None:
        """Exit code, negative for a signal; None while it runs."""
        return self._process.poll()

    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self._started

    def ask_to_end(self) -> None:
        """Send SIGTERM to the group."""
        self._signal(signal.SIGTERM)

    def end(self, *, grace_s: float = 0.0) -> int:
        """Wait a little for the command's end, kill what is left of its group, and return its exit code."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=grace_s)
        self._signal(signal.SIGKILL)  # the group exists as long as one of its processes does
        return self._process.wait()

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)


def end_all(processes: Sequence[TrialProcess]) -> None:
    """End several at once, within a few seconds altogether."""
    for process in processes:
        process.ask_to_end()
    deadline = time.monotonic() + _GRACE_S
    for process in processes:
        process.end(grace_s=max(0.0, deadline - time.monotonic()))


def kill_leftovers(folder: Path) -> None:
    """Kill the processes of trials below a sweep's folder, which a sweep that was killed has left.

    They would go on writing into folders that are about to be used anew. Their environment tells them: unlike a
    process number, it cannot mean another process by now.
    """
    mark = f"{SAVE_DIR}={folder.absolute()}/".encode()
    deadline = time.monotonic() + 10
    while left := [pid for pid in _processes() if _marked(pid, mark)]:
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            raise UserInputError(f"output={folder}: the processes {left} of an earlier run do not end; end them")
        time.sleep(0.05)


def _processes() -> list[int]:
    return [int(path.name) for path in Path("/proc").glob("[0-9]*") if int(path.name) != os.getpid()]


def _marked(pid: int, mark: bytes) -> bool:
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False  # it ended, or is somebody else's
    return any(entry.startswith(mark) for entry in environment.split(b"\0"))
