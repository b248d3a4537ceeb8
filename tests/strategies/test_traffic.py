"""Predicted bytes: equal to those counted in real passes, and to closed forms."""

import random
from collections import defaultdict
from dataclasses import dataclass

import pytest
from torchrec.modules.embedding_configs import EmbeddingBagConfig

from dmt.modules.shards import TableShard
from dmt.schema import CategoricalFeature, FeatureSchema
from dmt.strategies.placement import Placement, TableCost, cut_columns, cut_rows, place
from dmt.strategies.topology import Topology
from dmt.strategies.traffic import FLOAT_BYTES, StageShape, Traffic, flat_traffic, row_bytes, sptt_traffic
from tests.distributed.harness import run_ranks
from tests.strategies.traffic_cases import measure

# float64 sums of a few hundred numbers, some divided by G: 1e-12 is a thousand times their rounding.
RTOL = 1e-12
# ranks, ranks per host, hosts per group
LAYOUTS = [(1, 1, 1), (2, 1, 1), (4, 2, 1), (8, 2, 1), (6, 3, 1), (12, 4, 1), (4, 1, 2), (8, 2, 2), (12, 2, 3)]


@pytest.mark.parametrize(
    ("world_size", "layouts"),
    [
        (2, [(1, 1), (2, 1), (1, 2)]),
        (4, [(1, 1), (2, 1), (4, 1), (1, 2), (2, 2), (1, 4)]),
    ],
)
def test_predicted_bytes_are_the_bytes_sent(seed: int, world_size: int, layouts: list[tuple[int, int]]) -> None:
    by_rank = run_ranks(measure, world_size=world_size, args=(layouts, seed, 6))
    for ranks in zip(*by_rank, strict=True):
        first, topology = ranks[0], Topology(**ranks[0]["topology"])
        sent: dict[tuple[str, str], float] = defaultdict(float)
        for rank in ranks:
            for key, size in rank["sent"].items():
                sent[key] += size / world_size
        # Batches are even here, so that expectations of ids are exact too; see RTOL.
        assert sent == pytest.approx(first["predicted"], rel=RTOL), first["case"]

        # What the paper says of the payload between hosts: 4*B*(P-1)/P*sum(O_t)*D bytes, and the same backward.
        share = (topology.num_groups - 1) / topology.num_groups
        payload = FLOAT_BYTES * first["batch_size"] * share * first["output_floats"]
        if first["precision"] == "fp32":
            assert sent["embeddings_peer", "cross_host"] == pytest.approx(payload, rel=RTOL), first["case"]
        for rank in ranks:
            for (purpose, link), count in rank["messages"].items():
                if "_peer" in purpose:
                    assert link == "cross_host" and count <= topology.num_groups - 1, first["case"]
                elif "_group" in purpose:
                    assert count <= topology.num_seats - 1, first["case"]
        if topology.hosts_per_group == 1:
            assert not any("_group" in purpose and link == "cross_host" for purpose, link in sent), first["case"]


@dataclass(frozen=True)
class Drawn:
    """A random stage on a random, not a balanced, placement, with what closed forms need of it.

    Args:
        shape: the stage.
        placement: towers anywhere, shards anywhere in the group.
        columns_looked_up: sum over all lookups of their width.
        ids_looked_up: expected ids a sample over all lookups, blocks of rows counted by their share.
        lookups_with_lengths: lookups in groups that send lengths.
    """

    shape: StageShape
    placement: Placement
    columns_looked_up: int
    ids_looked_up: float
    lookups_with_lengths: int


def draw(rng: random.Random, topology: Topology, *, single_hot: bool, whole: bool = False) -> Drawn:
    towers = [[f"t{t}f{f}" for f in range(rng.randint(1, 5))] for t in range(rng.randint(1, 6))]
    homes = [rng.randrange(topology.num_groups) for _ in towers]
    features = [
        CategoricalFeature(name=n, num_embeddings=rng.randint(1, 99), multi_hot=m, mean_length=rng.uniform(0, 9) ** m)
        for n, m in ((name, not single_hot and rng.random() < 0.5) for tower in towers for name in tower)
    ]
    home_of = {name: home for tower, home in zip(towers, homes, strict=True) for name in tower}
    shards: list[list[TableShard]] = [[] for _ in range(topology.world_size)]
    sends_lengths, columns, ids, lookups = [False] * topology.num_groups, 0, 0.0, [0] * topology.num_groups
    for feature in features:
        width, home = 4 * rng.randint(1, 8), home_of[feature.name]
        table = EmbeddingBagConfig(
            name=feature.name,
            feature_names=[feature.name],
            num_embeddings=feature.num_embeddings,
            embedding_dim=width,
        )
        blocks, kind = [TableShard.whole(table)], "whole" if whole else rng.choice(["whole", "rows", "columns"])
        if kind == "rows":
            blocks = cut_rows(blocks[0], topology.num_seats)
        elif kind == "columns":
            blocks = cut_columns(blocks[0], topology.num_seats)
        for block, rank in zip(blocks, rng.sample(topology.members(group=home), len(blocks)), strict=True):
            shards[rank].append(block)
        columns += width * (len(blocks) if kind == "rows" else 1)
        ids += feature.mean_length * (len(blocks) if kind == "columns" else 1)
        lookups[home] += len(blocks)
        sends_lengths[home] |= feature.multi_hot or (kind == "rows" and len(blocks) > 1)
    shape = StageShape(
        schema=FeatureSchema(categorical=features, weighted=rng.random() < 0.5),
        towers=towers,
        tower_outputs=[rng.randint(1, 9) for _ in towers],
        out_dim=rng.randint(1, 40),
        tower_bytes=[4 * rng.randint(0, 999) for _ in towers],
        dense_bytes=4 * rng.randint(0, 9999),
        batch_size=rng.randint(1, 100),
    )
    placement = Placement(tower_groups=tuple(homes), rank_shards=tuple(map(tuple, shards)))
    with_lengths = sum(count for count, sends in zip(lookups, sends_lengths, strict=True) if sends)
    return Drawn(shape, placement, columns, ids, with_lengths)


class TableWise(dict):
    """The kind of any table."""

    def __missing__(self, key: str) -> str:
        return "table_wise"


def purpose_total(traffic: Traffic, purpose: str) -> float:
    return sum(traffic.by_purpose().get(purpose, {}).values())


def mean_ids(shape: StageShape) -> float:
    return sum(feature.mean_length for feature in shape.schema.categorical)


@pytest.mark.parametrize(("world_size", "ranks_per_host", "hosts_per_group"), LAYOUTS)
@pytest.mark.parametrize("single_hot", [True, False])
def test_sptt_bytes_have_closed_forms(
    rng: random.Random, world_size: int, ranks_per_host: int, hosts_per_group: int, single_hot: bool
) -> None:
    topology = Topology(world_size=world_size, ranks_per_host=ranks_per_host, hosts_per_group=hosts_per_group)
    drawn = draw(rng, topology, single_hot=single_hot)
    shape, weighted = drawn.shape, drawn.shape.schema.weighted
    precisions = {"forward_precision": "bf16", "backward_precision": rng.choice(["fp32", "int8"])}
    traffic = sptt_traffic(shape, drawn.placement, topology, id_bytes=8, **precisions)
    batch = shape.batch_size
    # Shares of a rank's samples, or of its peers' samples, that are another group's, or seat's, to work on.
    across = batch * (topology.num_groups - 1) / topology.num_groups
    inside = batch * (topology.num_seats - 1) / topology.num_seats
    num_multi = sum(feature.multi_hot for feature in shape.schema.categorical)
    outputs, backward = sum(shape.tower_outputs), precisions["backward_precision"]
    rings = 2 * (topology.num_seats - 1) * sum(shape.tower_bytes) / world_size
    expected = {
        # Between hosts every table here is small enough for one byte an id; weights travel with the ids.
        "ids_peer": (1 + 4 * weighted) * across * mean_ids(shape),
        "lengths_peer": 4 * across * num_multi,
        "ids_group": (8 + 4 * weighted) * inside * drawn.ids_looked_up,
        "lengths_group": 4 * inside * drawn.lookups_with_lengths,
        "embeddings_group": 4 * inside * drawn.columns_looked_up,
        "embeddings_group_backward": 4 * inside * drawn.columns_looked_up,
        "embeddings_peer": 2 * across * outputs * shape.out_dim,
        "embeddings_peer_backward": across * outputs * row_bytes(backward, shape.out_dim),
        "tower_gradients": rings,
        "dense_gradients": 2 * (world_size - 1) / world_size * shape.dense_bytes,
    }
    for purpose, size in expected.items():
        assert purpose_total(traffic, purpose) == pytest.approx(size, rel=RTOL), purpose
    assert set(traffic.by_purpose()) <= set(expected)
    assert traffic.total("intra_host") + traffic.total("cross_host") == pytest.approx(sum(expected.values()), rel=RTOL)
    for purpose, link in traffic.sent_bytes:
        if "peer" in purpose:
            assert link == "cross_host", purpose
        elif purpose != "dense_gradients" and hosts_per_group == 1:
            assert link == "intra_host", purpose


def test_a_group_of_several_hosts_sends_part_of_its_own_exchange_across(rng: random.Random) -> None:
    topology = Topology(world_size=8, ranks_per_host=2, hosts_per_group=2)
    drawn = draw(rng, topology, single_hot=True)
    links = sptt_traffic(drawn.shape, drawn.placement, topology, id_bytes=4).by_purpose()["embeddings_group"]
    # Of a rank's three mates one is on its own host.
    assert links["cross_host"] == pytest.approx(2 * links["intra_host"], rel=RTOL)


@pytest.mark.parametrize(("precision", "size"), [("fp32", 48), ("fp16", 24), ("bf16", 24), ("int8", 12 + 8)])
def test_bytes_of_a_row(precision: str, size: int) -> None:
    assert row_bytes(precision, 12) == size


@pytest.mark.parametrize(("world_size", "ranks_per_host", "hosts_per_group"), LAYOUTS)
def test_flat_bytes_have_closed_forms(
    rng: random.Random, world_size: int, ranks_per_host: int, hosts_per_group: int
) -> None:
    topology = Topology(world_size=world_size, ranks_per_host=ranks_per_host, hosts_per_group=hosts_per_group)
    drawn = draw(rng, topology, single_hot=True, whole=True)
    shape = drawn.shape
    links = flat_traffic(shape, drawn.placement, TableWise(), topology).by_purpose()
    batch, num_features = shape.batch_size, len(shape.schema.categorical)
    across = (world_size - ranks_per_host) / world_size  # share of a rank's data that goes to other hosts
    inside = (ranks_per_host - 1) / world_size
    sample_bytes = {"ids": 8 * num_features, "lengths": 4 * num_features, "embeddings": 4 * drawn.columns_looked_up}
    sample_bytes["embeddings_backward"] = sample_bytes["embeddings"]
    sample_bytes["weights"] = 4 * num_features * shape.schema.weighted
    nothing = {"cross_host": 0, "intra_host": 0}
    for purpose, size in sample_bytes.items():
        found = links.get(purpose, nothing)
        assert found["cross_host"] == pytest.approx(batch * size * across, rel=RTOL), purpose
        assert found["intra_host"] == pytest.approx(batch * size * inside, rel=RTOL), purpose
    # Tower modules are data-parallel here; the ring crosses hosts once a host.
    data = 2 * (world_size - 1) / world_size * (shape.dense_bytes + sum(shape.tower_bytes))
    crossings = 0 if topology.num_hosts == 1 else topology.num_hosts
    found = links.get("dense_gradients", nothing)
    assert found["cross_host"] == pytest.approx(data * crossings / world_size, rel=RTOL)
    assert found["intra_host"] == pytest.approx(data * (world_size - crossings) / world_size, rel=RTOL)


def test_without_tower_modules_both_send_the_same_embeddings_between_single_rank_hosts() -> None:
    """Paper section 3.1: SPTT alone leaves the bytes on the wire as they are."""
    topology = Topology(world_size=4, ranks_per_host=1)
    names = [f"f{i}" for i in range(4)]
    tables = [EmbeddingBagConfig(name=n, feature_names=[n], num_embeddings=5, embedding_dim=16) for n in names]
    shape = StageShape(
        schema=FeatureSchema(categorical=[CategoricalFeature(name=name, num_embeddings=5) for name in names]),
        towers=[[name] for name in names],
        tower_outputs=[1] * 4,
        out_dim=16,
        tower_bytes=[0] * 4,
        dense_bytes=0,
        batch_size=32,
    )
    costs = [TableCost(table=table, lookups=1.0, row_floats=17) for table in tables]
    placement = place(costs, shape.towers, topology)
    sptt = sptt_traffic(shape, placement, topology, id_bytes=8)
    flat = flat_traffic(shape, placement, TableWise(), topology)
    assert purpose_total(sptt, "embeddings_peer") == purpose_total(flat, "embeddings") == 32 * 3 * 16 * FLOAT_BYTES
    assert purpose_total(sptt, "embeddings_peer_backward") == purpose_total(flat, "embeddings_backward")
    # Only ids are narrower, one byte for 5 rows where TorchRec sends 8.
    assert 8 * purpose_total(sptt, "ids_peer") == purpose_total(flat, "ids") == 32 * 3 * 8
