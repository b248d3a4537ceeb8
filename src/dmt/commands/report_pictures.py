"""Pictures of a report: quality against its costs, and learning curves."""

import statistics
import textwrap
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dmt.partition.drawing import COLORS, MARKERS, write_beside
from dmt.runs import Point, Run

_FLOAT_BYTES = 4
_MAX_CURVES = 8
MAX_NUMBERED = 12  # points; more numbers would have no room
_NUMBER_SIZE = 8
_LINES = ("-", "--", ":", "-.")

Cost = Callable[[Point], float | None]
"""What a point costs, or None where that means nothing for it."""


def num_hosts(point: Point) -> int:
    """Hosts that its runs were on."""
    layout = point.description["layout"]
    return int(layout["ranks"] // layout["ranks_per_host"])


def output_bytes(point: Point) -> int:
    """Bytes that the towers send of one sample, in float32: what crosses hosts where every tower is on another host."""
    towers = point.description["towers"]
    return sum(tower["out_features"] * tower["out_dim"] for tower in towers) * _FLOAT_BYTES


def cross_host_bytes(point: Point) -> float | None:
    """Bytes that a rank sends to other hosts in a training step, of all kinds, on average; None on a single host."""
    return float(point.description["bytes_per_iteration"]["cross_host"]) if num_hosts(point) > 1 else None


def byte_cost(points: Sequence[Point]) -> tuple[str, Cost]:
    """What stands for the traffic of points, with its name: where none has run on several hosts, what it would be."""
    if any(num_hosts(point) > 1 for point in points):
        return "bytes to other hosts, per rank and step", cross_host_bytes
    return "bytes out of towers, per sample", output_bytes


def differing_costs(points: Sequence[Point]) -> dict[str, Cost]:
    """By name, the costs in which points differ."""
    return {name: cost for name, cost in _costs(points).items() if len(_values(points, cost)) > 1}


def equal_costs(points: Sequence[Point]) -> dict[str, float]:
    """By name, the costs that all points have alike."""
    found = {name: _values(points, cost) for name, cost in _costs(points).items()}
    return {name: values.pop() for name, values in found.items() if len(values) == 1}


def _values(points: Sequence[Point], cost: Cost) -> set[float]:
    return {value for point in points if (value := cost(point)) is not None}


def _costs(points: Sequence[Point]) -> dict[str, Cost]:
    bytes_name, bytes_of = byte_cost(points)
    return {
        "towers": lambda point: len(point.description["towers"]),
        "compression ratio": lambda point: point.description["compression_ratio"],
        "MFLOPs per sample": lambda point: point.description["mflops_per_sample"],
        bytes_name: bytes_of,
    }


def _has_front(name: str) -> bool:
    """Whether less of a cost is better as such."""
    return name.startswith(("MFLOPs", "bytes"))


def loss_of(metric: str) -> Callable[[float], float] | None:
    """What of a metric's values less is better of; None where it is not known what is better."""
    name = metric.rpartition("/")[2]
    if name == "calibration":  # predicted over observed clicks
        return lambda value: abs(value - 1)
    if name in ("auroc", "samples_per_s"):
        return lambda value: -value
    return (lambda value: value) if name in ("loss", "log_loss", "normalized_entropy") else None


def _best_first(points: Sequence[Point], metric: str) -> list[Point]:
    """Those with values, by their medians where it is known what is better."""
    scored, loss = [point for point in points if point.values(metric)], loss_of(metric)
    return scored if loss is None else sorted(scored, key=lambda point: loss(statistics.median(point.values(metric))))


def pareto_front(points: Sequence[Point], *, metric: str, cost: Cost) -> list[Point]:
    """Points of which no other one is better and costs no more, by rising cost; none of an unknown metric."""
    loss = loss_of(metric)
    if loss is None:
        return []
    scored = [
        (value, loss(statistics.median(point.values(metric))), point)
        for point in points
        if point.values(metric) and (value := cost(point)) is not None
    ]
    front: list[Point] = []
    best = float("inf")
    for _, score, point in sorted(scored, key=lambda one: one[:2]):
        if score < best:
            best = score
            front.append(point)
    return front


def draw_trade_offs(figure: Figure, points: Sequence[Point], *, metric: str, baseline: Point | None = None) -> None:
    """The metric against each cost in which points differ: medians, ranges, and the Pareto front where less is better.

    Of many points only some have a number and a colour: the front's, or else the best of each cost, and the baseline.
    """
    shown = {number: point for number, point in enumerate(points, start=1) if point.values(metric)}
    costs = differing_costs(list(shown.values()))
    if not costs:
        return
    num_rows = (len(costs) + 1) // 2
    figure.set_figheight(figure.get_figheight() * num_rows / 2)
    grid = figure.subplots(num_rows, min(2, len(costs)), squeeze=False).flat
    write_numbers = []
    for (name, cost), axes in zip(costs.items(), grid, strict=False):
        drawn = {number: point for number, point in shown.items() if cost(point) is not None}
        front = pareto_front(points, metric=metric, cost=cost) if _has_front(name) else []
        best = front or _best_of_each(list(drawn.values()), cost, metric=metric)
        told = [*best, *([] if baseline is None else [baseline])] if len(drawn) > MAX_NUMBERED else list(points)
        write_numbers.append(_draw_costs(axes, drawn, cost, metric=metric, told=told, best=best))
        if front:
            places = [(_at(point, cost), statistics.median(point.values(metric))) for point in front]
            axes.step(*np.transpose(places), where="post", color="gray", linewidth=1, zorder=0)
        if name == "towers":
            axes.set_xticks(sorted(_values(list(drawn.values()), cost)))
        axes.set_xlabel(name)
        axes.set_ylabel(metric)
    for axes in list(grid):  # an odd number leaves a place
        axes.set_axis_off()
    figure.draw_without_rendering()  # lays it out: only now is it known what is near what
    for write in write_numbers:
        write()


def _best_of_each(points: Sequence[Point], cost: Cost, *, metric: str) -> list[Point]:
    best: dict[float, Point] = {}
    for point in _best_first(points, metric):
        best.setdefault(_at(point, cost), point)
    return list(best.values())


def _at(point: Point, cost: Cost) -> float:
    value = cost(point)
    assert value is not None, "it is not drawn then"
    return value


def _draw_costs(
    axes: Axes, points: Mapping[int, Point], cost: Cost, *, metric: str, told: Sequence[Point], best: Sequence[Point]
) -> Callable[[], None]:
    """Draw the points, and return what writes the numbers of those told of once the figure is laid out."""
    names, places, bars = [], [], []
    for number, (point, x) in zip(points, _places(list(points.values()), cost, best), strict=True):
        values = point.values(metric)
        median = statistics.median(values)
        color, turn = _color(number)
        is_told = point in told
        color, layer = (color, 3) if is_told else ("0.75", 2)
        axes.plot([x, x], [min(values), max(values)], linewidth=1, color=color, zorder=layer)
        axes.plot([x], [median], marker=MARKERS[turn % len(MARKERS)], color=color, zorder=layer)
        names.append(str(number) if is_told else "")
        places.append((x, median))
        bars.append((min(values), max(values)))
    return partial(write_beside, axes, names, np.array(places), size=_NUMBER_SIZE, bars=np.array(bars))


def _places(points: Sequence[Point], cost: Cost, best: Sequence[Point]) -> list[tuple[Point, float]]:
    """Where each is drawn: of those of one cost, the best at it, on the front's line, the others beside it."""
    xs = [_at(point, cost) for point in points]
    width = 0.01 * np.ptp(xs)
    offsets: dict[int, float] = {}
    for x in set(xs):
        same = sorted((p for p, own in zip(points, xs, strict=True) if own == x), key=lambda p: p not in best)
        for place, point in enumerate(same):
            side = -1 if place % 2 else 1
            offsets[id(point)] = side * ((place + 1) // 2) * width * min(1, 5 / len(same))
    return [(point, x + offsets[id(point)]) for point, x in zip(points, xs, strict=True)]


def _color(number: int) -> tuple[str, int]:
    """Of the point with a number, the same in all pictures; and how often the colours have been gone through before."""
    turn, place = divmod(number - 1, len(COLORS))
    return COLORS[place], turn


def best_points(points: Sequence[Point], *, metric: str, baseline: Point | None = None) -> list[Point]:
    """Those whose curves are worth a look: the best, and the baseline."""
    best = _best_first(points, metric)[:_MAX_CURVES]
    is_missing = baseline is not None and baseline.values(metric) and baseline not in best
    return [*best[: _MAX_CURVES - 1], baseline] if baseline is not None and is_missing else best


def curve_run(point: Point, *, metric: str) -> Run | None:
    """Its first run that :func:`draw_curves` has something to draw of. One value, at the end, is no curve."""
    names = _curve_names(metric)
    return next((run for run in point.runs if any(len(run.curve(name)[0]) > 1 for name in names)), None)


def _curve_names(metric: str) -> list[str]:
    return list(dict.fromkeys(["train/loss", metric.replace("test/", "val/")]))


def draw_curves(figure: Figure, points: Sequence[Point], *, metric: str, baseline: Point | None = None) -> None:
    """Training loss and the validation metric by step, of a run of each of the best points that have curves."""
    best = best_points(points, metric=metric, baseline=baseline)
    found = [(point, curve_run(point, metric=metric)) for point in best]
    runs = {points.index(point) + 1: run for point, run in found if run is not None}
    curves = {name: [run.curve(name) for run in runs.values()] for name in _curve_names(metric)}
    curves = {name: own for name, own in curves.items() if any(len(steps) > 1 for steps, _ in own)}
    for axes, (name, own) in zip(figure.subplots(1, len(curves), squeeze=False).flat, curves.items(), strict=True):
        for number, (steps, values) in zip(runs, own, strict=True):
            color, turn = _color(number)
            label = textwrap.fill(f"{number}: {points[number - 1].label}", 180, subsequent_indent="    ")
            axes.plot(steps, values, color=color, linestyle=_LINES[turn % len(_LINES)], label=label, linewidth=1)
        axes.set_xlabel("step")
        axes.set_ylabel(name)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    num_columns = 2 if max(map(len, labels)) <= 85 else 1
    # The axes keep their height, however long the legend.
    num_lines = sum(label.count("\n") + 1 for label in labels) / num_columns
    figure.set_figheight(figure.get_figheight() + 0.15 * num_lines)
    figure.legend(handles, labels, loc="outside lower center", ncols=num_columns, fontsize=7)
