"""Counts what real SPTT stages send; runs inside the ranks of ``test_traffic``."""

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dmt.modules import TowerStage, deferred_tables
from dmt.schema import FeatureSchema
from dmt.strategies.stage import wire_id_dtype
from dmt.strategies.topology import Topology
from dmt.strategies.traffic import FLOAT_BYTES, StageShape, sptt_traffic
from tests.distributed.harness import join_world
from tests.distributed.stage_cases import draw_case, draw_options, shard

Bytes = dict[tuple[str, str], float]

EVEN_ROWS = (1, 2, 4, 8, 512)  # 512: too many for ids of one byte
MEAN_LENGTH = 2


@dataclass(frozen=True)
class Measured:
    """One random stage in one layout.

    Args:
        case: what it was, for the message of a failure.
        topology: hosts and ranks.
        precision: of tower outputs between host groups.
        batch_size: B.
        output_floats: sum(O_t)*D.
        sent: bytes this rank counted in a forward and a backward pass.
        messages: ranks they went to.
        predicted: mean bytes a rank, of the stage alone.
    """

    case: str
    topology: Topology
    precision: str
    batch_size: int
    output_floats: int
    sent: Bytes
    messages: dict[tuple[str, str], int]
    predicted: Bytes


def shape_of(stage: TowerStage, batch_size: int) -> StageShape:
    return StageShape(
        schema=stage.schema,
        towers=[[feature.name for feature in own] for own in stage.tower_features],
        tower_outputs=[tower.out_features for tower in stage.tower_modules],
        out_dim=stage.out_dim,
        tower_bytes=[FLOAT_BYTES * sum(p.numel() for p in tower.parameters()) for tower in stage.towers],
        dense_bytes=0,
        batch_size=batch_size,
    )


def make_even(schema: FeatureSchema, rng: random.Random) -> FeatureSchema:
    """The same columns, with tables that an even batch looks up evenly."""
    rows = {feature.table: rng.choice(EVEN_ROWS) for feature in schema.categorical}
    features = [
        replace(f, num_embeddings=rows[f.table], mean_length=MEAN_LENGTH if f.multi_hot else 1.0)
        for f in schema.categorical
    ]
    return replace(schema, categorical=features)


def even_batch(schema: FeatureSchema, size: int, length_dtype: torch.dtype) -> KeyedJaggedTensor:
    """Bags of exactly ``mean_length`` ids, every row as often as any other."""
    lengths = [torch.full((size,), int(feature.mean_length), dtype=length_dtype) for feature in schema.categorical]
    ids = [
        torch.arange(int(own.sum())) % feature.num_embeddings
        for feature, own in zip(schema.categorical, lengths, strict=True)
    ]
    values = torch.cat(ids)
    weights = torch.rand(values.numel()) if schema.weighted else None
    return KeyedJaggedTensor(list(schema.feature_names), values, weights, lengths=torch.cat(lengths))


def measure(layouts: Sequence[tuple[int, int]], seed: int, num_cases: int) -> list[dict[str, Any]]:
    """Random stages in every layout (ranks per host, hosts per group); every rank draws the same ones."""
    join_world()
    rng = random.Random(seed)
    results = []
    for ranks_per_host, hosts_per_group in layouts:
        topology = Topology(
            world_size=dist.get_world_size(), ranks_per_host=ranks_per_host, hosts_per_group=hosts_per_group
        )
        results += [_measure_one(topology, rng, index) for index in range(num_cases)]
    return [vars(result) | {"topology": asdict(result.topology)} for result in results]


def _measure_one(topology: Topology, rng: random.Random, index: int) -> Measured:
    case = draw_case(rng, multi_hot=index % 2 == 1, varied=index > 1)
    case = replace(case, schema=make_even(case.schema, rng))
    precisions = ("fp32", "fp32") if index < 2 else tuple(rng.choices(["fp32", "fp16", "bf16", "int8"], k=2))
    precision = {"forward_precision": precisions[0], "backward_precision": precisions[1]}
    options = draw_options(case, topology, rng)
    with deferred_tables():
        plain = case.build()
    batch_size = max(EVEN_ROWS) * rng.randint(1, 2)
    shape, output_floats = shape_of(plain, batch_size), plain.out_features * plain.out_dim
    stage = shard("sptt", plain, topology, **options, **precision)
    traffic = sptt_traffic(shape, stage.placement, topology, id_bytes=wire_id_dtype(plain).itemsize, **precision)
    length_dtype = torch.int32 if index % 4 < 2 else torch.int64  # neither travels in more bytes
    stage(even_batch(case.schema, batch_size, length_dtype)).square().sum().backward()
    stage.reduce_gradients()
    return Measured(
        case=f"{topology}, {options}, {precision}, {case}",
        topology=topology,
        precision=precisions[0],
        batch_size=batch_size,
        output_floats=output_floats,
        sent=dict(stage.meter.sent_bytes),
        messages=dict(stage.meter.messages),
        predicted=dict(traffic.sent_bytes),
    )
