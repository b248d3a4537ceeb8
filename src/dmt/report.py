"""What a run leaves behind beside its checkpoints and logs, and ``dmt report``, which compares runs."""

import argparse
import json
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from dmt.errors import UserInputError

_FILE = "summary.json"


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """The outcome of one ``dmt fit``.

    Args:
        data: the ``data`` section of its configuration.
        description: as of ``dmt describe``.
        metrics: final metrics by name, ``test/auroc`` among them.
        samples_per_second: median over training steps, all ranks together.
        steps: optimiser steps.
        checkpoint: the tested checkpoint, or ``""`` where the final weights were tested.
    """

    data: dict[str, Any]
    description: dict[str, Any]
    metrics: dict[str, float]
    samples_per_second: float | None
    steps: int
    checkpoint: str

    def save(self, run_dir: Path) -> None:
        """Write ``summary.json`` into the run's folder."""
        (run_dir / _FILE).write_text(json.dumps(asdict(self), indent=2, default=str) + "\n")

    @classmethod
    def load(cls, run_dir: Path) -> "RunSummary":
        """Read the summary of a run's folder, or of the newest ``version_N`` below it.

        Raises:
            UserInputError: there is no finished run.
        """
        versions = sorted(run_dir.glob(f"version_*/{_FILE}"), key=lambda path: int(path.parent.name.split("_")[1]))
        found = [run_dir / _FILE, *versions]
        existing = [path for path in found if path.is_file()]
        if not existing:
            raise UserInputError(f"run {run_dir}: no {_FILE} there; give the folder of a finished `dmt fit`")
        return cls(**json.loads(existing[-1].read_text()))


def run_report(arguments: list[str]) -> None:
    """``dmt report RUN...``."""
    parser = argparse.ArgumentParser(prog="dmt report", description="Compare finished runs side by side.")
    parser.add_argument("runs", nargs="+", type=Path, help="run folders; of several versions the newest counts")
    runs = parser.parse_args(arguments[1:]).runs
    summaries = [RunSummary.load(run) for run in runs]
    for run, summary in zip(runs, summaries, strict=True):
        if summary.data != summaries[0].data:
            raise UserInputError(
                f"run {run}: its data section differs from that of {runs[0]}; compare runs on the same data"
            )
    _print(runs, summaries)


def _print(runs: list[Path], summaries: list[RunSummary]) -> None:
    table = Table()
    table.add_column("")
    for run in runs:
        table.add_column(run.name, justify="right", overflow="fold")
    columns = [_rows(summary) for summary in summaries]
    for name in columns[0]:
        table.add_row(name, *(column[name] for column in columns))
    console = Console()
    console.print(table)
    for run, summary in zip(runs, summaries, strict=True):
        if summary.checkpoint:
            console.print(f"{run.name}: checkpoint {summary.checkpoint}", highlight=False, soft_wrap=True)


def _rows(summary: RunSummary) -> dict[str, str]:
    """What the table says of a run, by row name."""
    description, layout = summary.description, summary.description["layout"]
    hosts = layout["ranks"] // layout["ranks_per_host"]
    # Summaries of before these were options lack them: all was whole tables and float32 then.
    kinds = Counter(table["sharding"] for table in description.get("tables", []))
    precisions = [layout.get(f"{way}_precision", "fp32") for way in ("forward", "backward")]
    rate = summary.samples_per_second
    return {
        "test AUC": f"{summary.metrics['test/auroc']:.4f}",
        "test log loss": f"{summary.metrics['test/log_loss']:.4f}",
        "test normalized entropy": f"{summary.metrics['test/normalized_entropy']:.4f}",
        "test calibration": f"{summary.metrics['test/calibration']:.3f}",
        "towers (plan)": f"{len(description['towers'])} ({description['plan_method']})",
        "compression ratio": f"{description['compression_ratio']:.2f}",
        "parameters": f"{description['parameters']:,}",
        "MFLOPs per sample": f"{description['mflops_per_sample']:.3f}",
        "strategy": layout["strategy"],
        "hosts x ranks per host": f"{hosts} x {layout['ranks_per_host']}",
        "tables": "\n".join(f"{number} {kind}" for kind, number in kinds.items()),
        "embeddings, gradients between hosts": ", ".join(precisions),
        "MB to other hosts, per rank and step": f"{description['bytes_per_iteration']['cross_host'] / 1e6:.3f}",
        "training samples per second": "" if rate is None else f"{rate:,.0f}",
    }
