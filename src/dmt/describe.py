"""``dmt describe``: what a configuration costs, counted from its real modules without training.

Shapes: B samples, F_t features of tower t, N embedding dim, O_t outputs of tower t, D output dim.
"""

from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dmt.modules import ClickModel, TopArch, TowerStage, deferred_tables
from dmt.modules.stage import Stage, run_towers
from dmt.schema import FeatureSchema
from dmt.strategies.stage import table_costs, wire_id_dtype
from dmt.strategies.topology import Placement, Topology
from dmt.strategies.traffic import FLOAT_BYTES, StageShape, Traffic, flat_traffic, sptt_traffic

_FLOP_BATCH = 4


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where a model runs.

    Args:
        strategy: ``"sptt"``, ``"torchrec"`` or ``"single"``.
        topology: hosts and ranks.
        global_batch_size: samples of a step over all ranks.
    """

    strategy: str
    topology: Topology
    global_batch_size: int


def describe(model: ClickModel, schema: FeatureSchema, layout: Layout) -> dict[str, Any]:
    """Count a model's towers, parameters, FLOPs, memory and traffic.

    Args:
        model: not yet built; left as it is.
        schema: columns of the data.
        layout: where it runs.

    Returns:
        Plain data for JSON; see ``dmt describe --help`` for its keys.
    """
    with torch.random.fork_rng(devices=[]), torch.device("meta"), deferred_tables():
        top = model.make(schema)
    stage = next(module for module in top.modules() if isinstance(module, TowerStage))
    tables = sum(table.num_embeddings * table.embedding_dim for table in stage.tables)
    tower_params = [sum(p.numel() for p in tower.parameters()) for tower in stage.towers]
    dense = sum(p.numel() for p in top.parameters()) - sum(tower_params)
    elements_in = len(stage.tables) * stage.embedding_dim
    placement = _placement(stage, layout)
    traffic = _traffic(stage, layout, placement, tower_params, dense)
    return {
        "parameters": tables + sum(tower_params) + dense,
        "embedding_parameters": tables,
        "tower_parameters": sum(tower_params),
        "dense_parameters": dense,
        "mflops_per_sample": _flops_per_sample(top, stage, len(schema.dense)) / 1e6,
        "compression_ratio": elements_in / (stage.out_features * stage.out_dim),
        "plan_method": stage.plan.method,
        "towers": [
            {
                "features": list(names),
                "in_features": len(names),
                "in_dim": stage.embedding_dim,
                "out_features": tower.out_features,
                "out_dim": tower.out_dim,
                "module": type(tower).__name__,
                "host_group": placement.tower_groups[index],
            }
            for index, (names, tower) in enumerate(zip(stage.plan.towers, stage.tower_modules, strict=True))
        ],
        "layout": {
            "strategy": layout.strategy,
            "ranks": layout.topology.world_size,
            "ranks_per_host": layout.topology.ranks_per_host,
            "global_batch_size": layout.global_batch_size,
        },
        "memory_bytes_per_rank": _memory(stage, placement, tower_params, dense, layout),
        "bytes_per_iteration": {
            "intra_host": traffic.total("intra_host"),
            "cross_host": traffic.total("cross_host"),
            "by_purpose": traffic.by_purpose(),
        },
    }


class _CountedStage(Stage):
    """A tower stage whose lookups are replaced by embeddings on the meta device, which cost no FLOPs."""

    def __init__(self, stage: TowerStage) -> None:
        super().__init__()
        self.stage = stage
        self.out_features, self.out_dim = stage.out_features, stage.out_dim

    def forward(self, features: KeyedJaggedTensor | None) -> Tensor:
        shape = (_FLOP_BATCH, len(self.stage.tables), self.stage.embedding_dim)
        embeddings = torch.empty(shape, device="meta", requires_grad=True)
        return run_towers(self.stage.tower_modules, embeddings.split(self.stage.tower_sizes, dim=1))

    def set_learning_rate(self, learning_rate: float) -> None:
        raise AssertionError("a stage that is only counted has no rows")


def _flops_per_sample(top: TopArch, stage: TowerStage, num_dense: int) -> float:
    """Forward and backward, 2 per multiply-add; no gradient of the numeric inputs, as in training."""
    for parent in list(top.modules()):
        for name, child in parent.named_children():
            if child is stage:
                setattr(parent, name, _CountedStage(stage))
    with FlopCounterMode(display=False) as counter:
        top(torch.empty(_FLOP_BATCH, num_dense, device="meta"), None).sum().backward()
    return counter.get_total_flops() / _FLOP_BATCH


def _placement(stage: TowerStage, layout: Layout) -> Placement:
    if layout.strategy == "sptt":
        return Placement.balanced(table_costs(stage), layout.topology)
    world_size = layout.topology.world_size
    return Placement.balanced(table_costs(stage), Topology(world_size=world_size, ranks_per_host=world_size))


def _traffic(stage: TowerStage, layout: Layout, placement: Placement, tower_params: list[int], dense: int) -> Traffic:
    shape = StageShape(
        mean_lengths={feature.name: feature.mean_length for feature in stage.schema.categorical},
        single_hot=stage.schema.single_hot,
        embedding_dim=stage.embedding_dim,
        tower_outputs=[tower.out_features for tower in stage.tower_modules],
        out_dim=stage.out_dim,
        tower_bytes=[FLOAT_BYTES * count for count in tower_params],
        dense_bytes=FLOAT_BYTES * dense,
        batch_size=layout.global_batch_size / layout.topology.world_size,
    )
    if layout.strategy == "sptt":
        return sptt_traffic(shape, placement, layout.topology, id_bytes=wire_id_dtype(stage).itemsize)
    return flat_traffic(shape, placement, layout.topology)


def _memory(
    stage: TowerStage, placement: Placement, tower_params: list[int], dense: int, layout: Layout
) -> dict[str, float]:
    """Weights with their optimiser state (tables) or gradients (dense); the largest rank's."""
    state_width = {"sgd": 0, "rowwise_adagrad": 1, "adagrad": stage.embedding_dim}[stage.embeddings.optimizer.name]
    rows = {table.name: table.num_embeddings for table in stage.tables}
    per_row = FLOAT_BYTES * (stage.embedding_dim + state_width)
    tables = max(sum(rows[name] * per_row for name in names) for names in placement.rank_tables)
    if layout.strategy == "sptt":
        groups = range(layout.topology.num_groups)
        tower = max(sum(tower_params[t] for t in placement.group_towers(g)) for g in groups)
    else:
        tower = sum(tower_params)
    return {"embedding_tables": tables, "dense_layers": 2 * FLOAT_BYTES * (tower + dense)}


def print_description(description: dict[str, Any]) -> None:
    """Show a description as tables on standard output."""
    console = Console()
    layout, traffic = description["layout"], description["bytes_per_iteration"]
    towers = Table(title=f"Towers ({description['plan_method']} plan)", title_justify="left")
    for column in ("tower", "host group", "module", "input", "output", "features"):
        towers.add_column(column)
    for index, tower in enumerate(description["towers"]):
        towers.add_row(
            str(index),
            str(tower["host_group"]),
            tower["module"],
            f"{tower['in_features']} x {tower['in_dim']}",
            f"{tower['out_features']} x {tower['out_dim']}",
            " ".join(tower["features"]),
        )
    console.print(towers)
    memory = description["memory_bytes_per_rank"]
    facts = {
        "compression ratio": f"{description['compression_ratio']:.2f}",
        "parameters": f"{description['parameters']:,} ({description['embedding_parameters']:,} in tables, "
        f"{description['tower_parameters']:,} in towers, {description['dense_parameters']:,} in dense layers)",
        "MFLOPs per sample": f"{description['mflops_per_sample']:.3f} (forward and backward)",
        "layout": f"{layout['strategy']}, {layout['ranks']} ranks, {layout['ranks_per_host']} a host, "
        f"global batch {layout['global_batch_size']:,}",
        "memory per rank": f"{_mb(memory['embedding_tables'])} tables, {_mb(memory['dense_layers'])} dense layers",
        "sent per rank and step": f"{_mb(traffic['intra_host'])} inside hosts, {_mb(traffic['cross_host'])} across",
    }
    for name, value in facts.items():
        console.print(f"{name:<24}{value}", highlight=False)
    for purpose, links in traffic["by_purpose"].items():
        console.print(
            f"  {purpose:<26}{_mb(links['intra_host']):>12} inside {_mb(links['cross_host']):>12} across",
            highlight=False,
        )


def _mb(num_bytes: float) -> str:
    return f"{num_bytes / 1e6:,.3f} MB"
