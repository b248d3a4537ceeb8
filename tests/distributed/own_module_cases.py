"""LightningModules, DataModules and callbacks as users write them, trained under a strategy or in a single process.

The functions run inside the ranks that ``harness.run_ranks`` starts.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchrec.datasets.utils import Batch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dmt.errors import UserInputError
from dmt.modules import DLRMTower, EmbeddingOptimizer, TowerModule, TowerStage
from dmt.plan import TowerPlan
from dmt.schema import CategoricalFeature, FeatureSchema
from tests.distributed.training_cases import Run, make_trainer

ROWS = {"a": 7, "b": 300, "c": 9}
SCHEMA = FeatureSchema(categorical=[CategoricalFeature(name=n, num_embeddings=rows) for n, rows in ROWS.items()])
SIZES = (3, 1, 0, 4)  # of the four ranks


class Shares:
    """Global batches, of which each of four ranks has another number of samples, and a single process all."""

    def __init__(self, rank: int, world_size: int) -> None:
        own = slice(sum(SIZES[:rank]), sum(SIZES[: rank + 1])) if world_size > 1 else slice(None)
        generator = torch.Generator().manual_seed(5)
        self.batches = []
        for _ in range(3):
            ids = torch.stack([torch.randint(rows, (sum(SIZES),), generator=generator) for rows in ROWS.values()])
            labels = torch.rand(sum(SIZES), generator=generator).round()
            self.batches.append(Batch(torch.zeros(0), single_ids(ids[:, own]), labels[own]))

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


def single_ids(ids: Tensor) -> KeyedJaggedTensor:
    """(F, B) ids as a batch of bags of one."""
    lengths = torch.ones(ids.numel(), dtype=torch.int32)
    return KeyedJaggedTensor(list(ROWS), ids.reshape(-1), lengths=lengths, stride=ids.shape[1])


class Own(L.LightningModule):
    """A linear head over a tower stage; its subclasses train something else, or otherwise."""

    tower: Any = partial(DLRMTower, c=1, p=1, out_dim=4)

    def configure_model(self) -> None:
        self.stage = TowerStage(
            schema=SCHEMA,
            plan=TowerPlan(towers=[["a", "b"], ["c"]]),
            embedding_dim=8,
            tower=type(self).tower,
            optimizer=EmbeddingOptimizer(name="sgd", learning_rate=0.1),
        )
        self.head = nn.Linear(4 * self.stage.out_features, 1)

    def logits(self, features: KeyedJaggedTensor) -> Tensor:
        return self.head(self.stage(features).flatten(1)).squeeze(1)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = F.binary_cross_entropy_with_logits(self.logits(batch.sparse_features), batch.labels, reduction="sum")
        return loss / max(len(batch.labels), 1)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.5, momentum=0.9)


class _Detached(TowerModule):
    def __init__(self, num_features: int, embedding_dim: int) -> None:
        super().__init__()
        self.out_features, self.out_dim = 1, 4
        self.layer = nn.Linear(num_features * embedding_dim, 4)

    def forward(self, embeddings: Tensor) -> Tensor:
        return self.layer(embeddings.detach().flatten(1)).unsqueeze(1)


class FixedEmbeddings(Own):
    """No gradient comes back to the embeddings."""

    tower = _Detached


class HeadAlone(Own):
    def configure_model(self) -> None:
        super().configure_model()
        self.stage.towers.requires_grad_(False)

    def logits(self, features: KeyedJaggedTensor) -> Tensor:
        with torch.no_grad():
            outputs = self.stage(features)
        return self.head(outputs.flatten(1)).squeeze(1)


class Negatives(Own):
    """Two more rows for each sample; and a look at one sample, without gradient, on every rank."""

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        ids = batch.sparse_features.values().view(len(ROWS), -1)
        negative = self.logits(single_ids((ids.repeat(1, 2) + 1) % 7))
        with torch.no_grad():
            self.logits(single_ids(torch.zeros(len(ROWS), 1, dtype=torch.int64)))
        return super().training_step(batch, batch_idx) + F.softplus(negative).sum() / max(len(negative), 1)


class OneSample(Own):
    """A second forward pass of one sample on every rank, whatever their batches are."""

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        other = self.logits(single_ids(torch.zeros(len(ROWS), 1, dtype=torch.int64)))
        return super().training_step(batch, batch_idx) + other.mean()


class FrozenHead(Own):
    """Trains towers and tables only, until the callback below lets the head follow."""

    def configure_model(self) -> None:
        super().configure_model()
        self.head.requires_grad_(False)


class _HeadInSecondEpoch(L.Callback):
    """As Lightning's BaseFinetuning: lets the head train, and ends that in the third epoch."""

    def on_train_epoch_start(self, trainer: L.Trainer, module: Any) -> None:
        module.head.requires_grad_(trainer.current_epoch == 1)
        if trainer.current_epoch == 1:
            trainer.optimizers[0].add_param_group({"params": list(module.head.parameters()), "lr": 0.2})
        elif trainer.current_epoch == 2:
            trainer.optimizers[0].zero_grad()


class Unused(Own):
    def configure_model(self) -> None:
        super().configure_model()
        self.spare = nn.Linear(2, 2)


class NoLastGradient(Own):
    """Takes a gradient away after backward, as some schedules do."""

    def on_after_backward(self) -> None:
        self.head.bias.grad = None


class Clipped(Own):
    def configure_gradient_clipping(self, optimizer: Any, *limits: Any, **named: Any) -> None:
        self.clip_gradients(optimizer, gradient_clip_val=0.05, gradient_clip_algorithm="norm")


class _OwnData(L.LightningDataModule):
    """Counts what is asked of it."""

    num_loaders = 0

    def train_dataloader(self) -> Shares:
        assert self.trainer is not None
        self.num_loaders += 1
        return Shares(self.trainer.global_rank, self.trainer.world_size)


TRAINED = (Own, FixedEmbeddings, HeadAlone, Negatives, FrozenHead, NoLastGradient)
REFUSED = (OneSample, Unused, Clipped)


def fit_own(strategy: str, folder: Path, world_size: int) -> dict[str, Any]:
    """Train all of ``TRAINED`` for three epochs, and collect what is said of ``REFUSED``."""
    found: dict[str, Any] = {}
    for kind in (*TRAINED, *(REFUSED if world_size > 1 else ())):
        L.seed_everything(3, verbose=False)
        torch.set_num_threads(1)
        callbacks: Sequence[L.Callback] = [_HeadInSecondEpoch()] if kind is FrozenHead else []
        limits = {"callbacks": callbacks, "max_epochs": 3}
        path = folder / f"{strategy}_{kind.__name__}.ckpt"
        trainer = make_trainer(
            Run(strategy=strategy, ranks_per_host=2, max_steps=9, save=path, limits=limits), world_size
        )
        data = _OwnData()
        try:
            trainer.fit(kind(), datamodule=data)
        except UserInputError as error:
            found[kind.__name__] = str(error)
        else:
            found[kind.__name__] = data.num_loaders
            trainer.save_checkpoint(path)
    return found
