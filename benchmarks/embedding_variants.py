"""One workload, the embedding part of a recommender with tower modules, under SPTT and under its relatives in TorchRec.

Every variant computes the same function of the same batch, (B, O, D) with towers in plan order, from the same initial
tables and tower modules, and trains both by SGD. Each tower lies on one host.

Shapes: B samples of a rank, F features, N embedding dim, O outputs, D output dim.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torchrec.distributed import embedding_tower_sharding
from torchrec.distributed.embedding_tower_sharding import EmbeddingTowerCollectionSharder
from torchrec.distributed.embedding_types import EmbeddingComputeKernel
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.types import (
    EnumerableShardingSpec,
    ParameterSharding,
    ShardedTensor,
    ShardingEnv,
    ShardingType,
    ShardMetadata,
)
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.modules.embedding_tower import EmbeddingTower, EmbeddingTowerCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

from dmt.modules import DLRMTower, EmbeddingOptimizer, PassThrough, TowerModule, TowerStage, deferred_tables
from dmt.modules.embeddings import fbgemm_optimizer, initialize_rows
from dmt.plan import TowerPlan
from dmt.schema import CategoricalFeature, FeatureSchema
from dmt.strategies.collectives import Hop
from dmt.strategies.sptt import ProcessGroups, SpttStage
from dmt.strategies.topology import Topology

CPU = torch.device("cpu")
_TABLE = "table_"  # TorchRec keeps tables in a ModuleDict, where a plain name may hide a method


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What is computed, and on how many ranks.

    Args:
        num_hosts: H, and the number of towers.
        ranks_per_host: L.
        num_features: F, a table each.
        num_rows: rows of every table.
        embedding_dim: N.
        batch_size: B.
        mean_ids: 0 for exactly one id per feature; otherwise random lengths of this mean.
        compression: elements that enter tower modules over elements that leave; 1 for no module.
        learning_rate: SGD's step, for rows and tower modules.
    """

    num_hosts: int
    ranks_per_host: int
    num_features: int = 26
    num_rows: int = 100_000
    embedding_dim: int = 64
    batch_size: int = 512
    mean_ids: int = 0
    compression: int = 1
    learning_rate: float = 0.1

    @property
    def topology(self) -> Topology:
        """Hosts and ranks."""
        return Topology(world_size=self.num_hosts * self.ranks_per_host, ranks_per_host=self.ranks_per_host)

    @property
    def schema(self) -> FeatureSchema:
        """F columns."""
        hot: dict[str, Any] = {"multi_hot": True, "mean_length": float(self.mean_ids)} if self.mean_ids else {}
        return FeatureSchema(
            categorical=[
                CategoricalFeature(name=f"f{index}", num_embeddings=self.num_rows, **hot)
                for index in range(self.num_features)
            ]
        )

    def stage(self) -> TowerStage:
        """The plain stage, without tables; every call on every rank gives the same tower modules."""
        tower: Callable[[int, int], TowerModule] = PassThrough
        if self.compression > 1:
            tower = partial(DLRMTower, c=1, p=0, out_dim=self.embedding_dim // self.compression)
        torch.manual_seed(7)
        with deferred_tables():
            return TowerStage(
                schema=self.schema,
                plan=TowerPlan.strided(self.schema.feature_names, num_towers=self.num_hosts),
                embedding_dim=self.embedding_dim,
                tower=tower,
                optimizer=EmbeddingOptimizer(name="sgd", learning_rate=self.learning_rate),
            )

    def batch(self, generator: torch.Generator) -> KeyedJaggedTensor:
        """Random ids, as TorchRec's input pipelines hand them over: int64 ids, int32 lengths."""
        num_bags = self.num_features * self.batch_size
        lengths = torch.ones(num_bags, dtype=torch.int32)
        if self.mean_ids:
            lengths = torch.randint(0, 2 * self.mean_ids + 1, (num_bags,), generator=generator, dtype=torch.int32)
        ids = torch.randint(0, self.num_rows, (int(lengths.sum()),), generator=generator)
        return KeyedJaggedTensor(list(self.schema.feature_names), ids, lengths=lengths)

    def gradient(self, generator: torch.Generator) -> Tensor:
        """A random gradient of the output, (B, O, D)."""
        stage = self.stage()
        return torch.randn(self.batch_size, stage.out_features, stage.out_dim, generator=generator)


class Variant(ABC):
    """A way to evaluate and train the workload.

    Args:
        name: for tables of results.
    """

    name: str

    @abstractmethod
    def forward(self, batch: KeyedJaggedTensor) -> Tensor:
        """(B, O, D)."""

    @abstractmethod
    def finish(self) -> None:
        """After backward: whatever is left to reduce."""

    @abstractmethod
    def tower_parameters(self) -> list[nn.Parameter]:
        """Of the tower modules on this rank."""

    def step(self, batch: KeyedJaggedTensor, gradient: Tensor, learning_rate: float) -> Tensor:
        """Forward, backward with the rows' update, and a step of SGD on the tower modules; returns (B, O, D)."""
        output = self.forward(batch)
        output.backward(gradient)
        self.finish()
        with torch.no_grad():
            for parameter in self.tower_parameters():
                assert parameter.grad is not None
                parameter.add_(parameter.grad, alpha=-learning_rate)
                parameter.grad = None
        return output.detach()


class Sptt(Variant):
    """dmt's stage."""

    name = "SPTT"

    def __init__(self, workload: Workload, sharding: str) -> None:
        topology = workload.topology
        self.stage = SpttStage(
            workload.stage(),
            topology=topology,
            groups=ProcessGroups.create(topology, timeout=timedelta(minutes=5)),
            rank=dist.get_rank(),
            device=CPU,
            sharding=sharding,
        )

    def forward(self, batch: KeyedJaggedTensor) -> Tensor:
        output: Tensor = self.stage(batch)
        return output

    def finish(self) -> None:
        self.stage.reduce_gradients()

    def tower_parameters(self) -> list[nn.Parameter]:
        return list(self.stage.towers.parameters())

    def cross_host_bytes(self) -> int:
        """What the stage's own meter has counted so far."""
        return self.stage.meter.total_bytes("cross_host")


class SpttByCollective(Sptt):
    """The same with gloo's own AlltoAll between hosts, which dmt replaces by point-to-point messages."""

    name = "SPTT, by gloo's AlltoAll"

    def step(self, batch: KeyedJaggedTensor, gradient: Tensor, learning_rate: float) -> Tensor:
        with mock.patch.object(Hop, "crosses_hosts", False):
            return super().step(batch, gradient, learning_rate)


def _configs(stage: TowerStage, features: Sequence[str]) -> list[EmbeddingBagConfig]:
    """Tables of single features as TorchRec wants them."""
    return [
        EmbeddingBagConfig(
            name=f"{_TABLE}{table.name}",
            feature_names=list(table.feature_names),
            num_embeddings=table.num_embeddings,
            embedding_dim=table.embedding_dim,
        )
        for table in stage.tables
        if table.feature_names[0] in features
    ]


def _sharding(kind: ShardingType, table: EmbeddingBagConfig, ranks: Sequence[int]) -> ParameterSharding:
    """A table in blocks of rows, one for each rank, or whole on a single one."""
    block = -(-table.num_embeddings // len(ranks))
    starts = range(0, table.num_embeddings, block)
    shards = [
        ShardMetadata(
            shard_offsets=[start, 0],
            shard_sizes=[min(block, table.num_embeddings - start), table.embedding_dim],
            placement=f"rank:{rank}/cpu",
        )
        for start, rank in zip(starts, ranks, strict=True)
    ]
    return ParameterSharding(
        sharding_type=kind.value,
        compute_kernel=EmbeddingComputeKernel.FUSED.value,
        ranks=list(ranks),
        sharding_spec=EnumerableShardingSpec(shards),
    )


def _fill(state: Mapping[str, Any], stage: TowerStage) -> None:
    """Give TorchRec's shards the rows that dmt's tables begin with."""
    tables = {f"{_TABLE}{table.name}": table for table in stage.tables}
    for key, sharded in state.items():
        if isinstance(sharded, ShardedTensor):
            table = tables[key.removesuffix(".weight").rpartition(".")[2]]
            for shard in sharded.local_shards():
                assert shard.metadata.shard_sizes[1] == table.embedding_dim
                first = shard.metadata.shard_offsets[0]
                with torch.no_grad():
                    initialize_rows(shard.tensor, table=table, first_row=first, seed=stage.embeddings.seed)


class _Interaction(nn.Module):
    """A tower module behind TorchRec's embeddings."""

    def __init__(self, features: Sequence[str], module: TowerModule, embedding_dim: int) -> None:
        super().__init__()
        self.features, self.module, self.embedding_dim = list(features), module, embedding_dim

    def forward(self, embeddings: KeyedTensor) -> Tensor:
        # TorchRec's order follows its sharding.
        if embeddings.keys() == self.features:
            flat = embeddings.values()
        else:
            [flat] = KeyedTensor.regroup([embeddings], [self.features])
        output: Tensor = self.module(flat.view(-1, len(self.features), self.embedding_dim))
        return output.flatten(1)


def _data_parallel(module: nn.Module, **options: Any) -> nn.Module:
    if not any(True for _ in module.parameters()):
        return module  # DistributedDataParallel refuses it
    # TorchRec names the device, which DistributedDataParallel allows for GPUs only.
    return DistributedDataParallel(module, **(options | {"device_ids": None}))


@contextmanager
def _repaired_towers() -> Iterator[None]:
    """Let TorchRec's tower collection work on the CPU, and without tower modules."""
    with mock.patch.object(embedding_tower_sharding, "DistributedDataParallel", _data_parallel):
        yield


class TowerCollection(Variant):
    """TorchRec's EmbeddingTowerCollection.

    It cuts tables by rows, or by columns, where one block of them is a whole table.
    """

    def __init__(self, workload: Workload, *, row_wise: bool) -> None:
        self.name = f"EmbeddingTowerCollection, {'tables by row' if row_wise else 'whole tables'}"
        stage, topology = workload.stage(), workload.topology
        self._shape = (-1, stage.out_features, stage.out_dim)
        sharder = EmbeddingTowerCollectionSharder(fused_params=fbgemm_optimizer(stage.embeddings.optimizer))
        towers, plan = [], {}
        for host, (features, module) in enumerate(zip(stage.plan.towers, stage.tower_modules, strict=True)):
            configs = _configs(stage, features)
            tables = EmbeddingBagCollection(tables=configs, device=torch.device("meta"))
            towers.append(EmbeddingTower(tables, _Interaction(features, module, workload.embedding_dim)))
            members = topology.members(group=host)
            for index, config in enumerate(configs):
                if row_wise:
                    plan[config.name] = _sharding(ShardingType.TABLE_ROW_WISE, config, members)
                else:
                    home = [members[index % len(members)]]
                    plan[config.name] = _sharding(ShardingType.TABLE_COLUMN_WISE, config, home)
        assert dist.group.WORLD is not None
        with _repaired_towers():
            self.collection = sharder.shard(
                EmbeddingTowerCollection(towers), plan, ShardingEnv.from_process_group(dist.group.WORLD), CPU
            )
        for embedding in self.collection.embeddings.values():
            _fill(embedding.state_dict(), stage)

    def forward(self, batch: KeyedJaggedTensor) -> Tensor:
        output: Tensor = self.collection(batch)
        return output.view(self._shape)

    def finish(self) -> None:
        """Nothing: DistributedDataParallel has reduced inside the host."""

    def tower_parameters(self) -> list[nn.Parameter]:
        return [p for interaction in self.collection.interactions.values() for p in interaction.parameters()]


class Flat(Variant):
    """TorchRec's sharded EmbeddingBagCollection, then the tower modules, replicated and data-parallel."""

    def __init__(self, workload: Workload, *, row_wise: bool) -> None:
        self.name = f"flat, {'table-row-wise' if row_wise else 'table-wise'}"
        stage, topology = workload.stage(), workload.topology
        self._shape = (-1, stage.out_features, stage.out_dim)
        names = [name for features in stage.plan.towers for name in features]
        configs = {config.feature_names[0]: config for config in _configs(stage, names)}
        plan = {}
        for index, name in enumerate(names):
            config = configs[name]
            if row_wise:
                [host] = [h for h, features in enumerate(stage.plan.towers) if name in features]
                plan[config.name] = _sharding(ShardingType.TABLE_ROW_WISE, config, topology.members(group=host))
            else:
                plan[config.name] = _sharding(ShardingType.TABLE_WISE, config, [index % topology.world_size])
        sharder = EmbeddingBagCollectionSharder(fused_params=fbgemm_optimizer(stage.embeddings.optimizer))
        tables = EmbeddingBagCollection(tables=[configs[name] for name in names], device=torch.device("meta"))
        assert dist.group.WORLD is not None
        self.embeddings = sharder.shard(tables, plan, ShardingEnv.from_process_group(dist.group.WORLD), CPU)
        _fill(self.embeddings.state_dict(), stage)
        towers = zip(stage.plan.towers, stage.tower_modules, strict=True)
        interactions = [_Interaction(features, module, workload.embedding_dim) for features, module in towers]
        self.interactions = _data_parallel(_SideBySide(interactions))

    def forward(self, batch: KeyedJaggedTensor) -> Tensor:
        output: Tensor = self.interactions(self.embeddings(batch).wait())
        return output.view(self._shape)

    def finish(self) -> None:
        """Nothing: DistributedDataParallel has reduced over all ranks."""

    def tower_parameters(self) -> list[nn.Parameter]:
        return list(self.interactions.parameters())


class _SideBySide(nn.Module):
    """Every tower's interaction on the same embeddings."""

    def __init__(self, interactions: Sequence[_Interaction]) -> None:
        super().__init__()
        self.interactions = nn.ModuleList(interactions)
        self.groups = [interaction.features for interaction in interactions]
        self.embedding_dim = interactions[0].embedding_dim

    def forward(self, embeddings: KeyedTensor) -> Tensor:
        # One call for all towers, as TorchRec advises.
        parts = KeyedTensor.regroup([embeddings], self.groups)
        outputs = []
        for interaction, names, flat in zip(self.interactions, self.groups, parts, strict=True):
            assert isinstance(interaction, _Interaction)
            outputs.append(interaction.module(flat.view(-1, len(names), self.embedding_dim)).flatten(1))
        return torch.cat(outputs, dim=1)


def build(workload: Workload, *, sharding: str) -> list[Variant]:
    """All variants; SPTT is the first. Collective: every rank calls it at the same point.

    Args:
        workload: what they compute.
        sharding: how SPTT cuts tables inside a host.
    """
    return [
        Sptt(workload, sharding),
        SpttByCollective(workload, sharding),
        TowerCollection(workload, row_wise=False),
        TowerCollection(workload, row_wise=True),
        Flat(workload, row_wise=True),
        Flat(workload, row_wise=False),
    ]


def check_agreement(variants: Sequence[Variant], workload: Workload, seed: int, *, steps: int = 3) -> None:
    """Train all variants on the same batches and compare what they compute.

    Raises:
        AssertionError: they are not the same function, so their times could not be compared.
    """
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        batch, gradient = workload.batch(generator), workload.gradient(generator)
        outputs = [variant.step(batch, gradient, workload.learning_rate) for variant in variants]
        for variant, output in zip(variants, outputs, strict=True):
            difference, size = float((output - outputs[0]).abs().max()), float(outputs[0].abs().max())
            # Float32 sums in another order, up to 10^5 products each: 6e-8 * sqrt(1e5) = 2e-5 of the size. A wrong
            # scale or order would be as large as the output itself.
            assert difference < 2e-4 * size, f"{variant.name}, {step=}: {difference=}, {size=}"
