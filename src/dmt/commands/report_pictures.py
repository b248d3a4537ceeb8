"""Pictures of a report: quality against its costs, and learning curves."""

import statistics
from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dmt.partition.drawing import COLORS, MARKERS
from dmt.runs import Point

_FLOAT_BYTES = 4
_MAX_CURVES = 8
_LINES = ("-", "--", ":", "-.")


def output_bytes(point: Point) -> int:
    """Bytes that the towers send of one sample, in float32: what crosses hosts where every tower is on another host."""
    towers = point.description["towers"]
    return sum(tower["out_features"] * tower["out_dim"] for tower in towers) * _FLOAT_BYTES


COSTS: dict[str, Callable[[Point], float]] = {
    "towers": lambda point: len(point.description["towers"]),
    "compression ratio": lambda point: point.description["compression_ratio"],
    "MFLOPs per sample": lambda point: point.description["mflops_per_sample"],
    "bytes a sample's towers send": output_bytes,
}
_LESS_IS_BETTER = ("MFLOPs per sample", "bytes a sample's towers send")


def _is_larger_better(metric: str) -> bool:
    return "auroc" in metric


def pareto_front(points: Sequence[Point], *, metric: str, cost: Callable[[Point], float] = output_bytes) -> list[Point]:
    """Points of which no other one is better and costs no more, by rising cost."""
    sign = 1 if _is_larger_better(metric) else -1
    scored = [
        (cost(point), -sign * statistics.median(values), point) for point in points if (values := point.values(metric))
    ]
    front: list[Point] = []
    best = float("inf")
    for _, loss, point in sorted(scored, key=lambda one: one[:2]):
        if loss < best:
            best = loss
            front.append(point)
    return front


def draw_trade_offs(figure: Figure, points: Sequence[Point], *, metric: str) -> None:
    """The metric against each cost: medians, ranges, and the Pareto front where less is better."""
    for axes, (name, cost) in zip(figure.subplots(2, 2).flat, COSTS.items(), strict=True):
        _draw_costs(axes, points, cost, metric=metric)
        if name in _LESS_IS_BETTER:
            front = pareto_front(points, metric=metric, cost=cost)
            places = [(cost(point), statistics.median(point.values(metric))) for point in front]
            axes.step(*np.transpose(places), where="post", color="gray", linewidth=1, zorder=0)
        if name == "towers":
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel(name)
        axes.set_ylabel(metric)


def _draw_costs(axes: Axes, points: Sequence[Point], cost: Callable[[Point], float], *, metric: str) -> None:
    shown = [(number, point) for number, point in enumerate(points, start=1) if point.values(metric)]
    xs = np.array([cost(point) for _, point in shown], dtype=float)
    # Points of one cost stand side by side.
    width = 0.012 * max(np.ptp(xs), 1e-9 + 0.1 * abs(xs).max())
    for index, (number, point) in enumerate(shown):
        same = [other for other in range(len(shown)) if xs[other] == xs[index]]
        x = xs[index] + width * (same.index(index) - (len(same) - 1) / 2) * min(1, 8 / len(same))
        values = point.values(metric)
        color, turn = _color(number)
        median = statistics.median(values)
        axes.plot([x, x], [min(values), max(values)], color=color, linewidth=1)
        axes.plot([x], [median], marker=MARKERS[turn % len(MARKERS)], color=color)
        axes.annotate(str(number), (x, median), xytext=(4, 3), textcoords="offset points", fontsize=7)


def _color(number: int) -> tuple[str, int]:
    """Of the point with a number, the same in all pictures; and how often the colours have been gone through before."""
    turn, place = divmod(number - 1, len(COLORS))
    return COLORS[place], turn


def draw_curves(figure: Figure, points: Sequence[Point], *, metric: str) -> bool:
    """Training loss and the validation metric by step, of the first run of the best points; whether there are any."""
    sign = -1 if _is_larger_better(metric) else 1
    scored = [point for point in points if point.values(metric)]
    best = sorted(scored, key=lambda point: sign * statistics.median(point.values(metric)))[:_MAX_CURVES]
    curves = {
        name: [point.runs[0].curve(name) for point in best] for name in ("train/loss", metric.replace("test", "val"))
    }
    # One value, at the end, is no curve.
    curves = {name: found for name, found in curves.items() if any(len(steps) > 1 for steps, _ in found)}
    if not curves:
        return False
    for axes, (name, found) in zip(figure.subplots(1, len(curves), squeeze=False).flat, curves.items(), strict=True):
        for point, (steps, values) in zip(best, found, strict=True):
            number = points.index(point) + 1
            color, turn = _color(number)
            label = _short(f"{number}: {point.label}")
            axes.plot(steps, values, color=color, linestyle=_LINES[turn % len(_LINES)], label=label, linewidth=1)
        axes.set_xlabel("step")
        axes.set_ylabel(name)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=7)
    return True


def _short(label: str) -> str:
    return label if len(label) <= 90 else label[:87] + "..."
