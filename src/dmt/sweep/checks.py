"""What can be known of trials before one of them runs: programs, options, values, metrics."""

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from dmt.errors import UserInputError
from dmt.sweep.commandline import check_program, expand, fit_options
from dmt.sweep.ledger import Ledger
from dmt.sweep.parameters import LINKED, flatten, text
from dmt.sweep.process import SAVE_DIR
from dmt.sweep.proposals import Planned, Proposals
from dmt.sweep.spec import SweepSpec


def check_trials(spec: SweepSpec, asked: Proposals, ledger: Ledger) -> None:
    """Parse the trials' options as `dmt fit` does, all in one process that trains nothing.

    Enough trials are taken for each value of each parameter to occur once. A command that runs something else is
    checked for its program only.

    Raises:
        UserInputError: a trial could not run.
    """
    points = _points(spec, asked, ledger)
    for point in points:
        flatten(point)
    base = expand(spec.command, {})
    check_program(base)
    options = fit_options(base)
    if options is None or not points:
        return
    if any(LINKED in point for point in points) and any(word.startswith("${args_json") for word in spec.command):
        raise UserInputError(
            f"{spec.source}: a parameter {LINKED} cannot be in ${{args_json}}; use ${{args}} in command"
        )
    chosen = _covering(points)
    trials = [{"options": fit_options(expand(spec.command, point)), "names": list(flatten(point))} for point in chosen]
    wrong = _ask({"base": options, "trials": trials, "metric": spec.metric, "early": spec.stops_early})
    if wrong is None:
        return
    if wrong["trial"] is None:
        raise UserInputError(f"{spec.source}: {wrong['told']}")
    told = " ".join(f"{name}={text(value)}" for name, value in flatten(chosen[wrong["trial"]]).items())
    raise UserInputError(f"{spec.source}: trial with {told}: {wrong['told']}")


def _points(spec: SweepSpec, asked: Proposals, ledger: Ledger) -> list[dict[str, Any]]:
    """What is to be started for the first time: of a Bayesian search the first trial, which stands for all."""
    if isinstance(asked, Planned):
        if not asked.points:
            raise UserInputError(f"{spec.source}: there is no trial to run; give larger run_cap or max_runs")
        return [point for name, point in asked.points.items() if name not in ledger.trials]
    proposed = asked.next(ledger.trials, set())
    return [] if proposed is None else [proposed[1]]


def _covering(points: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Points in which each value of each parameter occurs, in order."""
    seen: set[tuple[str, str]] = set()
    chosen = []
    for point in points:
        values = {(name, text(value)) for name, value in point.items()}
        if values - seen:
            chosen.append(point)
            seen |= values
    return chosen


def _ask(question: dict[str, Any]) -> dict[str, Any] | None:
    """Have dmt.preflight, which imports torch, answer in a process of its own."""
    environment = {name: value for name, value in os.environ.items() if name != SAVE_DIR}
    done = subprocess.run(
        [sys.executable, "-m", "dmt.preflight"],
        input=json.dumps(question),
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"checking the trials' options failed:\n{done.stderr[-3000:]}")
    answer: dict[str, Any] | None = json.loads(done.stdout.splitlines()[-1])
    return answer
