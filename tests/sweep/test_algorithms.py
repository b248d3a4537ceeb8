"""W&B's search algorithms run on the project's numpy, scipy and scikit-learn, and do what they are for."""

import math
import random
from typing import Literal

import numpy as np
import pytest

from dmt.errors import UserInputError
from dmt.sweep.algorithms import Observation, bayes_point, grid_points, random_points, stopped_by_hyperband


def test_grid_takes_every_point_once() -> None:
    block = {"class_path": "A", "init_args": {"p": [1, None]}}
    parameters = {"b": {"values": [1, 2, 2]}, "a": {"values": [block, "x"]}, "c": {"value": 5}}
    points = grid_points({"method": "grid", "parameters": parameters})
    assert points == [{"a": a, "b": b, "c": 5} for a in (block, "x") for b in (1, 2)]


def test_grid_of_nested_parameters() -> None:
    nested = {"model": {"parameters": {"p": {"values": [1, 2]}, "q": {"value": 3}}}}
    assert grid_points({"method": "grid", "parameters": nested}) == [{"model": {"p": p, "q": 3}} for p in (1, 2)]


def test_grid_refuses_a_range_of_reals() -> None:
    with pytest.raises(UserInputError, match=r"x .* choose method random or bayes"):
        grid_points({"method": "grid", "parameters": {"x": {"min": 0.0, "max": 1.0}}})


def test_random_points_are_the_same_each_time() -> None:
    space = {"x": {"distribution": "log_uniform_values", "min": 1e-4, "max": 1.0}, "n": {"min": 1, "max": 9}}
    config = {"method": "random", "parameters": space}
    state = random.getstate(), np.random.get_state()[1].tolist()
    points = random_points(config, 8)
    assert state == (random.getstate(), np.random.get_state()[1].tolist())
    assert points[:3] == random_points(config, 3)
    assert len({point["x"] for point in points}) == 8
    assert all(1e-4 <= point["x"] <= 1 and point["n"] in range(1, 10) for point in points)
    assert {type(value) for point in points for value in point.values()} == {int, float}


def test_random_points_of_a_small_space_end() -> None:
    config = {"method": "random", "parameters": {"x": {"values": [1, 2]}, "y": {"values": ["a", "b"]}}}
    assert len(random_points(config, 100)) == 4


def observed(config: dict, *, num: int) -> list[Observation]:
    """A Bayesian search of ``num`` trials for the x nearest 0.7."""
    found: list[Observation] = []
    for number in range(num):
        point = bayes_point(config, found)
        assert point is not None
        found.append(
            Observation(
                name=str(number),
                parameters=point,
                state="failed" if number == 1 else "finished",
                metrics={} if number == 1 else {"m": -abs(point["x"] - 0.7)},
                history=[],
            )
        )
    return found


BAYES = {
    "method": "bayes",
    "metric": {"name": "m", "goal": "maximize"},
    "parameters": {"x": {"min": 0.0, "max": 1.0}, "kind": {"values": [{"a": 1}, {"a": 2}]}},
}


def test_bayes_closes_in() -> None:
    found = observed(BAYES, num=12)
    assert min(abs(observation.parameters["x"] - 0.7) for observation in found[6:]) < 0.05
    assert [o.parameters for o in observed(BAYES, num=4)] == [o.parameters for o in found[:4]]


def test_bayes_stops_when_the_space_is_used_up() -> None:
    config = {**BAYES, "parameters": {"x": {"values": [0.5, 0.7]}, "kind": {"values": [1, 2]}}}
    found = observed(config, num=4)
    assert len({str(observation.parameters) for observation in found}) == 4
    assert bayes_point(config, found) is None


HYPERBAND = {
    "method": "grid",
    "metric": {"name": "m", "goal": "maximize"},
    "early_terminate": {"type": "hyperband", "min_iter": 2, "eta": 2},
    "parameters": {"x": {"values": [1]}},
}


def run(name: str, history: list[float], state: Literal["running", "finished"] = "running") -> Observation:
    return Observation(name=name, parameters={"x": 1}, state=state, metrics={}, history=history)


def test_hyperband_ends_the_worse_half() -> None:
    runs = [run("good", [0.1, 0.9]), run("bad", [0.1, 0.2]), run("young", [0.0]), run("done", [0.5, 0.8], "finished")]
    assert stopped_by_hyperband(HYPERBAND, runs) == {"bad"}


@pytest.mark.parametrize("rule", [{"min_iter": 2}, {"max_iter": 8, "s": 2}])
@pytest.mark.parametrize("num_diverged", [1, 4])
def test_hyperband_ends_diverged_trials_and_compares_the_others(rule: dict, num_diverged: int) -> None:
    config = {**HYPERBAND, "early_terminate": {"type": "hyperband", "eta": 2, **rule}}
    runs = [run("good", [0.1, 0.9]), run("bad", [0.1, 0.2]), run("done", [0.5, 0.8], "finished")]
    runs += [run(f"diverged {number}", [0.1, math.nan]) for number in range(num_diverged)]
    runs += [run("young", [math.nan]), run("ended", [math.nan, math.nan], "finished")]
    assert stopped_by_hyperband(config, runs) == {"bad", *(f"diverged {number}" for number in range(num_diverged))}
