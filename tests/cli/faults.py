"""Classes that break a run on purpose; named by class path in the tests' command lines."""

import os
import signal

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from dmt.modules import TowerModule


class FailOnRank(Callback):
    """Raises on one rank in the third step, or kills it.

    Args:
        rank: who fails.
        kill: die by SIGKILL, without a word, instead of raising.
    """

    def __init__(self, rank: int, kill: bool = False) -> None:
        self.rank, self.kill = rank, kill

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: object, batch_idx: int
    ) -> None:
        if trainer.global_rank == self.rank and batch_idx == 2:
            if self.kill:
                os.kill(os.getpid(), signal.SIGKILL)
            raise RuntimeError(f"rank {self.rank} fails on purpose")


class WrongShape(TowerModule):
    """A tower module that declares other outputs than it returns."""

    def __init__(self, num_features: int, embedding_dim: int) -> None:
        super().__init__()
        self.out_features, self.out_dim = num_features + 1, embedding_dim

    def forward(self, embeddings: Tensor) -> Tensor:
        return embeddings
