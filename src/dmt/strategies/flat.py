"""The flat baseline: TorchRec's hybrid parallelism, tables over all ranks, tower modules data-parallel.

Shapes: B samples, F features, N embedding dim, O outputs, D output dim.
"""

from dataclasses import replace

import torch
import torch.distributed as dist
from fbgemm_gpu.split_table_batched_embeddings_ops_common import BoundsCheckMode
from torch import Tensor
from torchrec.distributed.embedding_types import EmbeddingComputeKernel
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder, ShardedEmbeddingBagCollection
from torchrec.distributed.sharding_plan import construct_module_sharding_plan, table_wise
from torchrec.distributed.types import ShardingEnv
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

from dmt.modules.embeddings import fbgemm_optimizer, initialize_rows, momentum_name, weight_name
from dmt.modules.stage import TowerStage, run_towers, tower_modules
from dmt.strategies.collectives import PendingSizes
from dmt.strategies.stage import ShardedStage, table_costs, take_over_tables
from dmt.strategies.topology import Placement, Topology

# TorchRec keeps tables in a ModuleDict, where one named "type" or "items" would hide a method.
_TABLE = "table_"


class FlatStage(ShardedStage):
    """A tower stage with tables sharded table-wise over all ranks by TorchRec, and all towers on every rank.

    Args:
        stage: the plain stage, built under ``deferred_tables()``.
        topology: hosts and ranks.
        device: where tables and batches are.
    """

    strategy_name = "torchrec"

    def __init__(self, stage: TowerStage, *, topology: Topology, device: torch.device) -> None:
        super().__init__()
        self.plan, self.topology, self.device = stage.plan, topology, device
        self.embedding_dim = stage.embedding_dim
        self.out_features, self.out_dim = stage.out_features, stage.out_dim
        self.tower_sizes = stage.tower_sizes
        self.towers = stage.towers
        # One flat group of all ranks: the same balancing as SPTT's, without towers to keep together.
        flat = Topology(world_size=topology.world_size, ranks_per_host=topology.world_size)
        placement = Placement.balanced(table_costs(stage), flat)
        owner = {name: rank for rank, names in enumerate(placement.rank_tables) for name in names}
        # Hidden from the module tree: TorchRec shows its tables as parameters that require gradients, though its
        # kernel updates them itself; neither the dense optimiser nor DistributedDataParallel may see them.
        self._embeddings = [self._shard(stage, owner)]
        self._state = self._whole_tables()
        self._initialize(stage)
        take_over_tables(self._state, stage)
        self.bag_order = stage.bag_order
        self._sizes = PendingSizes(world_size=topology.world_size, device=device)

    def _shard(self, stage: TowerStage, owner: dict[str, int]) -> ShardedEmbeddingBagCollection:
        tables = [replace(table, name=f"{_TABLE}{table.name}") for table in stage.tables]
        plain = EmbeddingBagCollection(tables=tables, device=torch.device("meta"))
        # As in our own tables: an id out of range is an error, not a warning and row 0.
        fused_params = fbgemm_optimizer(stage.embeddings.optimizer) | {"bounds_check_mode": BoundsCheckMode.FATAL}
        sharder = EmbeddingBagCollectionSharder(fused_params=fused_params)
        fused = EmbeddingComputeKernel.FUSED.value
        plan = construct_module_sharding_plan(
            plain,
            {f"{_TABLE}{name}": table_wise(rank=rank, compute_kernel=fused) for name, rank in owner.items()},
            sharder=sharder,
            local_size=self.topology.ranks_per_host,
            world_size=self.topology.world_size,
            device_type=self.device.type,
        )
        assert dist.group.WORLD is not None
        return sharder.shard(plain, plan, ShardingEnv.from_process_group(dist.group.WORLD), self.device)

    def _whole_tables(self) -> dict[str, Tensor]:
        """This rank's tables and optimiser state under the plain stage's names."""
        state: dict[str, Tensor] = {}
        for key, sharded in self._embeddings[0].state_dict().items():
            table = key.removeprefix(f"embedding_bags.{_TABLE}").removesuffix(".weight")
            state |= {f"embeddings.{weight_name(table)}": shard.tensor for shard in sharded.local_shards()}
        for moments in self._embeddings[0].fused_optimizer.state_dict()["state"].values():
            for key, sharded in moments.items():
                if key.endswith(".momentum1"):  # SGD has a placeholder or nothing here
                    table = key.removeprefix(_TABLE).removesuffix(".momentum1")
                    state |= {f"embeddings.{momentum_name(table)}": shard.tensor for shard in sharded.local_shards()}
        return state

    def _initialize(self, stage: TowerStage) -> None:
        with torch.no_grad():
            for table in stage.tables:
                if (weight := self._state.get(f"embeddings.{weight_name(table.name)}")) is not None:
                    initialize_rows(weight, table=table, first_row=0, seed=stage.embeddings.seed)

    def forward(self, features: KeyedJaggedTensor) -> Tensor:
        self.bag_order.check(features)
        if torch.is_grad_enabled():  # only training asks for the sizes
            self._sizes.start(features.stride())
        pooled = self._embeddings[0](features)
        # TorchRec's output follows its sharding, so features are picked by name.
        [flat] = KeyedTensor.regroup([pooled], [list(self.plan.feature_names)])
        embeddings = flat.view(features.stride(), len(self.plan.feature_names), self.embedding_dim)
        return run_towers(tower_modules(self.towers), embeddings.split(self.tower_sizes, dim=1))

    def set_learning_rate(self, learning_rate: float) -> None:
        optimizer = self._embeddings[0].fused_optimizer
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        optimizer.step()  # hands the rate to the kernels; rows move in backward

    def batch_sizes(self) -> list[int]:
        return self._sizes.wait()

    def reduce_gradients(self) -> None:
        """Nothing: tower modules are replicated, and TorchRec averages embedding gradients over all ranks."""

    def rank_local_names(self) -> list[str]:
        return []

    def stage_state(self) -> dict[str, Tensor]:
        towers = self.towers.state_dict(prefix="towers.")
        return self._state | towers
