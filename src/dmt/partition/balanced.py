"""Groups of points of bounded sizes: constrained K-Means (Bradley et al. 2000; paper section 3.3).

Shape legend: F points, d dimensions, T groups.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
from scipy import sparse
from scipy.optimize import Bounds as OptimizeBounds
from scipy.optimize import LinearConstraint, linear_sum_assignment, milp
from threadpoolctl import threadpool_limits

from dmt.errors import UserInputError
from dmt.waiting import waiting

# Of a point, to which a mixed-integer program may assign it at first.
_NEAR_GROUPS = 8


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """What each of T groups may hold.

    Args:
        smallest: points at least.
        largest: points at most.
        costs: (F,), what each point costs, or ``None``.
        max_cost: what the points of a group may cost together.
        pinned: the group of single points.
        apart: pairs of points that may not share a group.
    """

    smallest: int
    largest: int
    costs: np.ndarray | None = None
    max_cost: float = np.inf
    pinned: Mapping[int, int] = field(default_factory=dict)
    apart: Sequence[tuple[int, int]] = ()


def size_ranges(num_points: int, num_groups: int, ratio: float) -> list[tuple[int, int]]:
    """Smallest and largest sizes of groups of which the largest has at most ``ratio`` times the smallest's points.

    Every division of the points at that ratio is within one of the ranges. With ratio 1, sizes differ by one where
    they must.

    Raises:
        UserInputError: the ratio is below 1, or there are more groups than points.

    Example:
        >>> size_ranges(26, 8, 1.0), size_ranges(10, 2, 2.0)
        ([(3, 4)], [(3, 6)])
    """
    if ratio < 1:
        raise UserInputError(f"ratio={ratio}: give a number of at least 1")
    if not 1 <= num_groups <= num_points:
        raise UserInputError(
            f"towers={num_groups}: {num_points} features fill between 1 and {num_points} towers; choose a number in "
            "that range"
        )
    even, left_over = divmod(num_points, num_groups)
    ranges = []
    for smallest in range(1, even + 1):
        largest = min(int(ratio * smallest + 1e-9), num_points - smallest * (num_groups - 1))
        if largest * num_groups >= num_points:
            ranges.append((smallest, largest))
    widest = [
        one for one in ranges if not any(other != one and other[0] <= one[0] <= one[1] <= other[1] for other in ranges)
    ]
    return widest or [(even, even + (left_over > 0))]


def cluster(
    points: np.ndarray, *, num_groups: int, bounds: Bounds, num_starts: int = 8, seed: int = 0, max_rounds: int = 100
) -> tuple[np.ndarray, float]:
    """Group points around means, within bounds.

    Each round assigns the points at the least sum of squared distances that the bounds allow, and moves the means;
    from several random starts, of which the best is kept. Costs and pairs apart, which take a slower solver, come in
    when the best start by sizes is found. The same seed gives the same groups on any number of threads.

    Args:
        points: (F, d).
        num_groups: T.
        bounds: of the groups.
        num_starts: random starts.
        seed: of the starts.
        max_rounds: of one start.

    Returns:
        group of each point, int64 (F,), and the sum of squared distances to the means.

    Raises:
        UserInputError: no assignment is within the bounds.
    """
    by_size = replace(bounds, costs=None, apart=())
    pinned = np.array([bounds.pinned.get(point, -1) for point in range(len(points))])
    with threadpool_limits(1):
        starts = []
        for start in waiting(range(num_starts), "grouping features"):
            spread = _spread_means(points, num_groups, np.random.default_rng((seed, start)))
            means = _means(points, pinned, otherwise=spread)
            starts.append(_improve(points, means, bounds=by_size, max_rounds=max_rounds))
        best = min(starts, key=lambda found: round(found.spread, 9))
        if bounds.costs is None and not bounds.apart:
            return best.groups, best.spread
        best = _improve(points, best.means, bounds=bounds, max_rounds=max_rounds)
    return best.groups, best.spread


class _Found(NamedTuple):
    groups: np.ndarray  # (F,)
    means: np.ndarray  # (T, d)
    spread: float  # sum of squared distances to the means


def _improve(points: np.ndarray, means: np.ndarray, *, bounds: Bounds, max_rounds: int) -> _Found:
    """Rounds of assigning and moving the means, until the spread falls no more."""
    best = _Found(np.full(len(points), -1), means, np.inf)
    for _ in range(max_rounds):
        groups = assign(_squares(points, best.means), bounds)
        means = _means(points, groups, otherwise=best.means)
        spread = float(((points - means[groups]) ** 2).sum())
        if spread >= best.spread * (1 - 1e-9):
            break
        best = _Found(groups, means, spread)
    return best


def _squares(points: np.ndarray, means: np.ndarray) -> np.ndarray:
    """Squared distances (F, T)."""
    return np.asarray(((points[:, None] - means) ** 2).sum(axis=2))


def _means(points: np.ndarray, groups: np.ndarray, *, otherwise: np.ndarray) -> np.ndarray:
    """Means (T, d) of the groups' points, or others (T, d) for empty groups."""
    means = otherwise.copy()
    for group in np.unique(groups[groups >= 0]):
        means[group] = points[groups == group].mean(axis=0)
    return means


def _spread_means(points: np.ndarray, num_groups: int, rng: np.random.Generator) -> np.ndarray:
    """Points that lie far from each other (k-means++, Arthur and Vassilvitskii 2007)."""
    chosen = [int(rng.integers(len(points)))]
    for _ in range(num_groups - 1):
        squares = _squares(points, points[chosen]).min(axis=1)
        squares[chosen] = 0
        left = np.setdiff1d(np.arange(len(points)), chosen)
        total = squares.sum()
        chosen.append(int(rng.choice(len(points), p=squares / total) if total > 0 else rng.choice(left)))
    return np.asarray(points[chosen])


def assign(costs: np.ndarray, bounds: Bounds) -> np.ndarray:
    """The group of each point, int64 (F,), that makes the sum of ``costs`` (F, T) least within the bounds.

    Raises:
        UserInputError: no assignment is within the bounds.
    """
    costs = costs.copy()
    for point, group in bounds.pinned.items():
        is_other = np.arange(costs.shape[1]) != group
        costs[point, is_other] = np.inf
    if bounds.costs is None and not bounds.apart:
        return _assign_by_size(costs, bounds)
    return _assign_by_program(costs, bounds)


def _assign_by_size(costs: np.ndarray, bounds: Bounds) -> np.ndarray:
    """As an assignment of points to the places of groups: exact and fast."""
    num_points, num_groups = costs.shape
    places = np.repeat(np.arange(num_groups), bounds.largest)  # the group of each place
    is_optional = np.tile(np.arange(bounds.largest) >= bounds.smallest, num_groups)
    num_empty = len(places) - num_points
    if num_empty < 0:
        raise _refusal(costs, bounds)
    # Places that stay empty are filled with points that cost nothing there, and may not go where a real one must.
    empty = np.broadcast_to(np.where(is_optional, 0.0, np.inf), (num_empty, len(places)))
    try:
        _, chosen = linear_sum_assignment(np.concatenate([costs[:, places], empty]))
    except ValueError:  # there is none without an infinite cost
        raise _refusal(costs, bounds) from None
    return np.asarray(places[chosen[:num_points]])


def _assign_by_program(costs: np.ndarray, bounds: Bounds) -> np.ndarray:
    """As a mixed-integer program, where more than sizes is bounded; within 1 % of the least sum.

    Most points end in one of the groups that are nearest to them: only where these do not do may they go anywhere.
    """
    near = np.argsort(np.argsort(costs, axis=1, kind="stable"), axis=1) < _NEAR_GROUPS
    found = _solve(np.where(near, costs, np.inf), bounds)
    if found is None:
        found = _solve(costs, bounds)
    if found is None:
        raise _refusal(costs, bounds)
    return found


def _solve(costs: np.ndarray, bounds: Bounds) -> np.ndarray | None:
    constraints = _constraints(costs, bounds)
    if bounds.costs is not None:
        of_groups = sparse.kron(bounds.costs[None], sparse.identity(costs.shape[1]))
        constraints.append(LinearConstraint(of_groups, -np.inf, bounds.max_cost))
    allowed = np.isfinite(costs)
    result = milp(
        np.where(allowed, costs, 0).ravel(),
        integrality=np.ones(costs.size),
        bounds=OptimizeBounds(0, allowed.ravel().astype(float)),
        constraints=constraints,
        options={"mip_rel_gap": 0.01},
    )
    return None if result.x is None else np.asarray(result.x.reshape(costs.shape).argmax(axis=1))


def _constraints(costs: np.ndarray, bounds: Bounds) -> list[LinearConstraint]:
    """One group for each point, sizes, and pairs apart; on variables (F, T) that tell whether a point is in a group."""
    num_points, num_groups = costs.shape
    each, every = sparse.identity(num_groups), np.ones((1, num_points))
    constraints = [
        LinearConstraint(sparse.kron(sparse.identity(num_points), np.ones((1, num_groups))), 1, 1),
        LinearConstraint(sparse.kron(every, each), bounds.smallest, bounds.largest),
    ]
    if bounds.apart:
        together = np.zeros((len(bounds.apart), num_points))
        for row, pair in enumerate(bounds.apart):
            together[row, list(pair)] = 1
        constraints.append(LinearConstraint(sparse.kron(together, each), -np.inf, 1))
    return constraints


def _least_max_cost(costs: np.ndarray, bounds: Bounds) -> float | None:
    """What the costliest group costs in the evenest division that :func:`milp` finds in a while; the rest bounded."""
    assert bounds.costs is not None
    size, num_groups = costs.size, costs.shape[1]
    # One variable more: a bound on every group's cost, to be made least.
    wider = [
        LinearConstraint(sparse.hstack([one.A, np.zeros((one.A.shape[0], 1))]), one.lb, one.ub)
        for one in _constraints(costs, bounds)
    ]
    of_groups = sparse.kron(bounds.costs[None], sparse.identity(num_groups))
    wider.append(LinearConstraint(sparse.hstack([of_groups, -np.ones((num_groups, 1))]), -np.inf, 0))
    result = milp(
        np.append(np.zeros(size), 1.0),
        integrality=np.append(np.ones(size), 0),
        bounds=OptimizeBounds(0, np.append(np.isfinite(costs).ravel().astype(float), np.inf)),
        constraints=wider,
        options={"time_limit": 10, "mip_rel_gap": 1e-3},
    )
    return None if result.x is None else float(result.x[-1])


def _refusal(costs: np.ndarray, bounds: Bounds) -> UserInputError:
    wanted = [f"{bounds.smallest} to {bounds.largest} features"]
    fix = "allow more"
    counts = Counter(bounds.pinned.values())
    if bounds.pinned:
        wanted.append("the pinned features")
        fullest, most = counts.most_common(1)[0]
        if most > bounds.largest:
            fix = f"{most} are pinned to tower {fullest}, {most - bounds.largest} too many"
    if bounds.apart:
        wanted.append("the pairs kept apart")
    if bounds.costs is not None:
        wanted.append(f"a cost of at most {bounds.max_cost:.6g}")
        least = _least_max_cost(costs, bounds)
        if least is not None:
            load = least * costs.shape[1] / bounds.costs.sum()
            fix = f"the evenest such towers cost up to {least:.6g}, {load:.3f} times their mean: allow that"
    return UserInputError(
        f"{costs.shape[0]} features cannot be put into {costs.shape[1]} towers with {', '.join(wanted)}; {fix}"
    )
