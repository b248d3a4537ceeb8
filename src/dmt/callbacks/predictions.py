"""Keeps what ``dmt predict`` computes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import polars
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import BasePredictionWriter

from dmt.callbacks.run_record import run_folder
from dmt.errors import UserInputError

FILE = "predictions.parquet"


class PredictionFile(BasePredictionWriter):
    """Writes ``predictions.parquet`` into the run's folder: one probability a sample, in the order of the data."""

    def __init__(self) -> None:
        super().__init__(write_interval="epoch")
        self.path: Path | None = None

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        folder = run_folder(trainer)  # a collective: every rank asks
        self.path = (folder or Path(trainer.default_root_dir)) / FILE
        if self.path.exists():
            raise UserInputError(
                f"{self.path} exists; move it away, or give the run a logger with a new folder", on_every_rank=True
            )

    def write_on_epoch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        predictions: Sequence[Any],
        batch_indices: Sequence[Any],
    ) -> None:
        mine = [batch.float().cpu().numpy() for batch in predictions]
        everyone: list[Any] = [mine]
        if dist.is_initialized():
            everyone = [None] * trainer.world_size if trainer.is_global_zero else []
            dist.gather_object(mine, everyone if trainer.is_global_zero else None)
        if trainer.is_global_zero and self.path is not None:
            # A global batch lies on the ranks in turn, so batch by batch the ranks' pieces are in data order.
            ordered = [torch.as_tensor(piece) for pieces in zip(*everyone, strict=True) for piece in pieces]
            self.path.parent.mkdir(parents=True, exist_ok=True)
            polars.DataFrame({"probability": torch.cat(ordered).numpy()}).write_parquet(self.path)
            print(f"wrote {self.path}")
