"""Where a run's files go, and the files that let it be repeated."""

import hashlib
import json
import os
import platform
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import yaml
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger

from dmt.modules.click_model import BASELINE_PLANS, ClickModel
from dmt.plan import TowerPlan

CONFIG_FILE = "config.yaml"
PLAN_FILE = "towers.yaml"
RECORD_FILE = "record.json"
DESCRIPTION_FILE = "description.json"
_PACKAGES = ("dmt", "torch", "torchrec", "fbgemm-gpu", "fbgemm-gpu-cpu", "lightning", "torchmetrics", "numpy")


def logger_folder(logger: Logger) -> Path | None:
    """The folder that a logger has for a run alone, where Lightning keeps its checkpoints too; None where it has none.

    A WandbLogger has it as soon as the run is known to W&B, or where it was given the run's id as ``version``.
    """
    if isinstance(logger, CSVLogger | TensorBoardLogger):
        return Path(logger.log_dir)
    version = logger.version
    if logger.save_dir is None or version in (None, ""):
        return None
    return Path(logger.save_dir, str(logger.name), version if isinstance(version, str) else f"version_{version}")


def run_folder(trainer: pl.Trainer) -> Path | None:
    """The folder of this run alone, or None where it has no logger; every rank calls it: rank 0 tells the others.

    It is that of the first CSVLogger or TensorBoardLogger, or else that of the first logger.
    """
    loggers = [logger for logger in trainer.loggers if not isinstance(logger, _CurveLogger)]
    local = [logger for logger in loggers if isinstance(logger, CSVLogger | TensorBoardLogger)]
    folder = logger_folder((local or loggers)[0]) if loggers and trainer.is_global_zero else None
    told: Path | None = trainer.strategy.broadcast(folder)
    return told


class _CurveLogger(CSVLogger):
    """The CSVLogger of a run that was given none: in the run's folder, which it does not decide on.

    Args:
        run_dir: the run's folder.
        version: that of the run, which the progress bar then shows as before.
    """

    def __init__(self, run_dir: Path, version: int | str | None) -> None:
        super().__init__(run_dir, name="csv", version=version)

    @property
    def log_dir(self) -> str:
        """A folder of its own, since CSVLogger warns of other files beside its own."""
        return self.root_dir


class RunRecord(Callback):
    """Writes into the run's folder what repeats it, beside its resolved configuration.

    ``towers.yaml`` is the tower plan, ``record.json`` the command, the folder that it was started from, versions, the
    git commits of the sources and of that folder, the checksum of the plan's file, and where ``metrics.csv`` is,
    ``description.json`` what `dmt describe` counts. A WandbLogger keeps all of them and the configuration as an
    artifact too.

    Reports draw their curves from ``metrics.csv``: beside other loggers alone, a CSVLogger joins them.

    Attributes:
        description: of the model; who knows it sets it before ``fit``.
    """

    def __init__(self) -> None:
        self.description: dict[str, Any] = {}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        has_csv = any(isinstance(logger, CSVLogger) for logger in trainer.loggers)
        if stage != "fit" or has_csv or (folder := run_folder(trainer)) is None:
            return
        trainer.loggers = [*trainer.loggers, _CurveLogger(folder, trainer.loggers[0].version)]

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        folder = run_folder(trainer)
        if folder is None or not trainer.is_global_zero:
            return
        folder.mkdir(parents=True, exist_ok=True)
        record = {**_record(), "metrics": _metrics_file(trainer, folder)}
        if isinstance(pl_module, ClickModel):
            record["plan_sha256"] = _checksum(pl_module.plan)
            pl_module.resolved_plan.save(folder / PLAN_FILE)
        (folder / RECORD_FILE).write_text(json.dumps(record, indent=2) + "\n")
        if self.description:
            (folder / DESCRIPTION_FILE).write_text(json.dumps(self.description, indent=2) + "\n")
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                _log_configuration(logger, folder)
                _log_artifact(logger, folder)


def _log_configuration(logger: WandbLogger, folder: Path) -> None:
    """All of it: Lightning logs the model's options alone, by which runs that differ in data or seed look the same."""
    if (folder / CONFIG_FILE).is_file():
        logger.experiment.config.update(yaml.safe_load((folder / CONFIG_FILE).read_text()), allow_val_change=True)


def _log_artifact(logger: WandbLogger, folder: Path) -> None:
    import wandb

    artifact = wandb.Artifact(f"towers-{logger.experiment.id}", type="model-description")
    for name in (CONFIG_FILE, RECORD_FILE, PLAN_FILE, DESCRIPTION_FILE):
        if (folder / name).is_file():
            # Read from here when it is sent: W&B would keep a copy of each in the user's home.
            artifact.add_file(str(folder / name), policy="immutable")
    logger.experiment.log_artifact(artifact)


def _record() -> dict[str, Any]:
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    # Paths of the command and the configuration, and a project's own modules, are of the folder it was started from.
    folder = Path.cwd()
    told = {"command": shlex.join(sys.argv), "folder": str(folder), "versions": versions}
    return {**told, "git": _git(), "folder_git": _state(folder)}


def _checksum(plan: TowerPlan | str | Path) -> str | None:
    """Of a plan's file, as ``sha256sum`` gives it; None where there is none."""
    if isinstance(plan, TowerPlan) or plan in BASELINE_PLANS or not Path(plan).is_file():
        return None
    return hashlib.sha256(Path(plan).read_bytes()).hexdigest()


def _metrics_file(trainer: pl.Trainer, folder: Path) -> str:
    """From the run's folder to the metrics of its CSVLogger, which need not lie in it."""
    logger = next(logger for logger in trainer.loggers if isinstance(logger, CSVLogger))
    return os.path.relpath(Path(logger.log_dir) / "metrics.csv", folder)


def _git() -> dict[str, Any] | None:
    """Commit of the sources, and whether they differ from it; None where they are not under git, but installed."""
    here = Path(__file__)
    # An environment may lie in a repository that does not hold what is installed in it.
    is_tracked = _answer(here.parent, "ls-files", here.name)
    return _state(here.parent) if is_tracked else None


def _state(folder: Path) -> dict[str, Any] | None:
    """Commit that a folder is of, and whether files of it differ; None where it is not under git."""
    commit = _answer(folder, "rev-parse", "HEAD")
    changed = _answer(folder, "status", "--porcelain", "--untracked-files=no")
    return None if commit is None else {"commit": commit, "is_changed": bool(changed)}


def _answer(folder: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
