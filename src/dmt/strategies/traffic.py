"""Bytes an iteration puts on the wire, worked out from the placement before anything runs.

Payloads of the tower stage are exact for single-hot features and expectations otherwise;
:class:`~dmt.strategies.collectives.WireMeter` counts the same keys in a run. All-reduces are taken as rings
in rank order. The 8-byte batch sizes that ranks tell each other are left out.

Shapes: B samples a rank, G ranks, S seats, P host groups, F_r tables of a rank, N embedding dim, O_g outputs
of group g's towers, D output dim.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from dmt.strategies.topology import Placement, Topology

FLOAT_BYTES = 4


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
    """What the traffic of a stage depends on.

    Args:
        mean_lengths: expected ids per sample of each feature.
        single_hot: whether every feature holds exactly one id, so that no lengths are sent.
        embedding_dim: N.
        tower_outputs: O_t of each tower.
        out_dim: D.
        tower_bytes: bytes of each tower module's parameters.
        dense_bytes: bytes of the replicated dense layers' parameters.
        batch_size: B.
    """

    mean_lengths: dict[str, float]
    single_hot: bool
    embedding_dim: int
    tower_outputs: Sequence[int]
    out_dim: int
    tower_bytes: Sequence[int]
    dense_bytes: int
    batch_size: float


def sptt_traffic(shape: StageShape, placement: Placement, topology: Topology, *, id_bytes: int) -> Traffic:
    """Traffic of an iteration under SPTT.

    Args:
        shape: the stage.
        placement: towers on groups, tables on ranks.
        topology: hosts and ranks.
        id_bytes: bytes of an id on the wire.
    """
    traffic = Traffic(topology)
    batch, ranks = shape.batch_size, range(topology.world_size)
    _add_ids(traffic, shape, placement, id_bytes=id_bytes, sends_lengths=not shape.single_hot)
    table_row = FLOAT_BYTES * shape.embedding_dim
    outputs = [
        sum(shape.tower_outputs[t] for t in placement.group_towers(group)) for group in range(topology.num_groups)
    ]
    for rank in ranks:
        group, rows = topology.group(rank), batch * topology.num_groups
        for mate in topology.members(group=group):
            num_bytes = rows * len(placement.rank_tables[rank]) * table_row
            traffic.add("embeddings_intra", rank, mate, num_bytes)
            traffic.add("embeddings_intra_backward", mate, rank, num_bytes)
        for peer in topology.peers(seat=topology.seat(rank)):
            num_bytes = batch * outputs[group] * shape.out_dim * FLOAT_BYTES
            traffic.add("embeddings_peer", rank, peer, num_bytes)
            traffic.add("embeddings_peer_backward", peer, rank, num_bytes)
    for group in range(topology.num_groups):
        tower_bytes = sum(shape.tower_bytes[t] for t in placement.group_towers(group))
        traffic.add_ring("tower_gradients", topology.members(group=group), tower_bytes)
    traffic.add_ring("dense_gradients", ranks, shape.dense_bytes)
    return traffic


def flat_traffic(shape: StageShape, placement: Placement, topology: Topology) -> Traffic:
    """Traffic of an iteration under TorchRec's table-wise sharding, which sends int64 ids and int32 lengths."""
    traffic = Traffic(topology)
    ranks = range(topology.world_size)
    _add_ids(traffic, shape, placement, id_bytes=8, sends_lengths=True)
    for rank in ranks:
        num_bytes = shape.batch_size * len(placement.rank_tables[rank]) * FLOAT_BYTES * shape.embedding_dim
        for other in ranks:
            traffic.add("embeddings", rank, other, num_bytes)
            traffic.add("embeddings_backward", other, rank, num_bytes)
    traffic.add_ring("dense_gradients", ranks, shape.dense_bytes + sum(shape.tower_bytes))
    return traffic


def _add_ids(traffic: Traffic, shape: StageShape, placement: Placement, *, id_bytes: int, sends_lengths: bool) -> None:
    ranks = range(traffic.topology.world_size)
    for owner in ranks:
        names = placement.rank_tables[owner]
        ids = shape.batch_size * sum(shape.mean_lengths[name] for name in names)
        for source in ranks:
            traffic.add("ids", source, owner, ids * id_bytes)
            if sends_lengths:
                traffic.add("lengths", source, owner, shape.batch_size * len(names) * 4)
