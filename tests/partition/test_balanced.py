"""Groups within bounds, against trying all assignments."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dmt.errors import UserInputError
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
            (sizes >= bounds.smallest).all()
            and (sizes <= bounds.largest).all()
            and (loads <= bounds.max_cost + 1e-9).all()
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
    costs = rng.random((num_points, num_groups))
    bounds = Bounds(
        smallest=data.draw(st.integers(0, 2)),
        largest=data.draw(st.integers(2, 4)),
        costs=rng.random(num_points) if data.draw(st.booleans()) else None,
        max_cost=data.draw(st.floats(0.5, 3)),
        pinned={0: num_groups - 1} if data.draw(st.booleans()) else {},
        apart=[(0, num_points - 1)] if num_points > 1 and data.draw(st.booleans()) else [],
    )
    best = best_by_trying(costs, bounds)
    if best == np.inf:
        with pytest.raises(UserInputError, match=f"{num_points} features cannot be put into {num_groups} towers with"):
            assign(costs, bounds)
    else:
        groups = assign(costs, bounds)
        # The solver's own tolerance is 1e-6.
        assert costs[np.arange(num_points), groups].sum() == pytest.approx(best, abs=1e-5)


def test_clouds_of_points_are_found() -> None:
    rng = np.random.default_rng()
    centres = np.array([[0, 0], [10, 0], [0, 10], [10, 10]])
    truth = rng.permutation(np.repeat(np.arange(4), [7, 7, 6, 6]))
    points = centres[truth] + rng.standard_normal((26, 2))
    groups, cost = cluster(points, num_groups=4, bounds=Bounds(smallest=6, largest=7))
    assert len({(one, other) for one, other in zip(truth, groups, strict=True)}) == 4
    means = np.stack([points[groups == group].mean(axis=0) for group in range(4)])
    assert cost == pytest.approx(((points - means[groups]) ** 2).sum())


def test_bounds_are_kept_where_clouds_are_uneven() -> None:
    rng = np.random.default_rng()
    points = np.concatenate([rng.standard_normal((20, 2)), 50 + rng.standard_normal((4, 2))])
    groups, _ = cluster(points, num_groups=2, bounds=Bounds(smallest=10, largest=14, pinned={0: 1}, apart=[(1, 2)]))
    assert set(np.bincount(groups)) <= {10, 11, 12, 13, 14}
    assert groups[0] == 1 and groups[1] != groups[2]


def test_equal_points_are_still_divided() -> None:
    groups, cost = cluster(np.zeros((6, 2)), num_groups=3, bounds=Bounds(smallest=2, largest=2))
    assert np.bincount(groups).tolist() == [2, 2, 2] and cost == 0
