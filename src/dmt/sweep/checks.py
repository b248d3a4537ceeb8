"""What can be known of trials before one of them runs: programs, options, values, metrics."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

from dmt.errors import UserInputError, nearest
from dmt.sweep.commandline import check_program, check_verb, expand, fit_options
from dmt.sweep.ledger import Ledger, Trial
from dmt.sweep.parameters import LINKED, flatten, text
from dmt.sweep.process import SAVE_DIR
from dmt.sweep.progress import checking
from dmt.sweep.proposals import Planned, Proposals
from dmt.sweep.spec import SweepSpec


def check_trials(spec: SweepSpec, asked: Proposals, ledger: Ledger) -> None:
    """Check the trials' options and values as `dmt fit` does, all in one process that trains nothing.

    Enough trials are taken for each value of each parameter to occur once, and of a range of reals the least and the
    greatest that is drawn. A command that runs something else is checked for its program only.

    Raises:
        UserInputError: a trial could not run, or those that have finished lack the metric.
    """
    _check_metric_of_finished(spec, asked.wanted(ledger.trials))
    points = _points(asked, ledger)
    for point in points:
        flatten(point)
    base = expand(spec.command, {})
    check_program(base)
    check_verb(expand(spec.command, points[0] if points else {}))
    options = fit_options(base)
    if options is None or not points:
        return
    if any(LINKED in point for point in points) and any(word.startswith("${args_json") for word in spec.command):
        raise UserInputError(f"a parameter {LINKED} cannot be in ${{args_json}}; use ${{args}} in command")
    chosen = _covering(points, spec.config["parameters"])
    trials = [{"options": fit_options(expand(spec.command, point)), "names": list(flatten(point))} for point in chosen]
    wrong = _ask({"base": options, "trials": trials, "metric": spec.metric, "early": spec.stops_early})
    if wrong is None:
        return
    if wrong["trial"] is None:
        raise UserInputError(wrong["told"])
    told = " ".join(f"{name}={text(value)}" for name, value in flatten(chosen[wrong["trial"]]).items())
    raise UserInputError(f"trial with {told}: {wrong['told']}")


def _check_metric_of_finished(spec: SweepSpec, trials: Iterable[Trial]) -> None:
    """Of trials that have run their results tell, also where none is left to run."""
    finished = [trial.result.metrics for trial in trials if trial.result is not None and trial.state == "finished"]
    known = sorted({name for metrics in finished for name in metrics})
    if finished and spec.metric is not None and spec.metric not in known:
        fix = nearest(spec.metric, known, otherwise=f"choose one of {', '.join(known)}")
        raise UserInputError(f"metric.name={spec.metric}: no trial that has finished has it; {fix}")


def _points(asked: Proposals, ledger: Ledger) -> list[dict[str, Any]]:
    """What is to be started: of a Bayesian search the first trial, which stands for all."""
    if isinstance(asked, Planned):
        if not asked.points:
            raise UserInputError("there is no trial to run; give larger run_cap or max_runs")
        ended = {name for name, trial in ledger.trials.items() if trial.result is not None}
        return [point for name, point in asked.points.items() if name not in ended]
    proposed = asked.next(ledger.trials, set())
    return [] if proposed is None else [proposed[1]]


def _covering(points: Sequence[Mapping[str, Any]], parameters: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Points in which each value of each parameter occurs, of a range of reals the least and the greatest, in order.

    Each point draws a real of its own, and to check one takes a second.
    """
    drawn = [list(_drawn("", parameters, point)) for point in points]
    reals: dict[str, list[float]] = {}
    for name, entry, value in chain.from_iterable(drawn):
        if _is_of_range(entry, value):
            reals.setdefault(name, []).append(value)
    ends = {name: (min(values), max(values)) for name, values in reals.items()}
    seen: set[tuple[str, str]] = set()
    chosen = []
    for point, parts in zip(points, drawn, strict=True):
        values = {(name, text(value)) for name, _, value in parts if name not in ends or value in ends[name]}
        if values - seen:
            chosen.append(point)
            seen |= values
    return chosen


def _drawn(
    place: str, parameters: Mapping[str, Any], point: Mapping[str, Any]
) -> Iterator[tuple[str, Mapping[str, Any], Any]]:
    """Name, entry in the file and value of each parameter, nested ones each for itself."""
    for name, value in point.items():
        entry = parameters[name]
        if isinstance(entry.get("parameters"), Mapping):
            yield from _drawn(f"{place}{name}.", entry["parameters"], value)
        else:
            yield f"{place}{name}", entry, value


def _is_of_range(entry: Mapping[str, Any], value: Any) -> bool:
    """Whether a value is drawn from a range of reals; whole numbers and steps count as if they were listed."""
    is_stepped = str(entry.get("distribution")).startswith("q_")
    return isinstance(value, float) and not is_stepped and not {"value", "values"} & set(entry)


def _ask(question: dict[str, Any]) -> dict[str, Any] | None:
    """Have dmt.preflight, which imports torch, answer in a process of its own."""
    environment = {name: value for name, value in os.environ.items() if name != SAVE_DIR}
    # Files, since it may say more of either than a pipe holds while its answers are read.
    with tempfile.TemporaryFile("w+") as asked, tempfile.TemporaryFile("w+") as errors:
        json.dump(question, asked)
        asked.seek(0)
        command = [sys.executable, "-m", "dmt.preflight"]
        with subprocess.Popen(
            command, stdin=asked, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment
        ) as process:
            assert process.stdout is not None
            lines = list(checking(process.stdout, total=len(question["trials"])))
        if process.returncode != 0:
            errors.seek(0)
            raise RuntimeError(f"checking the trials' options failed:\n{errors.read()[-3000:]}")
    answers: list[dict[str, Any] | None] = [json.loads(line) for line in lines]
    return next((answer for answer in answers if answer is not None), None)
