"""Runs the trials of a sweep as processes, several at a time, and notes how each ends."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import FrameType

from dmt.errors import UserInputError
from dmt.sweep.algorithms import stopped_by_hyperband
from dmt.sweep.commandline import expand, named_files
from dmt.sweep.history import last_lines, last_reported, metric_history, summary
from dmt.sweep.ledger import Ledger, Result, Trial
from dmt.sweep.parameters import text
from dmt.sweep.process import TrialProcess, end_all
from dmt.sweep.progress import SweepProgress
from dmt.sweep.proposals import Proposals, observation, target_note
from dmt.sweep.spec import SweepSpec
from dmt.whole_files import write_whole

_POLL_S = 0.1
_HISTORY_EVERY_S = 2.0
# Lightning ends a run at the next batch, and validation may be long.
_STOP_GRACE_S = 15.0
# How a child ends that somebody else, such as a machine that shuts down, asks to: not a fault of the trial.
_ASKED_TO_END = {-signal.SIGTERM, -signal.SIGINT, 128 + signal.SIGTERM, 128 + signal.SIGINT}


@dataclass
class _Running:
    trial: Trial
    process: TrialProcess
    # When it was asked to end early, if it was.
    stopped_at: float | None = None


@dataclass
class Signals:
    """The last signal that asked the sweep to end, or 0."""

    received: int = 0


class Runner:
    """One pass over the trials that are still to run.

    Args:
        spec: of the sweep.
        ledger: opened.
        proposals: what to run.
        workers: trials at a time.
        threads: CPU threads of each, or None to leave that to it.
        progress: where to tell of it.
    """

    def __init__(
        self,
        *,
        spec: SweepSpec,
        ledger: Ledger,
        proposals: Proposals,
        workers: int,
        threads: int | None,
        progress: SweepProgress,
    ) -> None:
        self._spec = spec
        self._ledger = ledger
        self._proposals = proposals
        self._workers = workers
        self._threads = threads
        self._progress = progress
        self._running: list[_Running] = []
        self._tried: set[str] = set()
        self._target_reached = False
        self._history_at = 0.0
        self._files: dict[str, str] = {}

    def run(self, signals: Signals) -> None:
        """Run trials until none is left or a signal comes; whatever happens, no child outlives it.

        Raises:
            UserInputError: a trial has finished without the metric that the file names.
        """
        try:
            self._look_for_target(self._proposals.wanted(self._ledger.trials))
            while not signals.received:
                self._fill()
                if not self._running:
                    break
                self._progress.update(total=self._proposals.total(self._ledger.trials), running=len(self._running))
                time.sleep(_POLL_S)
                if signals.received:
                    # Whoever sent it may have sent it to the children too: they did not fail.
                    break
                self._collect()
                if self._spec.stops_early and time.monotonic() > self._history_at:
                    self._stop_early()
                    self._history_at = time.monotonic() + _HISTORY_EVERY_S
        finally:
            end_all([running.process for running in self._running])
            for running in self._running:
                self._ledger.end(running.trial, None)
            self._ledger.write_results()

    def _fill(self) -> None:
        while len(self._running) < self._workers and not self._target_reached:
            proposed = self._proposals.next(self._ledger.trials, self._tried)
            if proposed is None:
                return
            name, parameters = proposed
            self._tried.add(name)
            files = named_files(expand(self._spec.command, {}), parameters)
            self._check_unchanged(files)
            trial = self._ledger.start(id=name, parameters=parameters, files=files)
            if "${args_json_file}" in self._spec.command:
                write_whole(trial.folder / "parameters.json", text(parameters))
            process = TrialProcess(
                words=expand(self._spec.command, parameters, folder=trial.folder),
                folder=trial.folder,
                environment=self._environment(trial),
            )
            self._running.append(_Running(trial=trial, process=process))

    def _check_unchanged(self, files: dict[str, str]) -> None:
        for name, digest in files.items():
            if self._files.setdefault(name, digest) != digest:
                raise UserInputError(
                    f"{name} has changed while the sweep was running; restore it, or give another --output"
                )

    def _environment(self, trial: Trial) -> dict[str, str]:
        # W&B's own variables: a WandbLogger, if the run has one, writes into the trial's folder and asks no server.
        variables = {
            "WANDB_MODE": os.environ.get("WANDB_MODE", "offline"),
            "WANDB_DIR": str(trial.folder),
            "WANDB_RUN_GROUP": self._spec.name,
            "WANDB_NAME": trial.id,
            "WANDB_PROJECT": str(self._spec.config.get("project") or os.environ.get("WANDB_PROJECT") or "dmt"),
        }
        if self._threads is not None:
            variables |= dict.fromkeys(["OMP_NUM_THREADS", "POLARS_MAX_THREADS"], str(self._threads))
        return variables

    def _collect(self) -> None:
        for running in list(self._running):
            code = running.process.code()
            overdue = running.stopped_at is not None and time.monotonic() > running.stopped_at + _STOP_GRACE_S
            if code is None and not overdue:
                continue
            code = running.process.end()  # its children too
            self._running.remove(running)
            if code in _ASKED_TO_END and running.stopped_at is None:
                trial = self._ledger.end(running.trial, None)
            else:
                trial = self._ledger.end(running.trial, self._result(running, code))
            log = last_lines(trial.folder / "log.txt") if trial.state == "failed" else []
            total = self._proposals.total(self._ledger.trials)
            self._progress.ended(trial, total=total, running=len(self._running), log=log)
            if trial.state == "finished":
                self._check_metric(trial)

    def _result(self, running: _Running, code: int) -> Result:
        folder, seconds = running.trial.folder, running.process.seconds()
        history = metric_history(folder, self._spec.metric) if self._spec.metric else []
        told = summary(folder) if code == 0 else ""
        if isinstance(told, str) and running.stopped_at is not None:
            metrics = {str(self._spec.metric): history[-1]}
            return Result(state="stopped", seconds=seconds, metrics=metrics, history=history)
        if isinstance(told, str):
            reason = told or (f"exit code {code}" if code > 0 else f"ended by {signal.Signals(-code).name}")
            return Result(state="failed", reason=reason, seconds=seconds, history=history)
        run, outcome = told
        # `dmt fit` sums up the test; of all else the last values count, as for W&B.
        reported = last_reported(folder, prefix="val/")
        if history:
            reported[str(self._spec.metric)] = history[-1]
        return Result(
            state="finished",
            seconds=seconds,
            metrics={**reported, **outcome["metrics"]},
            samples_per_second=outcome.get("samples_per_second"),
            history=history,
            run=str(run.relative_to(folder)),
        )

    def _check_metric(self, trial: Trial) -> None:
        metric = self._spec.metric
        if metric is None or trial.result is None:
            return
        if metric not in trial.result.metrics:
            known = ", ".join(trial.result.metrics) or "none"
            raise UserInputError(
                f"{self._spec.source}: metric.name={metric}: trial {trial.id} finished without it; its metrics are "
                f"{known}"
            )
        if self._spec.stops_early and not trial.result.history:
            raise UserInputError(
                f"{self._spec.source}: early_terminate needs {metric} while a trial runs, and {trial.id} has none in "
                "a metrics.csv; name a val/ metric, or remove early_terminate"
            )
        self._look_for_target([trial])

    def _look_for_target(self, trials: Iterable[Trial]) -> None:
        note = None if self._target_reached else target_note(self._spec, trials)
        if note is not None:
            self._target_reached = True
            self._progress.line(note)

    def _stop_early(self) -> None:
        metric = str(self._spec.metric)
        live = {running.trial.id: running for running in self._running if running.stopped_at is None}
        observed = [observation(trial) for trial in self._proposals.wanted(self._ledger.trials) if trial.result]
        observed += [observation(run.trial, metric_history(run.trial.folder, metric)) for run in live.values()]
        for name in stopped_by_hyperband(self._spec.config, observed):
            live[name].stopped_at = time.monotonic()
            live[name].process.ask_to_end()


@contextlib.contextmanager
def ending_on_signals() -> Iterator[Signals]:
    """Turn Ctrl-C, SIGTERM and a closed terminal into a note, so that the ledger is never left in between.

    A signal that is ignored stays so: the program was started under nohup. Outside the main thread Python allows no
    handlers, and whoever started the thread has to end it.
    """
    signals = Signals()

    def note(number: int, frame: FrameType | None) -> None:
        signals.received = number

    numbers: Sequence[signal.Signals] = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    if threading.current_thread() is not threading.main_thread():
        numbers = ()
    before = {number: signal.getsignal(number) for number in numbers}
    for number, handler in before.items():
        if handler != signal.SIG_IGN:
            signal.signal(number, note)
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
