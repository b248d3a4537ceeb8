"""Towers by simple rules, which do not look at the affinity.

Shape legend: F features, T towers.
"""

from collections.abc import Sequence

import numpy as np

from dmt.partition.balanced import size_ranges
from dmt.plan import TowerPlan

BASELINES = ("strided", "contiguous", "random", "greedy")


def divide(
    names: Sequence[str], *, num_towers: int, method: str, costs: np.ndarray, ratio: float, seed: int
) -> np.ndarray:
    """The tower of each feature, from 0.

    Args:
        names: of the features.
        num_towers: T.
        method: one of the baselines.
        costs: (F,), for ``greedy``.
        ratio: of the largest tower to the smallest, for ``greedy``; the others' differ by one at most.
        seed: of ``random``.
    """
    if method == "greedy":
        found = [_greedy(costs, num_towers, *sizes) for sizes in size_ranges(len(names), num_towers, ratio)]
        return min(found, key=lambda tower_of: np.bincount(tower_of, costs).max())
    if method == "random":
        plan = TowerPlan.random(names, num_towers=num_towers, seed=seed)
    else:
        make = TowerPlan.strided if method == "strided" else TowerPlan.contiguous
        plan = make(names, num_towers=num_towers)
    tower_of_name = {name: tower for tower, own in enumerate(plan.towers) for name in own}
    return np.array([tower_of_name[name] for name in names])


def _greedy(costs: np.ndarray, num_towers: int, smallest: int, largest: int) -> np.ndarray:
    """The costliest feature left to the cheapest tower; of equally cheap ones to the emptiest."""
    loads, counts = np.zeros(num_towers), np.zeros(num_towers, dtype=int)
    tower_of = np.zeros(len(costs), dtype=int)
    for num_given, feature in enumerate(np.argsort(-costs, kind="stable")):
        lacking = (smallest - counts).clip(0)
        # The smallest size comes first where all that is left is needed for it.
        limit = smallest if lacking.sum() == len(costs) - num_given else largest
        free = np.flatnonzero(counts < limit)
        chosen = min(free, key=lambda tower: (loads[tower], counts[tower]))
        tower_of[feature] = chosen
        loads[chosen] += costs[feature]
        counts[chosen] += 1
    return tower_of
