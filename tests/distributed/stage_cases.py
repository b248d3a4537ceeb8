"""Random tower stages, and a reference for them written with nothing but torch.

Runs inside the ranks of ``test_stages``; every rank draws the same cases from the same seed.
"""

import itertools
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dmt.modules import (
    DCNTower,
    DLRMTower,
    DotTower,
    EmbeddingOptimizer,
    GatedTower,
    PassThrough,
    TowerStage,
    deferred_tables,
)
from dmt.modules.embeddings import weight_name
from dmt.modules.shards import TensorShard
from dmt.plan import TowerPlan
from dmt.schema import CategoricalFeature, FeatureSchema
from dmt.strategies.flat import FlatStage
from dmt.strategies.sptt import ProcessGroups, SpttStage
from dmt.strategies.stage import ShardedStage
from dmt.strategies.topology import Topology
from tests.distributed.harness import join_world

# Sums of up to a few hundred float32 products, in another order on each layout: rounding of about
# sqrt(300) * 6e-8 = 1e-6 of the largest partial sum, whatever the sum itself comes to; 1e-5 leaves a factor ten.
# The products are of order 1 but for cross layers, whose gradients can be a hundred times that.
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}

# A gradient of a table that is wrong by 1e-3 shows; at 0.1 five steps of some crossed towers diverge.
LEARNING_RATE = 0.02

OPTIMIZERS = ("sgd", "adagrad", "rowwise_adagrad")
KINDS = ("auto", "table_wise", "column_wise", "row_wise", "grid_shard")


@dataclass(frozen=True)
class Case:
    """A stage with its data's shape."""

    schema: FeatureSchema
    plan: TowerPlan
    embedding_dim: int
    tower: object
    pooling: dict[str, str] = field(default_factory=dict)
    table_dims: dict[str, int] = field(default_factory=dict)
    unwrap_singletons: bool = False

    def build(self, optimizer_name: str = "sgd") -> TowerStage:
        """The plain stage; every call gives the same initial values."""
        torch.manual_seed(7)
        optimizer = EmbeddingOptimizer(name=optimizer_name, learning_rate=LEARNING_RATE)
        return TowerStage(
            schema=self.schema,
            plan=self.plan,
            embedding_dim=self.embedding_dim,
            tower=self.tower,
            optimizer=optimizer,
            pooling=self.pooling,
            table_dims=self.table_dims,
            unwrap_singletons=self.unwrap_singletons,
        )


def draw_case(rng: random.Random, *, multi_hot: bool, varied: bool = False) -> Case:
    """Uneven random towers over random tables.

    Args:
        rng: where randomness comes from.
        multi_hot: whether features hold none or several ids.
        varied: some features single-hot and some not, weighted ids, means, shared tables and tables of other widths.
    """
    num_features = rng.randint(2, 9)
    num_towers = rng.randint(1, min(num_features, 8))
    names = [f"f{i}" for i in range(num_features)]
    tables = {name: rng.choice(names) if varied and rng.random() < 0.3 else name for name in names}
    rows = {name: rng.randint(1, 40) for name in names}
    features = [
        CategoricalFeature(
            name=name,
            num_embeddings=rows[tables[name]],
            table=tables[name],
            multi_hot=multi_hot and (not varied or rng.random() < 0.7),
        )
        for name in names
    ]
    schema = FeatureSchema(categorical=features, weighted=varied and rng.random() < 0.4)
    rng.shuffle(names)
    cuts = [0, *sorted(rng.sample(range(1, num_features), num_towers - 1)), num_features]
    plan = TowerPlan(towers=[names[a:b] for a, b in itertools.pairwise(cuts)])
    c, p = rng.choice([(1, 0), (0, 1), (1, 2), (2, 1)])
    embedding_dim = rng.choice([4, 8, 16])
    out_dim = rng.choice([3, embedding_dim])
    outputs, rank = rng.choice([None, 1, 2]), rng.choice([1, 3])
    towers = [
        PassThrough,
        partial(DLRMTower, c=c, p=p, out_dim=out_dim),
        partial(DCNTower, num_outputs=outputs, low_rank=rank, out_dim=out_dim),
        partial(GatedTower, num_outputs=outputs, hidden=rank, out_dim=out_dim),
        partial(DotTower, out_dim=out_dim),
    ]
    means = {name: rng.choice(["sum", "mean"]) for name in names if varied and rng.random() < 0.7}
    dims = {name: rng.choice([4, 8, 12, 20]) for name in sorted(set(tables.values())) if varied and rng.random() < 0.3}
    if varied and rng.random() < 0.3:
        return Case(schema, draw_column_plan(names, rng), 16, rng.choice(towers[1:]), means)
    unwrap = out_dim == embedding_dim and rng.random() < 0.5
    return Case(schema, plan, embedding_dim, rng.choice(towers), means, dims, unwrap)


def draw_column_plan(names: list[str], rng: random.Random) -> TowerPlan:
    """A random plan that gives towers blocks of columns, of some features or of all, of 16 columns each."""
    divided = names[: rng.randint(1, len(names))]
    width = rng.choice([4, 8])
    blocks = [f"{name}[{start}:{start + width}]" for name in divided for start in range(0, 16, width)]
    rng.shuffle(blocks)
    towers = []
    for entries in (blocks, names[len(divided) :]):  # blocks of one width to a tower, and whole features to others
        cuts = sorted(rng.sample(range(1, len(entries)), rng.randint(0, min(len(entries) - 1, 4)))) if entries else []
        towers += [entries[a:b] for a, b in itertools.pairwise([0, *cuts, len(entries)]) if entries]
    rng.shuffle(towers)
    return TowerPlan(towers=towers)


def draw_batch(schema: FeatureSchema, size: int, rng: random.Random) -> KeyedJaggedTensor:
    """A batch of ``size`` samples: one id each, or zero to four of them."""
    generator = torch.Generator().manual_seed(rng.randrange(2**31))
    lengths, ids = [], []
    with torch.device("cpu"):  # of the generator: the same on every device
        for feature in schema.categorical:
            drawn = torch.randint(0, 5, (size,), generator=generator) if feature.multi_hot else torch.ones(size)
            lengths.append(drawn.to(torch.int32))
            ids.append(torch.randint(0, feature.num_embeddings, (int(drawn.sum()),), generator=generator))
        values = torch.cat(ids)
        weights = torch.rand(values.numel(), generator=generator) if schema.weighted else None
        batch = KeyedJaggedTensor(list(schema.feature_names), values, weights, lengths=torch.cat(lengths))
    return batch.to(torch.get_default_device())


def rows_of(batch: KeyedJaggedTensor, start: int, end: int) -> KeyedJaggedTensor:
    """Samples ``start`` to ``end`` of a batch."""
    names = batch.keys()
    parts = [batch[name] for name in names]
    lengths = [part.lengths()[start:end] for part in parts]
    spans = [slice(int(part.offsets()[start]), int(part.offsets()[end])) for part in parts]
    ids = [part.values()[span] for part, span in zip(parts, spans, strict=True)]
    weights = None
    if batch.weights_or_none() is not None:
        weights = torch.cat([part.weights()[span] for part, span in zip(parts, spans, strict=True)])
    return KeyedJaggedTensor(names, torch.cat(ids), weights, lengths=torch.cat(lengths), stride=end - start)


class Reference(nn.Module):
    """The stage's function in plain torch: embeddings as ordinary parameters, ordinary autograd."""

    def __init__(self, stage: TowerStage) -> None:
        super().__init__()
        self.tables = nn.ParameterDict({name: w.detach().clone() for name, w in stage.embeddings.weights.items()})
        self.towers = stage.towers
        self.stage_features = stage.tower_features
        self.weighted = stage.schema.weighted

    def forward(self, batch: KeyedJaggedTensor) -> Tensor:
        outputs = []
        for features, tower in zip(self.stage_features, self.towers, strict=True):
            pooled = []
            for feature in features:
                bags = batch[feature.name]
                rows = self.tables[feature.table.name][bags.values().long(), slice(*feature.columns)]
                if self.weighted:
                    rows = rows * bags.weights().unsqueeze(1)
                sample = torch.arange(batch.stride()).repeat_interleave(bags.lengths().long())
                total = rows.new_zeros(batch.stride(), rows.shape[1]).index_add(0, sample, rows)
                pooled.append(total / bags.lengths().clamp(min=1).unsqueeze(1) if feature.is_mean else total)
            mixed = hasattr(tower, "projections")
            outputs.append(tower(torch.cat(pooled, dim=1).unsqueeze(1) if mixed else torch.stack(pooled, dim=1)))
        return torch.cat(outputs, dim=1)


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def assert_near(found: Tensor, wanted: Tensor, name: str) -> None:
    """Equal up to float32 rounding of sums as large as the largest element."""
    largest = max(float(wanted.detach().abs().max()), 1.0) if wanted.numel() else 1.0
    atol = TOLERANCE["atol"] * largest
    torch.testing.assert_close(found, wanted, rtol=TOLERANCE["rtol"], atol=atol, msg=lambda m: f"{name}: {m}")


_GROUPS: dict[Topology, ProcessGroups] = {}


def groups_of(topology: Topology) -> ProcessGroups:
    """Process groups, made once a layout in each rank: a world has room for so many connections."""
    if topology not in _GROUPS:
        _GROUPS[topology] = ProcessGroups.create(topology, timeout=timedelta(seconds=60))
    return _GROUPS[topology]


def shard(kind: str, plain: TowerStage, topology: Topology, **options: Any) -> ShardedStage:
    device = torch.get_default_device()
    if kind == "torchrec":
        return FlatStage(plain, topology=topology, device=device, **options)
    return SpttStage(
        plain, topology=topology, groups=groups_of(topology), rank=dist.get_rank(), device=device, **options
    )


def check_case(
    case: Case,
    kind: str,
    topology: Topology,
    rng: random.Random,
    *,
    steps: int,
    options: Mapping[str, Any] | None = None,
    prefetch: bool = False,
) -> None:
    """Train the sharded stage and the reference side by side; compare outputs, gradients and parameters."""
    rank, world = dist.get_rank(), topology.world_size
    reference = Reference(case.build())
    optimizer = torch.optim.SGD(reference.parameters(), lr=LEARNING_RATE)
    with deferred_tables():
        plain = case.build()
    stage = shard(kind, plain, topology, **(options or {}))
    batches, all_sizes = [], []
    for _ in range(steps):
        sizes = [rng.choice([0, 1, 3, 4]) for _ in range(world)] if rng.random() < 0.5 else [rng.randint(1, 5)] * world
        if not sum(sizes):
            sizes[0] = 2
        batches.append(draw_batch(case.schema, sum(sizes), rng))
        all_sizes.append(sizes)
    mine = [
        rows_of(batch, sum(sizes[:rank]), sum(sizes[: rank + 1]))
        for batch, sizes in zip(batches, all_sizes, strict=True)
    ]
    for step, (batch, sizes) in enumerate(zip(batches, all_sizes, strict=True)):
        total, start = sum(sizes), sum(sizes[:rank])
        weights = torch.randn(total, stage.out_features, stage.out_dim, device="cpu", generator=_seeded(total))
        weights = weights.to(batch.device())

        optimizer.zero_grad()
        expected = reference(batch)
        ((expected * weights).sum() / total).backward()

        stage.zero_grad()
        if prefetch and step + 1 < steps:
            stage.prefetch(mine[step + 1], loader=mine)
            if rng.random() < 0.2:  # as where an epoch is cut short
                stage.forget_prefetched(mine)
        own = slice(start, start + sizes[rank])
        stage.begin_step()
        pending = stage.start(mine[step])
        output = pending.wait()
        assert_near(output, expected[own], "output")
        [shares] = stage.rank_shares()
        assert [share * total for share in shares] == [size * sum(shares) for size in sizes]
        local_mean = (output * weights[own]).sum() / max(sizes[rank], 1)
        (local_mean * (sizes[rank] * world / total)).backward()
        if prefetch:
            stage.advance()
        stage.reduce_gradients()
        if kind == "torchrec":  # what DistributedDataParallel does in a real run
            for parameter in stage.towers.parameters():
                dist.all_reduce(parameter.grad)
                parameter.grad /= world
        _compare_gradients(stage, reference)
        with torch.no_grad():
            for parameter in stage.towers.parameters():
                parameter -= LEARNING_RATE * parameter.grad
        optimizer.step()
        _compare_parameters(stage, reference)


def _compare_gradients(stage: ShardedStage, reference: Reference) -> None:
    wanted = dict(reference.towers.named_parameters())
    for name, parameter in stage.towers.named_parameters():
        assert_near(parameter.grad, wanted[name].grad, name)


def _compare_parameters(stage: ShardedStage, reference: Reference) -> None:
    state = stage.stage_state()
    wanted = {f"embeddings.{weight_name(name)}": table.data for name, table in reference.tables.items()}
    wanted |= {f"towers.{name}": tensor for name, tensor in reference.towers.state_dict().items()}
    for name, shards in state.items():
        for part in shards if name in wanted else []:
            assert_near(part.tensor, part.of(wanted[name]), name)
    held = {name: [blocks_of(part) for part in shards] for name, shards in state.items() if "embeddings." in name}
    everyone: list = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, held)
    for name, table in reference.tables.items():
        # Every element of a table is on exactly one rank.
        count = torch.zeros_like(table, dtype=torch.int32)
        for ranks_blocks in everyone:
            for rows, columns in ranks_blocks.get(f"embeddings.{weight_name(name)}", []):
                count[slice(*rows), slice(*columns)] += 1
        assert bool((count == 1).all()), name


def blocks_of(part: TensorShard) -> list[tuple[int, int]]:
    """First index and the one after the last, by dimension."""
    return [(start, start + size) for start, size in zip(part.offsets, part.tensor.shape, strict=True)]


def draw_options(case: Case, topology: Topology, rng: random.Random) -> dict[str, Any]:
    """How tables are cut: one kind for all, or one by table where it can be."""
    seats, possible = topology.num_seats, {}
    for feature in case.schema.categorical:
        width = case.table_dims.get(feature.table, case.embedding_dim)
        kinds = ["auto", "table_wise"]
        kinds += ["column_wise"] if width >= 8 else []
        kinds += ["row_wise"] if feature.num_embeddings > 1 else []
        kinds += (
            ["grid_shard"] if width >= 8 and seats % 2 == 0 and seats > 3 and feature.num_embeddings >= seats else []
        )
        possible[feature.table] = kinds
    if rng.random() < 0.6:
        return {"sharding": rng.choice([kind for kind in KINDS if any(kind in kinds for kinds in possible.values())])}
    return {"sharding": {table: rng.choice(kinds) for table, kinds in possible.items()}}


def check_many(ranks_per_host: int, hosts_per_group: int, seed: int, num_cases: int, steps: int) -> int:
    """Check random cases; every second one with all that a stage can do. Returns how many were checked."""
    join_world()
    rng = random.Random(seed)
    world_size = dist.get_world_size()
    topology = Topology(world_size=world_size, ranks_per_host=ranks_per_host, hosts_per_group=hosts_per_group)
    for index in range(num_cases):
        case = draw_case(rng, multi_hot=rng.random() < 0.6, varied=index % 2 == 1)
        options = draw_options(case, topology, rng)
        try:
            check_case(case, "sptt", topology, rng, steps=steps, options=options, prefetch=rng.random() < 0.5)
        except Exception as error:
            raise AssertionError(f"seed {seed}, case {index}, {topology}, {options}, {case}: {error}") from error
    return num_cases


def stage_state_shapes(kind: str, optimizer_name: str, **options: Any) -> dict[str, list[tuple[int, ...]]]:
    """Names and whole shapes of the state that this rank holds of a fixed stage on two hosts of two ranks."""
    case = draw_case(random.Random(3), multi_hot=False)
    with deferred_tables():
        plain = case.build(optimizer_name)
    stage = shard(kind, plain, Topology(world_size=dist.get_world_size(), ranks_per_host=2), **options)
    return {name: [tuple(part.shape) for part in shards] for name, shards in stage.stage_state().items()}


def all_state_shapes() -> list[dict[str, list[tuple[int, ...]]]]:
    """:func:`stage_state_shapes` of both strategies with every optimiser."""
    join_world()
    return [stage_state_shapes(kind, name) for kind in ("sptt", "torchrec") for name in OPTIMIZERS]


def plain_state_shapes() -> list[dict[str, tuple[int, ...]]]:
    """The same of the plain stage, once for each strategy."""
    case = draw_case(random.Random(3), multi_hot=False)
    plain = [case.build(name).state_dict() for name in OPTIMIZERS]
    return [{name: tuple(tensor.shape) for name, tensor in state.items()} for state in plain] * 2
