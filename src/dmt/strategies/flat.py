"""The flat baseline: TorchRec's hybrid parallelism, tables over all ranks, tower modules data-parallel.

Shapes: B samples, F features, W_t columns that tower t reads, O outputs, D output dim.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import torch
import torch.distributed as dist
from fbgemm_gpu.split_table_batched_embeddings_ops_common import BoundsCheckMode
from torch import Tensor
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionContext, ShardedEmbeddingBagCollection
from torchrec.distributed.types import ShardingEnv
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

from dmt.modules.columns import ColumnBlock, ColumnRoute
from dmt.modules.embeddings import initialize_rows, momentum_name, weight_name
from dmt.modules.shards import ShardedState, TensorShard, copy_into_shards
from dmt.modules.stage import Pending, TowerStage, run_towers, tower_inputs, tower_modules
from dmt.strategies.collectives import PendingSizes
from dmt.strategies.flat_codecs import INT8_BATCH_STEP, WireCodecs
from dmt.strategies.flat_sharding import (
    ROW_KINDS,
    TABLE_PREFIX,
    check_kernel_sizes,
    flat_plan,
    flat_tables,
    host_groups,
    plan_kinds,
    plan_placement,
    same_plan_on_all_ranks,
    set_devices,
)
from dmt.strategies.meter import WireMeter
from dmt.strategies.stage import Distributed, Distribution, ShardedStage
from dmt.strategies.topology import Topology
from dmt.strategies.wire import WirePrecision


@dataclass(frozen=True)
class FlatBatch(Distributed):
    """A batch whose ids TorchRec has sent to the ranks that look them up.

    Args:
        context: TorchRec's, of this batch.
        ids: by sharding type; typed by TorchRec.
        batch_size: B of this rank.
        lengths: (F, B) of this rank's own samples, in schema order; ``None`` where no pooling needs them.
    """

    context: EmbeddingBagCollectionContext
    ids: Any
    batch_size: int
    lengths: Tensor | None


class FlatStage(ShardedStage):
    """A tower stage with tables sharded over all ranks by TorchRec, and all towers on every rank.

    Args:
        stage: the plain stage, built under ``deferred_tables()``.
        topology: hosts and ranks.
        device: where tables and batches are.
        sharding: TorchRec's sharding type of all tables, ``table_wise``, ``row_wise``, ``column_wise``,
            ``table_row_wise`` or ``table_column_wise``, balanced over the ranks; tables too small for it are
            ``table_wise``. Or ``planner`` for what TorchRec's EmbeddingShardingPlanner chooses, or a type by table,
            where those not named are ``table_wise``.
        rank_memory_bytes: what a rank can hold of tables, for the planner; ``None`` for what TorchRec assumes.
        forward_precision: in what embeddings travel.
        backward_precision: in what their gradients do.

    Raises:
        UserInputError: there is no such sharding type or table, or the optimiser or the precision cannot go with it.
    """

    strategy_name = "torchrec"

    def __init__(
        self,
        stage: TowerStage,
        *,
        topology: Topology,
        device: torch.device,
        sharding: str | Mapping[str, str] = "table_wise",
        rank_memory_bytes: int | None = None,
        forward_precision: WirePrecision = "fp32",
        backward_precision: WirePrecision = "fp32",
    ) -> None:
        super().__init__()
        self.topology, self.device = topology, device
        self.out_features, self.out_dim = stage.out_features, stage.out_dim
        self.bag_order, self.feature_keys = stage.bag_order, stage.bag_order.keys
        self.towers, self.tower_shapes = stage.towers, stage.tower_shapes
        self.mean_pooling = stage.mean_pooling
        self._length_rows = [[self.feature_keys.index(f.name) for f in own] for own in stage.tower_features]
        self._tower_blocks = [[feature.block for feature in own] for own in stage.tower_features]
        self._route: ColumnRoute | None = None
        self._needs_lengths = not stage.schema.single_hot and any(mean.is_needed for mean in stage.mean_pooling)
        self._codecs = WireCodecs(forward_precision=forward_precision, backward_precision=backward_precision)
        # Hidden from the module tree: TorchRec shows its tables as parameters that require gradients, though its
        # kernel updates them itself; neither the dense optimiser nor DistributedDataParallel may see them.
        self._embeddings = [self._shard(stage, sharding, rank_memory_bytes)]
        self.meter = WireMeter(topology, dist.get_rank())
        self._state = self._sharded_tables(stage)
        self._initialize(stage)
        copy_into_shards(self._state, stage.embeddings.state_dict(prefix="embeddings."))

    def _shard(
        self, stage: TowerStage, sharding: str | Mapping[str, str], rank_memory_bytes: int | None
    ) -> ShardedEmbeddingBagCollection:
        tables = flat_tables(stage, self._codecs.registry)
        find = partial(
            flat_plan,
            tables,
            self.topology,
            sharding=sharding,
            is_int8=self._codecs.is_int8,
            device_type=self.device.type,
            rank_memory_bytes=rank_memory_bytes,
        )
        # The planner measures nothing, but need not come to the same plan everywhere.
        self.torchrec_plan = same_plan_on_all_ranks(find) if sharding == "planner" else find()
        if self.device.type == "cuda":
            devices: list[Any] = [None] * self.topology.world_size
            dist.all_gather_object(devices, self.device)
            set_devices(self.torchrec_plan, devices)
        self._heed_rows(stage)
        placed = plan_placement(self.torchrec_plan, tables.costs, self.topology)
        check_kernel_sizes(
            chain.from_iterable(placed.rank_shards),
            optimizer_name=stage.embeddings.optimizer.name,
            device_type=self.device.type,
        )
        assert dist.group.WORLD is not None
        with host_groups(self.topology):
            env = ShardingEnv.from_process_group(dist.group.WORLD)
            return tables.sharder.shard(tables.plain, self.torchrec_plan, env, self.device)

    def _heed_rows(self, stage: TowerStage) -> None:
        """See to what tables need that are cut by rows."""
        rows = [name for name, kind in plan_kinds(self.torchrec_plan).items() if kind in ROW_KINDS]
        # gloo has no ReduceScatter of uneven pieces, and TorchRec quantises 32 values together.
        self._batch_step = INT8_BATCH_STEP if self._codecs.is_int8 else int(bool(rows))
        self._row_limits = self._limits_of(rows, stage)

    def _limits_of(self, tables: list[str], stage: TowerStage) -> Tensor | None:
        """Rows of each feature's table where it is one of these, else no limit; ``None`` without any table."""
        if not tables:
            return None
        rows = {
            name: table.num_embeddings if table.name in tables else torch.iinfo(torch.int64).max
            for table in stage.tables
            for name in table.feature_names
        }
        return torch.tensor([rows[name] for name in self.feature_keys], device=self.device)

    def _sharded_tables(self, stage: TowerStage) -> ShardedState:
        """This rank's shards of tables and optimiser states under the plain stage's names."""
        shapes = {t.name: (t.num_embeddings, t.embedding_dim) for t in stage.tables}
        state: ShardedState = {}
        for key, sharded in self._embeddings[0].state_dict().items():
            table = key.removeprefix(f"embedding_bags.{TABLE_PREFIX}").removesuffix(".weight")
            _add_shards(state, f"embeddings.{weight_name(table)}", sharded, shapes[table])
        for moments in self._embeddings[0].fused_optimizer.state_dict()["state"].values():
            for key, sharded in moments.items():
                if key.endswith(".momentum1"):  # SGD has a placeholder or nothing here
                    table = key.removeprefix(TABLE_PREFIX).removesuffix(".momentum1")
                    _add_shards(state, f"embeddings.{momentum_name(table)}", sharded, shapes[table])
        return state

    def _initialize(self, stage: TowerStage) -> None:
        with torch.no_grad():
            for table in stage.tables:
                for shard in self._state.get(f"embeddings.{weight_name(table.name)}", []):
                    row, column = shard.offsets
                    initialize_rows(
                        shard.tensor, table=table, first_row=row, first_column=column, seed=stage.embeddings.seed
                    )

    def distribute(self, features: KeyedJaggedTensor) -> Distribution:
        self.bag_order.check(features)
        batch_size = features.stride()
        lengths = features.lengths().view(len(self.feature_keys), batch_size) if self._needs_lengths else None
        batch_sizes: list[int] = []
        if self._batch_step:
            self._check_ids(features)
            group = dist.group.WORLD if self.topology.world_size > 1 else None
            sizes = PendingSizes(batch_size, group=group, device=self.device, meter=self.meter)
            yield
            batch_sizes = sizes.wait()
            steps = max(-(-max(batch_sizes) // self._batch_step), 1)
            features = _padded(features, steps * self._batch_step)
        context = self._embeddings[0].create_context()
        splits = self._embeddings[0].input_dist(context, features)
        yield
        tensors = splits.wait()
        yield
        ids = tensors.wait()
        return FlatBatch(
            batch_sizes=batch_sizes or context.sharding_contexts[0].batch_size_per_rank,
            context=context,
            ids=ids,
            batch_size=batch_size,
            lengths=lengths,
        )

    def _check_ids(self, features: KeyedJaggedTensor) -> None:
        """Raise if an id is out of range, which TorchRec would send to another row of a row-wise table."""
        if self._row_limits is not None and features.stride():
            warning = torch.zeros(1, dtype=torch.int64, device=self.device)
            ids, offsets = features.values(), features.offsets().to(features.values().dtype)
            torch.ops.fbgemm.bounds_check_indices(self._row_limits, ids, offsets, BoundsCheckMode.FATAL.value, warning)

    def compute(self, distributed: FlatBatch) -> Pending:
        if torch.is_grad_enabled():
            self._codecs.scale_gradients(max(distributed.batch_sizes))
        with _autograd_kernels():
            pooled = self._embeddings[0].compute_and_output_dist(distributed.context, distributed.ids)
        return _Pooled(self, pooled, distributed)

    def run(self, pooled: KeyedTensor, batch: FlatBatch) -> Tensor:
        """Pooled embeddings of the batch, maybe of empty bags after it -> (B, O, D)."""
        if self._route is None:
            # TorchRec's output follows its sharding, in the same way for every batch.
            widths = zip(pooled.keys(), pooled.length_per_key(), strict=True)
            self._route = ColumnRoute([[ColumnBlock(name, 0, width) for name, width in widths]], self._tower_blocks)
        columns = self._route(pooled.values()[: batch.batch_size], num_rows=batch.batch_size)
        inputs = tower_inputs(columns, batch.lengths, self._length_rows, self.mean_pooling, self.tower_shapes)
        return run_towers(tower_modules(self.towers), inputs)

    def set_learning_rate(self, learning_rate: float) -> None:
        optimizer = self._embeddings[0].fused_optimizer
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        optimizer.step()  # hands the rate to the kernels; rows move in backward

    def reduce_gradients(self) -> None:
        """Nothing: tower modules are replicated, and TorchRec averages embedding gradients over all ranks."""

    def rank_local_names(self) -> list[str]:
        return []

    def stage_state(self) -> ShardedState:
        towers = self.towers.state_dict(prefix="towers.")
        return self._state | {name: [TensorShard.whole(tensor)] for name, tensor in towers.items()}


@dataclass(frozen=True)
class _Pooled(Pending):
    """Pooled embeddings on their way to the ranks of their samples."""

    stage: FlatStage
    pooled: Any
    batch: FlatBatch

    @torch.compiler.disable
    def wait(self) -> Tensor:
        with _autograd_kernels():
            pooled = self.pooled.wait()
        return self.stage.run(pooled, self.batch)


def _autograd_kernels() -> AbstractContextManager[Any]:
    """FBGEMM registers its CPU lookup with autograd only, which inference mode bypasses."""
    if not torch.is_inference_mode_enabled():
        return nullcontext()
    stack = ExitStack()
    stack.enter_context(torch.inference_mode(False))
    stack.enter_context(torch.no_grad())
    return stack


def _add_shards(state: ShardedState, name: str, sharded: Any, table_shape: tuple[int, int]) -> None:
    for shard in sharded.local_shards():
        offsets = tuple(shard.metadata.shard_offsets)
        whole = table_shape[: len(offsets)]  # one accumulator for a row has no columns
        state.setdefault(name, []).append(TensorShard(tensor=shard.tensor, offsets=offsets, shape=whole))


def _padded(features: KeyedJaggedTensor, batch_size: int) -> KeyedJaggedTensor:
    """The batch with empty bags after its own, as many as make it this large."""
    missing = batch_size - features.stride()
    if not missing:
        return features
    lengths = features.lengths().view(len(features.keys()), features.stride())
    return KeyedJaggedTensor(
        features.keys(),
        features.values(),
        features.weights_or_none(),
        lengths=torch.nn.functional.pad(lengths, (0, missing)).view(-1),
        stride=batch_size,
    )
