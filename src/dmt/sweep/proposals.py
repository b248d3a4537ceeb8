"""Which trial comes next: a list known from the start for grid and random, one at a time for bayes."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, Protocol

from dmt.errors import UserInputError
from dmt.sweep.algorithms import Observation, bayes_point, grid_points, random_points
from dmt.sweep.ledger import Trial
from dmt.sweep.parameters import trial_id
from dmt.sweep.spec import SweepSpec


class Proposals(Protocol):
    """Gives trials to run, by id and parameters."""

    def next(self, trials: Mapping[str, Trial], tried: set[str]) -> tuple[str, dict[str, Any]] | None:
        """The next trial to start, or None while there is none.

        Args:
            trials: of the ledger.
            tried: ids that were started by this process already.
        """

    def total(self, trials: Mapping[str, Trial]) -> int:
        """How many trials there will have been at the end."""

    def wanted(self, trials: Mapping[str, Trial]) -> list[Trial]:
        """The trials of the ledger that belong to the file as it is now."""


class Planned:
    """Trials of a list, in its order; those that have ended are not run again.

    Args:
        points: by id, parameters.
    """

    def __init__(self, points: Mapping[str, dict[str, Any]]) -> None:
        self.points = points

    def next(self, trials: Mapping[str, Trial], tried: set[str]) -> tuple[str, dict[str, Any]] | None:
        open_points = (name for name in self.points if name not in tried and not _ended(trials, name))
        name = next(open_points, None)
        return None if name is None else (name, self.points[name])

    def total(self, trials: Mapping[str, Trial]) -> int:
        return len(self.points)

    def wanted(self, trials: Mapping[str, Trial]) -> list[Trial]:
        return [trials[name] for name in self.points if name in trials]


class Bayes:
    """Trials that follow from the results of those before; interrupted ones first.

    Args:
        spec: of the sweep.
        cap: the number of trials altogether.
    """

    def __init__(self, *, spec: SweepSpec, cap: int) -> None:
        self._spec = spec
        self._cap = cap

    def next(self, trials: Mapping[str, Trial], tried: set[str]) -> tuple[str, dict[str, Any]] | None:
        started = self.wanted(trials)
        for trial in started:
            if trial.id not in tried and trial.result is None:
                return trial.id, trial.parameters
        if len(started) >= self._cap:
            return None
        point = bayes_point(self._spec.config, [observation(trial) for trial in started])
        if point is None:
            self._cap = len(started)  # the space has no more points
            return None
        return trial_id(parameters=point, command=self._spec.command), point

    def total(self, trials: Mapping[str, Trial]) -> int:
        return max(self._cap, len(trials))

    def wanted(self, trials: Mapping[str, Trial]) -> list[Trial]:
        return sorted(trials.values(), key=lambda trial: trial.number)


def proposals(spec: SweepSpec, trials: Mapping[str, Trial], *, max_runs: int | None) -> Proposals:
    """The trials that a sweep file asks for.

    Args:
        spec: of the sweep.
        trials: those that were started earlier; they count towards the cap and come first.
        max_runs: how many trials the sweep may have altogether; the file's ``run_cap`` holds as well.

    Raises:
        UserInputError: the file asks for trials without end, or for none.
    """
    caps = [cap for cap in (max_runs, spec.config.get("run_cap")) if cap is not None]
    if spec.method == "grid":
        points = grid_points(spec.config)
    elif not caps:
        raise UserInputError(f"method={spec.method} goes on without end; add run_cap to the file, or give --max_runs")
    elif spec.method == "random":
        points = random_points(spec.config, min(caps))
    else:
        return Bayes(spec=spec, cap=min(caps))
    by_id = {trial_id(parameters=point, command=spec.command): point for point in points}
    if caps:
        kept = {name for name in by_id if name in trials}
        new = [name for name in by_id if name not in kept][: max(0, min(caps) - len(kept))]
        by_id = {name: point for name, point in by_id.items() if name in kept or name in new}
    return Planned(by_id)


def target_note(spec: SweepSpec, trials: Iterable[Trial]) -> str | None:
    """What to say where a finished trial has reached ``metric.target``, after which none is started; else None."""
    for trial in trials:
        value = trial.result.metrics.get(spec.metric or "") if trial.result is not None else None
        if trial.state == "finished" and value is not None and spec.reached_target(value):
            return f"metric.target is reached by {trial.id}: no more trials are started"
    return None


def observation(trial: Trial, history: Sequence[float] | None = None) -> Observation:
    """A trial as the search algorithms see it.

    Args:
        trial: as recorded.
        history: of a running one, what it has reported so far.
    """
    result = trial.result
    state: Literal["running", "finished", "failed"] = "running"
    if result is not None:
        # One that was stopped early has a real, though early, value: to a search that says more than a failure.
        state = "failed" if result.state == "failed" else "finished"
    return Observation(
        name=trial.id,
        parameters=trial.parameters,
        state=state,
        metrics=result.metrics if result else {},
        history=history if history is not None else result.history if result else [],
    )


def _ended(trials: Mapping[str, Trial], name: str) -> bool:
    return name in trials and trials[name].result is not None
