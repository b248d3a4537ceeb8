"""Groups within bounds, against trying all assignments."""

from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from dmt.errors import UserInputError
from dmt.partition import balanced
from dmt.partition.balanced import Bounds, assign, cluster, size_ranges


@given(st.integers(1, 30), st.integers(1, 8), st.floats(1, 4))
def test_every_division_at_a_ratio_is_within_a_range(num_points: int, num_groups: int, ratio: float) -> None:
    if num_groups > num_points:
        with pytest.raises(UserInputError, match=f"towers={num_groups}: {num_points} features fill between"):
            size_ranges(num_points, num_groups, ratio)
        return
    ranges = size_ranges(num_points, num_groups, ratio)
    assert ranges
    for smallest, largest in ranges:
        assert smallest * num_groups <= num_points <= largest * num_groups
        even = num_points // num_groups
        assert largest <= ratio * smallest + 1e-9 or (smallest, largest) == (even, even + 1)
    # Any sizes at the ratio.
    for low in range(1, num_points + 1):
        for high in range(low, min(int(ratio * low + 1e-9), num_points) + 1):
            rest = num_points - low - high
            if num_groups >= 2 and low * (num_groups - 2) <= rest <= high * (num_groups - 2):
                assert any(smallest <= low and high <= largest for smallest, largest in ranges)


def best_by_trying(costs: np.ndarray, bounds: Bounds) -> float:
    num_points, num_groups = costs.shape
    best = np.inf
    for groups in product(range(num_groups), repeat=num_points):
        sizes = np.bincount(groups, minlength=num_groups)
        loads = np.zeros(num_groups) if bounds.costs is None else np.bincount(groups, bounds.costs, num_groups)
        is_allowed = (
            any(smallest <= sizes.min() and sizes.max() <= largest for smallest, largest in bounds.sizes)
            and (loads <= bounds.max_load * bounds.mean_cost * (1 + 1e-9)).all()
            and all(groups[point] == group for point, group in bounds.pinned.items())
            and not any(groups[one] == groups[other] for one, other in bounds.apart)
        )
        if is_allowed:
            best = min(best, costs[np.arange(num_points), groups].sum())
    return best


@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(0, 10**6))
def test_assignments_are_the_best_within_the_bounds(data: st.DataObject, seed: int) -> None:
    rng = np.random.default_rng(seed)
    num_points, num_groups = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 3))
    # The solver's tolerances are absolute, and may be none of ours.
    scale, cost_scale = (10.0 ** data.draw(st.integers(-12, 12)) for _ in range(2))
    costs = rng.random((num_points, num_groups)) * scale
    bounds = Bounds(
        sizes=data.draw(st.lists(st.tuples(st.integers(0, 2), st.integers(2, 4)), min_size=1, max_size=3)),
        costs=rng.random(num_points) * cost_scale if data.draw(st.booleans()) else None,
        mean_cost=0.5 * cost_scale,
        max_load=data.draw(st.floats(1, 6)),
        pinned={0: num_groups - 1} if data.draw(st.booleans()) else {},
        apart=[(0, num_points - 1)] if num_points > 1 and data.draw(st.booleans()) else [],
    )
    best = best_by_trying(costs, bounds)
    if best == np.inf:
        with pytest.raises(UserInputError, match=f"{num_points} features cannot be put into {num_groups} towers with"):
            assign(costs, bounds)
    else:
        groups = assign(costs, bounds)
        # That of the program.
        tolerance = 0.01 if bounds.costs is not None or bounds.apart else 1e-9
        assert costs[np.arange(num_points), groups].sum() == pytest.approx(best, rel=tolerance + 1e-5)
        if bounds.costs is not None:
            loads = np.bincount(groups, bounds.costs)
            assert loads.max() <= bounds.max_load * bounds.mean_cost * (1 + 1e-9)


@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(0, 10**6))
def test_sizes_are_kept_at_the_least_sum(data: st.DataObject, seed: int) -> None:
    """Against an assignment to the places of groups, by another algorithm."""
    rng = np.random.default_rng(seed)
    num_groups = data.draw(st.integers(1, 8))
    num_points = data.draw(st.integers(num_groups, 40))
    smallest = data.draw(st.integers(0, num_points // num_groups))
    largest = data.draw(st.integers(-(-num_points // num_groups), num_points))
    # Equal ones are where shortest paths may run in circles.
    costs = rng.random((num_points, num_groups)).round(data.draw(st.sampled_from([1, 9])))
    groups = assign(costs, Bounds(sizes=[(smallest, largest)]))
    sizes = np.bincount(groups, minlength=num_groups)
    assert smallest <= sizes.min() and sizes.max() <= largest
    places = np.repeat(np.arange(num_groups), largest)
    is_needed = np.tile(np.arange(largest) < smallest, num_groups)
    empty = np.broadcast_to(np.where(is_needed, 1e6, 0.0), (len(places) - num_points, len(places)))
    rows, columns = linear_sum_assignment(np.concatenate([costs[:, places], empty]))
    least = costs[np.arange(num_points), places[columns[:num_points]]].sum()
    assert len(rows) == len(places) and costs[np.arange(num_points), groups].sum() == pytest.approx(least)


@pytest.mark.parametrize("sizes", [[(2, 2), (0, 4)], [(0, 4), (2, 2)]])
def test_of_several_ranges_the_one_of_the_least_sum_holds(sizes: list[tuple[int, int]]) -> None:
    assert assign(np.tile([0.0, 1.0], (4, 1)), Bounds(sizes=sizes)).tolist() == [0, 0, 0, 0]


def test_what_was_found_is_kept_where_a_later_search_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    points = np.random.default_rng(0).random((12, 2))
    bounds = Bounds(sizes=[(3, 3)], costs=np.ones(12), mean_cost=3, max_load=1.1)
    solve, found = balanced._solve, []

    def solve_once(*arguments: Any, **options: Any) -> Any:
        found.append(None if found else solve(*arguments, **options))
        return found[-1]

    monkeypatch.setattr(balanced, "_solve", solve_once)
    groups, _ = cluster(points, num_groups=4, bounds=bounds)
    assert len(found) > 1 and np.array_equal(groups, found[0].groups)


def test_points_leave_the_nearest_groups_where_these_do_not_do() -> None:
    """A program first tries the eight nearest groups of each point, here the same eight for all."""
    costs = np.tile(np.arange(10.0), (10, 1))
    groups = assign(costs, Bounds(sizes=[(1, 1)], apart=[(0, 1)]))
    assert sorted(groups) == list(range(10))


def test_the_best_of_several_starts_is_kept() -> None:
    rng = np.random.default_rng(0)
    gains = []
    for seed in range(5):
        points = rng.random((30, 2))
        spreads = [
            cluster(points, num_groups=6, bounds=Bounds(sizes=[(5, 5)]), num_starts=num_starts, seed=seed)[1]
            for num_starts in (1, 8)
        ]
        gains.append(spreads[0] - spreads[1])
    # The first of eight starts is the only one of one start.
    assert min(gains) >= 0 and max(gains) > 0


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
@pytest.mark.parametrize("kind", ["sizes", "costs", "apart"])
def test_clouds_of_any_scale_are_found(scale: float, kind: str) -> None:
    rng = np.random.default_rng()
    truth = np.repeat(np.arange(4), 6)
    points = scale * (np.array([[0, 0], [10, 0], [0, 10], [10, 10]])[truth] + rng.standard_normal((24, 2)))
    bounds = {
        "sizes": Bounds(sizes=[(6, 6)]),
        "costs": Bounds(sizes=[(4, 8)], costs=np.full(24, scale), mean_cost=6 * scale, max_load=1.1),
        "apart": Bounds(sizes=[(6, 6)], apart=[(0, 6)]),
    }[kind]
    groups, _ = cluster(points, num_groups=4, bounds=bounds)
    assert len(set(zip(truth.tolist(), groups.tolist(), strict=True))) == 4


def test_clouds_of_points_are_found() -> None:
    rng = np.random.default_rng()
    centres = np.array([[0, 0], [10, 0], [0, 10], [10, 10]])
    truth = rng.permutation(np.repeat(np.arange(4), [7, 7, 6, 6]))
    points = centres[truth] + rng.standard_normal((26, 2))
    groups, cost = cluster(points, num_groups=4, bounds=Bounds(sizes=[(6, 7)]))
    assert len({(one, other) for one, other in zip(truth, groups, strict=True)}) == 4
    means = np.stack([points[groups == group].mean(axis=0) for group in range(4)])
    assert cost == pytest.approx(((points - means[groups]) ** 2).sum())


def test_bounds_are_kept_where_clouds_are_uneven() -> None:
    rng = np.random.default_rng()
    points = np.concatenate([rng.standard_normal((20, 2)), 50 + rng.standard_normal((4, 2))])
    groups, _ = cluster(points, num_groups=2, bounds=Bounds(sizes=[(10, 14)], pinned={0: 1}, apart=[(1, 2)]))
    assert set(np.bincount(groups)) <= {10, 11, 12, 13, 14}
    assert groups[0] == 1 and groups[1] != groups[2]


def test_equal_points_are_still_divided() -> None:
    groups, cost = cluster(np.zeros((6, 2)), num_groups=3, bounds=Bounds(sizes=[(2, 2)]))
    assert np.bincount(groups).tolist() == [2, 2, 2] and cost == 0
