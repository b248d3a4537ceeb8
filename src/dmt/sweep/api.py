"""``run_sweep``: a sweep from Python, and what the command is made of."""

import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dmt.errors import UserInputError
from dmt.sweep.checks import check_trials
from dmt.sweep.commandline import expand, named_files
from dmt.sweep.ledger import Ledger, Trial, check_files
from dmt.sweep.process import kill_leftovers
from dmt.sweep.progress import SweepProgress, warn
from dmt.sweep.proposals import Planned, Proposals, proposals, target_note
from dmt.sweep.runner import Runner, ending_on_signals
from dmt.sweep.spec import SweepSpec, naming, read_spec


@dataclass(frozen=True, kw_only=True)
class SweepOutcome:
    """What a sweep has come to.

    Args:
        output: its folder, with ``results.csv``.
        trials: those that belong to the file as it is now, in its order.
        metric: the name of the metric that the file names, or None.
        maximize: whether more of it is better.
    """

    output: Path
    trials: tuple[Trial, ...]
    metric: str | None
    maximize: bool

    @property
    def unfinished(self) -> tuple[Trial, ...]:
        """Trials that failed or were interrupted."""
        return tuple(trial for trial in self.trials if trial.state in ("failed", "interrupted"))

    @property
    def best(self) -> Trial | None:
        """The finished trial with the best metric; None without a metric or such a trial."""
        values = {
            trial.id: trial.result.metrics[self.metric]
            for trial in self.trials
            if trial.result is not None and trial.state == "finished" and self.metric in trial.result.metrics
        }
        # A NaN is neither more nor less than another number.
        values = {name: value for name, value in values.items() if value == value}
        if not values:
            return None
        name = (max if self.maximize else min)(values, key=values.__getitem__)
        return next(trial for trial in self.trials if trial.id == name)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A sweep before any of it runs: read, checked, and set beside what its folder holds."""

    spec: SweepSpec
    ledger: Ledger
    proposals: Proposals

    @property
    def wanted(self) -> list[Trial]:
        """Trials in its folder that belong to the file as it is now."""
        return self.proposals.wanted(self.ledger.trials)

    @property
    def target_note(self) -> str | None:
        """Why no trial will be started, where one has reached the target; else None."""
        return target_note(self.spec, self.wanted)

    @property
    def to_retry(self) -> list[Trial]:
        """The failed trials that ``retry_failed`` runs again."""
        # Of one that will not be started the reason is all there is.
        return [] if self.target_note else [trial for trial in self.wanted if trial.state == "failed"]


def run_sweep(
    sweep: str | Path | Mapping[str, Any],
    *,
    output: str | Path | None = None,
    workers: int = 1,
    threads_per_worker: int | None = None,
    max_runs: int | None = None,
    retry_failed: bool = False,
) -> SweepOutcome:
    """Run a sweep file in W&B's format on this machine, with no account, server or network.

    Trials that have ended in an earlier call with the same output are not run again; one that was interrupted is
    started anew.

    A program other than ``dmt fit`` leaves one ``summary.json`` below ``$DMT_SAVE_DIR``, else the trial has failed:
    ``{"metrics": {NAME: NUMBER, ...}, "samples_per_second": NUMBER}``, where samples_per_second may be left out.

    Args:
        sweep: a file, or its content.
        output: the sweep's folder; by default ``runs/sweeps/`` and the file's name without its suffix.
        workers: trials that run at the same time.
        threads_per_worker: CPU threads of each (``OMP_NUM_THREADS``); by default the cores are shared out if there
            are several workers, and a single one decides for itself.
        max_runs: how many trials the sweep may have altogether, earlier ones included.
        retry_failed: run trials again that have failed.

    Raises:
        UserInputError: the file, an option or the folder is wrong, or a configuration has changed since it was used.
        KeyboardInterrupt: Ctrl-C; the same call goes on where this one has ended.
        SystemExit: SIGTERM or a closed terminal; likewise.
    """
    for name, value in {"workers": workers, "threads_per_worker": threads_per_worker, "max_runs": max_runs}.items():
        if value is not None and value < 1:
            raise UserInputError(f"{name}={value}: give a positive number")
    plan = make_plan(sweep, output=output, max_runs=max_runs)
    ledger = plan.ledger
    try:
        ledger.open()
        kill_leftovers(ledger.folder)
        if retry_failed:
            ledger.forget(plan.to_retry)
        done = [trial for trial in plan.wanted if trial.result is not None]
        points = list(plan.proposals.points.values()) if isinstance(plan.proposals, Planned) else []
        progress = SweepProgress(done=len(done), metric=plan.spec.metric, points=points if len(points) > 1 else [])
        with ending_on_signals() as signals, progress:
            Runner(
                spec=plan.spec,
                ledger=ledger,
                proposals=plan.proposals,
                workers=workers,
                threads=_threads(workers, threads_per_worker),
                progress=progress,
            ).run(signals)
    finally:
        ledger.close()
    if signals.received:
        warn("interrupted; the same call goes on from here")
        if signals.received == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + signals.received)
    return SweepOutcome(
        output=ledger.folder,
        trials=tuple(plan.wanted),
        metric=plan.spec.metric,
        maximize=plan.spec.maximize,
    )


def make_plan(sweep: str | Path | Mapping[str, Any], *, output: str | Path | None, max_runs: int | None) -> Plan:
    """Read a sweep and check all that can be checked before a trial runs; nothing is written.

    Raises:
        UserInputError: something is wrong with it.
    """
    spec = read_spec(sweep)
    if output is None and isinstance(sweep, Mapping):
        raise UserInputError("output is not given: a sweep that comes from no file needs a folder")
    folder = Path(output) if output is not None else Path("runs") / "sweeps" / Path(str(sweep)).stem
    ledger = Ledger(folder=folder, identity=spec.identity())
    with naming(spec.source):
        asked = proposals(spec, ledger.trials, max_runs=max_runs)
        command = expand(spec.command, {})
    ended = [trial for trial in asked.wanted(ledger.trials) if trial.result is not None]
    check_files(ended, {trial.id: named_files(command, trial.parameters) for trial in ended})
    with naming(spec.source):
        check_trials(spec, asked, ledger)
    return Plan(spec=spec, ledger=ledger, proposals=asked)


def _threads(workers: int, asked: int | None) -> int | None:
    if asked is not None or workers == 1 or "OMP_NUM_THREADS" in os.environ:
        return asked
    return max(1, len(os.sched_getaffinity(0)) // workers)
