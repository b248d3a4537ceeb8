"""Pictures of an affinity and the towers made of it.

Shape legend: F features, T towers.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from dmt.partition.affinity import Affinity
from dmt.partition.geometry import distances, place
from dmt.plan import TowerPlan

# Okabe and Ito (2008): told apart with any colour vision. Towers beyond eight take another marker.
COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")
MARKERS = "os^Dv<>Pp*Xh"
_MAX_NAMES = 60  # features; more names would cover each other
# Of a point, where its name may begin or end, in points of 1/72 inch.
_SIDES = ((4, 3), (-4, 3), (4, -3), (-4, -3), (4, 10), (-4, 10), (4, -10), (-4, -10))


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two features.

    Args:
        names: of the two.
        affinity: of the two.
        is_kept: whether they share a tower.
    """

    names: tuple[str, str]
    affinity: float
    is_kept: bool


def strongest_pairs(affinity: Affinity, plan: TowerPlan, *, are_kept: bool, number: int = 10) -> list[Pair]:
    """The pairs of greatest affinity of those that share a tower, or of those that do not."""
    tower_of = _tower_of(affinity, plan)
    rows, columns = np.triu_indices(len(tower_of), 1)
    wanted = (tower_of[rows] == tower_of[columns]) == are_kept
    rows, columns = rows[wanted], columns[wanted]
    values = affinity.matrix[rows, columns]
    names = affinity.features
    return [
        Pair(names=(names[rows[i]], names[columns[i]]), affinity=float(values[i]), is_kept=are_kept)
        for i in np.argsort(-values, kind="stable")[:number]
    ]


def tower_costs(affinity: Affinity, plan: TowerPlan) -> dict[str, np.ndarray]:
    """What each tower costs (T,), by kind of cost; ``features`` is the number of them."""
    tower_of, num_towers = _tower_of(affinity, plan), len(plan.towers)
    kinds = {"features": [1.0] * len(tower_of), **affinity.costs}
    return {kind: np.bincount(tower_of, weights=costs, minlength=num_towers) for kind, costs in kinds.items()}


def draw(affinity: Affinity, plan: TowerPlan) -> Figure:
    """All pictures in one: the affinity, the map, the balance and the strongest pairs."""
    figure = Figure(figsize=(14, 12), layout="constrained")
    for axes, picture in zip(figure.subplots(2, 2).flat, PICTURES.values(), strict=True):
        picture(axes, affinity, plan)
    return figure


def draw_affinity(axes: Axes, affinity: Affinity, plan: TowerPlan) -> None:
    """The matrix (F, F), features ordered by tower, towers framed."""
    tower_of = _tower_of(affinity, plan)
    order = np.argsort(tower_of, kind="stable")
    matrix = affinity.matrix[np.ix_(order, order)].copy()
    np.fill_diagonal(matrix, np.nan)
    image = axes.imshow(matrix, cmap="cividis")
    axes.figure.colorbar(image, ax=axes, label=affinity.kind, shrink=0.8)
    ends = np.cumsum(np.bincount(tower_of))
    for start, end in zip([0, *ends[:-1]], ends, strict=True):
        axes.plot(*np.array([[start, end, end, start, start], [start, start, end, end, start]]) - 0.5, color="white")
    if len(order) <= _MAX_NAMES:
        names = [affinity.features[f] for f in order]
        axes.set_xticks(range(len(order)), names, rotation=90, fontsize=7)
        axes.set_yticks(range(len(order)), names, fontsize=7)
    else:
        axes.set_xlabel("features, by tower")
    axes.set_title("affinity, ordered by tower")


def draw_map(axes: Axes, affinity: Affinity, plan: TowerPlan) -> None:
    """Features as points, like ones near each other, in the colours of their towers."""
    points, _ = place(distances(affinity.matrix, "coherent"))
    tower_of = _tower_of(affinity, plan)
    for tower in range(len(plan.towers)):
        own = points[tower_of == tower]
        marker = MARKERS[tower // len(COLORS) % len(MARKERS)]
        axes.scatter(own[:, 0], own[:, 1], color=COLORS[tower % len(COLORS)], marker=marker, s=60, label=f"{tower}")
    if len(plan.towers) <= 16:
        axes.legend(title="tower", fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    axes.margins(0.15)
    axes.set_aspect("equal", adjustable="datalim")
    axes.set_title("features on a plane: like ones near each other")
    axes.set_xticks([])
    axes.set_yticks([])
    if len(points) <= _MAX_NAMES:
        _write_names(axes, affinity.features, points)


def _write_names(axes: Axes, names: Sequence[str], points: np.ndarray) -> None:
    """Names beside their points (F, 2), on a side where none of those before is, if there is one."""
    axes.figure.draw_without_rendering()  # type: ignore[union-attr] # now points have places on the picture
    taken: list[Bbox] = []
    for name, point in zip(names, points, strict=True):
        text = axes.annotate(name, point, xytext=_SIDES[0], textcoords="offset points", fontsize=7)
        for side in (*_SIDES, _SIDES[0]):
            text.set_position(side)
            text.set_horizontalalignment("left" if side[0] > 0 else "right")
            text.set_verticalalignment("bottom" if side[1] > 0 else "top")
            if not any(text.get_window_extent().overlaps(other) for other in taken):
                break
        taken.append(text.get_window_extent())


def draw_balance(axes: Axes, affinity: Affinity, plan: TowerPlan) -> None:
    """Cost of each tower over the mean of the towers, by kind of cost."""
    costs = tower_costs(affinity, plan)
    num_towers = len(plan.towers)
    width = 0.8 / len(costs)
    for index, (kind, values) in enumerate(costs.items()):
        places = np.arange(num_towers) + (index - (len(costs) - 1) / 2) * width
        axes.bar(places, values / max(values.mean(), 1e-12), width, label=kind, color=COLORS[index % len(COLORS)])
    axes.axhline(1, color="gray", linewidth=0.8)
    if num_towers <= 32:
        axes.set_xticks(range(num_towers))
    axes.set_xlabel("tower")
    axes.set_ylabel("over the mean of the towers")
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    axes.set_title("balance")


def draw_pairs(axes: Axes, affinity: Affinity, plan: TowerPlan) -> None:
    """The strongest pairs that share a tower, and the strongest that are cut."""
    pairs = [p for are_kept in (True, False) for p in strongest_pairs(affinity, plan, are_kept=are_kept)]
    for are_kept, color in ((True, COLORS[0]), (False, COLORS[1])):
        places = [place for place, pair in enumerate(pairs) if pair.is_kept == are_kept]
        label = "share a tower" if are_kept else "are cut"
        axes.barh(places, [pairs[place].affinity for place in places], color=color, label=label)
    axes.set_yticks(range(len(pairs)), [" - ".join(pair.names) for pair in pairs], fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel(affinity.kind)
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    axes.set_title("strongest pairs")


PICTURES: dict[str, Callable[[Axes, Affinity, TowerPlan], None]] = {
    "affinity": draw_affinity,
    "map": draw_map,
    "balance": draw_balance,
    "pairs": draw_pairs,
}


def _tower_of(affinity: Affinity, plan: TowerPlan) -> np.ndarray:
    """The tower of each feature, int64 (F,)."""
    place_of = {name: tower for tower, names in enumerate(plan.towers) for name in names}
    return np.array([place_of[name] for name in affinity.features])


def mean_within(affinity: Affinity, towers: Sequence[Sequence[str]]) -> float:
    """Mean affinity of the pairs of features inside the towers; 0 where there are none."""
    place = {name: index for index, name in enumerate(affinity.features)}
    values: list[float] = []
    for tower in towers:
        members = [place[name] for name in tower]
        values += affinity.matrix[np.ix_(members, members)][np.triu_indices(len(members), 1)].tolist()
    return float(np.mean(values)) if values else 0.0
