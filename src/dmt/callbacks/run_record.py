"""Where a run's files go, and the files that let it be repeated."""

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
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger, WandbLogger

from dmt.modules.click_model import ClickModel

PLAN_FILE = "towers.yaml"
RECORD_FILE = "record.json"
DESCRIPTION_FILE = "description.json"
_PACKAGES = ("dmt", "torch", "torchrec", "fbgemm-gpu", "fbgemm-gpu-cpu", "lightning", "torchmetrics", "numpy")


def run_folder(trainer: pl.Trainer) -> Path | None:
    """The folder of this run alone, or None where it has no logger; every rank calls it: rank 0 tells the others.

    With a WandbLogger it is a folder among the files that W&B keeps of the run, and uploads with it: Lightning's
    ``log_dir`` is then one that runs share.
    """
    if not trainer.loggers:
        return None
    folder = trainer.log_dir
    wandb = next((logger for logger in trainer.loggers if isinstance(logger, WandbLogger)), None)
    if wandb is not None:
        # Apart from W&B's own files, of which one is called config.yaml as well.
        folder = f"{wandb.experiment.dir}/dmt" if trainer.is_global_zero else None
        folder = trainer.strategy.broadcast(folder)
    return None if folder is None else Path(folder)


class RunRecord(Callback):
    """Writes into the run's folder what repeats it, beside its resolved configuration.

    ``towers.yaml`` is the tower plan, ``record.json`` the command, versions, the git commits of the sources and of the
    folder that it was started from, and where a CSVLogger keeps its metrics, ``description.json`` what `dmt describe`
    counts. A WandbLogger keeps the plan and the description as an artifact too.

    Attributes:
        description: of the model; who knows it sets it before ``fit``.
    """

    def __init__(self) -> None:
        self.description: dict[str, Any] = {}

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        folder = run_folder(trainer)
        if folder is None or not trainer.is_global_zero:
            return
        folder.mkdir(parents=True, exist_ok=True)
        record = {**_record(), "metrics": _metrics_file(trainer, folder)}
        (folder / RECORD_FILE).write_text(json.dumps(record, indent=2) + "\n")
        kept = []
        if isinstance(pl_module, ClickModel):
            pl_module.resolved_plan.save(folder / PLAN_FILE)
            kept.append(folder / PLAN_FILE)
        if self.description:
            (folder / DESCRIPTION_FILE).write_text(json.dumps(self.description, indent=2) + "\n")
            kept.append(folder / DESCRIPTION_FILE)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger) and kept:
                _log_artifact(logger, kept)


def _log_artifact(logger: WandbLogger, files: list[Path]) -> None:
    import wandb

    artifact = wandb.Artifact(f"towers-{logger.experiment.id}", type="model-description")
    for file in files:
        artifact.add_file(str(file))
    logger.experiment.log_artifact(artifact)


def _record() -> dict[str, Any]:
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    # A project's own modules, say, are in the folder that it was started from.
    return {"command": shlex.join(sys.argv), "versions": versions, "git": _git(), "folder_git": _state(Path.cwd())}


def _metrics_file(trainer: pl.Trainer, folder: Path) -> str | None:
    """From the run's folder to the metrics of its CSVLogger, which beside a WandbLogger lie elsewhere."""
    logger = next((logger for logger in trainer.loggers if isinstance(logger, CSVLogger)), None)
    return None if logger is None else os.path.relpath(Path(logger.log_dir) / "metrics.csv", folder)


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
