"""Bytes an iteration puts on the wire, worked out from the placement before anything runs.

Payloads of the tower stage are exact for single-hot features, but for row-wise shards, whose ids are taken as even
over the rows; for other features they are expectations. :class:`~dmt.strategies.meter.WireMeter` counts the
same keys in a run. All-reduces are taken as rings in rank order. The 8-byte batch sizes that ranks tell each other
are left out.

Shapes: B samples a rank, G ranks, S seats, P host groups, W_r columns that rank r looks up, O_g outputs of group g's
towers, D output dim.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from dmt.modules.shards import TableShard
from dmt.schema import CategoricalFeature, FeatureSchema
from dmt.strategies.id_wire import wire_dtype
from dmt.strategies.placement import Placement
from dmt.strategies.topology import Topology
from dmt.strategies.wire import WirePrecision, wire_format

FLOAT_BYTES = 4
_LENGTH_BYTES = 4


@dataclass
class Traffic:
    """Mean bytes that a rank sends in one iteration, by purpose and link."""

    topology: Topology
    sent_bytes: dict[tuple[str, str], float] = field(default_factory=lambda: defaultdict(float))

    def add(self, purpose: str, source: int, target: int, num_bytes: float) -> None:
        """Count a message; one to oneself costs nothing."""
        if source != target and num_bytes:
            self.sent_bytes[purpose, self.topology.link(source, target)] += num_bytes / self.topology.world_size

    def add_ring(self, purpose: str, ranks: Sequence[int], num_bytes: float) -> None:
        """Count a ring all-reduce: each rank sends 2 (n-1)/n of the data to the next one."""
        for source, target in zip(ranks, [*ranks[1:], ranks[0]], strict=True):
            self.add(purpose, source, target, 2 * (len(ranks) - 1) / len(ranks) * num_bytes)

    def total(self, link: str) -> float:
        """Bytes on ``"intra_host"`` or ``"cross_host"`` links, all purposes."""
        return sum(size for (_, where), size in self.sent_bytes.items() if where == link)

    def by_purpose(self) -> dict[str, dict[str, float]]:
        """``{purpose: {link: bytes}}``."""
        purposes = sorted({purpose for purpose, _ in self.sent_bytes})
        links = ("intra_host", "cross_host")
        return {p: {link: self.sent_bytes.get((p, link), 0.0) for link in links} for p in purposes}


@dataclass(frozen=True, kw_only=True)
class StageShape:
    """What the traffic of a stage depends on, beside its placement.

    Args:
        schema: the data's columns.
        towers: features that each tower reads, all or some columns of them.
        tower_outputs: O_t of each tower.
        out_dim: D.
        tower_bytes: bytes of each tower module's parameters.
        dense_bytes: bytes of the replicated dense layers' parameters.
        batch_size: B.
    """

    schema: FeatureSchema
    towers: Sequence[Sequence[str]]
    tower_outputs: Sequence[int]
    out_dim: int
    tower_bytes: Sequence[int]
    dense_bytes: int
    batch_size: float

    @property
    def weight_bytes(self) -> int:
        """Bytes that travel with an id for its weight."""
        return FLOAT_BYTES * self.schema.weighted

    def group_features(self, placement: Placement, group: int) -> list[CategoricalFeature]:
        """Features of a host group's towers, each once."""
        by_name = {feature.name: feature for feature in self.schema.categorical}
        names = dict.fromkeys(name for tower in placement.group_towers(group) for name in self.towers[tower])
        return [by_name[name] for name in names]

    def mean_ids(self, lookups: Sequence[tuple[str, TableShard]]) -> float:
        """Expected ids a sample that a rank with these lookups is sent: of a block of rows, the block's share."""
        lengths = {feature.name: feature.mean_length for feature in self.schema.categorical}
        return sum(lengths[name] * shard.num_rows / shard.table.num_embeddings for name, shard in lookups)


def sptt_traffic(
    shape: StageShape,
    placement: Placement,
    topology: Topology,
    *,
    id_bytes: int,
    device_type: str = "cpu",
    forward_precision: WirePrecision = "fp32",
    backward_precision: WirePrecision = "fp32",
) -> Traffic:
    """Traffic of an iteration under SPTT.

    Args:
        shape: the stage.
        placement: towers on groups, shards of tables on ranks.
        topology: hosts and ranks.
        id_bytes: bytes of an id as it is looked up, and so inside a group.
        device_type: where batches are, which ids between groups depend on.
        forward_precision: of tower outputs between host groups.
        backward_precision: of their gradients.
    """
    traffic = Traffic(topology)
    for group in range(topology.num_groups):
        _add_ids_to_peers(traffic, shape, placement, group, device_type=device_type)
        _add_ids_to_seats(traffic, shape, placement, group, id_bytes=id_bytes)
        _add_pooled_rows(traffic, shape, placement, group)
        outputs = shape.batch_size * sum(shape.tower_outputs[t] for t in placement.group_towers(group))
        forward, backward = row_bytes(forward_precision, shape.out_dim), row_bytes(backward_precision, shape.out_dim)
        for rank in topology.members(group=group):
            for peer in topology.peers(seat=topology.seat(rank)):
                traffic.add("embeddings_peer", rank, peer, outputs * forward)
                traffic.add("embeddings_peer_backward", peer, rank, outputs * backward)
        tower_bytes = sum(shape.tower_bytes[t] for t in placement.group_towers(group))
        traffic.add_ring("tower_gradients", topology.members(group=group), tower_bytes)
    traffic.add_ring("dense_gradients", range(topology.world_size), shape.dense_bytes)
    return traffic


def row_bytes(precision: WirePrecision, width: int) -> int:
    """Bytes that a row of ``width`` floats travels in.

    Example:
        >>> row_bytes("fp32", 16), row_bytes("bf16", 16), row_bytes("int8", 16)
        (64, 32, 24)
    """
    return wire_format(precision).encode(torch.zeros(1, width, device="cpu")).nbytes


def _add_ids_to_peers(
    traffic: Traffic, shape: StageShape, placement: Placement, group: int, *, device_type: str
) -> None:
    """A group's ids from every rank to its peer there, each as narrow as its table lets it be; lengths where needed."""
    topology, batch = traffic.topology, shape.batch_size
    features = shape.group_features(placement, group)
    id_bytes = batch * sum(
        feature.mean_length
        * (wire_dtype(feature.num_embeddings, device_type=device_type).itemsize + shape.weight_bytes)
        for feature in features
    )
    bags = batch * sum(feature.multi_hot for feature in features)
    for target in topology.members(group=group):
        for source in topology.peers(seat=topology.seat(target)):
            traffic.add("ids_peer", source, target, id_bytes)
            traffic.add("lengths_peer", source, target, bags * _LENGTH_BYTES)


def _add_ids_to_seats(traffic: Traffic, shape: StageShape, placement: Placement, group: int, *, id_bytes: int) -> None:
    """A group's ids, once its ranks have them, to the seats that hold the shards they name."""
    topology = traffic.topology
    members, rows = topology.members(group=group), shape.batch_size * topology.num_groups
    # Blocks of rows get a part of each bag, so that even bags of one id come out empty or not.
    cut = any(not shard.has_all_rows for rank in members for shard in placement.rank_shards[rank])
    sends_lengths = cut or any(feature.multi_hot for feature in shape.group_features(placement, group))
    for target in members:
        lookups = placement.lookups(target)
        ids = rows * shape.mean_ids(lookups)
        for source in members:
            traffic.add("ids_group", source, target, ids * (id_bytes + shape.weight_bytes))
            traffic.add("lengths_group", source, target, rows * len(lookups) * _LENGTH_BYTES * sends_lengths)


def _add_pooled_rows(traffic: Traffic, shape: StageShape, placement: Placement, group: int) -> None:
    """Pooled embeddings inside a group, each rank's own columns to all seats, and their gradients back."""
    topology = traffic.topology
    for rank in topology.members(group=group):
        width = sum(shard.width for _, shard in placement.lookups(rank))
        num_bytes = shape.batch_size * topology.num_groups * width * FLOAT_BYTES
        for mate in topology.members(group=group):
            traffic.add("embeddings_group", rank, mate, num_bytes)
            traffic.add("embeddings_group_backward", mate, rank, num_bytes)


def flat_traffic(
    shape: StageShape,
    placement: Placement,
    kinds: Mapping[str, str],
    topology: Topology,
    *,
    forward_precision: WirePrecision = "fp32",
    backward_precision: WirePrecision = "fp32",
) -> Traffic:
    """Traffic of an iteration under TorchRec, which sends int64 ids and int32 lengths.

    A ReduceScatter, and the AllGather of its gradients, are taken as one message to each of the other ranks.

    Args:
        shape: the stage.
        placement: shards of tables on ranks; its tower groups mean nothing here.
        kinds: TorchRec's sharding type of each table.
        topology: hosts and ranks; each host is a group of its own here.
        forward_precision: of embeddings.
        backward_precision: of their gradients.
    """
    traffic = Traffic(topology)
    ranks, batch = range(topology.world_size), shape.batch_size
    value_bytes = _FLAT_VALUE_BYTES[forward_precision], _FLAT_VALUE_BYTES[backward_precision]

    def add_rows(source: int, target: int, num_values: float) -> None:
        traffic.add("embeddings", source, target, num_values * value_bytes[0])
        traffic.add("embeddings_backward", target, source, num_values * value_bytes[1])

    for owner in ranks:
        mates = [rank for rank in ranks if topology.host(rank) == topology.host(owner)]
        lookups = placement.lookups(owner)
        ids = batch * shape.mean_ids(lookups)
        for other in ranks:
            traffic.add("ids", other, owner, ids * 8)
            traffic.add("lengths", other, owner, batch * len(lookups) * _LENGTH_BYTES)
            traffic.add("weights", other, owner, ids * shape.weight_bytes)
        for _, shard in lookups:
            if kinds[shard.table.name] != "table_row_wise":
                for other in ranks:
                    add_rows(owner, other, batch * shard.width)
                continue
            for mate in mates:  # partial sums of all samples, each mate a part
                add_rows(owner, mate, batch * topology.num_hosts * shard.width)
            for other in ranks:  # then sums, to the ranks of its own place on other hosts
                if (other - owner) % topology.ranks_per_host == 0:
                    add_rows(owner, other, batch * shard.width)
    traffic.add_ring("dense_gradients", ranks, shape.dense_bytes + sum(shape.tower_bytes))
    return traffic


# TorchRec's int8 is 32 values with a scale and a bias, 4 bytes each.
_FLAT_VALUE_BYTES = {"fp32": 4.0, "fp16": 2.0, "bf16": 2.0, "int8": 40 / 32}
