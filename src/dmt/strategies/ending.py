"""How a rank ends when it is asked to, and when the process that started it has died.

Lightning (2.6) sends a message to every rank in every training step to learn whether one was asked to end, and another
one in the middle of whatever it was doing when the signal comes, which may answer a collective of the model's. Here a
rank that is asked to end tells those that it has started, and ends by itself.
"""

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType

import lightning.pytorch as pl
from lightning.pytorch.utilities.exceptions import SIGTERMException

_GRACE_S = 10.0
"""What is left to loggers, and to a collective that hangs, before a rank that was asked to end is ended."""
_PR_SET_PDEATHSIG = 1


def end_with_parent() -> None:
    """Have the kernel end this process when the one that started it has died; nothing where it is not Linux."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class EndOnSigterm:
    """From now on SIGTERM ends this rank and those that it has started, in a bounded time.

    Args:
        trainer: before it registers its own handlers.
        tell: sends a signal to the ranks that this one has started.
    """

    def __init__(self, trainer: pl.Trainer, tell: Callable[[signal.Signals], None]) -> None:
        self._tell = tell
        self._was_asked = False
        # Both private. tests/distributed/test_training.py and tests/cli/test_runs.py guard them.
        trainer._signal_connector._sigterm_notifier_fn = self._handle  # type: ignore[method-assign,assignment]
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
        self._pipe_end: int | None = None
        if threading.current_thread() is threading.main_thread():
            self._watch()

    def close(self) -> None:
        """Leave signals as they were found."""
        if self._pipe_end is not None:
            signal.set_wakeup_fd(self._previous)
            os.close(self._pipe_end)  # which ends the thread
            self._pipe_end = None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self._was_asked:  # once: those that have started this one may tell it again
            self._was_asked = True
            self._tell(signal.SIGTERM)
            raise SIGTERMException

    def _watch(self) -> None:
        """A thread sees the signal too, for Python's handlers wait for a collective that may wait for ever."""
        read_end, self._pipe_end = os.pipe()
        os.set_blocking(self._pipe_end, False)
        self._previous = signal.set_wakeup_fd(self._pipe_end, warn_on_full_buffer=False)
        threading.Thread(target=self._end_late, args=(read_end,), daemon=True, name="dmt-ending").start()

    def _end_late(self, read_end: int) -> None:
        with os.fdopen(read_end, "rb", buffering=0) as signals:
            while number := signals.read(1):
                if number[0] == signal.SIGTERM:
                    time.sleep(_GRACE_S)
                    self._tell(signal.SIGKILL)
                    os._exit(128 + signal.SIGTERM)
