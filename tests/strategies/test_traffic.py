"""Predicted bytes: equal to those counted in real passes, and to closed forms."""

import random

import pytest

from dmt.strategies.topology import Placement, TableCost, Topology
from dmt.strategies.traffic import FLOAT_BYTES, StageShape, Traffic, flat_traffic, sptt_traffic
from tests.distributed.harness import run_ranks
from tests.strategies.traffic_cases import measure

# float64 sums of a few hundred whole numbers, some divided by G: 1e-12 is a thousand times their rounding.
RTOL = 1e-12
LAYOUTS = [(1, 1), (2, 1), (2, 2), (4, 2), (6, 2), (6, 3), (12, 4)]


@pytest.mark.parametrize(("world_size", "layouts"), [(2, [1, 2]), (4, [1, 2, 4])])
def test_predicted_bytes_are_the_bytes_sent(seed: int, world_size: int, layouts: list[int]) -> None:
    by_rank = run_ranks(measure, world_size=world_size, args=(layouts, seed, 4))
    for ranks in zip(*by_rank, strict=True):
        predicted, case = ranks[0]["predicted"], ranks[0]["case"]
        keys = {key for rank in ranks for key in rank["sent"]}
        sent = {key: sum(rank["sent"].get(key, 0) for rank in ranks) / world_size for key in keys}
        if ranks[0]["multi_hot"]:  # the number of ids is an expectation
            assert any(purpose == "lengths" for purpose, _ in keys), case
            sent, predicted = ({k: v for k, v in d.items() if k[0] != "ids"} for d in (sent, predicted))
        assert sent == predicted, case  # exact: whole numbers over 2 or 4


def draw(rng: random.Random, topology: Topology, *, single_hot: bool) -> tuple[StageShape, Placement]:
    """A random stage and a random, not a balanced, placement: towers anywhere, tables anywhere in the group."""
    towers = [[f"t{t}f{f}" for f in range(rng.randint(1, 5))] for t in range(rng.randint(1, 6))]
    homes = [rng.randrange(topology.num_groups) for _ in towers]
    rank_tables: list[list[str]] = [[] for _ in range(topology.world_size)]
    for tower, home in zip(towers, homes, strict=True):
        for name in tower:
            rank_tables[rng.choice(topology.members(group=home))].append(name)
    names = [name for tower in towers for name in tower]
    shape = StageShape(
        mean_lengths={name: 1.0 if single_hot else rng.uniform(0, 9) for name in names},
        single_hot=single_hot,
        embedding_dim=4 * rng.randint(1, 8),
        tower_outputs=[rng.randint(1, 9) for _ in towers],
        out_dim=rng.randint(1, 40),
        tower_bytes=[4 * rng.randint(0, 999) for _ in towers],
        dense_bytes=4 * rng.randint(0, 9999),
        batch_size=rng.randint(1, 100),
    )
    return shape, Placement(tower_groups=tuple(homes), rank_tables=tuple(map(tuple, rank_tables)))


def purpose_total(traffic: Traffic, purpose: str) -> float:
    return sum(traffic.by_purpose().get(purpose, {}).values())


@pytest.mark.parametrize(("world_size", "ranks_per_host"), LAYOUTS)
def test_sptt_bytes_have_closed_forms(rng: random.Random, world_size: int, ranks_per_host: int) -> None:
    topology = Topology(world_size=world_size, ranks_per_host=ranks_per_host)
    num_groups = topology.num_groups
    for single_hot in (True, False):
        shape, placement = draw(rng, topology, single_hot=single_hot)
        traffic = sptt_traffic(shape, placement, topology, id_bytes=4)
        batch, num_features = shape.batch_size, len(shape.mean_lengths)
        others = (world_size - 1) / world_size

        # Wherever towers lie, a rank's samples need the outputs of all of them: 4*B*(P-1)/P*sum(O_t)*D.
        peer = 4 * batch * (num_groups - 1) / num_groups * sum(shape.tower_outputs) * shape.out_dim
        # Inside the group, a rank's share of its peers' samples: 4*B*(S-1)/S*F*N.
        intra = 4 * batch * (ranks_per_host - 1) / ranks_per_host * num_features * shape.embedding_dim
        for suffix in ("", "_backward"):
            assert purpose_total(traffic, f"embeddings_peer{suffix}") == pytest.approx(peer, rel=RTOL)
            assert purpose_total(traffic, f"embeddings_intra{suffix}") == pytest.approx(intra, rel=RTOL)
            assert (f"embeddings_peer{suffix}", "intra_host") not in traffic.sent_bytes
            assert (f"embeddings_intra{suffix}", "cross_host") not in traffic.sent_bytes
        ids = 4 * batch * sum(shape.mean_lengths.values()) * others
        assert purpose_total(traffic, "ids") == pytest.approx(ids, rel=RTOL)
        lengths = 0 if single_hot else 4 * batch * num_features * others
        assert purpose_total(traffic, "lengths") == pytest.approx(lengths, rel=RTOL)
        # Rings: 2 (n-1)/n of the data each; towers inside their group and never across hosts.
        assert purpose_total(traffic, "dense_gradients") == pytest.approx(2 * others * shape.dense_bytes, rel=RTOL)
        assert ("tower_gradients", "cross_host") not in traffic.sent_bytes
        rings = 2 * (ranks_per_host - 1) * sum(shape.tower_bytes) / world_size
        assert purpose_total(traffic, "tower_gradients") == pytest.approx(rings, rel=RTOL)
        everything = sum(sum(links.values()) for links in traffic.by_purpose().values())
        assert traffic.total("intra_host") + traffic.total("cross_host") == pytest.approx(everything, rel=RTOL)


@pytest.mark.parametrize(("world_size", "ranks_per_host"), LAYOUTS)
def test_flat_bytes_have_closed_forms(rng: random.Random, world_size: int, ranks_per_host: int) -> None:
    topology = Topology(world_size=world_size, ranks_per_host=ranks_per_host)
    shape, placement = draw(rng, topology, single_hot=True)
    links = flat_traffic(shape, placement, topology).by_purpose()
    batch, num_features = shape.batch_size, len(shape.mean_lengths)
    across = (world_size - ranks_per_host) / world_size  # share of a rank's data that goes to other hosts
    inside = (ranks_per_host - 1) / world_size
    row_bytes = {"ids": 8, "lengths": 4, "embeddings": 4 * shape.embedding_dim}
    row_bytes["embeddings_backward"] = row_bytes["embeddings"]
    for purpose, size in row_bytes.items():
        found = links.get(purpose, {"cross_host": 0, "intra_host": 0})
        assert found["cross_host"] == pytest.approx(batch * num_features * size * across, rel=RTOL), purpose
        assert found["intra_host"] == pytest.approx(batch * num_features * size * inside, rel=RTOL), purpose
    # Tower modules are data-parallel here; the ring crosses hosts once a host.
    data = 2 * (world_size - 1) / world_size * (shape.dense_bytes + sum(shape.tower_bytes))
    crossings = 0 if topology.num_groups == 1 else topology.num_groups
    found = links.get("dense_gradients", {"cross_host": 0, "intra_host": 0})
    assert found["cross_host"] == pytest.approx(data * crossings / world_size, rel=RTOL)
    assert found["intra_host"] == pytest.approx(data * (world_size - crossings) / world_size, rel=RTOL)


def test_without_tower_modules_both_send_the_same_embeddings_between_single_rank_hosts() -> None:
    """Paper section 3.1: SPTT alone leaves the bytes on the wire as they are."""
    topology = Topology(world_size=4, ranks_per_host=1)
    towers = [[TableCost(name=f"f{i}", output_bytes=64, lookups=1.0, memory_bytes=1)] for i in range(4)]
    shape = StageShape(
        mean_lengths={f"f{i}": 1.0 for i in range(4)},
        single_hot=True,
        embedding_dim=16,
        tower_outputs=[1] * 4,
        out_dim=16,
        tower_bytes=[0] * 4,
        dense_bytes=0,
        batch_size=32,
    )
    placement = Placement.balanced(towers, topology)
    sptt = sptt_traffic(shape, placement, topology, id_bytes=8)
    flat = flat_traffic(shape, placement, topology)
    assert purpose_total(sptt, "embeddings_peer") == purpose_total(flat, "embeddings") == 32 * 3 * 16 * FLOAT_BYTES
    assert purpose_total(sptt, "embeddings_peer_backward") == purpose_total(flat, "embeddings_backward")
    assert purpose_total(sptt, "ids") == purpose_total(flat, "ids")
