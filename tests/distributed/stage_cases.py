"""Random tower stages, and a reference for them written with nothing but torch.

Runs inside the ranks of ``test_stages``; every rank draws the same cases from the same seed.
"""

import itertools
import random
from dataclasses import dataclass
from datetime import timedelta
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dmt.modules import DLRMTower, EmbeddingOptimizer, PassThrough, TowerStage, deferred_tables
from dmt.modules.embeddings import weight_name
from dmt.plan import TowerPlan
from dmt.schema import CategoricalFeature, FeatureSchema
from dmt.strategies.flat import FlatStage
from dmt.strategies.sptt import ProcessGroups, SpttStage
from dmt.strategies.stage import ShardedStage
from dmt.strategies.topology import Topology
from tests.distributed.harness import init_gloo

# Sums of up to a few hundred float32 products of order 1, in another order on each layout: relative
# rounding of about sqrt(300) * 6e-8 = 1e-6 of the largest partial sum; 1e-5 leaves a factor ten.
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}

OPTIMIZERS = ("sgd", "adagrad", "rowwise_adagrad")


@dataclass(frozen=True)
class Case:
    """A stage with its data's shape."""

    schema: FeatureSchema
    plan: TowerPlan
    embedding_dim: int
    tower: object

    def build(self, optimizer_name: str = "sgd") -> TowerStage:
        """The plain stage; every call gives the same initial values."""
        torch.manual_seed(7)
        # lr = 1: one step of SGD moves a row by exactly its gradient.
        optimizer = EmbeddingOptimizer(name=optimizer_name, learning_rate=1.0)
        return TowerStage(
            schema=self.schema,
            plan=self.plan,
            embedding_dim=self.embedding_dim,
            tower=self.tower,
            optimizer=optimizer,
        )


def draw_case(rng: random.Random, *, multi_hot: bool) -> Case:
    """Uneven random towers over random tables."""
    num_features = rng.randint(2, 9)
    num_towers = rng.randint(1, num_features)
    features = [
        CategoricalFeature(name=f"f{i}", num_embeddings=rng.randint(1, 40), multi_hot=multi_hot, mean_length=1.0)
        for i in range(num_features)
    ]
    names = [feature.name for feature in features]
    rng.shuffle(names)
    cuts = [0, *sorted(rng.sample(range(1, num_features), num_towers - 1)), num_features]
    plan = TowerPlan(towers=[names[a:b] for a, b in itertools.pairwise(cuts)])
    c, p = rng.choice([(1, 0), (0, 1), (1, 2), (2, 1)])
    towers = [PassThrough, partial(DLRMTower, c=c, p=p, out_dim=rng.choice([3, 8]))]
    return Case(FeatureSchema(categorical=features), plan, rng.choice([4, 8]), rng.choice(towers))


def draw_batch(schema: FeatureSchema, size: int, rng: random.Random) -> KeyedJaggedTensor:
    """A batch of ``size`` samples: one id each, or zero to four of them."""
    generator = torch.Generator().manual_seed(rng.randrange(2**31))
    lengths, ids = [], []
    for feature in schema.categorical:
        drawn = torch.randint(0, 5, (size,), generator=generator) if feature.multi_hot else torch.ones(size)
        lengths.append(drawn.to(torch.int32))
        ids.append(torch.randint(0, feature.num_embeddings, (int(drawn.sum()),), generator=generator))
    return KeyedJaggedTensor(list(schema.feature_names), torch.cat(ids), lengths=torch.cat(lengths))


def rows_of(batch: KeyedJaggedTensor, start: int, end: int) -> KeyedJaggedTensor:
    """Samples ``start`` to ``end`` of a batch."""
    names = batch.keys()
    parts = [batch[name] for name in names]
    lengths = [part.lengths()[start:end] for part in parts]
    ids = [part.values()[int(part.offsets()[start]) : int(part.offsets()[end])] for part in parts]
    return KeyedJaggedTensor(names, torch.cat(ids), lengths=torch.cat(lengths))


class Reference(nn.Module):
    """The stage's function in plain torch: one EmbeddingBag a feature, ordinary autograd."""

    def __init__(self, stage: TowerStage) -> None:
        super().__init__()
        weights = stage.embeddings.weights
        self.bags = nn.ModuleDict(
            {name: nn.EmbeddingBag.from_pretrained(w.clone(), freeze=False, mode="sum") for name, w in weights.items()}
        )
        self.towers = stage.towers
        self.plan = stage.plan

    def forward(self, batch: KeyedJaggedTensor) -> Tensor:
        outputs = []
        for names, tower in zip(self.plan.towers, self.towers, strict=True):
            pooled = [self.bags[n](batch[n].values().long(), batch[n].offsets()[:-1].long()) for n in names]
            outputs.append(tower(torch.stack(pooled, dim=1)))
        return torch.cat(outputs, dim=1)


def shard(kind: str, plain: TowerStage, topology: Topology) -> ShardedStage:
    device = torch.device("cpu")
    if kind == "torchrec":
        return FlatStage(plain, topology=topology, device=device)
    groups = ProcessGroups.create(topology, timeout=timedelta(seconds=60))
    return SpttStage(plain, topology=topology, groups=groups, rank=dist.get_rank(), device=device)


def check_case(case: Case, kind: str, topology: Topology, rng: random.Random, *, steps: int) -> None:
    """Train the sharded stage and the reference side by side; compare outputs, gradients and parameters."""
    rank, world = dist.get_rank(), topology.world_size
    reference = Reference(case.build())
    optimizer = torch.optim.SGD(reference.parameters(), lr=1.0)
    with deferred_tables():
        plain = case.build()
    stage = shard(kind, plain, topology)
    for _ in range(steps):
        sizes = [rng.choice([0, 1, 3, 4]) for _ in range(world)] if rng.random() < 0.5 else [rng.randint(1, 5)] * world
        if not sum(sizes):
            sizes[0] = 2
        total, start = sum(sizes), sum(sizes[:rank])
        batch = draw_batch(case.schema, total, rng)
        weights = torch.randn(total, stage.out_features, stage.out_dim, generator=torch.Generator().manual_seed(total))

        optimizer.zero_grad()
        expected = reference(batch)
        ((expected * weights).sum() / total).backward()

        stage.zero_grad()
        mine = slice(start, start + sizes[rank])
        output = stage(rows_of(batch, start, start + sizes[rank]))
        torch.testing.assert_close(output, expected[mine], **TOLERANCE)
        assert stage.batch_sizes() == sizes
        local_mean = (output * weights[mine]).sum() / max(sizes[rank], 1)
        (local_mean * (sizes[rank] * world / total)).backward()
        stage.reduce_gradients()
        if kind == "torchrec":  # what DistributedDataParallel does in a real run
            for parameter in stage.towers.parameters():
                dist.all_reduce(parameter.grad)
                parameter.grad /= world
        _compare_gradients(stage, reference)
        with torch.no_grad():
            for parameter in stage.towers.parameters():
                parameter -= parameter.grad
        optimizer.step()
        _compare_parameters(stage, reference)


def _compare_gradients(stage: ShardedStage, reference: Reference) -> None:
    wanted = dict(reference.towers.named_parameters())
    for name, parameter in stage.towers.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name].grad, msg=lambda m, n=name: f"{n}: {m}", **TOLERANCE)


def _compare_parameters(stage: ShardedStage, reference: Reference) -> None:
    state = stage.stage_state()
    names = {f"embeddings.{weight_name(name)}": name for name in reference.bags}
    owned = {names[key]: tensor for key, tensor in state.items() if key in names}
    for name, tensor in owned.items():
        torch.testing.assert_close(
            tensor, reference.bags[name].weight.data, msg=lambda m, n=name: f"{n}: {m}", **TOLERANCE
        )
    everyone: list = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, list(owned))
    # Every table is on exactly one rank.
    assert sorted(name for names in everyone for name in names) == sorted(reference.bags)
    for name, tensor in reference.towers.state_dict().items():
        if f"towers.{name}" in state:
            torch.testing.assert_close(state[f"towers.{name}"], tensor, **TOLERANCE)


def check_many(ranks_per_host: int, seed: int, num_cases: int) -> int:
    """Check random cases under both strategies; returns how many were checked."""
    init_gloo()
    rng = random.Random(seed)
    topology = Topology(world_size=dist.get_world_size(), ranks_per_host=ranks_per_host)
    for index in range(num_cases):
        case = draw_case(rng, multi_hot=index % 2 == 1)
        for kind in ("sptt", "torchrec"):
            state = rng.getstate()
            try:
                check_case(case, kind, topology, rng, steps=3)
            except AssertionError as error:
                raise AssertionError(f"seed {seed}, case {index}, {kind}, {case}: {error}") from error
            rng.setstate(state)
    return num_cases


def stage_state_shapes(kind: str, optimizer_name: str) -> dict[str, list[int]]:
    """Names and shapes of the state that this rank holds of a fixed stage on two hosts of two ranks."""
    if not dist.is_initialized():
        init_gloo()
    case = draw_case(random.Random(3), multi_hot=False)
    with deferred_tables():
        plain = case.build(optimizer_name)
    stage = shard(kind, plain, Topology(world_size=dist.get_world_size(), ranks_per_host=2))
    return {name: list(tensor.shape) for name, tensor in stage.stage_state().items()}


def all_state_shapes() -> list[dict[str, list[int]]]:
    """:func:`stage_state_shapes` of both strategies with every optimiser."""
    return [stage_state_shapes(kind, name) for kind in ("sptt", "torchrec") for name in OPTIMIZERS]


def plain_state_shapes() -> list[dict[str, list[int]]]:
    """The same of the plain stage, once for each strategy."""
    case = draw_case(random.Random(3), multi_hot=False)
    plain = [case.build(name).state_dict() for name in OPTIMIZERS]
    return [{name: list(tensor.shape) for name, tensor in state.items()} for state in plain] * 2
