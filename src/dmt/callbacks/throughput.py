"""How fast training goes."""

import statistics
import time
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback


class Throughput(Callback):
    """Logs training samples per second over all ranks, data loading included.

    Args:
        warmup_steps: first steps of a fit that are not counted.
    """

    def __init__(self, warmup_steps: int = 5) -> None:
        self.warmup_steps = warmup_steps
        self._rates: list[float] = []
        self._steps = 0
        self._last_end: float | None = None

    @property
    def median_samples_per_second(self) -> float | None:
        """Median over the steps so far; ``None`` before the first counted one."""
        return statistics.median(self._rates) if self._rates else None

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Validation and checkpoints between epochs are not training steps.
        self._last_end = None

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._last_end = None

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = time.perf_counter()
        self._steps += 1
        if self._last_end is not None and self._steps > self.warmup_steps:
            # Ranks hold equal batches but for the last of an epoch, which a median does not feel.
            rate = batch.labels.numel() * trainer.world_size / (now - self._last_end)
            self._rates.append(rate)
            # A tensor: Lightning would move a number to the GPU, and wait for it.
            pl_module.log("samples_per_s", torch.tensor(rate, device="cpu"), prog_bar=True, batch_size=1)
        self._last_end = now
