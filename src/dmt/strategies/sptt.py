"""SPTT, the semantic-preserving tower transform (paper section 3.1, figure 7), table-wise inside a host group.

The stage below computes what :class:`~dmt.modules.stage.TowerStage` computes. Letters (a) to (f) are the
paper's steps.

Shapes: B samples of this rank, G ranks, S seats of a host group, P host groups, R all samples of the step
(sum of B over ranks), Q samples of this rank's peers, itself included, F_r tables of this rank, F_t
features of tower t, N embedding dim, O outputs, D output dim.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dmt.errors import UserInputError
from dmt.modules.embeddings import FusedEmbeddingBags
from dmt.modules.stage import BagOrder, TowerStage, bag_offsets, run_towers, tower_modules
from dmt.strategies.collectives import Hop, PendingSizes, WireMeter, scale_gradient
from dmt.strategies.stage import ShardedStage, table_costs, take_over_tables, wire_id_dtype
from dmt.strategies.topology import Placement, Topology


@dataclass(frozen=True)
class ProcessGroups:
    """The process groups of a rank. A group of one rank is ``None``: nothing is ever sent in it."""

    world: dist.ProcessGroup | None
    host_group: dist.ProcessGroup | None
    peers: dist.ProcessGroup | None

    @classmethod
    def create(cls, topology: Topology, *, timeout: timedelta) -> "ProcessGroups":
        """Create all groups; every rank must call it, at the same point."""

        def subgroup(rank_lists: list[list[int]]) -> dist.ProcessGroup | None:
            if len(rank_lists[0]) == 1:
                return None
            return dist.new_subgroups_by_enumeration(rank_lists, timeout=timeout)[0]

        return cls(
            world=dist.group.WORLD if topology.world_size > 1 else None,
            host_group=subgroup([topology.members(group=g) for g in range(topology.num_groups)]),
            peers=subgroup([topology.peers(seat=s) for s in range(topology.num_seats)]),
        )


class SpttStage(ShardedStage):
    """A tower stage whose towers live on host groups and whose tables live on single ranks.

    Parameters keep the plain stage's names, each on the ranks that hold it: a table on one rank, a tower
    module on all ranks of its host group.

    Args:
        stage: the plain stage, built under ``deferred_tables()``.
        topology: hosts and ranks.
        groups: the process groups for it.
        rank: this rank.
        device: where tables and batches are.
    """

    strategy_name = "sptt"

    def __init__(
        self, stage: TowerStage, *, topology: Topology, groups: ProcessGroups, rank: int, device: torch.device
    ) -> None:
        super().__init__()
        self.topology, self.groups, self.device = topology, groups, device
        self.group, self.seat = topology.group(rank), topology.seat(rank)
        self.placement = Placement.balanced(table_costs(stage), topology)
        self.embedding_dim, self.out_dim = stage.embedding_dim, stage.out_dim
        self.out_features = stage.out_features
        self._batch_sizes: list[int] = []
        self._trained_batch_sizes: list[int] = []
        self._sizes = PendingSizes(world_size=topology.world_size, device=device)

        mine = self.placement.rank_tables[rank]
        tables = [table for table in stage.tables if table.name in mine]
        with device:
            self.embeddings = FusedEmbeddingBags(
                tables, optimizer=stage.embeddings.optimizer, seed=stage.embeddings.seed
            )
        sent_order = [name for tables_of_rank in self.placement.rank_tables for name in tables_of_rank]
        self.bag_order = BagOrder(stage.schema, sent_order)
        self.id_dtype = wire_id_dtype(stage)

        towers = self.placement.group_towers(self.group)
        self.towers = nn.ModuleDict({str(tower): stage.towers[tower] for tower in towers})
        self._tower_columns = [self._columns(stage.plan.towers[tower]) for tower in towers]
        self._group_outputs = [
            [stage.tower_modules[tower].out_features for tower in self.placement.group_towers(group)]
            for group in range(topology.num_groups)
        ]
        self._make_hops(rank)
        take_over_tables(self.stage_state(), stage)
        self._share_initial_towers()

    def _make_hops(self, rank: int) -> None:
        everyone = range(self.topology.world_size)
        self.meter = WireMeter(self.topology, rank)
        self._ids = Hop("ids", everyone, self.groups.world, self.meter)
        self._lengths = Hop("lengths", everyone, self.groups.world, self.meter)
        members = self.topology.members(group=self.group)
        self._inside = Hop("embeddings_intra", members, self.groups.host_group, self.meter)
        self._across = Hop("embeddings_peer", self.topology.peers(seat=self.seat), self.groups.peers, self.meter)

    def _share_initial_towers(self) -> None:
        """Start every rank of the group from its first seat's tower modules, whatever their seeds were."""
        self.towers.to(self.device)
        if self.groups.host_group is not None:
            first = self.topology.members(group=self.group)[0]
            for parameter in self.towers.parameters():
                dist.broadcast(parameter.data, src=first, group=self.groups.host_group)

    def _columns(self, features: Sequence[str]) -> list[tuple[int, int]]:
        """Where a tower's features arrive after step (d): (seat, position among that seat's tables)."""
        members = self.topology.members(group=self.group)
        owned = [self.placement.rank_tables[rank] for rank in members]
        return [(s, names.index(f)) for f in features for s, names in enumerate(owned) if f in names]

    def forward(self, features: KeyedJaggedTensor) -> Tensor:
        """(KeyedJaggedTensor of F keys, B samples) -> (B, O, D), towers in plan order."""
        ids, lengths = self._distribute_ids(features)
        pooled = self.embeddings(ids, bag_offsets(ids, lengths)) if self.embeddings.tables else self._no_rows()
        by_seat = self._exchange_inside(pooled)
        outputs = self._run_towers(by_seat)
        return scale_gradient(self._exchange_across(outputs), 1 / self.topology.world_size)

    # (a) and (c): ids of my tables, of all ranks' samples, sorted into peer order while they are still ids.

    def _distribute_ids(self, features: KeyedJaggedTensor) -> tuple[Tensor, Tensor | None]:
        """Ids (V,) and lengths (or ``None``) of the F_r own tables for all R samples in peer order."""
        ids, lengths = self.bag_order(features)
        batch_size = features.stride()
        self._sizes.start(batch_size)
        self._batch_sizes = self._sizes.wait()
        if torch.is_grad_enabled():
            self._trained_batch_sizes = self._batch_sizes
        tables_sent = [len(tables) for tables in self.placement.rank_tables]
        bags_sent = [num * batch_size for num in tables_sent]
        num_mine = len(self.embeddings.tables)
        bags_received = [num_mine * size for size in self._batch_sizes]
        ids = self._narrowed(ids)
        if lengths is None:
            received = self._ids.exchange(ids, send_sizes=bags_sent, receive_sizes=bags_received)
            return self._to_peer_order(received, [size for size in self._batch_sizes for _ in range(num_mine)]), None

        sent_lengths = lengths.reshape(-1).to(torch.int32)
        sent_ids = [int(piece.sum()) for piece in sent_lengths.split(bags_sent)]
        lengths = self._lengths.exchange(sent_lengths, send_sizes=bags_sent, receive_sizes=bags_received)
        bag_chunks = [size for size in self._batch_sizes for _ in range(num_mine)]
        id_chunks = [int(piece.sum()) for piece in lengths.split(bag_chunks)]
        received_ids = [sum(id_chunks[r * num_mine : (r + 1) * num_mine]) for r in range(self.topology.world_size)]
        ids = self._ids.exchange(ids, send_sizes=sent_ids, receive_sizes=received_ids)
        return self._to_peer_order(ids, id_chunks), self._to_peer_order(lengths, bag_chunks)

    def _narrowed(self, ids: Tensor) -> Tensor:
        """The ids in the type they travel in."""
        info = torch.iinfo(self.id_dtype)
        # An id that does not fit would wrap to a valid one; the lookup's own check would never see it. On a GPU a
        # look at the ids would wait for the device.
        if ids.is_cpu and ids.numel() and ids.dtype != self.id_dtype and int(ids.max()) > info.max:
            raise UserInputError(f"batch: id {int(ids.max())} is larger than any table; ids lie below num_embeddings")
        return ids.to(self.id_dtype)

    def _to_peer_order(self, flat: Tensor, chunk_sizes: list[int]) -> Tensor:
        """Chunks (source rank, own table) -> (own table, source rank in peer order), still flat."""
        num_ranks, num_mine = self.topology.world_size, len(self.embeddings.tables)
        if not chunk_sizes or num_ranks == 1:
            return flat
        if len(set(chunk_sizes)) == 1:
            # Equal chunks: one strided copy instead of G*F_r small ones.
            chunks = flat.view(self.topology.num_groups, self.topology.num_seats, num_mine, chunk_sizes[0])
            return chunks.permute(2, 1, 0, 3).reshape(-1)
        pieces = flat.split(chunk_sizes)
        order = [rank * num_mine + table for table in range(num_mine) for rank in self.topology.peer_order]
        return torch.cat([pieces[i] for i in order])

    def _no_rows(self) -> Tensor:
        """(R, 0) for a rank without tables: it must still take part in the backward collectives."""
        return torch.zeros(sum(self._batch_sizes), 0, device=self.device, requires_grad=torch.is_grad_enabled())

    # (d): within the host group, so that every rank holds all of the group's features for its peers' samples.

    def _exchange_inside(self, pooled: Tensor) -> list[Tensor]:
        """(R, F_r*N) in peer order -> from each seat s, (Q, F_s, N) for the samples of my peers."""
        members = self.topology.members(group=self.group)
        rows_by_seat = [self._peer_rows(seat) for seat in range(self.topology.num_seats)]
        widths = [len(self.placement.rank_tables[rank]) * self.embedding_dim for rank in members]
        receive_sizes = [rows_by_seat[self.seat] * width for width in widths]
        received = self._inside.exchange_rows(
            pooled.reshape(-1),
            send_sizes=[rows * pooled.shape[1] for rows in rows_by_seat],
            receive_sizes=receive_sizes,
        )
        shapes = [(rows_by_seat[self.seat], width // self.embedding_dim, self.embedding_dim) for width in widths]
        return [piece.view(shape) for piece, shape in zip(received.split(receive_sizes), shapes, strict=True)]

    def _peer_rows(self, seat: int) -> int:
        """Samples of all ranks with this seat."""
        return sum(self._batch_sizes[rank] for rank in self.topology.peers(seat=seat))

    # (e): the exchange above already delivers rows by peer, so shuffling is picking columns for each tower.

    def _run_towers(self, by_seat: list[Tensor]) -> Tensor:
        """From each seat (Q, F_s, N) -> (Q, outputs of the group's towers, D)."""
        if not self.towers:
            rows = self._peer_rows(self.seat)
            return torch.zeros(rows, 0, self.out_dim, device=self.device, requires_grad=torch.is_grad_enabled())
        inputs = [_pick(by_seat, columns) for columns in self._tower_columns]
        # float32 on the wire: under autocast some towers come out in bf16 and some, or none, in float32, and all
        # ranks of the next exchange must send the same type.
        return run_towers(tower_modules(self.towers.values()), inputs).float()

    # (f): back to the ranks that own the samples, peers only.

    def _exchange_across(self, outputs: Tensor) -> Tensor:
        """(Q, outputs of the group, D) -> (B, O, D) in plan order."""
        peers = self.topology.peers(seat=self.seat)
        batch_size = self._batch_sizes[peers[self.group]]
        group_widths = [sum(sizes) * self.out_dim for sizes in self._group_outputs]
        receive_sizes = [batch_size * width for width in group_widths]
        received = self._across.exchange_rows(
            outputs.reshape(-1),
            send_sizes=[self._batch_sizes[peer] * group_widths[self.group] for peer in peers],
            receive_sizes=receive_sizes,
        )
        tower_outputs: dict[int, Tensor] = {}
        for group, piece in enumerate(received.split(receive_sizes)):
            sizes = self._group_outputs[group]
            parts = piece.view(batch_size, sum(sizes), self.out_dim).split(sizes, dim=1)
            tower_outputs |= dict(zip(self.placement.group_towers(group), parts, strict=True))
        return torch.cat([tower_outputs[tower] for tower in sorted(tower_outputs)], dim=1)

    def set_learning_rate(self, learning_rate: float) -> None:
        self.embeddings.set_learning_rate(learning_rate)

    def batch_sizes(self) -> list[int]:
        return self._trained_batch_sizes

    def reduce_gradients(self) -> None:
        """Sum the tower modules' gradients over the host group, in one all-reduce and never across hosts.

        The group's ranks together saw every sample's tower once, each gradient already divided by G, so the
        sum is the gradient of the global mean.
        """
        gradients = [p.grad for p in self.towers.parameters() if p.grad is not None]
        if self.groups.host_group is None or not gradients:
            return
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        dist.all_reduce(flat, group=self.groups.host_group)
        for gradient, piece in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(piece.view_as(gradient))

    def rank_local_names(self) -> list[str]:
        return [name for name, _ in [*self.named_parameters(), *self.named_buffers()]]

    def stage_state(self) -> dict[str, Tensor]:
        return self.state_dict()


def _pick(by_seat: list[Tensor], columns: list[tuple[int, int]]) -> Tensor:
    """Columns (seat, position) of the seats' (Q, F_s, N) -> (Q, F_t, N), without a copy where they adjoin."""
    seat, start = columns[0]
    if columns == [(seat, start + i) for i in range(len(columns))]:
        return by_seat[seat][:, start : start + len(columns)]
    return torch.stack([by_seat[seat][:, position] for seat, position in columns], dim=1)
