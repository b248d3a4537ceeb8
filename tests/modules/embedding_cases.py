"""Tables, random bags and the same lookups in plain torch, for the tests of embedding tables."""

import random
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torchrec.modules.embedding_configs import EmbeddingBagConfig

from dmt.modules import EmbeddingOptimizer, FusedEmbeddingBags
from dmt.modules.shards import TableShard

OPTIMIZERS = ["sgd", "adagrad", "rowwise_adagrad", "adam"]
# Different widths, one of them twice, a table of 1 row, one with rows that no batch reaches and with two features.
TABLES = [
    EmbeddingBagConfig(name=name, feature_names=features, num_embeddings=rows, embedding_dim=dim)
    for name, rows, dim, features in [
        ("few", 2, 8, ["few"]),
        ("one", 1, 4, ["one"]),
        ("many", 300, 12, ["many", "more"]),
        ("some", 20, 8, ["some"]),
    ]
]
LOOKUPS = [(feature, table) for table in TABLES for feature in table.feature_names]
WIDTH = sum(table.embedding_dim for _, table in LOOKUPS)
BATCH = 6
# Pooled sums and gradients of up to 48 float32 values of order 1, added in another order: rounding of about
# sqrt(48) * 6e-8 = 4e-7 a sum, some of it carried over a few steps; 5e-6 leaves a factor ten.
TOLERANCE = {"rtol": 5e-6, "atol": 5e-6}


class Bags(NamedTuple):
    """Arguments of a lookup: ids, offsets and the ids' factors, lookup-major."""

    ids: Tensor
    offsets: Tensor
    factors: Tensor | None

    def of(self, lookup: int) -> "Bags":
        """Those of one lookup."""
        bounds = self.offsets[lookup * BATCH : (lookup + 1) * BATCH + 1].long()
        own = slice(int(bounds[0]), int(bounds[-1]))
        return Bags(self.ids[own].long(), bounds - bounds[0], None if self.factors is None else self.factors[own])


def make(seed: int, *, name: str = "rowwise_adagrad", shards: Sequence[TableShard] | None = None) -> FusedEmbeddingBags:
    # eps is large so that its place in the formula shows.
    optimizer = EmbeddingOptimizer(name=name, learning_rate=0.5, eps=0.3, betas=(0.8, 0.95))
    whole = [TableShard.whole(table) for table in TABLES]
    return FusedEmbeddingBags(whole if shards is None else shards, optimizer=optimizer, seed=seed)


def draw_bags(rng: random.Random, dtype: torch.dtype = torch.int64, *, weighted: bool = False) -> Bags:
    """Random bags: empty ones, ids repeated inside a bag and across the batch."""
    lengths = [rng.randint(0, 4) for _ in range(len(LOOKUPS) * BATCH)]
    lengths[0], lengths[1], lengths[-1] = 3, 0, 0  # three ids of two rows repeat one; empty at both ends
    ids = [
        rng.randrange(table.num_embeddings)
        for index, (_, table) in enumerate(LOOKUPS)
        for _ in range(sum(lengths[index * BATCH : (index + 1) * BATCH]))
    ]
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    factors = torch.randn(len(ids)) if weighted else None
    return Bags(torch.tensor(ids, dtype=dtype), offsets.to(dtype), factors)


def plain_lookup(weights: dict[str, Tensor], bags: Bags, *, sparse: bool = False) -> Tensor:
    """The same (B, WIDTH), with one embedding_bag a lookup."""
    outputs = []
    for index, (_, table) in enumerate(LOOKUPS):
        ids, offsets, factors = bags.of(index)
        outputs.append(
            F.embedding_bag(
                ids,
                weights[table.name],
                offsets,
                mode="sum",
                per_sample_weights=factors,
                include_last_offset=True,
                sparse=sparse,
            )
        )
    return torch.cat(outputs, dim=1)


def train_step(bags: FusedEmbeddingBags, batch: Bags, output_gradient: Tensor) -> None:
    bags(*batch).backward(output_gradient)
