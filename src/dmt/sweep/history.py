"""What a run reports while and after it runs: validation metrics in metrics.csv, the outcome in summary.json."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dmt.sweep.parameters import is_real


def metric_history(folder: Path, metric: str) -> list[float]:
    """The values of a metric that a run has reported so far, in order, from the metrics.csv that CSVLogger writes."""
    return [row[metric] for row in _reported(folder) if metric in row]


def last_reported(folder: Path, *, prefix: str) -> dict[str, float]:
    """The last value of each metric whose name starts so: what W&B takes for a run's summary."""
    last: dict[str, float] = {}
    for row in _reported(folder):
        last |= {name: value for name, value in row.items() if name.startswith(prefix)}
    return last


def _reported(folder: Path) -> Iterator[dict[str, float]]:
    """Rows of numbers; a line that is being written is left out, since the file grows while it is read."""
    for path in sorted(folder.rglob("metrics.csv")):
        whole, _, _ = path.read_text().rpartition("\n")
        for row in csv.DictReader(whole.splitlines()):
            yield {name: number for name, cell in row.items() if (number := _number(cell)) is not None}


def _number(cell: str | None) -> float | None:
    try:
        return float(cell or "")
    except ValueError:
        return None  # a row of other metrics


def summary(folder: Path) -> tuple[Path, dict[str, Any]] | str:
    """The one summary.json of a trial, with the folder that it is in, or why there is none that counts."""
    found = sorted(folder.rglob("summary.json"))
    if not found:
        return "it left no summary.json (has it a logger, and a test split?)"
    if len(found) > 1:
        return f"it left {len(found)} summary.json; a trial is one run"
    try:
        told = json.loads(found[0].read_text())
    except ValueError:
        return f"{found[0].name} is not JSON"
    if not isinstance(told, dict) or not isinstance(told.get("metrics"), dict):
        return f"{found[0].name} has no metrics"
    values = {f"metrics.{name}": value for name, value in told["metrics"].items()}
    if told.get("samples_per_second") is not None:
        values["samples_per_second"] = told["samples_per_second"]
    wrong = next((name for name, value in values.items() if not is_real(value)), None)
    if wrong is not None:
        # It may be a whole table.
        shown = json.dumps(values[wrong])[:40]
        return f"{found[0].name}: {wrong}={shown} is no number; write a number, or leave it out"
    return found[0].parent, told


def last_lines(log: Path, num: int = 5) -> list[str]:
    """The end of a log, without empty lines; of a progress bar's many states the last."""
    with log.open("rb") as file:
        file.seek(max(0, file.seek(0, 2) - 20_000))
        told = file.read().decode(errors="replace")
    lines = [line.rstrip().rsplit("\r", 1)[-1] for line in told.split("\n")]
    return [line for line in lines if line.strip()][-num:]
