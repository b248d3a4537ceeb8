"""``dmt report``: runs and sweeps side by side, as a table, and as a page or Markdown with pictures."""

import json
import statistics
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dmt import pages
from dmt.commands.report_pictures import (
    MAX_NUMBERED,
    best_points,
    byte_cost,
    cross_host_bytes,
    curve_run,
    draw_curves,
    draw_trade_offs,
    equal_costs,
    num_hosts,
    output_bytes,
    pareto_front,
)
from dmt.errors import OneLineParser, UserInputError, nearest
from dmt.finished_run import SUMMARY_FILE, TRAINING_SAMPLES
from dmt.runs import Point, group, holm, least_p, p_text, p_value, read_runs
from dmt.waiting import waiting

_DESCRIPTION = """\
Compare finished runs of `dmt fit`, or the trials of a sweep that have finished so far. Runs that differ by their seed
alone are one point, with median, deviation and number of runs; those whose metric is no finite number have diverged,
and are counted apart. With --baseline each point is compared with that one (two-sided Mann-Whitney U test, as it is and
corrected for the number of points by Holm's method). --output makes a folder with report.html, which needs nothing
else, and the same as report.md.

examples:
  dmt report runs/quickstart runs/quickstart_flat
  dmt report runs/sweeps/tp_method --baseline num_towers=1,top=DLRM --output reports/tp_method
"""

METRICS = {
    "test/auroc": "AUC",
    "test/log_loss": "log loss",
    "test/normalized_entropy": "normalized entropy",
    "test/calibration": "calibration",
}


_MAX_NAMED = 5
_SIGNIFICANT = 0.05


def run_report(arguments: list[str]) -> None:
    """``dmt report RUN... [--baseline NAME] [--output DIR]``."""
    parser = OneLineParser(prog="dmt report", description=_DESCRIPTION)
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="folder of a run (of several versions the newest) or a sweep"
    )
    parser.add_argument(
        "--baseline",
        metavar="NAME",
        help="a point to compare with: its run's name, or some of what its label says, as num_towers=1,top=DLRM",
    )
    parser.add_argument(
        "--metric",
        default="test/auroc",
        metavar="METRIC",
        help="metric to compare: of the test, or the last value that metrics.csv has of it, as val/auroc (test/auroc)",
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder to make, for report.html and report.md")
    parser.add_argument("--json", action="store_true", help="print the table as JSON")
    options = parser.parse_args(arguments[1:])
    if options.output is not None and options.output.exists():
        raise UserInputError(f"--output {options.output}: it exists; give another name, or remove it")
    found = read_runs(options.runs)
    points = group(found.runs)
    _check_metric(points, options.metric)
    baseline = None if options.baseline is None else find_baseline(points, options.baseline)
    rows = summarise(points, baseline, metric=options.metric)
    if options.json:
        print(json.dumps(rows, indent=2, allow_nan=False))
    elif len(points) <= 4 and all(len(point.runs) == 1 for point in points):
        _print_runs(points, baseline, metric=options.metric)
    else:
        _print_points(rows)
    notes = [*found.left_out, *_notes(points, baseline, metric=options.metric)]
    for note in notes:
        print(note, file=sys.stderr)
    if options.output is not None:
        sections = make_sections(points, baseline, metric=options.metric, notes=notes)
        write_report(sections, options.output, title=" ".join(map(str, options.runs)))
        told = f"wrote {options.output / 'report.html'} and report.md"
        print(told, file=sys.stderr if options.json else sys.stdout)


def _check_metric(points: Sequence[Point], metric: str) -> None:
    runs = [run for point in points for run in point.runs]
    if all(run.final(metric) is None for run in runs):
        known = sorted({name for run in runs for name in run.metrics})
        fix = nearest(metric, known, otherwise=f"choose one of {', '.join(known)}")
        raise UserInputError(f"--metric {metric}: no run has it; {fix}")


def _notes(points: Sequence[Point], baseline: Point | None, *, metric: str) -> list[str]:
    """What there is to know of the metric and the runs, a sentence each."""
    notes = []
    runs = [run for point in points for run in point.runs]
    if repeated := [run for point in points for run in point.repeated]:
        names = _some([run.name for run in repeated])
        notes.append(f"Not counted, since they repeat the options and the seed of a newer run: {names}.")
    if num_diverged := sum(point.num_diverged(metric) for point in points):
        notes.append(
            f"{metric} of {num_diverged} runs is no finite number: they have diverged, and are not among the n."
        )
    if not all(metric in run.summary.metrics for run in runs):
        notes.append(f"{metric} is its last value in metrics.csv, for runs whose {SUMMARY_FILE} has none.")
    if resumed := [run.name for run in runs if run.resumed_from]:
        notes.append(f"These went on from a checkpoint, and count as the others do: {_some(resumed)}.")
    for name in TRAINING_SAMPLES:
        values = sorted({str(run.summary.data.get("init_args", {}).get(name)) for run in runs})
        if len(values) > 1:
            notes.append(f"The runs were not trained on the same samples: {name} is {' or '.join(values)}.")
    codes = [run.code for run in runs if run.code]
    first_code = codes[0] if codes else {}
    if differing := [name for name in first_code if len({code.get(name) for code in codes}) > 1]:
        kinds = Counter(", ".join(f"{name} {code.get(name)}" for name in differing) for code in codes)
        told = [f"{number} of {kind}" for kind, number in kinds.most_common()]
        notes.append(f"The runs are not of one version of the code: {_some(told)}.")
    if baseline is not None:
        reference = len(baseline.values(metric))
        counts = [len(point.values(metric)) for point in points if point is not baseline]
        least = [least_p(count, reference) for count in counts if min(count, reference) > 1]
        if len(least) < len(counts):
            notes.append("There is no p where a point or the baseline is one run alone.")
        if least and min(least) > _SIGNIFICANT:
            notes.append(f"With so few seeds no p can be below {p_text(min(least))}, however much points differ.")
    return notes


def _some(names: Sequence[str]) -> str:
    more = len(names) - _MAX_NAMED
    return "; ".join(names[:_MAX_NAMED]) + f" and {more} more" * (more > 0)


def _parts(label: str) -> set[str]:
    return set(label.replace(" ", "").split(","))


def find_baseline(points: Sequence[Point], name: str) -> Point:
    """The one point with this label, or with all of these parts of a label or options.

    Raises:
        UserInputError: none or several have them.
    """
    exact = [point for point in points if name == point.label or name in {run.name for run in point.runs}]
    wanted = _parts(name)
    found = exact or [point for point in points if wanted <= _parts(point.label)]
    found = found or [point for point in points if wanted <= _parts(point.label) | point.parts]
    if len(found) != 1:
        known = sorted({part for point in points for part in {point.label} | _parts(point.label) | point.parts})
        strange = [part for part in sorted(wanted) if part not in known]
        listed = f"the points are {_some([point.label for point in found or points])}"
        fix = nearest(strange[0], known, otherwise=listed) if strange else listed
        raise UserInputError(f"--baseline {name}: {len(found)} points have it, not one; {fix}")
    return found[0]


def summarise(points: Sequence[Point], baseline: Point | None, *, metric: str) -> list[dict[str, Any]]:
    """What the report says of points, a row each."""
    rows = [_summary(point, baseline, metric=metric) for point in points]
    if baseline is not None:
        tested = [row for row in rows if row["p"] is not None]
        corrected = holm([row["p"] for row in tested])
        for row in rows:
            row["p_corrected"] = None
        for row, p in zip(tested, corrected, strict=True):
            row["p_corrected"] = p
    return rows


def _summary(point: Point, baseline: Point | None, *, metric: str) -> dict[str, Any]:
    values = point.values(metric)
    description = point.description
    rates = [run.summary.samples_per_second for run in point.runs if run.summary.samples_per_second is not None]
    row: dict[str, Any] = {
        "point": point.label,
        "n": len(values),
        "diverged": point.num_diverged(metric),
        "median": statistics.median(values) if values else None,
        "deviation": statistics.stdev(values) if len(values) > 1 else None,
        "towers": len(description["towers"]),
        "plan": description["plan_method"],
        "compression": description["compression_ratio"],
        "mflops": description["mflops_per_sample"],
        "output_bytes": output_bytes(point),
        "cross_host_bytes": cross_host_bytes(point),
        "samples_per_second": statistics.median(rates) if rates else None,
    }
    if baseline is not None:
        reference = baseline.values(metric)
        differs = point is not baseline and values and reference
        row["is_baseline"] = point is baseline
        row["difference"] = statistics.median(values) - statistics.median(reference) if differs else None
        enough = differs and min(len(values), len(reference)) > 1
        row["p"] = p_value(values, reference) if enough else None
    return row


def _cells(row: dict[str, Any], traffic: Mapping[str, str]) -> dict[str, str]:
    """A row as text, by column; with what stands for traffic."""
    cells = {
        "point": row["point"],
        "n": str(row["n"]),
        "diverged": str(row["diverged"]),
        "median": "nan" if row["diverged"] and not row["n"] else _number(row["median"], ".4f"),
        "deviation": _number(row["deviation"], ".4f"),
        "towers (plan)": f"{row['towers']} ({row['plan']})",
        "compression": f"{row['compression']:.2f}",
        "MFLOPs": f"{row['mflops']:.3f}",
        **traffic,
        "samples/s": _number(row["samples_per_second"], ",.0f"),
    }
    if "p" in row:
        cells["difference"] = "baseline" if row["is_baseline"] else _number(row["difference"], "+.4f")
        cells["p"] = "" if row["p"] is None else p_text(row["p"])
        cells["p, corrected"] = "" if row["p_corrected"] is None else p_text(row["p_corrected"])
    return cells


def _number(value: float | None, form: str) -> str:
    return "" if value is None else f"{value:{form}}"


def _unwanted(rows: Sequence[dict[str, Any]]) -> set[str]:
    """Columns that say nothing."""
    return set() if any(row["diverged"] for row in rows) else {"diverged"}


def _print_points(rows: Sequence[dict[str, Any]]) -> None:
    """As much as fits a terminal; the page has all columns."""
    more = ["difference", "p, corrected"] if "p" in rows[0] else ["compression"]
    shown = ["n", "diverged", "median", "deviation", *more]
    shown = [name for name in shown if name not in _unwanted(rows)]
    table = Table()
    for name in shown:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("point", overflow="fold")
    for row in rows:
        cells = _cells(row, {})
        table.add_row(*(cells[name] for name in shown), escape(cells["point"]))
    Console().print(table)


def _print_runs(points: Sequence[Point], baseline: Point | None, *, metric: str) -> None:
    """A few single runs: a column each, with all there is to say of them."""
    table = Table("")
    for point in points:
        table.add_column(escape(point.label), justify="right", overflow="fold")
    columns = [_metric_rows(point, baseline, metric=metric) | _run_rows(point) for point in points]
    for name in columns[0]:
        table.add_row(name, *(column[name] for column in columns))
    console = Console()
    console.print(table)
    for point in points:
        if checkpoint := point.runs[0].summary.checkpoint:
            console.print(f"{point.label}: checkpoint {checkpoint}", highlight=False, markup=False, soft_wrap=True)


def _metric_rows(point: Point, baseline: Point | None, *, metric: str) -> dict[str, str]:
    """What the table says of a run's quality, by row name."""
    names = {name: f"test {told}" for name, told in METRICS.items()}
    names.setdefault(metric, metric)
    rows = {told: _number(point.runs[0].final(name), ".4f") for name, told in names.items()}
    if baseline is not None:
        difference = _summary(point, baseline, metric=metric)["difference"]
        rows[f"{names[metric]}, difference to {baseline.label}"] = _number(difference, "+.4f")
    return rows


def _run_rows(point: Point) -> dict[str, str]:
    """What the table says of a run's configuration and speed, by row name."""
    summary = point.runs[0].summary
    description, layout = summary.description, summary.description["layout"]
    # Summaries of before these were options lack them: all was whole tables and float32 then.
    kinds = Counter(table["sharding"] for table in description.get("tables", []))
    precisions = [layout.get(f"{way}_precision", "fp32") for way in ("forward", "backward")]
    return {
        "towers (plan)": f"{len(description['towers'])} ({description['plan_method']})",
        "compression ratio": f"{description['compression_ratio']:.2f}",
        "parameters": f"{description['parameters']:,}",
        "MFLOPs per sample": f"{description['mflops_per_sample']:.3f}",
        "strategy": layout["strategy"],
        "hosts x ranks per host": f"{num_hosts(point)} x {layout['ranks_per_host']}",
        "tables": "\n".join(f"{number} {kind}" for kind, number in kinds.items()),
        "embeddings, gradients between hosts": ", ".join(precisions),
        "MB to other hosts, per rank and step": f"{description['bytes_per_iteration']['cross_host'] / 1e6:.3f}",
        "training samples per second": _number(summary.samples_per_second, ",.0f"),
    }


def make_sections(
    points: Sequence[Point], baseline: Point | None, *, metric: str, notes: Sequence[str] = ()
) -> list[pages.Section]:
    """What the page says of points: the table, and the pictures.

    Args:
        points: to compare.
        baseline: one of them, or None.
        metric: by which.
        notes: sentences on what to know of them.
    """
    rows = summarise(points, baseline, metric=metric)
    bytes_name, bytes_of = byte_cost(points)
    numbered = [
        {"": str(number), **_cells(row, {bytes_name: _number(bytes_of(point), ",.0f")})}
        for number, (point, row) in enumerate(zip(points, rows, strict=True), start=1)
    ]
    columns = [name for name in numbered[0] if name not in _unwanted(rows)]
    table = pages.Table(header=columns, rows=[[row[name] for name in columns] for row in numbered])
    text = ["Runs that differ by their seed alone are one point."]
    if baseline is not None:
        text.append(
            f"Differences and p are to point {points.index(baseline) + 1}, {baseline.label}: p of the two-sided "
            "Mann-Whitney U test, and corrected for as many points as there are by Holm's method."
        )
    heading = f"{metric}, {sum(len(point.runs) for point in points)} runs"
    first = pages.Section(heading=heading, text=[*text, *notes], tables=[table])
    return [first, *_trade_offs(points, baseline, metric=metric), *_curves(points, baseline, metric=metric)]


def _trade_offs(points: Sequence[Point], baseline: Point | None, *, metric: str) -> list[pages.Section]:
    shown = [point for point in points if point.values(metric)]
    if not shown:
        return []
    equal = equal_costs(shown)
    text = [f"Not drawn, being the same for all points: {', '.join(f'{n} ({v:,g})' for n, v in equal.items())}."]
    figure = Figure(figsize=(12, 9), layout="constrained")
    draw_trade_offs(figure, points, metric=metric, baseline=baseline)
    if figure.axes:
        bytes_name, bytes_of = byte_cost(points)
        front = ", ".join(str(points.index(point) + 1) for point in pareto_front(points, metric=metric, cost=bytes_of))
        numbers = "; of many points only the best at their cost and the baseline have one" * (len(shown) > MAX_NUMBERED)
        drawn = f"Medians with all runs' range; the numbers are those of the table{numbers}."
        if front:
            drawn += (
                " The line is the Pareto front: no other point is better and costs no more. By "
                f"{bytes_name.partition(',')[0]} it is of {front}."
            )
        text = [drawn, *(text if equal else [])]
    return [pages.Section(heading="What quality costs", text=text, pictures=[figure] if figure.axes else [])]


def _curves(points: Sequence[Point], baseline: Point | None, *, metric: str) -> list[pages.Section]:
    best = best_points(points, metric=metric, baseline=baseline)
    bare = [point for point in best if curve_run(point, metric=metric) is None]
    text, figures = ["Of the first run of each point that has any; of many points, of the best and the baseline."], []
    if bare:
        told = "; ".join(f"{points.index(p) + 1}, {', '.join(p.runs[0].loggers) or 'unknown'}" for p in bare)
        text.append(
            "Curves are read from metrics.csv, with values of two steps or more. It is missing, or has none of this "
            f"metric, for these points (with the loggers that the run had): {told}."
        )
    if len(bare) < len(best):
        figures = [Figure(figsize=(12, 5), layout="constrained")]
        draw_curves(figures[0], points, metric=metric, baseline=baseline)
    return [pages.Section(heading="Learning curves", text=text, pictures=figures)] if best else []


def write_report(sections: Sequence[pages.Section], folder: Path, *, title: str) -> None:
    """Write ``report.html``, and ``report.md`` with its pictures beside it, into a new folder.

    Raises:
        UserInputError: the folder cannot be made.
    """
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise UserInputError(f"--output {folder}: {error}; give a folder to make") from None
    kinds = {"report.html": pages.write_page, "report.md": pages.write_markdown}
    for name, write in waiting(kinds.items(), "drawing", total=len(kinds)):
        write(folder / name, title=title, sections=sections)
