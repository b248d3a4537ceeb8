"""Steps (a) and (c) of SPTT (paper section 3.1): every id to the seats that look it up, in two hops.

First each rank sends the ids of a host group's features to its peer in that group, so that an id crosses hosts once
however its table is cut. Then, inside the group, that peer passes them to the seats that hold the table's shards.
Sources come by (seat, group) that way: the peer order of step (c), without a permutation of embeddings.

Shapes: B samples of this rank, P groups, S seats, I_g features or blocks of one that this group's towers read, tower
after tower, Q samples of this rank's peers.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dmt.errors import UserInputError
from dmt.modules.bags import BagOrder, Bags
from dmt.modules.shards import TableShard
from dmt.schema import FeatureSchema
from dmt.strategies.collectives import Hop, PendingSizes
from dmt.strategies.id_wire import IdMessages, IdWire, narrowed, wire_dtype
from dmt.strategies.placement import Placement
from dmt.strategies.segments import Segments
from dmt.strategies.stage import Distributed
from dmt.strategies.topology import Topology


@dataclass(frozen=True)
class LookupIds(Distributed):
    """What a rank looks up for all ranks' samples, and how long its group's bags are.

    Args:
        ids: of this rank's lookups, one after the other; local to their shards.
        lengths: of their bags; ``None`` when each holds one id. Samples come by (seat, group) of their rank.
        weights: of the ids, or ``None``.
        group_lengths: (I_g, Q) lengths of the bags that the group's towers read, for the peers' samples, or ``None``
            for all ones.
    """

    ids: Tensor
    lengths: Tensor | None
    weights: Tensor | None
    group_lengths: Tensor | None


@dataclass(frozen=True)
class IdHops:
    """Where ids go.

    Args:
        world: all ranks, for the batch sizes.
        peer_ids, peer_lengths: to the peer in each group. Weights travel with the ids.
        seat_ids, seat_lengths: to the seats of the own group.
    """

    world: dist.ProcessGroup | None
    peer_ids: Hop
    peer_lengths: Hop
    seat_ids: Hop
    seat_lengths: Hop


class IdDistribution:
    """Sends the ids of batches to where they are looked up.

    Args:
        schema: the data's columns.
        towers: features that each tower reads, once for each block of columns that it reads of one.
        placement: where towers and shards are.
        topology: hosts and ranks.
        rank: this rank.
        hops: the collectives.
        id_dtype: what ids are looked up in; between hosts they may be narrower.
        device: where batches are.
    """

    def __init__(
        self,
        *,
        schema: FeatureSchema,
        towers: Sequence[Sequence[str]],
        placement: Placement,
        topology: Topology,
        rank: int,
        hops: IdHops,
        id_dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.topology, self.hops, self.id_dtype, self.device = topology, hops, id_dtype, device
        self.group, self.seat = topology.group(rank), topology.seat(rank)
        rows = {feature.name: feature.num_embeddings for feature in schema.categorical}
        dtypes = {name: wire_dtype(size, device_type=device.type) for name, size in rows.items()}
        # Wide types first: neighbours of one type are packed in one go.
        by_group = [
            sorted(
                dict.fromkeys(name for tower in placement.group_towers(group) for name in towers[tower]),
                key=lambda name: -dtypes[name].itemsize,
            )
            for group in range(topology.num_groups)
        ]
        wires = [
            IdWire([dtypes[name] for name in names], id_dtype=id_dtype, weighted=schema.weighted) for names in by_group
        ]
        self._peer_messages = IdMessages(wires, wires[self.group])
        inside = IdWire([id_dtype], id_dtype=id_dtype, weighted=schema.weighted)  # as they are looked up
        self._seat_messages = IdMessages([inside] * topology.num_seats, inside)
        sent = [name for names in by_group for name in names]
        self._sent, self._sent_rows = sent, torch.tensor([rows[name] for name in sent], device="cpu")
        in_towers = [name for tower in placement.group_towers(self.group) for name in towers[tower]]
        self._tower_order = [by_group[self.group].index(name) for name in in_towers]
        self.bag_order = BagOrder(schema, sent)
        self._group_sizes = [len(names) for names in by_group]
        multi_hot = {feature.name for feature in schema.categorical if feature.multi_hot}
        self._multi_rows = [row for row, name in enumerate(sent) if name in multi_hot]
        self._group_multi_sizes = [sum(name in multi_hot for name in names) for names in by_group]
        self.features = by_group[self.group]
        self._own_multi_rows = [row for row, name in enumerate(self.features) if name in multi_hot]

        seats = [placement.lookups(member) for member in topology.members(group=self.group)]
        self._seat_lookups = seats
        self._own_lookups = seats[self.seat]
        # Features of which some shard holds a block of rows, and the rows of their blocks: ids are dealt out by block.
        self._cut_features = sorted(
            {(n, self._block_rows(n, s)) for own in seats for n, s in own if not s.has_all_rows},
            key=lambda cut: (self.features.index(cut[0]), cut[1]),
        )
        self._needs_seat_lengths = bool(self._cut_features or self._own_multi_rows)
        self._plan_orders()

    def _plan_orders(self) -> None:
        """In which order segments are taken; the same for every batch."""
        num_groups, num_seats = self.topology.num_groups, self.topology.num_seats
        num_mine, sources = len(self._own_lookups), range(num_seats * num_groups)
        self._lookup_order = self._by_peer([self.features.index(name) for name, _ in self._own_lookups])
        self._cut_order = self._by_peer([self.features.index(name) for name, _ in self._cut_features])
        self._length_order = self._by_peer(self._tower_order)
        self._sent_order = [position for lookups in self._seat_lookups for position in self._segments_of(lookups)]
        self._received_order = [source * num_mine + lookup for lookup in range(num_mine) for source in sources]

    def _by_peer(self, rows: Sequence[int]) -> list[int]:
        """Where these features' segments are among those that peers send; feature by feature, each by peer."""
        return [peer * len(self.features) + row for row in rows for peer in range(self.topology.num_groups)]

    def _block_rows(self, name: str, shard: TableShard) -> int:
        """Rows of the blocks that the shard's columns of a table are cut into; the last one may be smaller."""
        return max(s.num_rows for own in self._seat_lookups for n, s in own if (n, s.columns) == (name, shard.columns))

    def steps(self, features: KeyedJaggedTensor) -> Generator[None, None, LookupIds]:
        """Distribute a batch; see :data:`~dmt.strategies.stage.Distribution`."""
        bags = self.bag_order(features)
        self._check_ids(bags)
        sizes = PendingSizes(bags.batch_size, group=self.hops.world, device=self.device, meter=self.hops.peer_ids.meter)
        yield
        batch_sizes = sizes.wait()
        held = yield from self._to_peers(bags, batch_sizes)
        mine = yield from self._to_seats(held, batch_sizes)
        return LookupIds(batch_sizes, mine.ids, mine.lengths, mine.weights, self._group_lengths(held))

    def _check_ids(self, bags: Bags) -> None:
        """Raise for an id out of range, which a narrower type or a block of rows would turn into a valid one.

        On a GPU it would wait for the device; there the lookup's own check has to do.
        """
        if not bags.ids.is_cpu or not bags.ids.numel():
            return
        rows = self._sent_rows
        counts = torch.full_like(rows, bags.batch_size) if bags.lengths is None else bags.lengths.sum(1)
        limits = rows.repeat_interleave(counts)
        wrong = (bags.ids < 0) | (bags.ids >= limits)
        if bool(wrong.any()):
            first = int(wrong.nonzero()[0])
            name = self._sent[int(torch.searchsorted(counts.cumsum(0), first, right=True))]
            raise UserInputError(
                f"batch: id {int(bags.ids[first])} of {name!r} is outside its table of {int(limits[first])} rows; ids "
                "lie in [0, num_embeddings)"
            )

    def _check_single_hot(self, counts: Sequence[int], batch_size: int) -> None:
        """Raise for a single-hot feature with another number of ids: on a GPU nobody has looked at them before."""
        for row, name in enumerate(self._sent):
            if row not in self._multi_rows and counts[row] != batch_size:
                raise UserInputError(
                    f"batch: {counts[row]} ids of {name!r} for {batch_size} samples, but it is single-hot; mark it as "
                    "multi_hot in the schema"
                )

    # First hop: to the peer in each group.

    def _to_peers(self, bags: Bags, batch_sizes: list[int]) -> Generator[None, None, Segments]:
        """Segments (peer, feature of this group), each of the bags of one peer's samples."""
        peer_sizes = [batch_sizes[rank] for rank in self.topology.peers(seat=self.seat)]
        num_features = len(self.features)
        bag_counts = [size for size in peer_sizes for _ in range(num_features)]
        if self.hops.peer_ids.is_local:
            lengths = None
            if bags.lengths is not None and self._own_multi_rows:
                lengths = bags.lengths.reshape(-1).to(torch.int32)  # as narrow inside the group as between groups
            return Segments(narrowed(bags.ids, self.id_dtype), lengths, bags.weights, bag_counts)
        lengths = None
        sent_counts = [bags.batch_size] * len(self._sent)
        if bags.lengths is not None:
            flying = self.hops.peer_lengths.start(
                bags.lengths[self._multi_rows].reshape(-1).to(torch.int32),
                send_sizes=[n * bags.batch_size for n in self._group_multi_sizes],
                receive_sizes=[len(self._own_multi_rows) * size for size in peer_sizes],
            )
            sent_counts = bags.lengths.sum(1).tolist()
            self._check_single_hot(sent_counts, bags.batch_size)
            yield
            received_lengths = flying.wait()
            lengths = self._filled_lengths(received_lengths, peer_sizes) if self._own_multi_rows else None
        counts = Segments(bags.ids, lengths, None, bag_counts).id_counts().tolist()
        receive_counts = _chunks(counts, [num_features] * len(peer_sizes))
        ids_flying = self._peer_messages.start(
            self.hops.peer_ids,
            bags.ids,
            bags.weights,
            send_counts=_chunks(sent_counts, self._group_sizes),
            receive_counts=receive_counts,
        )
        yield
        ids, weights = self._peer_messages.finish(ids_flying, receive_counts)
        return Segments(ids, lengths, weights, bag_counts)

    def _filled_lengths(self, multi: Tensor, peer_sizes: Sequence[int]) -> Tensor:
        """Lengths of all bags (peer, feature, sample), from those of the multi-hot features."""
        num_features, num_multi = len(self.features), len(self._own_multi_rows)
        if num_multi == num_features:
            return multi
        blocks = []
        for piece, size in zip(multi.split([num_multi * size for size in peer_sizes]), peer_sizes, strict=True):
            block = piece.new_ones(num_features, size)
            block[self._own_multi_rows] = piece.view(num_multi, size)
            blocks.append(block.view(-1))
        return torch.cat(blocks)

    # Second hop: to the seats of the group that hold shards.

    def _to_seats(self, held: Segments, batch_sizes: list[int]) -> Generator[None, None, Segments]:
        """Segments (own lookup, seat, peer): all ranks' bags for one lookup after the other."""
        num_groups, num_seats, num_mine = self.topology.num_groups, self.topology.num_seats, len(self._own_lookups)
        if self.hops.seat_ids.is_local:
            return held.select(self._lookup_order)

        pool = held.with_lengths() if self._needs_seat_lengths else held
        if self._cut_features:
            pool = pool.joined(self._dealt_by_rows(pool))
        sent = pool.select(self._sent_order)
        num_sent = [num_groups * len(lookups) for lookups in self._seat_lookups]
        rows = [[batch_sizes[rank] for rank in self.topology.peers(seat=seat)] for seat in range(num_seats)]
        bag_counts = [size for sizes in rows for size in sizes for _ in range(num_mine)]
        send_bags = [sum(counts) for counts in _chunks(sent.bag_counts, num_sent)]
        receive_bags = [num_mine * sum(sizes) for sizes in rows]
        lengths = None
        send_ids, receive_ids = send_bags, receive_bags
        if sent.lengths is not None:
            flying = self.hops.seat_lengths.start(sent.lengths, send_sizes=send_bags, receive_sizes=receive_bags)
            send_ids = torch.stack([piece.sum() for piece in sent.lengths.split(send_bags)]).tolist()
            yield
            lengths = flying.wait()
            receive_ids = torch.stack([piece.sum() for piece in lengths.split(receive_bags)]).tolist()
        receive_counts = [[n] for n in receive_ids]
        ids_flying = self._seat_messages.start(
            self.hops.seat_ids,
            sent.ids,
            sent.weights,
            send_counts=[[n] for n in send_ids],
            receive_counts=receive_counts,
        )
        yield
        ids, weights = self._seat_messages.finish(ids_flying, receive_counts)
        return Segments(ids, lengths, weights, bag_counts).select(self._received_order)

    def _segments_of(self, lookups: Sequence[tuple[str, TableShard]]) -> list[int]:
        """Positions in the pool of what a seat looks up: (peer, lookup)."""
        num_groups, num_features, num_cut = self.topology.num_groups, len(self.features), len(self._cut_features)
        positions = []
        for peer in range(num_groups):
            for name, shard in lookups:
                if shard.has_all_rows:
                    positions.append(peer * num_features + self.features.index(name))
                else:
                    rows = self._block_rows(name, shard)
                    cut = self._cut_features.index((name, rows))
                    dealt = (shard.rows[0] // rows * num_cut + cut) * num_groups + peer
                    positions.append(num_groups * num_features + dealt)
        return positions

    def _dealt_by_rows(self, held: Segments) -> Segments:
        """Segments (block of rows, cut feature, peer): the ids in each block, counted from its first row."""
        cut = held.select(self._cut_order)
        assert cut.lengths is not None
        block_sizes = [rows for _, rows in self._cut_features]
        lengths, ids, weights, *_ = torch.ops.fbgemm.block_bucketize_sparse_features(
            cut.lengths,
            cut.ids,
            bucketize_pos=False,
            sequence=False,
            block_sizes=torch.tensor(block_sizes, dtype=cut.ids.dtype, device=cut.ids.device),
            my_size=self.topology.num_seats,
            weights=cut.weights,
        )
        return Segments(ids, lengths, weights, list(cut.bag_counts) * self.topology.num_seats)

    def _group_lengths(self, held: Segments) -> Tensor | None:
        if held.lengths is None:
            return None
        lengths = Segments(held.lengths, None, None, held.bag_counts).select(self._length_order).ids
        return lengths.view(len(self._tower_order), -1)


def _chunks(values: Sequence[int], sizes: Sequence[int]) -> list[Sequence[int]]:
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return [values[start : start + size] for start, size in zip(starts, sizes, strict=True)]
