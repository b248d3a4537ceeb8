"""Counts what real SPTT stages send; runs inside the ranks of ``test_traffic``."""

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from dmt.modules import TowerStage, deferred_tables
from dmt.strategies.sptt import ProcessGroups, SpttStage
from dmt.strategies.stage import table_costs, wire_id_dtype
from dmt.strategies.topology import Placement, Topology
from dmt.strategies.traffic import StageShape, sptt_traffic
from tests.distributed.harness import init_gloo
from tests.distributed.stage_cases import draw_batch, draw_case

Bytes = dict[tuple[str, str], float]


@dataclass(frozen=True)
class Measured:
    """One random stage in one layout.

    Args:
        case: what it was, for the message of a failure.
        multi_hot: whether ids come in bags.
        sent: bytes this rank counted in a forward and a backward pass.
        predicted: mean bytes a rank, of the stage alone.
    """

    case: str
    multi_hot: bool
    sent: Bytes
    predicted: Bytes


def shape_of(stage: TowerStage, batch_size: int) -> StageShape:
    return StageShape(
        mean_lengths={feature.name: feature.mean_length for feature in stage.schema.categorical},
        single_hot=not any(feature.multi_hot for feature in stage.schema.categorical),
        embedding_dim=stage.embedding_dim,
        tower_outputs=[tower.out_features for tower in stage.tower_modules],
        out_dim=stage.out_dim,
        tower_bytes=[0] * len(stage.towers),  # no gradient is reduced here
        dense_bytes=0,
        batch_size=batch_size,
    )


def measure(layouts: Sequence[int], seed: int, num_cases: int) -> list[dict[str, Any]]:
    """Random stages in every layout (ranks per host); every rank draws the same ones."""
    init_gloo()
    rng = random.Random(seed)
    results = []
    for ranks_per_host in layouts:
        topology = Topology(world_size=dist.get_world_size(), ranks_per_host=ranks_per_host)
        groups = ProcessGroups.create(topology, timeout=timedelta(seconds=60))
        results += [_measure_one(topology, groups, rng, multi_hot=index == 0) for index in range(num_cases)]
    return [asdict(result) for result in results]


def _measure_one(topology: Topology, groups: ProcessGroups, rng: random.Random, *, multi_hot: bool) -> Measured:
    case = draw_case(rng, multi_hot=multi_hot)
    with deferred_tables():
        plain = case.build()
    costs, shape = table_costs(plain), shape_of(plain, batch_size := rng.randint(1, 6))
    traffic = sptt_traffic(shape, Placement.balanced(costs, topology), topology, id_bytes=wire_id_dtype(plain).itemsize)
    stage = SpttStage(plain, topology=topology, groups=groups, rank=dist.get_rank(), device=torch.device("cpu"))
    # Ranks draw one batch each; only single-hot ids are the same number on all of them.
    batches = [draw_batch(case.schema, batch_size, rng) for _ in range(topology.world_size)]
    stage(batches[dist.get_rank()]).square().sum().backward()
    return Measured(f"{topology}, {case}", multi_hot, dict(stage.meter.sent_bytes), dict(traffic.sent_bytes))
