"""A finished run of ``dmt fit`` as its folder tells: outcome, configuration, towers and curves."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl
import yaml

from dmt.errors import UserInputError
from dmt.whole_files import write_whole

SUMMARY_FILE = "summary.json"
RECORD_FILE = "record.json"
_SEED = "seed_everything"
_RESUMED = "ckpt_path"
# Where a run and its data are kept and what is shown of it, not what they are.
_PLACES = (
    *("trainer.logger", "trainer.default_root_dir", _RESUMED),
    *("trainer.enable_progress_bar", "trainer.enable_model_summary", "trainer.log_every_n_steps"),
    "data.init_args.cache_dir",
)
TRAINING_SAMPLES = ("num_train", "train_file", "min_count")
"""Options of the data by which runs that are tested on the same have other samples to train on."""
# What becomes of samples, and which there are to train on; not what a model is tested on. A log's seed is no such thing
# where the log is drawn by it; where it is read, it is that of the training samples' order.
_OF_TRAINING = (
    *("global_batch_size", "num_workers", "cache_dir", "categorical", "numeric", "weights"),
    *TRAINING_SAMPLES,
)
_DESCRIBED = ("towers", "plan_method", "compression_ratio", "mflops_per_sample", "layout", "bytes_per_iteration")

_COUNTERS = {"step", "epoch"}  # columns of a metrics.csv beside its metrics

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
        checkpoint: the best one, or ``""`` where no callback keeps it; the one that was tested, where there is a test.
    """

    data: dict[str, Any]
    description: dict[str, Any]
    metrics: dict[str, float]
    samples_per_second: float | None
    steps: int
    checkpoint: str

    def save(self, run_dir: Path) -> None:
        """Write ``summary.json`` into the run's folder, whole or not at all: by it a run counts as finished."""
        write_whole(run_dir / SUMMARY_FILE, json.dumps(asdict(self), indent=2, default=str) + "\n")

    @classmethod
    def load(cls, file: Path) -> "RunSummary":
        """Read it again.

        Raises:
            UserInputError: the file is damaged, or of another program.
        """
        content = load_object(file)
        parts = [content.get(name) for name in ("data", "description", "metrics")]
        is_known = set(content) == {part.name for part in fields(cls)} and all(isinstance(p, dict) for p in parts)
        is_known = is_known and all(isinstance(value, int | float) for value in content["metrics"].values())
        if not is_known or not set(_DESCRIBED) <= set(content["description"]):
            raise UserInputError(f"{file}: not of `dmt fit`; give the folder of a run that `dmt fit` has finished")
        return cls(**content)


def load_object(file: Path) -> dict[str, Any]:
    """A JSON object."""
    try:
        content = json.loads(file.read_text())
    except ValueError as error:
        raise UserInputError(f"{file}: damaged ({error}); restore it, or remove the folder {file.parent}") from None
    if not isinstance(content, dict):
        raise UserInputError(f"{file}: not of `dmt`, which writes an object; restore it, or remove it")
    return content


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
        """Its configuration, flat: ``{"model.top.class_path": "dmt.DLRM", ...}``; without the seed."""
        return {name: value for name, value in _flatten(self._config) if not name.startswith((*_PLACES, _SEED))}

    @property
    def seed(self) -> int | None:
        """Its ``seed_everything``, if that is a number."""
        seed = self._config.get(_SEED)
        return seed if isinstance(seed, int) and not isinstance(seed, bool) else None

    @property
    def resumed_from(self) -> str | None:
        """The checkpoint that it went on from."""
        return self._config.get(_RESUMED)

    @cached_property
    def code(self) -> dict[str, str]:
        """The commit and the versions that it was of, by name; empty where it does not tell."""
        file = self.folder / RECORD_FILE
        record = load_object(file) if file.is_file() else {}
        git, versions = record.get("git") or {}, record.get("versions") or {}
        commit = {"commit": f"{git['commit'][:10]}{' with changes' * bool(git.get('is_changed'))}"} if git else {}
        return {**commit, **versions}

    @property
    def towers(self) -> str:
        """The features of each, ``"a c / b d"``; ``"random"`` where the run's seed has drawn them."""
        if self.options.get("model.plan") == "random":
            return "random"
        return " / ".join(" ".join(tower["features"]) for tower in self.summary.description["towers"])

    @property
    def samples(self) -> dict[str, Value]:
        """Those of its data's options that decide on which samples and labels a model is tested, flat."""
        arguments = self.summary.data.get("init_args") or {}
        left_out = {*_OF_TRAINING, *(["seed"] if "path" in arguments else [])}
        deciding = {name: value for name, value in arguments.items() if name not in left_out}
        return dict(_flatten({**self.summary.data, "init_args": deciding}, "data"))

    @property
    def loggers(self) -> list[str]:
        """Names of the classes that its configuration names."""
        return [logger["class_path"].rpartition(".")[2] for logger in self._loggers]

    @property
    def metrics(self) -> set[str]:
        """Names of all that :meth:`final` knows."""
        return {*self.summary.metrics, *self._log.columns} - _COUNTERS

    def final(self, metric: str) -> float | None:
        """The metric as the summary has it, or else its last value of ``metrics.csv``; None where neither has any."""
        if metric in self.summary.metrics:
            return self.summary.metrics[metric]
        _, values = self.curve(metric)
        return values[-1] if values else None

    def curve(self, metric: str) -> tuple[list[int], list[float]]:
        """Steps, and what the metric was there; empty where the run has no ``metrics.csv`` with it."""
        if metric in _COUNTERS or not {"step", metric} <= set(self._log.columns):
            return [], []
        table = self._log.select(pl.col("step").cast(pl.Int64), metric).drop_nulls()
        return table["step"].to_list(), table[metric].to_list()

    @cached_property
    def _config(self) -> dict[str, Any]:
        file = self.folder / "config.yaml"
        if not file.is_file():
            return {}
        try:
            # A sweep has hundreds; the parser in C takes a tenth of the time.
            config = yaml.load(file.read_text(), Loader=yaml.CSafeLoader)
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            reason = str(error).splitlines()[0]
            raise UserInputError(f"{file}: not a YAML file ({reason}); restore it, or remove it") from None
        if not isinstance(config, dict):
            raise UserInputError(f"{file}: no configuration of `dmt fit`; restore it, or remove it")
        return config

    @property
    def _loggers(self) -> list[dict[str, Any]]:
        found = self._config.get("trainer", {}).get("logger")
        return [
            one
            for one in (found if isinstance(found, list) else [found])
            if isinstance(one, dict) and "class_path" in one
        ]

    @cached_property
    def _log(self) -> pl.DataFrame:
        """What its CSVLogger has written; empty without one."""
        file = self.folder / "metrics.csv"
        record = self.folder / RECORD_FILE
        if not file.is_file() and record.is_file():
            # Where the run's folder is another logger's, the CSVLogger has one of its own.
            file = self.folder / (load_object(record).get("metrics") or file)
        return _read_log(file) if file.is_file() else pl.DataFrame()


def _read_log(file: Path) -> pl.DataFrame:
    """A ``metrics.csv`` as floats; empty where it is damaged."""
    try:
        # As text first: polars takes a column with nan for one of text.
        return pl.read_csv(file, infer_schema=False).cast(pl.Float64, strict=False)
    except pl.exceptions.PolarsError:
        return pl.DataFrame()


def _flatten(value: Any, prefix: str = "") -> Iterable[tuple[str, Value]]:
    if isinstance(value, Mapping) and value:
        for name, inner in value.items():
            yield from _flatten(inner, f"{prefix}.{name}" if prefix else str(name))
    elif isinstance(value, bool | int | float | str | None):
        yield prefix, value
    else:
        yield prefix, json.dumps(value)
