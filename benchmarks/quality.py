"""Quality of a sweep's points against one of them, seeds paired: medians, deviations, differences and p-values.

    python benchmarks/quality.py runs/sweeps/precision --baseline trainer.precision=32-true \
        --output benchmarks/results/quality_precision.md

Reads the results.csv of `dmt sweep`. Trials that differ in --seed alone are one point. A difference is a point's metric
less that of the baseline with the same seed; its interval is that of the median (95 %, from order statistics). p is of
the two-sided Mann-Whitney U test, which does not use the pairs.
"""

import argparse
import statistics
import sys
from pathlib import Path

import polars as pl
from common import heading, median_interval, publish
from scipy.stats import mannwhitneyu

_FIXED = ("trial", "state", "seconds", "samples_per_second", "reason")
_METRICS = ("train/", "val/", "test/", "samples_per_s", "intra_host", "cross_host", "exposed_comm", "epoch", "step")

Point = tuple[tuple[str, str], ...]
"""Values of a point's parameters, by name."""


def read(folder: Path, *, seed: str, metric: str) -> dict[Point, dict[str, float]]:
    """The metric of every finished trial: ``{point: {seed: value}}``."""
    table = pl.read_csv(folder / "results.csv", infer_schema=False)
    if metric not in table.columns or seed not in table.columns:
        raise SystemExit(f"{folder}/results.csv has no {metric if seed in table.columns else seed}")
    names = [name for name in table.columns if name not in (*_FIXED, seed) and not name.startswith(_METRICS)]
    found: dict[Point, dict[str, float]] = {}
    for row in table.filter(pl.col("state") == "finished").iter_rows(named=True):
        point = tuple((name, row[name]) for name in names)
        found.setdefault(point, {})[row[seed]] = float(row[metric])
    return found


def label(point: Point) -> str:
    """A point as text, the last part of each name."""
    return ", ".join(f"{name.rpartition('.')[2]}={value}" for name, value in point if value) or "(all)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", type=Path, help="folder of a sweep")
    parser.add_argument("--baseline", required=True, metavar="NAME=VALUE", help="what tells the baseline's trials")
    parser.add_argument("--metric", default="test/auroc")
    parser.add_argument("--seed", default="seed_everything", help="the parameter that pairs trials")
    parser.add_argument("--output", type=Path, help="Markdown file to write; printed as well")
    arguments = parser.parse_args()

    points = read(arguments.sweep, seed=arguments.seed, metric=arguments.metric)
    name, _, value = arguments.baseline.partition("=")
    baselines = [point for point in points if dict(point).get(name) == value]
    if len(baselines) != 1:
        sys.exit(f"--baseline {arguments.baseline}: {len(baselines)} points have it, not one")
    reference = points[baselines[0]]
    lines = [
        *heading(f"{arguments.metric} of {arguments.sweep.name}"),
        "| point | n | median | deviation | median difference | 95 % interval | p |",
        "|---|---|---|---|---|---|---|",
    ]
    for point, by_seed in points.items():
        values = list(by_seed.values())
        cells = [f"{statistics.median(values):.4f}", f"{statistics.stdev(values):.4f}" if len(values) > 1 else ""]
        if point != baselines[0]:
            differences = [by_seed[seed] - reference[seed] for seed in by_seed if seed in reference]
            low, high = median_interval(differences)
            p = mannwhitneyu(values, list(reference.values())).pvalue
            cells += [f"{statistics.median(differences):+.5f}", f"{low:+.5f} to {high:+.5f}", f"{p:.3f}"]
        lines.append(f"| {label(point)} | {len(values)} | {' | '.join([*cells, '', '', ''][:5])} |")
    publish(lines, arguments.output)


if __name__ == "__main__":
    main()
