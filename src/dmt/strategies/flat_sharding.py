"""How TorchRec cuts tables over all ranks: by its named sharding types, or as its planner chooses.

G ranks, L ranks of a host.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
import torch.distributed as dist
from fbgemm_gpu.split_table_batched_embeddings_ops_common import BoundsCheckMode
from torch.distributed import _remote_device
from torchrec.distributed import comm
from torchrec.distributed.embedding_types import EmbeddingComputeKernel
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints
from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
from torchrec.distributed.planner.types import KernelConfig, PlannerError, TopologyFactory, TrainerConfig
from torchrec.distributed.sharding_plan import placement
from torchrec.distributed.types import EnumerableShardingSpec, ParameterSharding, QuantizedCommCodecs, ShardMetadata
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from dmt.errors import UserInputError
from dmt.modules.embeddings import fbgemm_optimizer
from dmt.modules.shards import TableShard
from dmt.modules.stage import TowerStage
from dmt.strategies.placement import COLUMN_STEP, RESERVED, ROWWISE_OBSTACLE, Placement, TableCost, cut_rows, place
from dmt.strategies.stage import table_costs
from dmt.strategies.topology import Topology

FlatKind = Literal["table_wise", "row_wise", "column_wise", "table_row_wise", "table_column_wise"]
"""A table on one rank; blocks of its rows or columns over all ranks; the same over the ranks of one host."""

ROW_KINDS = ("row_wise", "table_row_wise")
COLUMN_KINDS = ("column_wise", "table_column_wise")

# TorchRec keeps tables in a ModuleDict, where one named "type" or "items" would hide a method.
TABLE_PREFIX = "table_"

Plan = dict[str, ParameterSharding]
"""TorchRec's plan of an EmbeddingBagCollection, by table."""


Blocks = list[tuple[int, TableShard]]
"""Parts of a table, each with its rank."""


class AllKindsSharder(EmbeddingBagCollectionSharder):
    """TorchRec's sharder, which hides from its planner the row-wise kinds where tables are on the CPU."""

    def sharding_types(self, compute_device_type: str) -> list[str]:
        return list(get_args(FlatKind))


@dataclass(frozen=True)
class FlatTables:
    """A stage's tables as TorchRec takes them.

    Args:
        plain: the tables, on the meta device.
        sharder: what will shard them.
        costs: the same tables, as we count them.
    """

    plain: EmbeddingBagCollection
    sharder: AllKindsSharder
    costs: list[TableCost]


def flat_tables(stage: TowerStage, codecs: dict[str, QuantizedCommCodecs] | None = None) -> FlatTables:
    """The tables of a stage, whose embeddings are to travel through ``codecs``.

    Raises:
        UserInputError: TorchRec cannot train them with the stage's optimiser.
    """
    optimizer = stage.embeddings.optimizer
    if optimizer.name == "adam":
        raise UserInputError(
            "embedding optimizer name='adam': TorchRec counts evaluation as steps of its Adam and keeps the count out "
            "of checkpoints, and has none on the CPU; choose strategy sptt, or adagrad"
        )
    tables = [replace(table, name=f"{TABLE_PREFIX}{table.name}") for table in stage.tables]
    # As in our own tables: an id out of range is an error, not a warning and row 0.
    fused_params = fbgemm_optimizer(optimizer) | {"bounds_check_mode": BoundsCheckMode.FATAL}
    return FlatTables(
        EmbeddingBagCollection(tables=tables, is_weighted=stage.schema.weighted, device=torch.device("meta")),
        AllKindsSharder(fused_params=fused_params, qcomm_codecs_registry=codecs),
        table_costs(stage),
    )


def flat_plan(
    tables: FlatTables,
    topology: Topology,
    *,
    sharding: str | Mapping[str, str],
    is_int8: bool,
    device_type: str,
    rank_memory_bytes: int | None = None,
) -> Plan:
    """Where TorchRec puts which part of each table.

    Args:
        tables: what to place.
        topology: hosts and ranks.
        sharding: a kind, ``planner``, or a kind by table; see :class:`~dmt.strategies.flat.FlatStage`.
        is_int8: whether embeddings or their gradients travel in int8.
        device_type: ``cpu`` or ``cuda``.
        rank_memory_bytes: what a rank can hold, for the planner; ``None`` for what TorchRec assumes.

    Raises:
        UserInputError: there is no such kind or table, a table cannot be cut so, or the tables do not fit.
    """
    named = table_kinds(sharding, tables.costs, topology)
    if named is None:
        kinds = [kind for kind in get_args(FlatKind) if not (is_int8 and kind in ROW_KINDS)]
        return _planner_plan(
            tables, topology, kinds=kinds, device_type=device_type, rank_memory_bytes=rank_memory_bytes
        )
    rows = [kind for kind in named.values() if kind in ROW_KINDS]
    if rows and is_int8:
        raise UserInputError(
            f"precision int8 with sharding {rows[0]}: the partial sums of row-wise tables are added up on their way, "
            "which int8 cannot be; choose bf16 or fp16, or table_wise or column_wise"
        )
    return named_plan(named, tables.costs, topology, device_type=device_type)


def set_devices(plan: Plan, devices: Sequence[torch.device]) -> None:
    """Say of each shard which device its rank really has: TorchRec counts from 0 on every host.

    Args:
        plan: changed in place.
        devices: by rank.
    """
    for sharded in plan.values():
        assert isinstance(sharded.sharding_spec, EnumerableShardingSpec)
        for shard in sharded.sharding_spec.shards:
            rank = _rank_of(shard)
            shard.placement = _remote_device(f"rank:{rank}/{devices[rank]}")


def _rank_of(shard: ShardMetadata) -> int:
    assert isinstance(shard.placement, _remote_device)
    rank = shard.placement.rank()
    assert rank is not None
    return rank


def plan_placement(plan: Plan, costs: Sequence[TableCost], topology: Topology) -> Placement:
    """The shards of a plan on their ranks; without towers, which lie on all ranks."""
    rank_shards: list[list[TableShard]] = [[] for _ in range(topology.world_size)]
    for cost in costs:
        spec = plan[f"{TABLE_PREFIX}{cost.table.name}"].sharding_spec
        assert isinstance(spec, EnumerableShardingSpec)
        for shard in spec.shards:
            (rows, width), (row, column) = shard.shard_sizes, shard.shard_offsets
            own = TableShard(table=cost.table, rows=(row, row + rows), columns=(column, column + width))
            rank_shards[_rank_of(shard)].append(own)
    return Placement(tower_groups=(), rank_shards=tuple(map(tuple, rank_shards)))


def plan_kinds(plan: Plan) -> dict[str, str]:
    """Kind of each table of a plan."""
    return {name.removeprefix(TABLE_PREFIX): sharded.sharding_type for name, sharded in plan.items()}


def table_kinds(
    sharding: str | Mapping[str, str], costs: Sequence[TableCost], topology: Topology
) -> dict[str, str] | None:
    """Kind of each table; ``None`` where TorchRec's planner is to choose.

    Raises:
        UserInputError: there is no such kind or table, the kind would change the optimiser's mathematics, or a table
            that is named cannot be cut so. Of a kind for all tables, those that cannot be cut are ``table_wise``.
    """
    if sharding == "planner":
        return None
    by_name = {cost.table.name: cost for cost in costs}
    if isinstance(sharding, str):
        _check_kind(f"sharding={sharding}", sharding, costs, or_planner=True)
        return {n: "table_wise" if obstacle(sharding, cost, topology) else sharding for n, cost in by_name.items()}
    for name, kind in sharding.items():
        option = f"sharding {name}={kind}"
        if name not in by_name:
            raise UserInputError(f"{option}: there is no such table; the tables are {', '.join(by_name)}")
        _check_kind(option, kind, [by_name[name]], or_planner=False)
        if reason := obstacle(kind, by_name[name], topology):
            raise UserInputError(f"{option}: {reason}; choose table_wise")
    return {name: sharding.get(name, "table_wise") for name in by_name}


def _check_kind(option: str, kind: str, costs: Sequence[TableCost], *, or_planner: bool) -> None:
    if kind == "data_parallel":
        raise UserInputError(
            f"{option}: TorchRec updates replicated tables by a dense optimiser, for which it holds their whole "
            "gradients and sends them to every rank in each step; choose table_wise"
        )
    if kind not in get_args(FlatKind):
        known = [*(["planner"] if or_planner else []), *get_args(FlatKind)]
        raise UserInputError(f"{option}: choose one of {', '.join(known)}")
    if kind in COLUMN_KINDS and not all(cost.can_split_columns for cost in costs):
        raise UserInputError(f"{option}: {ROWWISE_OBSTACLE}")


def obstacle(kind: str, cost: TableCost, topology: Topology) -> str:
    """Why a table cannot be cut this way; empty if it can."""
    num_ranks = topology.ranks_per_host if kind.startswith("table_") else topology.world_size
    rows, width = cost.table.num_embeddings, cost.table.embedding_dim
    if num_ranks > 1 and kind in COLUMN_KINDS and width < 2 * COLUMN_STEP:
        return f"a width of {width} has no two blocks of {COLUMN_STEP} columns"
    # FBGEMM on the CPU takes a rank's tables for a GPU's if they all have no rows.
    if kind in ROW_KINDS and (num_ranks - 1) * -(-rows // num_ranks) >= rows:
        return f"blocks of {-(-rows // num_ranks)} of its {rows} rows do not reach all of the {num_ranks} ranks"
    return ""


def named_plan(kinds: Mapping[str, str], costs: Sequence[TableCost], topology: Topology, *, device_type: str) -> Plan:
    """A plan with these kinds, balanced over the ranks.

    Args:
        kinds: of each table, as :func:`table_kinds` gives them.
        costs: every table.
        topology: hosts and ranks.
        device_type: ``cpu`` or ``cuda``.
    """
    plan = {}
    for name, blocks in _blocks(kinds, costs, topology).items():
        shards = [
            ShardMetadata(
                shard_sizes=[shard.num_rows, shard.width],
                shard_offsets=[shard.rows[0], shard.columns[0]],
                placement=placement(device_type, rank, topology.ranks_per_host),
            )
            for rank, shard in blocks
        ]
        plan[f"{TABLE_PREFIX}{name}"] = ParameterSharding(
            sharding_type=kinds[name],
            compute_kernel=EmbeddingComputeKernel.FUSED.value,
            ranks=[rank for rank, _ in blocks],
            sharding_spec=EnumerableShardingSpec(shards),
        )
    return plan


def _blocks(kinds: Mapping[str, str], costs: Sequence[TableCost], topology: Topology) -> dict[str, Blocks]:
    def of_kinds(*wanted: str) -> list[TableCost]:
        return [cost for cost in costs if kinds[cost.table.name] in wanted]

    # One group of all ranks: the same balancing as SPTT's, without towers to keep together.
    flat = Topology(world_size=topology.world_size, ranks_per_host=topology.world_size)
    blocks = _placed(of_kinds("table_wise", "column_wise"), kinds, flat)[1]
    for cost in of_kinds("row_wise"):
        blocks[cost.table.name] = _row_blocks(cost, range(topology.world_size))
    hosts, column_blocks = _placed(of_kinds("table_row_wise", "table_column_wise"), kinds, topology)
    blocks |= column_blocks
    for cost in of_kinds("table_row_wise"):
        blocks[cost.table.name] = _row_blocks(cost, topology.members(group=hosts[cost.table.name]))
    return blocks


def _placed(
    costs: Sequence[TableCost], kinds: Mapping[str, str], topology: Topology
) -> tuple[dict[str, int], dict[str, Blocks]]:
    """Host group of each table, and its blocks if they are of columns or one."""
    if not costs:
        return {}, {}
    # Each table is a tower of its own: nothing has to lie together.
    towers = [cost.table.feature_names for cost in costs]
    ours = {cost.table.name: _PLACED_AS[kinds[cost.table.name]] for cost in costs}
    placed = place(costs, towers, topology, sharding=ours)
    hosts = {cost.table.name: group for cost, group in zip(costs, placed.tower_groups, strict=True)}
    return hosts, _blocks_by_table(placed)


_PLACED_AS = {
    "table_wise": "table_wise",
    "column_wise": "column_wise",
    "table_column_wise": "column_wise",
    "table_row_wise": "row_wise",
}


def _blocks_by_table(placed: Placement) -> dict[str, Blocks]:
    shards = [(rank, shard) for rank, own in enumerate(placed.rank_shards) for shard in own]
    blocks: dict[str, Blocks] = {}
    for rank, shard in sorted(shards, key=lambda s: (s[1].rows, s[1].columns)):
        blocks.setdefault(shard.table.name, []).append((rank, shard))
    return blocks


def _row_blocks(cost: TableCost, ranks: Sequence[int]) -> Blocks:
    """A block of rows for each rank, as many rows to each but the last: TorchRec finds a row's rank by division."""
    return list(zip(ranks, cut_rows(cost.block, len(ranks)), strict=True))


def _planner_plan(
    tables: FlatTables,
    topology: Topology,
    *,
    kinds: Sequence[str],
    device_type: str,
    rank_memory_bytes: int | None,
) -> Plan:
    """The plan that TorchRec's EmbeddingShardingPlanner finds; ``kinds`` is what it may choose of."""
    constraints = {}
    for cost in tables.costs:
        own = [kind for kind in kinds if not obstacle(kind, cost, topology)]
        constraints[f"{TABLE_PREFIX}{cost.table.name}"] = _constraints(cost, own, tables.plain)
    planner = EmbeddingShardingPlanner(
        topology=TopologyFactory.create_topology(
            TrainerConfig(
                world_size=topology.world_size,
                local_world_size=topology.ranks_per_host,
                ddr_cap_bytes=rank_memory_bytes if device_type == "cpu" else None,
                hbm_cap_bytes=rank_memory_bytes if device_type == "cuda" else None,
            ),
            kernel_config=KernelConfig(compute_device=device_type),
        ),
        # TorchRec's default, without its guess at the size of dense layers, which are not in ``plain``.
        storage_reservation=FixedPercentageStorageReservation(RESERVED),
        constraints=constraints,
        debug=False,
    )
    try:
        return dict(planner.plan(tables.plain, [tables.sharder]).get_plan_for_module(""))
    except PlannerError as error:
        raise UserInputError(
            f"sharding=planner: TorchRec's planner found no plan: {str(error).strip().splitlines()[0]}; use more "
            "ranks or smaller tables, or name the kind of sharding"
        ) from error


def same_plan_on_all_ranks(make: Callable[[], Plan]) -> Plan:
    """What ``make`` returns on rank 0, or its :class:`UserInputError` on every rank; collective."""
    answer: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            answer[0] = make()
        except UserInputError as error:
            answer[1] = str(error)
    dist.broadcast_object_list(answer, src=0)
    plan, problem = answer
    if problem is not None:
        raise UserInputError(problem, on_every_rank=True)
    return dict(plan)


def _constraints(cost: TableCost, kinds: Sequence[str], plain: EmbeddingBagCollection) -> ParameterConstraints:
    num_features = len(cost.table.feature_names)
    return ParameterConstraints(
        sharding_types=[kind for kind in kinds if kind not in COLUMN_KINDS or cost.can_split_columns],
        compute_kernels=[EmbeddingComputeKernel.FUSED.value],
        # Of each feature; those that share a table are taken as equally long.
        pooling_factors=[cost.lookups / num_features] * num_features,
        is_weighted=plain.is_weighted(),
    )


@contextmanager
def host_groups(topology: Topology) -> Iterator[None]:
    """While TorchRec shards: its process groups of hosts, which table-row-wise needs, are those of ``topology``.

    TorchRec takes the number of a host's ranks from LOCAL_WORLD_SIZE, the first time that a process needs it.
    """
    ours = {"LOCAL_WORLD_SIZE": str(topology.ranks_per_host), "TORCHREC_RESOLVED_POD_SIZE": "1"}
    before = {name: os.environ.get(name) for name in ours}
    if comm._INTRA_PG is not None and comm._INTRA_PG.size() != topology.ranks_per_host:
        # Private, but they outlive the layout that they were made for. tests/distributed/test_flat.py guards it.
        comm._INTRA_PG = comm._CROSS_PG = None
    os.environ.update(ours)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def check_kernel_sizes(shards: Iterable[TableShard], *, optimizer_name: str, device_type: str) -> None:
    """Raise where FBGEMM would update other rows than were looked up.

    fbgemm-gpu 1.8.0's row-wise Adagrad on the CPU counts bytes from a table's start in 32 bits.

    Args:
        shards: what ranks hold.
        optimizer_name: how they are updated.
        device_type: ``cpu`` or ``cuda``.

    Raises:
        UserInputError: one has more than 4 GiB of weights.
    """
    if optimizer_name != "rowwise_adagrad" or device_type != "cpu":
        return
    for shard in shards:
        if 4 * shard.num_rows * shard.width > 2**32:
            raise UserInputError(
                f"table {shard.table.name!r}: {shard.num_rows} rows of {shard.width} columns on one rank are more than "
                "4 GiB, which FBGEMM's rowwise_adagrad cannot address on the CPU; cut it by rows over more ranks "
                "(sharding row_wise), choose the optimizer adagrad, or strategy sptt",
                on_every_rank=True,
            )
