"""Classes that break a run on purpose; named by class path in the tests' command lines."""

import os
import signal
import sys
import time
from typing import Literal

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dmt.modules import DotInteraction, TopArch, TowerModule
from dmt.modules.stage import Stage


class FailOnRank(Callback):
    """Fails on one rank in the third step.

    Args:
        rank: who fails.
        how: ``raise``, ``kill``, which is to die by SIGKILL without a word, or ``hang``.
    """

    def __init__(self, rank: int, how: Literal["raise", "kill", "hang"] = "raise") -> None:
        self.rank, self.how = rank, how

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: object, batch_idx: int
    ) -> None:
        if trainer.global_rank == self.rank and batch_idx == 2:
            if self.how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.how == "hang":
                print(f"rank {self.rank} hangs on purpose", file=sys.stderr, flush=True)
                time.sleep(1000)
            raise RuntimeError(f"rank {self.rank} fails on purpose")


class SlowLogger(CSVLogger):
    """Takes longer to finish a failed run than Lightning's watch over the ranks takes to look again."""

    def finalize(self, status: str) -> None:
        time.sleep(7 if status == "failed" else 0)
        super().finalize(status)


class WrongShape(TowerModule):
    """A tower module that declares other outputs than it returns."""

    def __init__(self, num_features: int, embedding_dim: int) -> None:
        super().__init__()
        self.out_features, self.out_dim = num_features + 1, embedding_dim

    def forward(self, embeddings: Tensor) -> Tensor:
        return embeddings


class OfTowers(TowerModule):
    """Declares what it reads; the classes below return something else, or fail."""

    def __init__(self, num_features: int, embedding_dim: int) -> None:
        super().__init__()
        self.out_features, self.out_dim = num_features, embedding_dim
        self.layer = nn.Linear(embedding_dim + 1, embedding_dim)


class MisfitLayer(OfTowers):
    def forward(self, embeddings: Tensor) -> Tensor:
        return self.layer(embeddings)


class Tuple(OfTowers):
    def forward(self, embeddings: Tensor) -> Tensor:
        return embeddings, embeddings  # type: ignore[return-value]


class NoOutDim(TowerModule):
    def __init__(self, num_features: int, embedding_dim: int) -> None:
        super().__init__()
        self.out_features = num_features

    def forward(self, embeddings: Tensor) -> Tensor:
        return embeddings


class OfTops(TopArch):
    """A logistic regression, (B, 1); with its logit for each sample it would be a model."""

    def __init__(self, stage: Stage, num_dense: int) -> None:
        super().__init__()
        self.stage = stage
        self.layer = nn.Linear(stage.out_features * stage.out_dim, 1)
        self.interaction = DotInteraction(stage.out_features + 1)

    def forward(self, dense_features: Tensor, sparse_features: KeyedJaggedTensor) -> Tensor:
        logits: Tensor = self.layer(self.stage(sparse_features).flatten(1))
        return logits


class NoStage(OfTops):
    def __init__(self, stage: Stage, num_dense: int) -> None:
        super().__init__(stage, num_dense)
        del self.stage


class WrongPairs(OfTops):
    def forward(self, dense_features: Tensor, sparse_features: KeyedJaggedTensor) -> Tensor:
        return self.interaction(self.stage(sparse_features)).sum(dim=1)
