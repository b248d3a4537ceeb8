"""The tower partitioner (TP, paper section 3.3): which features share a tower.

Shape legend: F features, T towers.
"""

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from functools import partial
from typing import Self

import numpy as np
from sklearn.manifold import spectral_embedding
from threadpoolctl import threadpool_limits

from dmt.errors import UserInputError
from dmt.partition.affinity import Affinity
from dmt.partition.balanced import Bounds, cluster, size_ranges
from dmt.partition.geometry import distances, place
from dmt.plan import TowerPlan

LEARNED = ("coherent", "diverse", "spectral")
BASELINES = ("strided", "contiguous", "random", "greedy")
AUTO = "auto"
METHODS = (*LEARNED, AUTO, *BASELINES)

Loss = Callable[[TowerPlan], float]
"""What a plan costs: the validation loss of a short training run with it, say."""


class TowerPartitioner:
    """Puts features into towers of bounded sizes and costs, by an affinity or by a baseline's rule.

    Coherent towers have like features, diverse ones unlike ones: features become points whose distances are 1 less
    their affinity, or their affinity, and the points are grouped by constrained K-Means. ``spectral`` groups them by
    the leading eigenvectors of the affinity's Laplacian instead. Which of coherent and diverse towers is better varies
    by model and data: ``auto`` keeps that of the smaller ``loss``. The baselines do not look at the affinity:
    ``strided`` and ``contiguous`` deal features out in turn or in blocks, ``random`` shuffles them first, ``greedy``
    gives the costliest feature left to the cheapest tower.

    Args:
        num_towers: T.
        method: one of those.
        loss: of a plan; for ``auto``.
        ratio: the largest tower has at most so many times the features of the smallest; with 1 they differ by one.
        costs: what each feature costs, by name: lookups, bytes of its table, ... Those not named cost 0.
        max_load: the costliest tower costs at most so many times the mean of the towers.
        groups: features that are divided apart from the others, such as those of users and those of items; towers are
            dealt out by the number of features. Those not named form the last group.
        pinned: the tower of single features, by name.
        apart: pairs of features that may not share a tower.
        num_dims: of the points.
        num_starts: random starts, of the points and of the groups, of which the best is kept.
        seed: of the starts, and of ``random``.

    Attributes:
        plan_: the towers, after :meth:`fit`.
        points_: (F, num_dims), in the order of the affinity's features; only of coherent and diverse towers.
        stress_: how far the points' distances are from the wanted ones: sum over pairs of the squared differences.
        losses_: of the methods that ``auto`` has tried.

    Raises:
        UserInputError: an option is out of range or names something unknown.

    Example:
        >>> matrix = [[1, 0.9, 0, 0], [0.9, 1, 0, 0], [0, 0, 1, 0.8], [0, 0, 0.8, 1]]
        >>> affinity = Affinity(features=["a", "b", "c", "d"], matrix=matrix, kind="cosine", num_samples=1)
        >>> TowerPartitioner(2).fit(affinity).plan_.towers
        (('a', 'b'), ('c', 'd'))
        >>> TowerPartitioner(2, method="diverse").fit(affinity).plan_.towers
        (('a', 'c'), ('b', 'd'))
    """

    def __init__(
        self,
        num_towers: int,
        *,
        method: str = "coherent",
        loss: Loss | None = None,
        ratio: float = 1.0,
        costs: Mapping[str, float] | None = None,
        max_load: float | None = None,
        groups: Sequence[Sequence[str]] = (),
        pinned: Mapping[str, int] | None = None,
        apart: Sequence[tuple[str, str]] = (),
        num_dims: int = 2,
        num_starts: int = 8,
        seed: int = 0,
    ) -> None:
        if method not in METHODS:
            raise UserInputError(f"method={method}: give one of {', '.join(METHODS)}")
        if (method == AUTO) != (loss is not None):
            raise UserInputError(f"method={method}: auto, and no other, compares losses; give both, or neither")
        for option, value in (("towers", num_towers), ("num_dims", num_dims), ("num_starts", num_starts)):
            if value < 1:
                raise UserInputError(f"{option}={value}: give at least 1")
        if max_load is not None and max_load < 1:
            raise UserInputError(f"max_load={max_load}: no division is better than an even one; give at least 1")
        if max_load is not None and not costs:
            raise UserInputError(f"max_load={max_load}: there are no costs to bound; give them")
        self.num_towers = num_towers
        self.method = method
        self.loss = loss
        self.ratio = ratio
        self.costs = dict(costs or {})
        self.max_load = max_load
        self.groups = [list(group) for group in groups]
        self.pinned = dict(pinned or {})
        self.apart = list(apart)
        self.num_dims = num_dims
        self.num_starts = num_starts
        self.seed = seed

    def fit(self, affinity: Affinity) -> Self:
        """Divide the affinity's features.

        Raises:
            UserInputError: an option names a feature that the affinity lacks, or no division is within the bounds.
        """
        names = list(affinity.features)
        self._check_names(names)
        self.losses_: dict[str, float] = {}
        if self.loss is not None:
            return self._keep_best(affinity, self.loss)
        divided = self._divide_by_groups(names)
        for members, num_towers in divided:
            self._check_heaviest([names[f] for f in members], num_towers)
        self.points_, self.stress_ = np.empty((0, self.num_dims)), 0.0
        if self.method in ("coherent", "diverse"):
            wanted = distances(affinity.matrix, self.method)  # type: ignore[arg-type]
            self.points_, self.stress_ = place(
                wanted, num_dims=self.num_dims, num_starts=self.num_starts, seed=self.seed
            )
        tower_of = np.full(len(names), -1)
        first_tower = 0
        for members, num_towers in divided:
            found = self._label(affinity, members, num_towers, first_tower=first_tower)
            tower_of[members] = first_tower + found
            first_tower += num_towers
        towers = [[names[f] for f in np.flatnonzero(tower_of == tower)] for tower in range(self.num_towers)]
        if not self.pinned:
            # In an order of their own, so that equal divisions are equal plans.
            towers.sort(key=lambda tower: names.index(tower[0]))
        self.plan_ = TowerPlan(towers=towers, method=self.method, record=self._record(affinity, towers))
        return self

    def _keep_best(self, affinity: Affinity, loss: Loss) -> Self:
        tried = {}
        for method in ("coherent", "diverse"):
            one = tried[method] = copy(self)
            one.method, one.loss = method, None
            one.fit(affinity)
            self.losses_[method] = loss(one.plan_)
        best = tried[min(self.losses_, key=lambda method: self.losses_[method])]
        self.points_, self.stress_ = best.points_, best.stress_
        self.plan_ = TowerPlan(
            towers=best.plan_.towers,
            method=f"{AUTO}: {best.method}",
            record={**best.plan_.record, "losses": {method: round(value, 6) for method, value in self.losses_.items()}},
        )
        return self

    def _record(self, affinity: Affinity, towers: Sequence[Sequence[str]]) -> dict[str, object]:
        """How the towers were found, and how even they are."""
        record: dict[str, object] = {"seed": self.seed}
        if self.method in LEARNED:
            record |= {"affinity": f"{affinity.kind}, {affinity.num_samples} samples, checksum {affinity.checksum}"}
        record["features"] = [len(tower) for tower in towers]
        if self.costs:
            record["costs"] = [round(sum(self.costs.get(name, 0.0) for name in tower), 6) for tower in towers]
        return record

    def _check_names(self, names: Sequence[str]) -> None:
        asked = {
            "costs": list(self.costs),
            "groups": [name for group in self.groups for name in group],
            "pinned": list(self.pinned),
            "apart": [name for pair in self.apart for name in pair],
        }
        for option, features in asked.items():
            unknown = [name for name in features if name not in names]
            if unknown:
                raise UserInputError(f"{option}: no feature {unknown[0]!r}; the features are {', '.join(names)}")
        if len(asked["groups"]) > len(set(asked["groups"])):
            raise UserInputError("groups: a feature is in more than one; list each once")
        for name, tower in self.pinned.items():
            if not 0 <= tower < self.num_towers:
                raise UserInputError(f"pinned {name}={tower}: give a tower from 0 to {self.num_towers - 1}")
        if self.pinned and self.groups:
            raise UserInputError("pinned: towers are dealt out to groups, so features cannot be pinned too; give one")
        if (self.pinned or self.apart) and self.method in BASELINES:
            raise UserInputError(f"method={self.method}: a baseline's rule knows no pinned features and no pairs apart")

    def _divide_by_groups(self, names: Sequence[str]) -> list[tuple[np.ndarray, int]]:
        """Members of each group, and how many towers they get: in proportion, and each at least one."""
        grouped = {name for group in self.groups for name in group}
        rest = [name for name in names if name not in grouped]
        groups = [group for group in [*self.groups, rest] if group]
        if len(groups) > self.num_towers:
            raise UserInputError(
                f"towers={self.num_towers}: {len(groups)} groups of features need a tower each; give more"
            )
        counts = [1] * len(groups)
        for _ in range(self.num_towers - len(groups)):
            # To the group with the most features a tower, of those that have more features than towers.
            counts[max(range(len(groups)), key=lambda i: (len(groups[i]) > counts[i], len(groups[i]) / counts[i]))] += 1
        position = {name: index for index, name in enumerate(names)}
        return [(np.array([position[name] for name in group]), n) for group, n in zip(groups, counts, strict=True)]

    def _label(self, affinity: Affinity, members: np.ndarray, num_towers: int, *, first_tower: int) -> np.ndarray:
        """The tower of each member, from 0."""
        size = len(members)
        if self.method in BASELINES:
            return self._baseline([affinity.features[f] for f in members], num_towers, first_tower=first_tower)
        if self.method == "spectral":
            points = _spectral_points(affinity.matrix[np.ix_(members, members)], num_towers)
        else:
            points = self.points_[members]
        best: tuple[np.ndarray, float] | None = None
        refusal: UserInputError | None = None
        for smallest, largest in size_ranges(size, num_towers, self.ratio):
            bounds = self._bounds(affinity.features, members, num_towers, smallest=smallest, largest=largest)
            try:
                found = cluster(
                    points, num_groups=num_towers, bounds=bounds, num_starts=self.num_starts, seed=self.seed
                )
            except UserInputError as error:
                refusal = error
                continue
            if best is None or found[1] < best[1]:
                best = found
        if best is None:
            assert refusal is not None
            raise refusal
        return best[0]

    def _bounds(
        self, names: Sequence[str], members: np.ndarray, num_towers: int, *, smallest: int, largest: int
    ) -> Bounds:
        position = {names[f]: index for index, f in enumerate(members)}
        costs = None
        if self.max_load is not None:
            costs = np.array([self.costs.get(name, 0.0) for name in position])
        return Bounds(
            smallest=smallest,
            largest=largest,
            costs=costs,
            max_cost=np.inf if costs is None or self.max_load is None else self.max_load * costs.sum() / num_towers,
            pinned={position[name]: tower for name, tower in self.pinned.items() if name in position},
            apart=[(position[a], position[b]) for a, b in self.apart if a in position and b in position],
        )

    def _check_heaviest(self, names: Sequence[str], num_towers: int) -> None:
        if self.max_load is None:
            return
        costs = {name: self.costs.get(name, 0.0) for name in names}
        heaviest, mean = max(costs, key=lambda name: costs[name]), sum(costs.values()) / num_towers
        if costs[heaviest] > self.max_load * mean:
            share = costs[heaviest] / mean
            parts = int(np.ceil(share / self.max_load))
            raise UserInputError(
                f"max_load={self.max_load}: feature {heaviest!r} alone costs {share:.2f} times the mean of the towers; "
                f"cut its embedding into {parts} blocks of columns in a plan by hand ({heaviest}[0:N/{parts}], ...), "
                "shard its table row-wise over the ranks of its tower and leave it out of the costs, allow more, or "
                "use fewer towers"
            )

    def _baseline(self, names: Sequence[str], num_towers: int, *, first_tower: int) -> np.ndarray:
        size = len(names)
        size_ranges(size, num_towers, self.ratio)  # that the numbers fit
        if self.method != "greedy":
            plan = {
                "strided": partial(TowerPlan.strided, names),
                "contiguous": partial(TowerPlan.contiguous, names),
                # Groups of features are shuffled each in its own way.
                "random": partial(TowerPlan.random, names, seed=self.seed + first_tower),
            }[self.method](num_towers=num_towers)
            tower_of_name = {name: tower for tower, own in enumerate(plan.towers) for name in own}
            return np.array([tower_of_name[name] for name in names])
        largest = -(-size // num_towers)
        loads, counts = np.zeros(num_towers), np.zeros(num_towers, dtype=int)
        tower_of = np.zeros(size, dtype=int)
        for feature in sorted(range(size), key=lambda f: (-self.costs.get(names[f], 0.0), f)):
            # Towers that are not filled to their even share; of these the cheapest, then the emptiest.
            free = [tower for tower in range(num_towers) if counts[tower] < largest]
            chosen = min(free, key=lambda tower: (loads[tower], counts[tower], tower))
            tower_of[feature] = chosen
            loads[chosen] += self.costs.get(names[feature], 0.0)
            counts[chosen] += 1
        return tower_of


def _spectral_points(affinity: np.ndarray, num_towers: int) -> np.ndarray:
    """Leading eigenvectors of the affinity's Laplacian, (F, T)."""
    weights = np.clip(affinity, 0, None)
    # A little everywhere: features without any affinity would be graphs of their own.
    weights += 1e-6 * max(weights.max(), 1e-6)
    np.fill_diagonal(weights, 0)
    with threadpool_limits(1):
        size = min(num_towers, max(len(weights) - 1, 1))
        points = spectral_embedding(weights, n_components=size, drop_first=False, random_state=0)
    return np.asarray(points)
