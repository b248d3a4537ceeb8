"""What runs leave behind beside checkpoints and logs, read again: summaries, curves, and points of equal options."""

import json
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import polars as pl
import yaml
from scipy.stats import mannwhitneyu

from dmt.errors import UserInputError

_FILE = "summary.json"
_SEED = "seed_everything"
# Where a run is kept, not what it is.
_PLACES = ("trainer.logger", "trainer.default_root_dir", "ckpt_path", "trainer.enable_progress_bar")

Value = bool | int | float | str | None


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


@dataclass(frozen=True, kw_only=True)
class Run:
    """A finished run.

    Args:
        name: as it was asked for; of a sweep's trial, the trial's.
        folder: where its files are.
        summary: its outcome.
        is_trial: whether it is one of a sweep.
    """

    name: str
    folder: Path
    summary: RunSummary
    is_trial: bool = False

    @cached_property
    def options(self) -> dict[str, Value]:
        """Its configuration, flat: ``{"model.top.class_path": "dmt.DLRM", ...}``; without the data and the seed."""
        if not (self.folder / "config.yaml").is_file():
            return {}
        config = yaml.safe_load((self.folder / "config.yaml").read_text())
        config.pop("data", None)
        config.pop(_SEED, None)
        return {name: value for name, value in _flatten(config) if not name.startswith(_PLACES)}

    def curve(self, metric: str) -> tuple[list[int], list[float]]:
        """Steps, and what the metric was there; empty where the run has no ``metrics.csv`` with it."""
        file = self.folder / "metrics.csv"
        if not file.is_file():
            return [], []
        table = pl.read_csv(file, infer_schema_length=None)
        if not {"step", metric} <= set(table.columns):
            return [], []
        table = table.select("step", metric).drop_nulls()
        return table["step"].to_list(), table[metric].to_list()


def p_value(values: Sequence[float], reference: Sequence[float]) -> float:
    """Of the two-sided Mann-Whitney U test, exact where no two of the values are equal.

    The normal approximation, which scipy takes from nine values a side, is off where it matters: for nine that all lie
    above nine others, ten times too large.

    Example:
        >>> f"{p_value(range(9), range(10, 19)):.5f}"
        '0.00004'
    """
    both = [*values, *reference]
    method: Literal["exact", "asymptotic"] = "exact" if len(set(both)) == len(both) else "asymptotic"
    return float(mannwhitneyu(values, reference, method=method).pvalue)


def p_text(p: float) -> str:
    """A p-value to three digits."""
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"


def find_runs(paths: Sequence[Path]) -> list[Run]:
    """The runs of folders: of a run, the newest of its versions; of a sweep, all trials that have finished.

    Raises:
        UserInputError: a folder is of neither, or runs are of different data.
    """
    runs = [run for path in paths for run in _runs_of(path)]
    for run in runs:
        if run.summary.data != runs[0].summary.data:
            raise UserInputError(
                f"run {run.folder}: its data section differs from that of {runs[0].folder}; compare runs on the same "
                "data"
            )
    return runs


def _runs_of(path: Path) -> list[Run]:
    if (path / "sweep.json").is_file():
        trials = sorted(path.glob("*/trial.json"), key=lambda file: json.loads(file.read_text())["number"])
        found = [_newest(file.parent, name=file.parent.name, is_trial=True) for file in trials]
        runs = [run for run in found if run is not None]
        if not runs:
            raise UserInputError(f"sweep {path}: no trial has finished; wait for one")
        return runs
    run = _newest(path, name=path.parent.name if path.name.startswith("version_") else path.name)
    if run is None:
        raise UserInputError(f"run {path}: no {_FILE} there; give the folder of a finished `dmt fit` or of a sweep")
    return [run]


def _newest(path: Path, *, name: str, is_trial: bool = False) -> Run | None:
    """The run in a folder, or of the versions somewhere below it that with the highest number."""
    found = [path / _FILE] if (path / _FILE).is_file() else sorted(path.rglob(_FILE), key=_age)
    if not found:
        return None
    summary = RunSummary(**json.loads(found[-1].read_text()))
    return Run(name=name, folder=found[-1].parent, summary=summary, is_trial=is_trial)


def _age(file: Path) -> tuple[int, float]:
    """By version, where the folder is called by it; else by time."""
    version = re.fullmatch(r"version_(\d+)", file.parent.name)
    return int(version[1]) if version else -1, file.stat().st_mtime


def _flatten(value: Any, prefix: str = "") -> Iterable[tuple[str, Value]]:
    if isinstance(value, Mapping) and value:
        for name, inner in value.items():
            yield from _flatten(inner, f"{prefix}.{name}" if prefix else str(name))
    elif isinstance(value, bool | int | float | str | None):
        yield prefix, value
    else:
        yield prefix, json.dumps(value)


@dataclass(frozen=True, kw_only=True)
class Point:
    """Runs that differ by their seed alone.

    Args:
        label: what tells it from the other points.
        runs: they.
    """

    label: str
    runs: Sequence[Run] = field(default_factory=list)

    def values(self, metric: str) -> list[float]:
        """The final metric of each run that has it."""
        return [run.summary.metrics[metric] for run in self.runs if metric in run.summary.metrics]

    @property
    def description(self) -> dict[str, Any]:
        """As of ``dmt describe``; the same for all its runs."""
        return self.runs[0].summary.description


def group(runs: Sequence[Run]) -> list[Point]:
    """Points in the order of their first runs; a run without a configuration is a point of its own."""
    found: dict[object, list[Run]] = {}
    for run in runs:
        key = tuple(sorted(run.options.items(), key=lambda item: item[0])) or run.folder
        found.setdefault(key, []).append(run)
    points = list(found.values())
    return [Point(label=_label(own, points), runs=own) for own in points]


def _label(runs: Sequence[Run], points: Sequence[Sequence[Run]]) -> str:
    """The name of a single run that was asked for by it; else the options in which points differ, in short."""
    if len(runs) == 1 and not runs[0].is_trial:
        return runs[0].name
    words = []
    for name, value in runs[0].options.items():
        if value is None or len({own[0].options.get(name) for own in points} - {None}) < 2:
            continue
        path, told = name.removesuffix(".class_path"), str(value)
        if path != name:
            told = told.rpartition(".")[2]
        elif told.endswith(".yaml"):
            told = Path(told).stem
        elif len(told) > 40:  # a list; by its checksum it is still another one
            told = f"{told[:20]}...{zlib.crc32(told.encode()):08x}"
        words.append(f"{path.rpartition('.')[2]}={told}")
    return ", ".join(words) or runs[0].name
