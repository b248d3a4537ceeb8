"""Processes that work on parts, and tell what is done."""

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for
from multiprocessing.queues import SimpleQueue
from threading import Thread
from typing import Any, Self, TypeVar

from dmt.errors import UserInputError

Result = TypeVar("Result")
Tell = Callable[[Any], None]
"""What a task calls with what is to be told while it runs."""

_TOLD_EVERY_S = 0.2
_queue: "SimpleQueue[Any] | None" = None


class Workers:
    """Processes for tasks; with one of them, this one does it.

    Args:
        number: of processes.
    """

    def __init__(self, number: int) -> None:
        self._number = number
        self._pool = None
        if number > 1:
            context = get_context("spawn")
            self._told: SimpleQueue[Any] = context.SimpleQueue()
            stop, self._stop = context.Pipe(duplex=False)
            self._pool = ProcessPoolExecutor(
                max_workers=number, mp_context=context, initializer=_begin, initargs=(self._told, stop)
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._pool is not None:
            if error[0] is not None:
                self._stop.close()  # a task may be a whole day
            # Whoever tries again at once is not to meet them at work.
            self._pool.shutdown(wait=True, cancel_futures=True)

    def run(self, tasks: Sequence[Callable[[Tell], Result]], on_told: Tell = lambda told: None) -> list[Result]:
        """Run tasks; returns their results in the order of the tasks.

        Args:
            tasks: functions that can be pickled, of what they call while they run.
            on_told: called in this process with what the tasks tell.

        Raises:
            UserInputError: a worker was killed.
        """
        if self._pool is None:
            return [task(on_told) for task in tasks]
        with _workers_spared(signal.SIGINT):
            futures = [self._pool.submit(_run, task) for task in tasks]
        waiting = set(futures)
        try:
            while waiting:
                done, waiting = wait(waiting, timeout=_TOLD_EVERY_S, return_when=FIRST_EXCEPTION)
                for future in done:
                    future.result()
                while not self._told.empty():
                    on_told(self._told.get())
        except BrokenProcessPool:
            # Its thread is closing pipes that Python, at exit, would write to.
            self._pool.shutdown(wait=True)
            raise UserInputError(
                f"--workers {self._number}: one of them was killed, perhaps for want of memory; give fewer, the same "
                "command goes on"
            ) from None
        return [future.result() for future in futures]


def _begin(queue: "SimpleQueue[Any]", stop: Connection) -> None:
    global _queue
    _queue = queue
    # One thread a worker: polars' own threads would wait for Python between chunks.
    os.environ["POLARS_MAX_THREADS"] = "1"
    Thread(target=_end_with_parent, args=[stop], daemon=True).start()


def _end_with_parent(stop: Connection) -> None:
    """End when the parent says so or was killed: a worker would go on with what it does and with what is queued."""
    parent = parent_process()
    assert parent is not None
    wait_for([parent.sentinel, stop])
    os._exit(1)


def _run(task: Callable[[Tell], Result]) -> Result:
    assert _queue is not None
    return task(_queue.put)


@contextmanager
def _workers_spared(number: signal.Signals) -> Iterator[None]:
    """Let processes that start meanwhile never get a signal: a terminal's Ctrl-C is for the one that started them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {number})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
