"""How far a sweep is: a line for each trial, and on a terminal a bar, with rate and time left."""

import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from dmt.sweep.ledger import Trial
from dmt.sweep.parameters import flatten, text

T = TypeVar("T")


class SweepProgress:
    """Prints as trials end; a context manager.

    Args:
        done: trials that had ended before.
        metric: the name of the sweep's metric.
        points: trials of the sweep as far as they are known; of parameters, those that are not the same in all are
            shown.
    """

    def __init__(self, *, done: int, metric: str | None, points: Sequence[Mapping[str, Any]]) -> None:
        self._done = self._done_before = done
        self._metric = metric
        flat = [flatten(point) for point in points]
        self._constant = (
            {name for name in flat[0] if all(one.get(name) == flat[0][name] for one in flat)} if flat else set()
        )
        self._started = time.monotonic()
        console = Console(soft_wrap=True)
        self._bar = (
            Progress(
                BarColumn(bar_width=30),
                MofNCompleteColumn(),
                TextColumn("{task.description}"),
                console=console,
                refresh_per_second=1,
            )
            if console.is_terminal
            else None
        )
        self._task = self._bar.add_task("", total=len(points) or None, completed=done) if self._bar else None

    def __enter__(self) -> "SweepProgress":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def line(self, told: str) -> None:
        """Print a line, above the bar if there is one."""
        if self._bar is not None:
            self._bar.console.print(told, markup=False, highlight=False)
        else:
            print(told, flush=True)

    def update(self, *, total: int, running: int) -> None:
        """Show how many trials run, and how long the rest will take."""
        if self._bar is not None and self._task is not None:
            told = ", ".join(filter(None, [f"{running} running", self._pace(total)]))
            self._bar.update(self._task, total=total, completed=self._done, description=told)

    def ended(self, trial: Trial, *, total: int, running: int, log: list[str]) -> None:
        """Print how a trial ended.

        Args:
            trial: that ended, or was interrupted.
            total: trials of the sweep.
            running: trials that still run.
            log: the last lines of a failed one.
        """
        self._done += trial.result is not None
        self.update(total=total, running=running)
        parts = [f"[{self._done}/{total}] {trial.id} {trial.state}"]
        if trial.result is not None:
            value = trial.result.metrics.get(self._metric or "")
            parts += [f"{self._metric} {value:.5g}"] if value is not None else []
            parts.append(f"{trial.result.seconds:.0f} s")
        told = {name: value for name, value in flatten(trial.parameters).items() if name not in self._constant}
        parts.append(" ".join(f"{name}={text(value)}" for name, value in told.items()))
        if self._bar is None:
            parts.append(self._pace(total))
        self.line("  ".join(filter(None, parts)))
        if trial.result is not None and trial.result.reason:
            self.line(f"    {trial.result.reason}; the end of {trial.folder / 'log.txt'}:")
            for line in log:
                self.line(f"    | {line}")

    def _pace(self, total: int) -> str:
        done = self._done - self._done_before
        if not done or total <= self._done:
            return ""
        seconds = (time.monotonic() - self._started) / done
        rate = f"{60 / seconds:.1f} a minute" if seconds < 60 else f"{3600 / seconds:.1f} an hour"
        return f"{rate}, {duration(seconds * (total - self._done))} left"


def checking(answers: Iterable[T], *, total: int) -> Iterator[T]:
    """The answers on trials' options, with a bar, the time taken and left, where standard error is a terminal.

    Unlike that of :func:`dmt.waiting.waiting` it is there from the start: the first answer takes longest.
    """
    console = Console(stderr=True)
    # 80 characters hold a thousand trials.
    columns = TextColumn("{task.description}"), BarColumn(bar_width=15), MofNCompleteColumn()
    times = TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("left")
    with Progress(*columns, *times, console=console, transient=True, disable=not console.is_terminal) as bar:
        yield from bar.track(answers, total=total, description="checking the trials' options")


def duration(seconds: float) -> str:
    """A time span in words.

    Example:
        >>> duration(4020)
        '1 h 7 min'
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def warn(told: str) -> None:
    """A line on standard error."""
    print(f"dmt: {told}", file=sys.stderr, flush=True)
