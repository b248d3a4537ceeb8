"""A small tower stage and batches for it, for the tests of top archs."""

import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dmt.modules import EmbeddingOptimizer, PassThrough, TowerStage
from dmt.plan import TowerPlan
from dmt.schema import CategoricalFeature, FeatureSchema


def make_stage(num_features: int = 3, embedding_dim: int = 8) -> TowerStage:
    """Features f0, f1, ... of five rows each, in one or two towers."""
    names = [f"f{index}" for index in range(num_features)]
    return TowerStage(
        schema=FeatureSchema(categorical=[CategoricalFeature(name=name, num_embeddings=5) for name in names]),
        plan=TowerPlan.strided(names, num_towers=min(2, num_features)),
        embedding_dim=embedding_dim,
        tower=PassThrough,
        optimizer=EmbeddingOptimizer(),
    )


def make_batch(stage: TowerStage, size: int, num_dense: int) -> tuple[Tensor, KeyedJaggedTensor]:
    """A random single-hot batch."""
    names = list(stage.schema.feature_names)
    ids = torch.randint(0, 5, (len(names) * size,))
    sparse = KeyedJaggedTensor(names, ids, lengths=torch.ones(len(names) * size, dtype=torch.int32))
    return torch.randn(size, num_dense), sparse
