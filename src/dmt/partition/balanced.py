"""Groups of points of bounded sizes: constrained K-Means (Bradley et al. 2000; paper section 3.3).

Shape legend: F points, d dimensions, T groups.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import ceil
from typing import Any, NamedTuple

import numpy as np
from scipy import sparse
from scipy.optimize import Bounds as OptimizeBounds
from scipy.optimize import LinearConstraint, OptimizeResult, linear_sum_assignment, milp

from dmt.errors import UserInputError
from dmt.waiting import waiting

# Of a point, to which a mixed-integer program may assign it at first.
_NEAR_GROUPS = 8
# For each point: with more, its matrix is slower than the mixed-integer program.
_MAX_PLACES = 2
# Of a mixed-integer program's search, which finds good groups early or not at all: nodes times points' groups.
_MAX_WORK = 200_000


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """What each of T groups may hold.

    Args:
        sizes: the smallest and the largest number of points; of several such ranges, all groups keep to the same one.
        costs: (F,), what each point costs, or ``None``.
        mean_cost: what the points of a group cost on average, or of whatever else the load is counted.
        max_load: the points of a group may cost at most so many times ``mean_cost``.
        pinned: the group of single points.
        apart: pairs of points that may not share a group.
    """

    sizes: Sequence[tuple[int, int]]
    costs: np.ndarray | None = None
    mean_cost: float = 1.0
    max_load: float = np.inf
    pinned: Mapping[int, int] = field(default_factory=dict)
    apart: Sequence[tuple[int, int]] = ()


def size_ranges(num_points: int, num_groups: int, ratio: float) -> list[tuple[int, int]]:
    """Smallest and largest sizes of groups of which the largest has at most ``ratio`` times the smallest's points.

    Every division of the points at that ratio is within one of the ranges. With ratio 1, sizes differ by one where
    they must.

    Raises:
        UserInputError: there are more groups than points.

    Example:
        >>> size_ranges(26, 8, 1.0), size_ranges(10, 2, 2.0)
        ([(3, 4)], [(3, 6)])
    """
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
    from several random starts, of which the best is kept. Costs, pairs apart and more uneven sizes, which take a slower
    solver, come in when the best start of the evenest sizes is found. The same seed gives the same groups on any number
    of threads.

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
    evenest = (_possible_sizes(len(points), num_groups, bounds) or bounds.sizes)[-1]
    by_size = replace(bounds, costs=None, apart=(), sizes=[evenest])
    pinned = np.array([bounds.pinned.get(point, -1) for point in range(len(points))])
    starts = []
    for start in waiting(range(num_starts), "grouping features"):
        spread = _spread_means(points, num_groups, np.random.default_rng((seed, start)))
        means = _means(points, pinned, otherwise=spread)
        starts.append(_improve(points, means, bounds=by_size, max_rounds=max_rounds))
    # The first of those that differ by rounding.
    least = min(found.spread for found in starts)
    best = next(found for found in starts if found.spread <= least * (1 + 1e-9))
    if bounds.costs is not None or bounds.apart:
        best = _improve(points, best.means, bounds=bounds, max_rounds=max_rounds)
    elif len(bounds.sizes) > 1:
        # The range that the fewest points would have to leave their nearest mean for.
        nearest = np.bincount(_squares(points, best.means).argmin(axis=1), minlength=num_groups)
        sizes = min(
            _possible_sizes(len(points), num_groups, bounds),
            key=lambda one: int(np.abs(nearest - nearest.clip(*one)).sum()),
        )
        uneven = _improve(points, best.means, bounds=replace(bounds, sizes=[sizes]), max_rounds=max_rounds)
        best = min(best, uneven, key=lambda found: found.spread)
    return best.groups, best.spread


class _Found(NamedTuple):
    groups: np.ndarray  # (F,)
    means: np.ndarray  # (T, d)
    spread: float  # sum of squared distances to the means


def _improve(points: np.ndarray, means: np.ndarray, *, bounds: Bounds, max_rounds: int) -> _Found:
    """Rounds of assigning and moving the means, until the spread falls no more."""
    best = _Found(np.full(len(points), -1), means, np.inf)
    for _ in range(max_rounds):
        try:
            groups = assign(_squares(points, best.means), bounds)
        except UserInputError:
            # A search that is cut off may find nothing where it did before.
            if np.isinf(best.spread):
                raise
            break
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
    num_places = max(largest for _, largest in bounds.sizes) * costs.shape[1]
    is_by_size = bounds.costs is None and not bounds.apart and len(bounds.sizes) == 1
    if is_by_size and num_places <= _MAX_PLACES * len(costs):
        return _assign_by_size(costs, bounds)
    return _assign_by_program(costs, bounds)


def _assign_by_size(costs: np.ndarray, bounds: Bounds) -> np.ndarray:
    """As an assignment of points to the places of groups of one range of sizes: exact and fast."""
    if not _possible_sizes(len(costs), costs.shape[1], bounds):
        raise _refusal(costs, bounds)
    [(smallest, largest)] = bounds.sizes
    num_points, num_groups = costs.shape
    places = np.repeat(np.arange(num_groups), largest)  # the group of each place
    is_optional = np.tile(np.arange(largest) >= smallest, num_groups)
    # Places that stay empty are filled with points that cost nothing there, and may not go where a real one must.
    empty = np.broadcast_to(np.where(is_optional, 0.0, np.inf), (len(places) - num_points, len(places)))
    _, chosen = linear_sum_assignment(np.concatenate([costs[:, places], empty]))
    return np.asarray(places[chosen[:num_points]])


def _possible_sizes(num_points: int, num_groups: int, bounds: Bounds) -> list[tuple[int, int]]:
    """The ranges of sizes that the points' number and the pinned ones leave, the evenest last."""
    pinned = np.bincount(list(bounds.pinned.values()), minlength=num_groups)
    return [
        (smallest, largest)
        for smallest, largest in bounds.sizes
        if pinned.max() <= largest and pinned.clip(smallest).sum() <= num_points <= largest * num_groups
    ]


def _assign_by_program(costs: np.ndarray, bounds: Bounds) -> np.ndarray:
    """As a mixed-integer program, where more than sizes is bounded, or one of several ranges of sizes is to be chosen.

    Within 1 % of the least sum where nodes suffice, of sizes alone within 0.01 %.

    Most points end in one of the groups that are nearest to them: only where these do not do may they go anywhere.
    """
    near = np.argsort(np.argsort(costs, axis=1, kind="stable"), axis=1) < _NEAR_GROUPS
    for tried in [costs] if near.all() else [np.where(near, costs, np.inf), costs]:
        found = _solve(tried, bounds)
        if found is not None:
            return found.groups
    # The evenest groups are looked for in another way, do not depend on the bound, and are what a refusal tells of.
    evenest = _solve(costs, bounds, is_evenest=True) if bounds.costs is not None else None
    if evenest is None or not _is_within(evenest.groups, bounds):
        raise _refusal(costs, bounds, evenest=evenest)
    return evenest.groups


class _Solution(NamedTuple):
    groups: np.ndarray  # (F,)
    is_proven: bool  # that there is none better


def rounded_up(load: float) -> float:
    """To three digits, so that whoever allows what is told allows enough.

    Example:
        >>> rounded_up(1.2341), rounded_up(1.25)
        (1.235, 1.25)
    """
    return ceil(round(load * 1000, 6)) / 1000


def _loads(groups: np.ndarray, bounds: Bounds) -> np.ndarray:
    """What the points of each group cost, in units of the mean."""
    assert bounds.costs is not None
    return np.bincount(groups, bounds.costs / bounds.mean_cost)


def _is_within(groups: np.ndarray, bounds: Bounds) -> bool:
    """Whether the groups keep to the bound on costs, but for rounding."""
    return bounds.costs is None or bool(_loads(groups, bounds).max() <= bounds.max_load * (1 + 1e-9))


def _solve(costs: np.ndarray, bounds: Bounds, *, is_evenest: bool = False) -> _Solution | None:
    """Groups of the least sum of costs; or those whose costliest is cheapest, whatever the bound on that."""
    # Where the bound is exceeded by the solver's tolerance, a little less than it is asked for.
    for max_load in [np.inf] if is_evenest else [1.0, 1 - 1e-5]:
        result = _run_program(costs, bounds, max_load=max_load, is_evenest=is_evenest)
        if result.x is None:
            return None
        groups = np.asarray(result.x[: costs.size].reshape(costs.shape).argmax(axis=1))
        if is_evenest or _is_within(groups, bounds):
            return _Solution(groups, is_proven=result.status == 0)
    return None


def _run_program(costs: np.ndarray, bounds: Bounds, *, max_load: float, is_evenest: bool) -> OptimizeResult:
    """Variables are whether a point is in a group (F, T), whether a range of sizes holds, and the costliest load.

    The solver's tolerances are absolute: all that it is told is of the order of 1.
    """
    num_points, num_groups = costs.shape
    allowed = np.isfinite(costs)
    farthest = max(costs[allowed].max(), np.finfo(float).tiny)
    smallest, largest = np.array(bounds.sizes, dtype=float).T
    unit = bounds.mean_cost * (1 if is_evenest else bounds.max_load)
    loads = np.zeros(num_points) if bounds.costs is None else bounds.costs / unit
    together = np.zeros((len(bounds.apart), num_points))
    for row, pair in enumerate(bounds.apart):
        together[row, list(pair)] = 1
    every, group = np.ones((1, num_points)), sparse.identity(num_groups)
    each_group = np.ones((num_groups, 1))
    rows: list[tuple[list[Any], float, float]] = [
        ([sparse.kron(sparse.identity(num_points), each_group.T), None, None], 1, 1),  # one group a point
        ([None, np.ones((1, len(smallest))), None], 1, 1),  # one range
        ([sparse.kron(every, group), -each_group * smallest, None], 0, np.inf),
        ([sparse.kron(every, group), -each_group * largest, None], -np.inf, 0),
        ([sparse.kron(together, group), None, None], -np.inf, 1),
        ([sparse.kron(loads[None], group), None, -each_group], -np.inf, 0),
    ]
    heights = [next(block.shape[0] for block in blocks if block is not None) for blocks, _, _ in rows]
    sums = np.zeros(costs.size) if is_evenest else np.where(allowed, costs / farthest, 0).ravel()
    return milp(
        np.concatenate([sums, np.zeros(len(smallest)), [float(is_evenest)]]),
        integrality=np.append(np.ones(costs.size + len(smallest)), 0),
        bounds=OptimizeBounds(0, np.concatenate([allowed.ravel().astype(float), np.ones(len(smallest)), [max_load]])),
        constraints=LinearConstraint(
            sparse.block_array([blocks for blocks, _, _ in rows]),
            np.repeat([low for _, low, _ in rows], heights),
            np.repeat([high for _, _, high in rows], heights),
        ),
        options={
            "mip_rel_gap": 1e-4 if is_evenest or (bounds.costs is None and not bounds.apart) else 0.01,
            # Not seconds: the groups are the same on any machine. A node of a larger program takes longer.
            "node_limit": int(np.clip(_MAX_WORK // allowed.sum(), 20, 200)),
        },
    )


def _refusal(costs: np.ndarray, bounds: Bounds, *, evenest: _Solution | None = None) -> UserInputError:
    """What cannot be had together, and the first part of it that cannot."""
    largest = max(high for _, high in bounds.sizes)
    wanted = [f"{min(low for low, _ in bounds.sizes)} to {largest} features"]
    if bounds.pinned:
        wanted.append("the pinned features")
    if bounds.apart:
        wanted.append("the pairs kept apart")
    if bounds.costs is not None:
        wanted.append(f"a cost of at most {bounds.max_load * bounds.mean_cost:.6g}")
    if not _possible_sizes(len(costs), costs.shape[1], bounds):
        fullest, most = max(Counter(bounds.pinned.values()).items(), key=lambda tower: tower[1], default=(0, 0))
        fix = (
            f"{most} are pinned to tower {fullest}, {most - largest} too many"
            if most > largest
            else "those pinned leave too few for the other towers: pin fewer, or allow more uneven towers"
        )
    elif evenest is None:
        fix = (
            "no way was found to keep the pairs apart, whatever towers cost: give fewer"
            if bounds.apart
            else "allow more"
        )
    else:
        load = _loads(evenest.groups, bounds).max()
        found, least = ("", "") if evenest.is_proven else (" that were found", "at least ")
        fix = (
            f"the evenest such towers{found} cost up to {load * bounds.mean_cost:.6g}, {rounded_up(load):.3f} times "
            f"the mean of all towers: allow {least}that"
        )
    return UserInputError(
        f"{costs.shape[0]} features cannot be put into {costs.shape[1]} towers with {', '.join(wanted)}; {fix}"
    )
