"""``dmt describe``: what a configuration costs, counted from its real modules without training.

Shapes: B samples, F_t features of tower t, N embedding dim, O_t outputs of tower t, D output dim.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from dmt.flops import check_for_ranks, count_flops
from dmt.modules import ClickModel, TowerStage, deferred_tables
from dmt.modules.shards import TableShard
from dmt.modules.towers import ProjectedTower, plain_tower
from dmt.schema import FeatureSchema
from dmt.strategies.flat_sharding import flat_plan, flat_tables, plan_kinds, plan_placement
from dmt.strategies.placement import Placement, ShardingKind, place
from dmt.strategies.stage import table_costs, wire_id_dtype
from dmt.strategies.topology import Topology
from dmt.strategies.traffic import FLOAT_BYTES, StageShape, Traffic, flat_traffic, sptt_traffic
from dmt.strategies.wire import WirePrecision


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where a model runs.

    Args:
        strategy: ``"sptt"``, ``"torchrec"`` or ``"single"``.
        topology: hosts and ranks.
        global_batch_size: samples of a step over all ranks.
        device_type: ``cpu`` or ``cuda``.
        sharding: how tables are cut, as the strategy takes it.
        forward_precision: in what embeddings travel between hosts.
        backward_precision: in what their gradients do.
    """

    strategy: str
    topology: Topology
    global_batch_size: int
    device_type: str = "cpu"
    sharding: str | Mapping[str, str] = "auto"
    forward_precision: WirePrecision = "fp32"
    backward_precision: WirePrecision = "fp32"


def describe(model: ClickModel, schema: FeatureSchema, layout: Layout) -> dict[str, Any]:
    """Count a model's towers, parameters, FLOPs, memory and traffic.

    Tables are placed as on ranks with memory enough: a strategy cuts more of them where it is not.

    Args:
        model: not yet built; left as it is.
        schema: columns of the data.
        layout: where it runs.

    Returns:
        Plain data for JSON; see ``dmt describe --help`` for its keys.
    """
    # On the CPU, and dense layers for real: a module may ask for values, which the meta device does not have.
    with torch.random.fork_rng(devices=[]), torch.device("cpu"), deferred_tables():
        top = model.make(schema)
        stage = next(module for module in top.modules() if isinstance(module, TowerStage))
        flops = count_flops(top, schema)
        if layout.topology.world_size > 1:
            check_for_ranks(top, schema)
    tables = sum(table.num_embeddings * table.embedding_dim for table in stage.tables)
    tower_params = [sum(p.numel() for p in tower.parameters()) for tower in stage.towers]
    dense = sum(p.numel() for p in top.parameters()) - sum(tower_params)
    elements_in = sum(feature.block.width for own in stage.tower_features for feature in own)
    placement, kinds = _placement(stage, layout)
    traffic = _traffic(stage, layout, placement, kinds, tower_params, dense)
    return {
        "parameters": tables + sum(tower_params) + dense,
        "embedding_parameters": tables,
        "tower_parameters": sum(tower_params),
        "dense_parameters": dense,
        "mflops_per_sample": flops.as_reported / 1e6,
        "mflops_executed": flops.executed / 1e6,
        "compression_ratio": elements_in / (stage.out_features * stage.out_dim),
        "plan_method": stage.plan.method,
        "towers": _describe_towers(stage, placement),
        "tables": _describe_tables(stage, placement, kinds),
        "layout": {
            "strategy": layout.strategy,
            "ranks": layout.topology.world_size,
            "ranks_per_host": layout.topology.ranks_per_host,
            "hosts_per_group": layout.topology.hosts_per_group,
            "global_batch_size": layout.global_batch_size,
            "forward_precision": layout.forward_precision,
            "backward_precision": layout.backward_precision,
        },
        "memory_bytes_per_rank": _memory(stage, placement, tower_params, dense, layout),
        "bytes_per_iteration": {
            "intra_host": traffic.total("intra_host"),
            "cross_host": traffic.total("cross_host"),
            "by_purpose": traffic.by_purpose(),
        },
    }


def _describe_towers(stage: TowerStage, placement: Placement) -> list[dict[str, Any]]:
    return [
        {
            "features": list(entries),
            "in_features": len(features),
            "in_dim": stage.embedding_dim if isinstance(module, ProjectedTower) else features[0].block.width,
            "table_dims": [feature.block.width for feature in features],
            "out_features": module.out_features,
            "out_dim": module.out_dim,
            "module": type(plain_tower(module)).__name__,
            "host_group": home,
        }
        for entries, features, module, home in zip(
            stage.plan.towers, stage.tower_features, stage.tower_modules, placement.tower_groups, strict=True
        )
    ]


def _describe_tables(stage: TowerStage, placement: Placement, kinds: Mapping[str, str]) -> list[dict[str, Any]]:
    homes: dict[str, set[int]] = {table.name: set() for table in stage.tables}
    for rank, shards in enumerate(placement.rank_shards):
        for shard in shards:
            homes[shard.table.name].add(rank)
    return [
        {
            "name": table.name,
            "features": list(table.feature_names),
            "rows": table.num_embeddings,
            "dim": table.embedding_dim,
            "sharding": kinds[table.name],
            "ranks": sorted(homes[table.name]),
        }
        for table in stage.tables
    ]


def _kind(shards: list[TableShard]) -> ShardingKind:
    """How a table came to be cut; a kind that the table was too small for leaves it whole."""
    cuts_rows = not all(shard.has_all_rows for shard in shards)
    cuts_columns = not all(shard.has_all_columns for shard in shards)
    if cuts_rows:
        return "grid_shard" if cuts_columns else "row_wise"
    return "column_wise" if cuts_columns else "table_wise"


def _placement(stage: TowerStage, layout: Layout) -> tuple[Placement, dict[str, str]]:
    """Where towers and tables go, and how tables are cut."""
    if layout.strategy == "torchrec":
        tables = flat_tables(stage)
        plan = flat_plan(
            tables,
            layout.topology,
            sharding=layout.sharding,
            is_int8="int8" in (layout.forward_precision, layout.backward_precision),
            device_type=layout.device_type,
        )
        # Towers are on every rank; by name they are on the first one.
        placement = plan_placement(plan, tables.costs, layout.topology)
        return replace(placement, tower_groups=(0,) * len(stage.towers)), plan_kinds(plan)
    sharding = layout.sharding if layout.strategy == "sptt" else "table_wise"
    placement = place(table_costs(stage), stage.plan.towers, layout.topology, sharding=sharding)
    by_table: dict[str, list[TableShard]] = {}
    for shard in (shard for shards in placement.rank_shards for shard in shards):
        by_table.setdefault(shard.table.name, []).append(shard)
    return placement, {name: _kind(shards) for name, shards in by_table.items()}


def _traffic(
    stage: TowerStage,
    layout: Layout,
    placement: Placement,
    kinds: Mapping[str, str],
    tower_params: list[int],
    dense: int,
) -> Traffic:
    shape = StageShape(
        schema=stage.schema,
        towers=[[feature.name for feature in own] for own in stage.tower_features],
        tower_outputs=[tower.out_features for tower in stage.tower_modules],
        out_dim=stage.out_dim,
        tower_bytes=[FLOAT_BYTES * count for count in tower_params],
        dense_bytes=FLOAT_BYTES * dense,
        batch_size=layout.global_batch_size / layout.topology.world_size,
    )
    if layout.strategy == "sptt":
        return sptt_traffic(
            shape,
            placement,
            layout.topology,
            id_bytes=wire_id_dtype(stage).itemsize,
            device_type=layout.device_type,
            forward_precision=layout.forward_precision,
            backward_precision=layout.backward_precision,
        )
    return flat_traffic(
        shape,
        placement,
        kinds,
        layout.topology,
        forward_precision=layout.forward_precision,
        backward_precision=layout.backward_precision,
    )


def _memory(
    stage: TowerStage, placement: Placement, tower_params: list[int], dense: int, layout: Layout
) -> dict[str, float]:
    """Weights with their optimiser state (tables) or gradients (dense); the largest rank's."""
    state_floats = stage.embeddings.optimizer.state_floats
    tables = max(
        sum(FLOAT_BYTES * shard.num_rows * (shard.width + state_floats(shard.width)) for shard in shards)
        for shards in placement.rank_shards
    )
    if layout.strategy == "sptt":
        groups = range(layout.topology.num_groups)
        tower = max(sum(tower_params[t] for t in placement.group_towers(g)) for g in groups)
    else:
        tower = sum(tower_params)
    return {"embedding_tables": tables, "dense_layers": 2 * FLOAT_BYTES * (tower + dense)}


def print_description(description: dict[str, Any]) -> None:
    """Show a description as tables on standard output."""
    console = Console(markup=False, emoji=False)  # names are the user's
    layout, traffic = description["layout"], description["bytes_per_iteration"]
    towers = Table(title=f"Towers ({description['plan_method']} plan)", title_justify="left")
    for column in ("tower", "host group", "module", "input", "output", "features"):
        towers.add_column(column)
    for index, tower in enumerate(description["towers"]):
        towers.add_row(
            str(index),
            str(tower["host_group"]),
            tower["module"],
            _input_shape(tower),
            f"{tower['out_features']} x {tower['out_dim']}",
            " ".join(tower["features"]),
        )
    console.print(towers)
    memory = description["memory_bytes_per_rank"]
    facts = {
        "compression ratio": f"{description['compression_ratio']:.2f}",
        "parameters": f"{description['parameters']:,} ({description['embedding_parameters']:,} in tables, "
        f"{description['tower_parameters']:,} in towers, {description['dense_parameters']:,} in dense layers)",
        "MFLOPs per sample": f"{description['mflops_per_sample']:.3f} forward and backward, "
        f"{description['mflops_executed']:.3f} executed",
        "tables": ", ".join(f"{n} {kind}" for kind, n in Counter(t["sharding"] for t in description["tables"]).items()),
        "layout": _layout_line(layout),
        "memory per rank": f"{_mb(memory['embedding_tables'])} tables, {_mb(memory['dense_layers'])} dense layers",
    }
    if layout["ranks"] > 1:
        sent = f"{_mb(traffic['intra_host'])} inside hosts, {_mb(traffic['cross_host'])} across"
        facts["sent per rank and step"] = sent
    for name, value in facts.items():
        console.print(f"{name:<24}{value}", highlight=False)
    for purpose, links in traffic["by_purpose"].items():
        console.print(
            f"  {purpose:<26}{_mb(links['intra_host']):>12} inside {_mb(links['cross_host']):>12} across",
            highlight=False,
        )


def _layout_line(layout: dict[str, Any]) -> str:
    parts = ["one process"]
    if layout["ranks"] > 1:
        parts = [layout["strategy"], f"{layout['ranks']} ranks", f"{layout['ranks_per_host']} a host"]
    if layout["hosts_per_group"] > 1:
        parts.append(f"{layout['hosts_per_group']} hosts a group")
    parts.append(f"global batch {layout['global_batch_size']:,}")
    precisions = layout["forward_precision"], layout["backward_precision"]
    if precisions != ("fp32", "fp32"):
        where = "between host groups" if layout["strategy"] == "sptt" else "for embeddings"
        parts.append(f"{precisions[0]} forward and {precisions[1]} backward {where}")
    return ", ".join(parts)


def _input_shape(tower: dict[str, Any]) -> str:
    """``"3 x 16"``, or the widths where they differ: ``"8 + 16 + 16"``."""
    if len(set(tower["table_dims"])) == 1:
        return f"{tower['in_features']} x {tower['table_dims'][0]}"
    return " + ".join(map(str, tower["table_dims"]))


def _mb(num_bytes: float) -> str:
    return f"{num_bytes / 1e6:,.3f} MB"
