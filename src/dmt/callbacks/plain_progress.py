"""How far a run is, where its output goes into a file."""

import time
from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.trainer.states import TrainerFn
from tqdm import tqdm
from typing_extensions import override


class PlainProgress(ProgressBar):
    """A line now and then, where of a bar a file would keep no more than its last state.

    Args:
        every_s: seconds from one line to the next, and to the first. A validation has a line in any case.
    """

    def __init__(self, every_s: float = 30.0) -> None:
        super().__init__()
        self.every_s = every_s
        self._is_enabled = True
        self._began = self._told = 0.0

    @override
    def disable(self) -> None:
        self._is_enabled = False

    @override
    def enable(self) -> None:
        self._is_enabled = True

    @override
    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._began = self._told = time.monotonic()

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._is_due():
            # Metrics are read for a line alone: on a GPU it waits for them.
            values = _values(trainer, "train/")
            self._tell(f"{_epoch(trainer)}, step", batch_idx + 1, trainer.num_training_batches, values)

    @override
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._is_enabled and trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            print(", ".join([f"{_epoch(trainer)} validated", *_values(trainer, "val/")]), flush=True)

    on_test_epoch_start = on_predict_epoch_start = on_train_epoch_start

    @override
    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self._is_due():
            self._tell("test, batch", batch_idx + 1, trainer.num_test_batches[dataloader_idx])

    @override
    def on_predict_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self._is_due():
            self._tell("prediction, batch", batch_idx + 1, trainer.num_predict_batches[dataloader_idx])

    def _is_due(self) -> bool:
        return self._is_enabled and time.monotonic() >= self._told + self.every_s

    def _tell(self, what: str, done: int, total: float, values: Sequence[str] = ()) -> None:
        self._told = time.monotonic()
        rate = done / (self._told - self._began)
        left = f", {tqdm.format_interval((total - done) / rate)} left" if total < float("inf") else ""
        print(", ".join([f"{what} {done} of {total}: {rate:.1f} a second{left}", *values]), flush=True)


def _epoch(trainer: pl.Trainer) -> str:
    return f"epoch {trainer.current_epoch + 1}" + (f" of {trainer.max_epochs}" if trainer.max_epochs else "")


def _values(trainer: pl.Trainer, prefix: str) -> list[str]:
    found = trainer.callback_metrics.items()
    return [f"{name} {float(value):.4f}" for name, value in found if name.startswith(prefix)]
