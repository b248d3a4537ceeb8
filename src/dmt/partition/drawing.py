"""Pictures of an affinity and the towers made of it. Names of features are no formulas, whatever signs they have.

Shape legend: F features, T towers.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from dmt.partition.affinity import Affinity
from dmt.partition.geometry import distances, place
from dmt.plan import TowerPlan

# Okabe and Ito (2008), with a dark red for their yellow, which no line shows on white: told apart with any colour
# vision. Towers beyond eight take another marker.
COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#882255", "#000000")
MARKERS = "os^Dv<>Pp*Xh"
_MAX_NAMES = 60  # features; more names would cover each other
_DPI = 150  # pictures are laid out at the resolution that they are saved at, for letters are not equally wide at all
_PAD = 0.1  # inches beside pictures, as pages have letters of another width
_MAX_NUMBERS = 32  # of towers; more would cover each other
_MAX_LETTERS = 30  # of a name; a longer one loses its middle, or it would leave no room for the picture
_NAME_SIZE = 7  # of its letters
_MARKER_SIZE = 6  # in 1/72 inch
# Where a name may begin, be centred or end, and how far above or below its point, in 1/72 inch. Nearer ones first.
_SIDES = [(x, sign * y) for y in range(3, 140, 4) for sign in (1, -1) for x in (5, -5, 0) if x or y > 3]
_FAR = 12  # so many points above or below, a line leads from the name to its point


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


def draw(affinity: Affinity, plan: TowerPlan, points: np.ndarray | None = None) -> Figure:
    """All pictures in one: the affinity, the balance, the strongest pairs and the map.

    Args:
        affinity: of the features.
        plan: their towers.
        points: of the partitioner that made them, as :func:`draw_map` takes them.
    """
    figure = Figure(figsize=(14, 12), dpi=_DPI, layout=ConstrainedLayoutEngine(w_pad=_PAD))
    for axes, picture in zip(figure.subplots(2, 2).flat, _pictures(affinity, plan, points).values(), strict=True):
        picture(axes)
    return figure


def draw_one(name: str, affinity: Affinity, plan: TowerPlan, points: np.ndarray | None = None) -> Figure:
    """The picture of that name alone: ``affinity``, ``balance``, ``pairs`` or ``map``."""
    figure = Figure(figsize=(9, 4) if name == "balance" else (9, 7), layout=ConstrainedLayoutEngine(w_pad=_PAD))
    _pictures(affinity, plan, points)[name](figure.subplots())
    return figure


def _pictures(affinity: Affinity, plan: TowerPlan, points: np.ndarray | None) -> dict[str, Callable[[Axes], None]]:
    """What draws each picture. The map is the last, since it writes its names where the others leave it room."""
    return {
        "affinity": lambda axes: draw_affinity(axes, affinity, plan),
        "balance": lambda axes: draw_balance(axes, affinity, plan),
        "pairs": lambda axes: draw_pairs(axes, affinity, plan),
        "map": lambda axes: draw_map(axes, affinity, plan, points),
    }


def draw_affinity(axes: Axes, affinity: Affinity, plan: TowerPlan) -> None:
    """The matrix (F, F), features ordered by tower, towers framed."""
    tower_of = _tower_of(affinity, plan)
    order = np.argsort(tower_of, kind="stable")
    matrix = affinity.matrix[np.ix_(order, order)].copy()
    np.fill_diagonal(matrix, np.nan)
    image = axes.imshow(matrix, cmap="cividis")
    axes.figure.colorbar(image, ax=axes, shrink=0.8).set_label(affinity.kind, parse_math=False)
    ends = np.cumsum(np.bincount(tower_of))
    for start, end in zip([0, *ends[:-1]], ends, strict=True):
        axes.plot(*np.array([[start, end, end, start, start], [start, start, end, end, start]]) - 0.5, color="white")
    if len(order) <= _MAX_NAMES:
        names = [_shown(affinity.features[f]) for f in order]
        axes.set_xticks(range(len(order)), names, rotation=90, fontsize=7, parse_math=False)
        axes.set_yticks(range(len(order)), names, fontsize=7, parse_math=False)
    else:
        axes.set_xlabel("features, by tower")
    axes.set_title("affinity, ordered by tower")


def draw_map(axes: Axes, affinity: Affinity, plan: TowerPlan, points: np.ndarray | None = None) -> None:
    """Features as points, in the colours of their towers. The figure's layout stays as it then is, for the names.

    Args:
        axes: to draw on; after the other pictures of its figure.
        affinity: of the features.
        plan: their towers.
        points: ``points_`` of the partitioner that made them, which are drawn where they are on a plane. Otherwise
            features are placed anew, like ones near each other.
    """
    note = map_note(plan, points)
    if points is None or not _are_drawn(plan, points):
        points, _ = place(distances(affinity.matrix, "coherent"))
    tower_of = _tower_of(affinity, plan)
    for tower in range(len(plan.towers)):
        own = points[tower_of == tower]
        marker = MARKERS[tower // len(COLORS) % len(MARKERS)]
        axes.scatter(own[:, 0], own[:, 1], color=COLORS[tower % len(COLORS)], marker=marker, s=60, label=f"{tower}")
    if len(plan.towers) <= _MAX_NUMBERS:
        columns = 1 + (len(plan.towers) > 16)
        axes.legend(title="tower", fontsize=8, ncols=columns, loc="upper left", bbox_to_anchor=(1, 1))
    axes.margins(0.15)
    axes.set_aspect("equal", adjustable="datalim")
    axes.set_title(note.replace("; ", "\n"))
    axes.set_xticks([])
    axes.set_yticks([])
    if len(points) <= _MAX_NAMES:
        figure = axes.get_figure(root=True)
        assert figure is not None
        for _ in range(2):  # what the first pass makes smaller has labels that the second finds room for
            figure.draw_without_rendering()
        figure.set_layout_engine("none")  # points now have places on the picture, and keep them
        write_beside(axes, [_shown(name) for name in affinity.features], points)


def map_note(plan: TowerPlan, points: np.ndarray | None) -> str:
    """What the map of these towers shows; ``points`` as :func:`draw_map` takes them."""
    if not _are_drawn(plan, points):
        return "features on a plane, like ones near each other; placed for this picture, towers were made otherwise"
    near = "unlike" if plan.method.endswith("diverse") else "like"
    return f"features on a plane, {near} ones near each other; towers were made of these points"


def _are_drawn(plan: TowerPlan, points: np.ndarray | None) -> bool:
    """Whether there is a point on a plane for each feature."""
    return points is not None and points.shape == (len(plan.feature_names), 2)


def _shown(name: str) -> str:
    half = _MAX_LETTERS // 2
    return name if len(name) <= _MAX_LETTERS else f"{name[:half]}…{name[1 - half :]}"


def write_beside(
    axes: Axes, names: Sequence[str], points: np.ndarray, *, size: float = _NAME_SIZE, bars: np.ndarray | None = None
) -> None:
    """Names beside their points: inside the axes, and clear of each other and of markers and bars if there is room.

    Each takes the nearest place that covers least of what is there already. The figure must have been laid out.

    Args:
        axes: with the points.
        names: of the points; empty for those without one.
        points: (P, 2), where there are markers.
        size: of the letters, in points.
        bars: (P, 2), the ends of an upright line through each point, or None.
    """
    figure = axes.get_figure(root=True)
    assert figure is not None
    unit = figure.dpi / 72
    inside = np.concatenate(axes.bbox.get_points())
    anchors = axes.transData.transform(points)
    taken = []  # boxes
    if bars is not None:
        low, high = (axes.transData.transform(np.stack([points[:, 0], end], axis=1)) for end in bars.T)
        taken += list(np.concatenate([low - unit / 2, high + unit / 2], axis=1))
    for index, (name, anchor, point) in enumerate(zip(names, anchors, points, strict=True)):
        if not name:
            continue
        # Farther from the others' markers than from its own, or it could be taken for theirs.
        reach = np.full((len(points), 1), _MARKER_SIZE * unit)
        reach[index] /= 2
        markers = np.concatenate([anchors - reach, anchors + reach], axis=1)
        # A space between names, and a little above, as letters are larger at some resolutions.
        extent = _size_of(axes, name, size) + np.array([size / 2, 1]) * unit
        boxes = [_box(anchor, np.array(side) * unit, extent) for side in _SIDES]
        others = np.array([*markers, *taken])
        covered = [_common_area(box, others).sum() + 100 * (extent.prod() - _common_area(box, inside)) for box in boxes]
        chosen = int(np.argmin(np.round(covered)))
        x, y = _SIDES[chosen]
        start = (0.5 - np.sign(x) / 2, 0.5 - np.sign(y) / 2)  # of a line, on the name
        taken.append(boxes[chosen])
        axes.annotate(
            name,
            point,
            xytext=(x, y),
            textcoords="offset points",
            fontsize=size,
            parse_math=False,
            horizontalalignment={1: "left", 0: "center", -1: "right"}[int(np.sign(x))],
            verticalalignment="bottom" if y > 0 else "top",
            arrowprops={"arrowstyle": "-", "linewidth": 0.4, "color": "gray", "relpos": start}
            if abs(y) > _FAR
            else None,
        ).set_in_layout(False)


def _size_of(axes: Axes, name: str, size: float) -> np.ndarray:
    """Width and height of a name, in pixels."""
    text = axes.text(0, 0, name, fontsize=size, parse_math=False)
    extent = text.get_window_extent().size
    text.remove()
    return np.asarray(extent)


def _box(anchor: np.ndarray, side: np.ndarray, size: np.ndarray) -> np.ndarray:
    """(left, bottom, right, top) of a name on a side of its point."""
    middle = anchor + side + np.sign(side) * size / 2
    return np.concatenate([middle - size / 2, middle + size / 2])


def _common_area(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Of a box (4,) with each of the others (..., 4)."""
    sides = np.minimum(box[2:], others[..., 2:]) - np.maximum(box[:2], others[..., :2])
    return np.asarray(np.clip(sides, 0, None).prod(axis=-1))


def draw_balance(axes: Axes, affinity: Affinity, plan: TowerPlan) -> None:
    """Cost of each tower over the mean of the towers, by kind of cost."""
    costs = tower_costs(affinity, plan)
    num_towers = len(plan.towers)
    width = 0.8 / len(costs)
    for index, (kind, values) in enumerate(costs.items()):
        places = np.arange(num_towers) + (index - (len(costs) - 1) / 2) * width
        axes.bar(places, values / max(values.mean(), 1e-12), width, label=kind, color=COLORS[index % len(COLORS)])
    axes.axhline(1, color="gray", linewidth=0.8)
    number_towers(axes.xaxis, num_towers)
    axes.set_ylabel("over the mean of the towers")
    for text in axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1)).get_texts():
        text.set_parse_math(False)
    axes.set_title("balance")


def number_towers(axis: Axis, num_towers: int) -> None:
    """Mark each tower on an axis, or some of them where there is no room for all."""
    if num_towers <= _MAX_NUMBERS:
        axis.set_ticks(range(num_towers), [f"{tower}" for tower in range(num_towers)])
        axis.set_tick_params(labelsize=10 if num_towers <= 16 else 6)
    axis.set_label_text("tower")


def draw_pairs(axes: Axes, affinity: Affinity, plan: TowerPlan) -> None:
    """The strongest pairs that share a tower, and the strongest that are cut."""
    pairs = [p for are_kept in (True, False) for p in strongest_pairs(affinity, plan, are_kept=are_kept)]
    for are_kept, color in ((True, COLORS[0]), (False, COLORS[1])):
        places = [place for place, pair in enumerate(pairs) if pair.is_kept == are_kept]
        label = "share a tower" if are_kept else "are cut"
        if places:
            axes.barh(places, [pairs[place].affinity for place in places], color=color, label=label)
    names = [list(map(_shown, pair.names)) for pair in pairs]
    is_long = max((len(one + other) for one, other in names), default=0) > _MAX_LETTERS
    told = [(" -\n" if is_long else " - ").join(pair) for pair in names]
    axes.set_yticks(range(len(pairs)), told, fontsize=6 if is_long else 7, linespacing=1, parse_math=False)
    axes.invert_yaxis()
    axes.set_xlabel(affinity.kind, parse_math=False)
    if pairs:
        axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    axes.set_title("strongest pairs")


def _tower_of(affinity: Affinity, plan: TowerPlan) -> np.ndarray:
    """The tower of each feature, int64 (F,)."""
    place_of = {name: tower for tower, names in enumerate(plan.towers) for name in names}
    return np.array([place_of[name] for name in affinity.features])


def mean_within(affinity: Affinity, towers: Sequence[Sequence[str]]) -> float | None:
    """Mean affinity of the pairs of features inside the towers; ``None`` where there are none."""
    place = {name: index for index, name in enumerate(affinity.features)}
    values: list[float] = []
    for tower in towers:
        members = [place[name] for name in tower]
        values += affinity.matrix[np.ix_(members, members)][np.triu_indices(len(members), 1)].tolist()
    return float(np.mean(values)) if values else None
