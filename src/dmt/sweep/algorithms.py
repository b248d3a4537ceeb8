"""The one door to W&B's open ``sweeps`` package: its schema, its search algorithms and its Hyperband.

Its metadata asks for numpy below 2; nothing that it does with numpy, scipy or scikit-learn has changed since, and
tests/sweep/test_algorithms.py runs every part that is used here (requirements/sweeps.txt says how it is installed).
"""

import math
import random
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any, Literal

from dmt.errors import UserInputError

# Draws in a row that give no new point, after which a space counts as exhausted.
_FRUITLESS_DRAWS = 1000


@dataclass(frozen=True, kw_only=True)
class Observation:
    """What is known of a trial when the next one is chosen, or one is judged.

    Args:
        name: of the trial.
        parameters: as proposed.
        state: ``running``, ``finished`` or ``failed``.
        metrics: final metrics by name.
        history: values of the sweep's metric, in the order in which the run reported them.
    """

    name: str
    parameters: Mapping[str, Any]
    state: Literal["running", "finished", "failed"]
    metrics: Mapping[str, float]
    history: Sequence[float]


@cache
def _sweeps() -> ModuleType:
    """The package, imported on first use: with scipy, and for bayes scikit-learn, it takes a second."""
    with warnings.catch_warnings():
        # sweeps 0.3.0 declares its pydantic models by names of pydantic's version 1.
        warnings.simplefilter("ignore")
        try:
            import sweeps
        except ImportError as error:
            raise UserInputError(
                f"dmt sweep needs W&B's package sweeps ({error}); run pip install --no-deps -r requirements/sweeps.txt"
            ) from error
    return sweeps


def violations(config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Where and how a sweep file breaks W&B's schema; empty if it does not.

    Each is a dotted place in the file, ``""`` where the package does not tell it, and a message.
    """
    from jsonschema import ValidationError

    package = _sweeps()
    errors = package.config.schema.validator.iter_errors(config)
    found = [(".".join(map(str, error.absolute_path)), error.message) for error in errors]
    if found:
        return found
    try:  # What a schema cannot say: min below max, probabilities that sum to 1, deprecated distributions.
        return [("", message) for message in package.schema_violations_from_proposed_config(dict(config))]
    except (ValueError, ValidationError) as error:
        return [("", str(error))]


def grid_points(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every point of a grid, the last parameter by name varying fastest.

    Raises:
        UserInputError: a parameter has no finite set of values.
    """
    try:
        runs = _sweeps().next_runs(_plain(config), [], n=2**62)
    except ValueError as error:
        raise UserInputError(f"{error}; list its values, or choose method random or bayes") from error
    return [_parameters(run) for run in runs if run is not None]


def random_points(config: Mapping[str, Any], num: int) -> list[dict[str, Any]]:
    """The first ``num`` different points of a random search, fewer if there are not so many.

    The same space gives the same points, each time and in this order, whatever ``num`` is: a resumed sweep goes on.
    """
    points: list[dict[str, Any]] = []
    fruitless = 0
    with _seeded(0):
        while len(points) < num and fruitless < _FRUITLESS_DRAWS:
            point = _parameters(_sweeps().next_run(_plain(config), []))
            fruitless = fruitless + 1 if point in points else 0
            if not fruitless:
                points.append(point)
    return points


def bayes_point(config: Mapping[str, Any], observed: Sequence[Observation]) -> dict[str, Any] | None:
    """The next point of a Bayesian search: not one of those observed; None where none is found."""
    known = [dict(observation.parameters) for observation in observed]
    metric = config["metric"]["name"]
    runs = [_run(observation, metric) for observation in observed]
    with _seeded(len(observed)), warnings.catch_warnings():
        # Of a fit at its bounds, which the package looks at itself: it then takes a random point.
        warnings.filterwarnings("ignore", module="sklearn")
        # The acquisition function is evaluated at random points: in a small discrete space it may well return a
        # known point, and the next call another.
        for _ in range(5):
            point = _parameters(_sweeps().next_run(_plain(config), runs))
            if point not in known:
                return point
        candidates = (_parameters(_sweeps().next_run(_plain(config), [])) for _ in range(_FRUITLESS_DRAWS))
        return next((point for point in candidates if point not in known), None)


def stopped_by_hyperband(config: Mapping[str, Any], observed: Sequence[Observation]) -> set[str]:
    """Names of the running trials that Hyperband ends, and of those that have diverged by when it looks first."""
    runs = [_run(observation, config["metric"]["name"]) for observation in observed]
    # The package leaves out what is not finite: the others are compared as if diverged ones were not there, and they
    # themselves would go on to the end.
    first = _first_look(config["early_terminate"])
    diverged = {
        observation.name
        for observation in observed
        if observation.state == "running"
        and len(observation.history) >= first
        and not math.isfinite(observation.history[-1])
    }
    return diverged | {run.name for run in _sweeps().stop_runs(_plain(config), runs)}


def _first_look(rule: Mapping[str, Any]) -> int:
    """The number of reports after which Hyperband compares trials for the first time."""
    if "max_iter" not in rule:
        return int(rule["min_iter"])
    looks = (int(rule["max_iter"] / rule.get("eta", 3) ** number) for number in range(1, rule["s"] + 1))
    return min(look for look in looks if look >= 1)


def _run(observation: Observation, metric: str) -> Any:
    return _sweeps().SweepRun(
        name=observation.name,
        state=observation.state,
        config={name: {"value": value} for name, value in observation.parameters.items()},
        summary_metrics=dict(observation.metrics),
        history=[{metric: value} for value in observation.history],
    )


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """What the package's algorithms read; they fill in defaults, so they get a dictionary of their own."""
    return {name: config[name] for name in ("method", "parameters", "metric", "early_terminate") if name in config}


def _parameters(run: Any) -> dict[str, Any]:
    return {name: _python(entry["value"]) for name, entry in run.config.items()}


def _python(value: Any) -> Any:
    """``value`` with numpy's numbers made Python's, which JSON knows."""
    if isinstance(value, dict):
        return {name: _python(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_python(item) for item in value]
    return value.item() if hasattr(value, "item") else value


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """The package draws from Python's and numpy's global generators: set them, and put them back."""
    import numpy as np

    python_state, numpy_state = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed)
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
