"""Quality of a sweep's points against one of them, seeds paired: medians, deviations, differences and p-values.

    python benchmarks/quality.py runs/sweeps/precision --baseline trainer.precision=32-true \
        --output benchmarks/results/quality_precision.md

Reads the results.csv of `dmt sweep`. Trials that differ in --seed alone are one point. A difference is a point's metric
less that of the baseline with the same seed; its interval is that of the median (95 %, from order statistics). p is of
the two-sided Mann-Whitney U test, which does not use the pairs. With --within there is a baseline for each value of a
parameter, and a table. With --choose the result names the point that has the highest median of another metric.
"""

import argparse
import math
import statistics
import sys
from collections.abc import Collection, Mapping
from pathlib import Path

from common import finished_trials, heading, median_interval, publish

from dmt.runs import p_text, p_value

_FIXED = ("trial", "state", "seconds", "samples_per_second", "reason")
_METRICS = ("train/", "val/", "test/", "samples_per_s", "intra_host", "cross_host", "exposed_comm", "epoch", "step")

Point = tuple[tuple[str, str], ...]
"""Values of a point's parameters, by name; empty where it has none."""

Results = Mapping[Point, Mapping[str, float]]
"""A metric of each point, by seed."""


def read(folder: Path, *, seed: str, metric: str) -> dict[Point, dict[str, float]]:
    """The metric of every finished trial: ``{point: {seed: value}}``."""
    table = finished_trials(folder)
    for name in (seed, metric):
        if name not in table.columns:
            raise SystemExit(f"{folder}/results.csv has no {name}")
    names = [name for name in table.columns if name not in (*_FIXED, seed) and not name.startswith(_METRICS)]
    found: dict[Point, dict[str, float]] = {}
    for row in table.iter_rows(named=True):
        point = tuple((name, row[name] or "") for name in names)
        found.setdefault(point, {})[row[seed]] = float(row[metric])
    return found


def label(point: Point, points: Collection[Point]) -> str:
    """What tells a point from others, in short names: a class by its own name, options by the last part of theirs."""
    words = []
    for index, (name, value) in enumerate(point):
        if not value or len({other[index][1] for other in points} - {""}) == 1:
            continue
        path = name.removesuffix(".class_path")
        words.append(f"{path.rpartition('.')[2]}={value if path == name else value.rpartition('.')[2]}")
    return ", ".join(words) or "(all)"


def pick(points: Collection[Point], criterion: str) -> Point:
    """The one point with ``NAME=VALUE``."""
    name, _, value = criterion.partition("=")
    found = [point for point in points if dict(point).get(name) == value]
    if len(found) != 1:
        sys.exit(f"--baseline {criterion}: {len(found)} points have it, not one")
    return found[0]


def tabulate(results: Results, *, baseline: Point, labels: Mapping[Point, str]) -> list[str]:
    """A line a point: median, deviation, and the difference to the baseline."""
    lines = [
        "| point | n | median | deviation | median difference | 95 % interval | p |",
        "|---|---|---|---|---|---|---|",
    ]
    reference = results[baseline]
    for point, by_seed in results.items():
        values = list(by_seed.values())
        cells = [f"{statistics.median(values):.4f}", f"{statistics.stdev(values):.4f}" if len(values) > 1 else ""]
        if point != baseline:
            differences = [by_seed[seed] - reference[seed] for seed in by_seed if seed in reference]
            low, high = median_interval(differences)
            p = p_value(values, list(reference.values()))
            # Five pairs and fewer leave the interval open.
            interval = f"{low:+.5f} to {high:+.5f}" if math.isfinite(low + high) else "open"
            cells += [f"{statistics.median(differences):+.5f}", interval, p_text(p)]
        lines.append(f"| {labels[point]} | {len(values)} | {' | '.join([*cells, '', '', ''][:5])} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", type=Path, help="folder of a sweep")
    parser.add_argument("--baseline", required=True, metavar="NAME=VALUE", help="what tells the baseline's trials")
    parser.add_argument("--within", metavar="NAME", help="compare points of equal NAME only, in a table of their own")
    parser.add_argument("--metric", default="test/auroc")
    parser.add_argument("--choose", metavar="METRIC", help="name the point with the highest median of this metric")
    parser.add_argument("--seed", default="seed_everything", help="the parameter that pairs trials")
    parser.add_argument("--output", type=Path, help="Markdown file to write; printed as well")
    arguments = parser.parse_args()

    results = read(arguments.sweep, seed=arguments.seed, metric=arguments.metric)
    labels = {point: label(point, results) for point in results}
    lines = heading(f"{arguments.metric} of {arguments.sweep.name}")
    for value in dict.fromkeys(dict(point).get(arguments.within) for point in results):
        part = {point: found for point, found in results.items() if dict(point).get(arguments.within) == value}
        lines += [*tabulate(part, baseline=pick(part, arguments.baseline), labels=labels), ""]
    if arguments.choose:
        chosen = read(arguments.sweep, seed=arguments.seed, metric=arguments.choose)
        best = max(chosen, key=lambda point: statistics.median(chosen[point].values()))
        medians = [statistics.median(found[best].values()) for found in (chosen, results)]
        lines += [
            f"Highest {arguments.choose}: {labels[best]}, {medians[0]:.4f}; its {arguments.metric}: {medians[1]:.4f}.",
            "",
        ]
    publish(lines[:-1], arguments.output)


if __name__ == "__main__":
    main()
