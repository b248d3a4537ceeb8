"""A run's model and data in one process: from its checkpoint, or trained for a while."""

import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from dmt.errors import UserInputError
from dmt.lightning_cli import DmtCLI, RunCLI, check_checkpoint, parsed_cli
from dmt.modules.towers import PassThrough, TowerModule
from dmt.plan import TowerPlan

_ONE_PROCESS = [
    "--trainer.accelerator=auto",  # the run's may not be at hand
    "--trainer.strategy=auto",
    "--trainer.devices=1",
    "--trainer.num_nodes=1",
    "--trainer.logger=false",
    "--trainer.num_sanity_val_steps=0",
    "--trainer.inference_mode=false",  # a probe takes gradients
]


def visit(
    checkpoint: Path,
    action: Callable[[pl.Trainer, pl.LightningModule], None],
    *,
    config: Path | None = None,
    num_batches: int | None = None,
) -> None:
    """Evaluate a checkpoint, of any layout, on validation batches, and then act on its model while it is on its device.

    Args:
        checkpoint: file or directory.
        action: gets the Trainer and the model.
        config: configuration of the model and its data. Default: config.yaml of the checkpoint's run.
        num_batches: validation batches to evaluate; all by default.

    Raises:
        UserInputError: there is no such checkpoint, no configuration, or they do not fit each other.
    """
    check_checkpoint(checkpoint, option="--checkpoint")
    limits = [] if num_batches is None else [f"--trainer.limit_val_batches={num_batches}"]
    # It misses the callbacks of the run, which only training needs.
    warnings.filterwarnings("ignore", message="Be aware that when using `ckpt_path`")
    cli = _cli(config or configuration_of(checkpoint), "--trainer.callbacks=null", *limits)
    if not cli.datamodule.has_split("valid"):
        raise UserInputError("data: there is no valid split to look at; add the file")
    cli.trainer.callbacks.append(_AfterValidation(action))  # type: ignore[attr-defined]
    cli.trainer.validate(cli.model, datamodule=cli.datamodule, ckpt_path=checkpoint, verbose=False)


def short_training(config: Path, plan: TowerPlan, *, num_steps: int) -> float:
    """Validation log loss after so many steps of training with a plan, in one process.

    Raises:
        UserInputError: the configuration does not fit the plan, or is of a flat model, to which plans are alike.
    """
    with tempfile.TemporaryDirectory() as folder:
        plan.save(file := Path(folder) / "towers.yaml")
        cli = _cli(
            config,
            f"--model.plan={file}",
            f"--trainer.default_root_dir={folder}",
            "--trainer.max_epochs=1",
            f"--trainer.limit_train_batches={num_steps}",
        )
        cli.trainer.callbacks.append(_NeedsTowerModules(config))  # type: ignore[attr-defined]
        cli.trainer.fit(cli.model, datamodule=cli.datamodule)
        return float(cli.trainer.callback_metrics["val/log_loss"])


def configuration_of(checkpoint: Path) -> Path:
    """The config.yaml of the run that a checkpoint belongs to.

    Raises:
        UserInputError: there is none above it.
    """
    for folder in checkpoint.resolve().parents[:3]:
        if (folder / "config.yaml").is_file():
            return folder / "config.yaml"
    raise UserInputError(f"checkpoint {checkpoint}: no config.yaml in the folders above it; give --config FILE")


class _AfterValidation(Callback):
    def __init__(self, action: Callable[[pl.Trainer, pl.LightningModule], None]) -> None:
        self.action = action

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.action(trainer, pl_module)


class _NeedsTowerModules(Callback):
    def __init__(self, config: Path) -> None:
        self.config = config

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        towers = [child for child in pl_module.modules() if isinstance(child, TowerModule)]
        if all(isinstance(tower, PassThrough) for tower in towers):
            raise UserInputError(
                f"--config {self.config}: its model has no tower modules, so that all plans are alike to it; give one "
                "with a model.tower other than PassThrough"
            )


def _cli(config: Path, *options: str) -> DmtCLI:
    shown = [f"--trainer.enable_progress_bar={str(sys.stdout.isatty()).lower()}"]
    cli = parsed_cli(RunCLI, ["fit", f"--config={config}", *_ONE_PROCESS, *shown, *options], run=False)
    cli.datamodule.prepare_data()
    return cli
