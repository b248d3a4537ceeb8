"""What a Strategy needs to know of a sharded tower stage, however it is sharded."""

from abc import abstractmethod

import torch
from torch import Tensor

from dmt.modules.stage import Stage, TowerStage
from dmt.strategies.topology import TableCost, Topology


class ShardedStage(Stage):
    """Another way to evaluate a :class:`~dmt.modules.stage.TowerStage`, over many ranks.

    Its parameters' gradients come out on the contract's scale, the gradient of the mean loss over the
    global batch, if :class:`~dmt.strategies.strategy.TowerStrategy` weights the ranks' losses.
    """

    strategy_name: str
    topology: Topology

    @abstractmethod
    def batch_sizes(self) -> list[int]:
        """B of every rank in the last forward pass that recorded gradients, by rank."""

    @abstractmethod
    def reduce_gradients(self) -> None:
        """After backward: reduce the gradients that DistributedDataParallel does not."""

    @abstractmethod
    def rank_local_names(self) -> list[str]:
        """Names of the parameters and buffers that are not the same on every rank."""

    @abstractmethod
    def stage_state(self) -> dict[str, Tensor]:
        """The live tensors this rank holds, under the names the plain stage's ``state_dict`` has for them."""


def table_costs(stage: TowerStage) -> list[list[TableCost]]:
    """What placing each table costs, tower by tower."""
    features = {feature.name: feature for feature in stage.schema.categorical}
    row_bytes = 4 * stage.embedding_dim  # float32
    return [
        [
            TableCost(
                name=name,
                output_bytes=row_bytes,
                lookups=features[name].mean_length,
                memory_bytes=row_bytes * features[name].num_embeddings,
            )
            for name in tower
        ]
        for tower in stage.plan.towers
    ]


def wire_id_dtype(stage: TowerStage) -> torch.dtype:
    """The narrowest type SPTT sends ids in: int32 unless a table has more rows than it can name."""
    largest = max(table.num_embeddings for table in stage.tables)
    return torch.int32 if largest - 1 <= torch.iinfo(torch.int32).max else torch.int64


def take_over_tables(state: dict[str, Tensor], stage: TowerStage) -> None:
    """Copy a built plain stage's tables and accumulators into the shards, so that loaded weights are kept.

    Args:
        state: a sharded stage's state.
        stage: the plain stage; under ``deferred_tables()`` it has no tables, and the shards keep their own.
    """
    with torch.no_grad():
        for name, tensor in stage.embeddings.state_dict(prefix="embeddings.").items():
            if name in state:
                state[name].copy_(tensor)
