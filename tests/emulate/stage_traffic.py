"""SPTT training steps on emulated hosts, counted by the stage's meter and by the kernel; runs inside the ranks."""

import random
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dmt.emulate import LinkCounters, own_link_counters
from dmt.modules import DLRMTower, EmbeddingOptimizer, PassThrough, TowerStage, deferred_tables
from dmt.plan import TowerPlan
from dmt.schema import CategoricalFeature, FeatureSchema
from dmt.strategies.sptt import ProcessGroups, SpttStage
from dmt.strategies.topology import Topology
from tests.distributed.harness import join_world


@dataclass(frozen=True)
class Counted:
    """What one rank reports.

    Args:
        metered_bytes: bytes to other hosts, by purpose.
        messages: to other hosts.
        link: what has left the host meanwhile, all its ranks together.
        segments_sent_again: by TCP, on the host, because their acknowledgement took too long; on a busy machine it may.
    """

    metered_bytes: dict[str, int]
    messages: int
    link: LinkCounters
    segments_sent_again: int


def count_steps(ranks_per_host: int, hosts_per_group: int, seed: int, steps: int) -> Counted:
    """Train a random stage and count what crosses hosts."""
    join_world()
    rng = random.Random(seed)
    topology = Topology(
        world_size=dist.get_world_size(), ranks_per_host=ranks_per_host, hosts_per_group=hosts_per_group
    )
    stage, schema = draw_stage(rng, topology)
    rng.seed(seed + dist.get_rank())
    for _ in range(2):  # opens the connections
        train_step(stage, draw_batch(schema, rng))
    metered, messages = dict(stage.meter.sent_bytes), dict(stage.meter.messages)
    dist.barrier()
    before, again_before = own_link_counters(), segments_sent_again()
    for _ in range(steps):
        train_step(stage, draw_batch(schema, rng))
    dist.barrier()
    dist.barrier()  # in the first one a rank may be ahead of what its neighbour on the host still sends
    after = own_link_counters()
    across = [key for key in stage.meter.sent_bytes if key[1] == "cross_host"]
    return Counted(
        {purpose: stage.meter.sent_bytes[purpose, link] - metered.get((purpose, link), 0) for purpose, link in across},
        sum(stage.meter.messages[key] - messages.get(key, 0) for key in across),
        after - before,
        segments_sent_again() - again_before,
    )


def segments_sent_again() -> int:
    """TCP's counter of this host."""
    names, values = (
        line.split() for line in Path("/proc/thread-self/net/snmp").read_text().splitlines() if line.startswith("Tcp:")
    )
    return int(values[names.index("RetransSegs")])


def draw_stage(rng: random.Random, topology: Topology) -> tuple[SpttStage, FeatureSchema]:
    """A stage with single- and multi-hot features, its schema, and narrow embeddings, so that ids weigh something."""
    features = [
        CategoricalFeature(
            name=f"f{i}", num_embeddings=1000, multi_hot=i % 3 == 0, mean_length=2.0 if i % 3 == 0 else 1.0
        )
        for i in range(rng.randint(8, 14))
    ]
    schema = FeatureSchema(categorical=features)
    # The all-reduce of a tower module's gradients over several hosts goes as gloo likes it, not as a ring.
    towers = [PassThrough, partial(DLRMTower, c=0, p=3, out_dim=8)] if topology.hosts_per_group == 1 else [PassThrough]
    torch.manual_seed(7)
    with deferred_tables():
        plain = TowerStage(
            schema=schema,
            plan=TowerPlan.strided(schema.feature_names, num_towers=rng.randint(topology.num_groups, 6)),
            embedding_dim=8,
            tower=rng.choice(towers),
            optimizer=EmbeddingOptimizer(name="sgd"),
        )
    groups = ProcessGroups.create(topology, timeout=timedelta(seconds=60))
    return SpttStage(plain, topology=topology, groups=groups, rank=dist.get_rank(), device=torch.device("cpu")), schema


def draw_batch(schema: FeatureSchema, rng: random.Random) -> KeyedJaggedTensor:
    """Some thousand samples; each rank another number."""
    generator = torch.Generator().manual_seed(rng.randrange(2**31))
    size = rng.randint(1000, 2000)
    lengths = [
        torch.randint(0, 5, (size,), generator=generator) if feature.multi_hot else torch.ones(size)
        for feature in schema.categorical
    ]
    counts = torch.cat(lengths).to(torch.int32)
    ids = torch.randint(0, 1000, (int(counts.sum()),), generator=generator)
    return KeyedJaggedTensor(list(schema.feature_names), ids, lengths=counts)


def train_step(stage: SpttStage, batch: KeyedJaggedTensor) -> None:
    """Forward, backward and the reduction of tower modules' gradients."""
    stage.zero_grad()
    stage(batch).sum().backward()
    stage.reduce_gradients()
