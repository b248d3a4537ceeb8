"""The tower partitioner (TP, paper section 3.3): which features share a tower.

Shape legend: F features, T towers.
"""

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from math import ceil, isfinite
from numbers import Integral
from typing import Self

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.manifold import spectral_embedding
from threadpoolctl import threadpool_limits

from dmt.errors import UserInputError
from dmt.partition.affinity import Affinity, is_number
from dmt.partition.balanced import Bounds, cluster, rounded_up, size_ranges
from dmt.partition.baselines import BASELINES, divide
from dmt.partition.geometry import distances, place
from dmt.plan import TowerPlan

LEARNED = ("coherent", "diverse", "spectral")
AUTO = "auto"
METHODS = (*LEARNED, AUTO, *BASELINES)

Loss = Callable[[TowerPlan], float]
"""What a plan costs: the validation loss of a short training run with it, say."""


class TowerPartitioner(BaseEstimator):
    """Puts features into towers of bounded sizes and costs, by an affinity or by a baseline's rule.

    Coherent towers have like features, diverse ones unlike ones: features become points whose distances are 1 less
    their affinity, or their affinity, and the points are grouped by constrained K-Means. ``spectral`` groups them by
    the leading eigenvectors of the affinity's Laplacian instead. Which of coherent and diverse towers is better varies
    by model and data: ``auto`` keeps that of the smaller ``loss``. The baselines do not look at the affinity:
    ``strided`` and ``contiguous`` deal features out in turn or in blocks, ``random`` shuffles them first, ``greedy``
    gives the costliest feature left to the cheapest tower. It is an estimator of scikit-learn's style.

    Args:
        num_towers: T.
        method: one of those.
        loss: of a plan; for ``auto``.
        ratio: the largest tower has at most so many times the features of the smallest; with 1 they differ by one
            at most. With ``groups``, this holds of the towers of each group.
        costs: what each feature costs, by name: lookups, bytes of its table, ... Those not named cost 0.
        max_load: the costliest tower costs at most so many times the mean of all towers, with ``groups`` too. A
            baseline's rule does not look at it; its towers are refused where they exceed it.
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
        UserInputError: an option is out of range.

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
        # Unchanged, as scikit-learn's clone wants it.
        self.num_towers = num_towers
        self.method = method
        self.loss = loss
        self.ratio = ratio
        self.costs = costs
        self.max_load = max_load
        self.groups = groups
        self.pinned = pinned
        self.apart = apart
        self.num_dims = num_dims
        self.num_starts = num_starts
        self.seed = seed
        self._check_options()

    def _check_options(self) -> None:
        if self.method not in METHODS:
            raise UserInputError(f"method={self.method}: give one of {', '.join(METHODS)}")
        if (self.method == AUTO) != (self.loss is not None):
            raise UserInputError(f"method={self.method}: auto, and no other, compares losses; give both, or neither")
        for option, number in (
            ("towers", self.num_towers),
            ("num_dims", self.num_dims),
            ("num_starts", self.num_starts),
        ):
            if not _is_whole(number) or number < 1:
                raise UserInputError(f"{option}={number}: give a whole number of at least 1")
        if not _is_whole(self.seed) or not 0 <= self.seed < 2**32:
            raise UserInputError(f"seed={self.seed}: give a whole number from 0 to {2**32 - 1}")
        if not is_number(self.ratio) or self.ratio < 1:
            raise UserInputError(f"ratio={self.ratio}: give a number of at least 1")
        if self.max_load is not None and (not is_number(self.max_load) or self.max_load < 1):
            raise UserInputError(
                f"max_load={self.max_load}: no division is better than an even one; give a number of at least 1"
            )
        for option, values in (("costs", self.costs), ("pinned", self.pinned)):
            if values is not None and not isinstance(values, Mapping):
                raise UserInputError(f"{option}: a {type(values).__name__}; give numbers by the names of features")
        for name, cost in (self.costs or {}).items():
            if not is_number(cost) or cost < 0:
                raise UserInputError(f"costs {name}={cost}: give a number of at least 0")
        if not isfinite(self._mean_load()):
            raise UserInputError("costs: their sum is too large for a number; give them in a larger unit")
        for group in self.groups:
            if isinstance(group, str):
                raise UserInputError(f"groups: {group!r} is a name; give lists of names")
        for pair in self.apart:
            if isinstance(pair, str) or len(pair) != 2 or pair[0] == pair[1]:
                raise UserInputError(f"apart {pair!r}: give the names of two features")

    def _check_costs(self) -> None:
        """Raise where there are none, and are needed; they may be set when all else is."""
        if self.max_load is not None and not self.costs:
            raise UserInputError(f"max_load={self.max_load}: there are no costs to bound; give them")
        if self.method == "greedy" and not self.costs:
            raise UserInputError(
                "method=greedy: it deals features out by what they cost, and there are no costs; give them"
            )

    def fit(self, affinity: Affinity) -> Self:
        """Divide the affinity's features.

        Raises:
            UserInputError: it is no affinity, an option names a feature that it lacks, or no division is within the
                bounds.
        """
        if not isinstance(affinity, Affinity):
            raise UserInputError(
                f"affinity: a {type(affinity).__name__}; give an Affinity, which knows the features' names"
            )
        self._check_options()  # they may have been set since
        self._check_costs()
        names = list(affinity.features)
        self._check_names(names)
        size_ranges(len(names), self.num_towers, self.ratio)  # that the numbers fit
        self._check_heaviest()
        self.losses_: dict[str, float] = {}
        if self.loss is not None:
            return self._keep_best(affinity, self.loss)
        divided = self._divide_by_groups(names)
        for members, num_towers in divided:
            self._check_apart([names[f] for f in members], num_towers)
        self.points_, self.stress_ = np.empty((0, self.num_dims)), 0.0
        if self.method in ("coherent", "diverse"):
            wanted = distances(affinity.matrix, self.method)  # type: ignore[arg-type]
            self.points_, self.stress_ = place(
                wanted, num_dims=self.num_dims, num_starts=self.num_starts, seed=self.seed
            )
        tower_of = np.full(len(names), -1)
        first_tower = 0
        for members, num_towers in divided:
            try:
                found = self._label(affinity, members, num_towers, first_tower=first_tower)
            except UserInputError as error:
                if not self.groups:
                    raise
                raise UserInputError(f"the group of {names[members[0]]!r}: {error}") from None
            tower_of[members] = first_tower + found
            first_tower += num_towers
        towers = [[names[f] for f in np.flatnonzero(tower_of == tower)] for tower in range(self.num_towers)]
        if not self.pinned:
            # In an order of their own, so that equal divisions are equal plans.
            towers.sort(key=lambda tower: names.index(tower[0]))
        self._check_loads(towers)
        self.plan_ = TowerPlan(towers=towers, method=self.method, record=self._record(affinity, towers))
        return self

    def _keep_best(self, affinity: Affinity, loss: Loss) -> Self:
        tried = {}
        for method in ("coherent", "diverse"):
            one = tried[method] = copy(self)
            one.method, one.loss = method, None
            one.fit(affinity)
            self.losses_[method] = float(loss(one.plan_))
        told = ", ".join(f"{method}: {value}" for method, value in self.losses_.items())
        finite = {method: value for method, value in self.losses_.items() if isfinite(value)}
        if not finite:
            raise UserInputError(f"method={AUTO}: no loss is a number ({told}); lower the training's learning rates")
        best = tried[min(finite, key=lambda method: finite[method])]
        self.points_, self.stress_ = best.points_, best.stress_
        self.plan_ = TowerPlan(
            towers=best.plan_.towers,
            method=f"{AUTO}: {best.method}",
            record={**best.plan_.record, "losses": {method: round(value, 6) for method, value in self.losses_.items()}},
        )
        return self

    def _record(self, affinity: Affinity, towers: Sequence[Sequence[str]]) -> dict[str, object]:
        """How the towers were found, and how even they are; plain numbers and lists, which YAML knows."""
        record: dict[str, object] = {"seed": int(self.seed)}
        if self.method in LEARNED:
            record["affinity"] = f"{affinity.kind}, {affinity.num_samples} samples, checksum {affinity.checksum}"
            record |= {"num_starts": int(self.num_starts)} if self.num_starts != 8 else {}
        if self.method in ("coherent", "diverse") and self.num_dims != 2:
            record["num_dims"] = int(self.num_dims)
        if self.ratio != 1:
            record["ratio"] = float(self.ratio)
        if self.max_load is not None:
            record["max_load"] = float(self.max_load)
        if self.groups:
            record["groups"] = [[str(name) for name in group] for group in self.groups]
        if self.pinned:
            record["pinned"] = {str(name): int(tower) for name, tower in self.pinned.items()}
        if self.apart:
            record["apart"] = [[str(name) for name in pair] for pair in self.apart]
        record["features"] = [len(tower) for tower in towers]
        if self.costs:
            of_features = [float(self.costs.get(name, 0)) for name in affinity.features]
            kinds = [kind for kind, values in affinity.costs.items() if list(values) == of_features]
            record |= {"cost_kind": kinds[0]} if kinds else {}
            loads = self._loads(towers)
            record["costs"] = [round(load, 6) for load in loads]
            if sum(loads):
                record["costliest_to_mean"] = round(max(loads) / (sum(loads) / len(loads)), 3)
        return record

    def _loads(self, towers: Sequence[Sequence[str]]) -> list[float]:
        costs = self.costs or {}
        return [float(sum(costs.get(name, 0) for name in tower)) for tower in towers]

    def _mean_load(self) -> float:
        return float(sum((self.costs or {}).values())) / self.num_towers

    def _check_names(self, names: Sequence[str]) -> None:
        asked = {
            "costs": list(self.costs or {}),
            "groups": [name for group in self.groups for name in group],
            "pinned": list(self.pinned or {}),
            "apart": [name for pair in self.apart for name in pair],
        }
        for option, features in asked.items():
            unknown = [name for name in features if name not in names]
            if unknown:
                raise UserInputError(f"{option}: no feature {unknown[0]!r}; the features are {', '.join(names)}")
        if len(asked["groups"]) > len(set(asked["groups"])):
            raise UserInputError("groups: a feature is in more than one; list each once")
        for name, tower in (self.pinned or {}).items():
            if not _is_whole(tower) or not 0 <= tower < self.num_towers:
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
        names = [affinity.features[f] for f in members]
        costs = np.array([(self.costs or {}).get(name, 0) for name in names], dtype=float)
        if self.method in BASELINES:
            return divide(
                names,
                num_towers=num_towers,
                method=self.method,
                costs=costs,
                ratio=self.ratio,
                # Groups of features are shuffled each in its own way.
                seed=int(self.seed) + first_tower,
            )
        if self.method == "spectral":
            points = _spectral_points(affinity.matrix[np.ix_(members, members)], num_towers)
        else:
            points = self.points_[members]
        position = {name: index for index, name in enumerate(names)}
        is_bounded = self.max_load is not None and self._mean_load() > 0
        bounds = Bounds(
            sizes=size_ranges(len(members), num_towers, self.ratio),
            costs=costs if is_bounded else None,
            mean_cost=self._mean_load(),
            max_load=np.inf if self.max_load is None else self.max_load,
            pinned={position[name]: tower for name, tower in (self.pinned or {}).items()},
            apart=[(position[a], position[b]) for a, b in self.apart if a in position and b in position],
        )
        return cluster(points, num_groups=num_towers, bounds=bounds, num_starts=self.num_starts, seed=self.seed)[0]

    def _check_heaviest(self) -> None:
        if self.max_load is None or self.costs is None:
            return
        mean = self._mean_load()
        shares = {name: cost / mean for name, cost in self.costs.items() if cost > self.max_load * mean}
        if not shares:
            return
        heaviest = sorted(shares, key=lambda name: -shares[name])
        first = heaviest[0]
        parts = ceil(shares[first] / self.max_load)
        told = f"feature {first!r} alone costs {shares[first]:.2f} times the mean of the towers"
        if len(shares) > 1:
            others = [f"{name!r} {shares[name]:.2f}" for name in heaviest[1:4]]
            others += [f"and {len(shares) - 4} more"] if len(shares) > 4 else []
            told += f" (too costly as well: {', '.join(others)})"
        raise UserInputError(
            f"max_load={self.max_load}: {told}; "
            f"cut its embedding into {parts} blocks of columns in a plan by hand ({first}[0:N/{parts}], ...), "
            "shard its table row-wise over the ranks of its tower and leave it out of the costs, allow more, or "
            "use fewer towers"
        )

    def _check_apart(self, names: Sequence[str], num_towers: int) -> None:
        """Refuse pairs that contradict pins or each other; rarer ways to have no division are the solver's to find."""
        pinned = self.pinned or {}
        neighbours: dict[str, list[str]] = {name: [] for name in names}
        for one, other in self.apart:
            if one in pinned and pinned[one] == pinned.get(other):
                raise UserInputError(
                    f"apart {one},{other}: both are pinned to tower {pinned[one]}; give one of the two"
                )
            if one in neighbours and other in neighbours:
                neighbours[one].append(other)
                neighbours[other].append(one)
        for name in names:
            mutual = [name]
            for other in neighbours[name]:
                if all(other in neighbours[one] for one in mutual):
                    mutual.append(other)
            if len(mutual) > num_towers:
                raise UserInputError(
                    f"apart: {', '.join(mutual)} are all kept apart from each other, which takes {len(mutual)} towers, "
                    f"and they have {num_towers}; keep fewer apart, or give more towers"
                )

    def _check_loads(self, towers: Sequence[Sequence[str]]) -> None:
        if self.max_load is None:
            return
        loads, mean = self._loads(towers), self._mean_load()
        worst = max(range(len(loads)), key=lambda tower: loads[tower])
        if loads[worst] > self.max_load * mean * (1 + 1e-9):
            raise UserInputError(
                f"max_load={self.max_load}: tower {worst} of method {self.method} costs "
                f"{rounded_up(loads[worst] / mean):.3f} times the mean, "
                f"{loads[worst] / (self.max_load * mean) - 1:.1%} too much; a baseline's rule does not look at the "
                f"bound, so allow that, or use one of {', '.join(LEARNED)}"
            )


def _is_whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _spectral_points(affinity: np.ndarray, num_towers: int) -> np.ndarray:
    """Leading eigenvectors of the affinity's Laplacian, (F, T)."""
    if len(affinity) < 2:
        return np.zeros((len(affinity), 1))
    weights = np.clip(affinity, 0, None)
    # A little everywhere: features without any affinity would be graphs of their own.
    weights += 1e-6 * max(weights.max(), 1e-6)
    np.fill_diagonal(weights, 0)
    with threadpool_limits(1):
        size = min(num_towers, len(weights) - 1)
        points = spectral_embedding(weights, n_components=size, drop_first=False, random_state=0)
    return np.asarray(points)
