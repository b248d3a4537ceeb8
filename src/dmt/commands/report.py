"""``dmt report``: runs and sweeps side by side, as a table, and as a page or Markdown with pictures."""

import json
import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from dmt import pages
from dmt.commands.report_pictures import draw_curves, draw_trade_offs, output_bytes, pareto_front
from dmt.errors import OneLineParser, UserInputError
from dmt.runs import Point, Run, find_runs, group, p_text, p_value

_DESCRIPTION = """\
Compare finished runs of `dmt fit`, or the trials of a sweep that have finished so far. Runs that differ by their seed
alone are one point, with median, deviation and number of runs; with --baseline each point is compared with that one
(two-sided Mann-Whitney U test). --output makes a folder with report.html, which needs nothing else, and the same as
report.md.

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
    parser.add_argument("--metric", default="test/auroc", metavar="METRIC", help="metric to compare (test/auroc)")
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder to make, for report.html and report.md")
    parser.add_argument("--json", action="store_true", help="print the table as JSON")
    options = parser.parse_args(arguments[1:])
    if options.output is not None and options.output.exists():
        raise UserInputError(f"--output {options.output}: it exists; give another name, or remove it")
    points = group(find_runs(options.runs))
    _check_metric(points, options.metric)
    baseline = None if options.baseline is None else find_baseline(points, options.baseline)
    rows = [summarise(point, baseline, metric=options.metric) for point in points]
    if options.json:
        print(json.dumps(rows, indent=2))
    elif len(points) <= 4 and all(len(point.runs) == 1 for point in points):
        _print_runs([point.runs[0] for point in points])
    else:
        _print_points(rows)
    if options.output is not None:
        write_report(points, rows, options.output, metric=options.metric, title=" ".join(map(str, options.runs)))
        print(f"wrote {options.output / 'report.html'} and report.md")


def _check_metric(points: Sequence[Point], metric: str) -> None:
    known = {name for point in points for run in point.runs for name in run.summary.metrics}
    if metric not in known:
        raise UserInputError(f"--metric {metric}: no run has it; choose one of {', '.join(sorted(known))}")


def find_baseline(points: Sequence[Point], name: str) -> Point:
    """The one point with this label, or with all of these parts of a label.

    Raises:
        UserInputError: none or several have them.
    """
    exact = [point for point in points if name == point.label or name in {run.name for run in point.runs}]
    wanted = set(name.replace(" ", "").split(","))
    found = exact or [point for point in points if wanted <= set(point.label.replace(" ", "").split(","))]
    if len(found) != 1:
        labels = "; ".join(point.label for point in (found or points)[:5])
        raise UserInputError(f"--baseline {name}: {len(found)} points have it, not one; the points are {labels} ...")
    return found[0]


def summarise(point: Point, baseline: Point | None, *, metric: str) -> dict[str, Any]:
    """What the report says of a point."""
    values = point.values(metric)
    description = point.description
    rates = [run.summary.samples_per_second for run in point.runs if run.summary.samples_per_second is not None]
    row: dict[str, Any] = {
        "point": point.label,
        "n": len(values),
        "median": statistics.median(values) if values else None,
        "deviation": statistics.stdev(values) if len(values) > 1 else None,
        "towers": len(description["towers"]),
        "plan": description["plan_method"],
        "compression": description["compression_ratio"],
        "mflops": description["mflops_per_sample"],
        "output_bytes": output_bytes(point),
        "samples_per_second": statistics.median(rates) if rates else None,
    }
    if baseline is not None:
        reference = baseline.values(metric)
        differs = point is not baseline and values and reference
        row["difference"] = statistics.median(values) - statistics.median(reference) if differs else None
        enough = differs and min(len(values), len(reference)) > 1
        row["p"] = p_value(values, reference) if enough else None
    return row


def _cells(row: dict[str, Any]) -> dict[str, str]:
    """A row as text, by column."""
    cells = {
        "point": row["point"],
        "n": str(row["n"]),
        "median": _number(row["median"], ".4f"),
        "deviation": _number(row["deviation"], ".4f"),
        "towers (plan)": f"{row['towers']} ({row['plan']})",
        "compression": f"{row['compression']:.2f}",
        "MFLOPs": f"{row['mflops']:.3f}",
        "bytes out of towers": f"{row['output_bytes']:,}",
        "samples/s": _number(row["samples_per_second"], ",.0f"),
    }
    if "p" in row:
        cells["difference"] = _number(row["difference"], "+.4f")
        cells["p"] = "" if row["p"] is None else p_text(row["p"])
    return cells


def _number(value: float | None, form: str) -> str:
    return "" if value is None else f"{value:{form}}"


def _print_points(rows: Sequence[dict[str, Any]]) -> None:
    """As much as fits a terminal; the page has all columns."""
    shown = ["n", "median", "deviation", *(["difference", "p"] if "p" in rows[0] else []), "compression"]
    table = Table()
    for name in shown:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("point", overflow="fold")
    for row in rows:
        cells = _cells(row)
        table.add_row(*(cells[name] for name in shown), cells["point"])
    Console().print(table)


def _print_runs(runs: Sequence[Run]) -> None:
    """A few single runs: a column each, with all there is to say of them."""
    table = Table("")
    for run in runs:
        table.add_column(run.name, justify="right", overflow="fold")
    columns = [_run_rows(run) for run in runs]
    for name in columns[0]:
        table.add_row(name, *(column[name] for column in columns))
    console = Console()
    console.print(table)
    for run in runs:
        if run.summary.checkpoint:
            console.print(f"{run.name}: checkpoint {run.summary.checkpoint}", highlight=False, soft_wrap=True)


def _run_rows(run: Run) -> dict[str, str]:
    """What the table says of a run, by row name."""
    summary = run.summary
    description, layout = summary.description, summary.description["layout"]
    hosts = layout["ranks"] // layout["ranks_per_host"]
    # Summaries of before these were options lack them: all was whole tables and float32 then.
    kinds = Counter(table["sharding"] for table in description.get("tables", []))
    precisions = [layout.get(f"{way}_precision", "fp32") for way in ("forward", "backward")]
    return {
        **{f"test {name}": _number(summary.metrics.get(metric), ".4f") for metric, name in METRICS.items()},
        "towers (plan)": f"{len(description['towers'])} ({description['plan_method']})",
        "compression ratio": f"{description['compression_ratio']:.2f}",
        "parameters": f"{description['parameters']:,}",
        "MFLOPs per sample": f"{description['mflops_per_sample']:.3f}",
        "strategy": layout["strategy"],
        "hosts x ranks per host": f"{hosts} x {layout['ranks_per_host']}",
        "tables": "\n".join(f"{number} {kind}" for kind, number in kinds.items()),
        "embeddings, gradients between hosts": ", ".join(precisions),
        "MB to other hosts, per rank and step": f"{description['bytes_per_iteration']['cross_host'] / 1e6:.3f}",
        "training samples per second": _number(summary.samples_per_second, ",.0f"),
    }


def write_report(
    points: Sequence[Point], rows: Sequence[dict[str, Any]], folder: Path, *, metric: str, title: str
) -> None:
    """Write ``report.html``, and ``report.md`` with its pictures beside it, into a new folder.

    Raises:
        UserInputError: the folder cannot be made.
    """
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise UserInputError(f"--output {folder}: {error}; give a folder to make") from None
    front = ", ".join(str(points.index(point) + 1) for point in pareto_front(points, metric=metric))
    numbered = [{"": str(number), **_cells(row)} for number, row in enumerate(rows, start=1)]
    table = pages.Table(header=list(numbered[0]), rows=[list(row.values()) for row in numbered])
    trade_offs = Figure(figsize=(12, 9), layout="constrained")
    draw_trade_offs(trade_offs, points, metric=metric)
    curves = Figure(figsize=(12, 5), layout="constrained")
    has_curves = draw_curves(curves, points, metric=metric)
    sections = [
        pages.Section(
            heading=f"{metric}, {sum(len(point.runs) for point in points)} runs",
            text=["Runs that differ by their seed alone are one point. p is of the two-sided Mann-Whitney U test."],
            tables=[table],
        ),
        pages.Section(
            heading="What quality costs",
            text=[
                "Medians with all runs' range; the numbers are those of the table. The line is the Pareto front: no "
                f"other point is better and costs no more. By bytes out of towers it is of {front}."
            ],
            pictures=[trade_offs],
        ),
    ]
    if has_curves:
        sections.append(pages.Section(heading="Learning curves", pictures=[curves]))
    pages.write_page(folder / "report.html", title=title, sections=sections)
    pages.write_markdown(folder / "report.md", title=title, sections=sections)
