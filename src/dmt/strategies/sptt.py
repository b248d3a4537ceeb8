"""SPTT, the semantic-preserving tower transform (paper section 3.1, figure 7).

The stage below computes what :class:`~dmt.modules.stage.TowerStage` computes. Letters (a) to (f) are the
paper's steps.

Shapes: B samples of this rank, G ranks, S seats of a host group, P host groups, R all samples of the step
(sum of B over ranks), Q samples of this rank's peers, itself included, W_s columns that seat s looks up, W_t columns
that tower t reads, O_g outputs of group g's towers, O outputs, D output dim.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import accumulate

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dmt.modules.bags import bag_offsets
from dmt.modules.columns import ColumnBlock, ColumnRoute
from dmt.modules.embeddings import FusedEmbeddingBags
from dmt.modules.shards import ShardedState, TensorShard, copy_into_shards
from dmt.modules.stage import Pending, TowerStage, run_towers, tower_inputs, tower_mean_pooling, tower_modules
from dmt.strategies.collectives import Hop, InFlight, RowExchange
from dmt.strategies.id_distribution import IdDistribution, IdHops, LookupIds
from dmt.strategies.meter import WireMeter
from dmt.strategies.placement import place
from dmt.strategies.stage import Distribution, ShardedStage, table_costs, wire_id_dtype
from dmt.strategies.topology import Topology
from dmt.strategies.wire import FLOAT32, WirePrecision, wire_format


@dataclass(frozen=True)
class ProcessGroups:
    """The process groups of a rank. A group of one rank is ``None``: nothing is ever sent in it.

    Ids have groups of their own: they travel while embeddings do.
    """

    world: dist.ProcessGroup | None
    host_group: dist.ProcessGroup | None
    peers: dist.ProcessGroup | None
    id_host_group: dist.ProcessGroup | None
    id_peers: dist.ProcessGroup | None

    @classmethod
    def create(cls, topology: Topology, *, timeout: timedelta) -> "ProcessGroups":
        """Create all groups; every rank must call it, at the same point."""

        def subgroup(rank_lists: list[list[int]]) -> dist.ProcessGroup | None:
            if len(rank_lists[0]) == 1:
                return None
            return dist.new_subgroups_by_enumeration(rank_lists, timeout=timeout)[0]

        members = [topology.members(group=g) for g in range(topology.num_groups)]
        peers = [topology.peers(seat=s) for s in range(topology.num_seats)]
        return cls(
            world=dist.group.WORLD if topology.world_size > 1 else None,
            host_group=subgroup(members),
            peers=subgroup(peers),
            id_host_group=subgroup(members),
            id_peers=subgroup(peers),
        )


class SpttStage(ShardedStage):
    """A tower stage whose towers live on host groups and whose tables are cut over the group's ranks.

    Parameters keep the plain stage's names, each on the ranks that hold it: a shard of a table on one rank, a tower
    module on all ranks of its host group. A loss must reach tower parameters through the stage's output only: a term
    of their own, such as a penalty, would be counted once for each rank of the group. Decay them in the optimiser.

    Args:
        stage: the plain stage, built under ``deferred_tables()``.
        topology: hosts and ranks.
        groups: the process groups for it.
        rank: this rank.
        device: where tables and batches are.
        sharding: how tables are cut inside a host group; see :func:`~dmt.strategies.placement.place`.
        rank_memory_bytes: what a rank can hold of tables; ``None`` for no limit.
        forward_precision: of tower outputs between hosts.
        backward_precision: of their gradients.
    """

    strategy_name = "sptt"

    def __init__(
        self,
        stage: TowerStage,
        *,
        topology: Topology,
        groups: ProcessGroups,
        rank: int,
        device: torch.device,
        sharding: str | Mapping[str, str] = "auto",
        rank_memory_bytes: int | None = None,
        forward_precision: WirePrecision = "fp32",
        backward_precision: WirePrecision = "fp32",
    ) -> None:
        super().__init__()
        self.topology, self.groups, self.device = topology, groups, device
        self.group, self.seat = topology.group(rank), topology.seat(rank)
        self.placement = place(
            table_costs(stage), stage.plan.towers, topology, sharding=sharding, rank_memory_bytes=rank_memory_bytes
        )
        self.out_features, self.out_dim = stage.out_features, stage.out_dim
        self.forward_precision: WirePrecision = forward_precision
        self.backward_precision: WirePrecision = backward_precision
        with device:
            self.embeddings = FusedEmbeddingBags(
                self.placement.rank_shards[rank], optimizer=stage.embeddings.optimizer, seed=stage.embeddings.seed
            )
        self.feature_keys = list(stage.schema.feature_names)
        self._make_hops(stage, rank)
        self._make_towers(stage)
        copy_into_shards(self.stage_state(), stage.embeddings.state_dict(prefix="embeddings."))
        self._share_initial_towers()

    def _make_hops(self, stage: TowerStage, rank: int) -> None:
        self.meter = WireMeter(self.topology, rank)
        members, peers = self.topology.members(group=self.group), self.topology.peers(seat=self.seat)

        def hop(purpose: str, ranks: Sequence[int], group: dist.ProcessGroup | None) -> Hop:
            return Hop(purpose, ranks, group, self.meter)

        self._inside = hop("embeddings_group", members, self.groups.host_group)
        self._across = hop("embeddings_peer", peers, self.groups.peers)
        self.id_distribution = IdDistribution(
            schema=stage.schema,
            towers=[[feature.name for feature in own] for own in stage.tower_features],
            placement=self.placement,
            topology=self.topology,
            rank=rank,
            hops=IdHops(
                world=self.groups.world,
                peer_ids=hop("ids_peer", peers, self.groups.id_peers),
                peer_lengths=hop("lengths_peer", peers, self.groups.id_peers),
                seat_ids=hop("ids_group", members, self.groups.id_host_group),
                seat_lengths=hop("lengths_group", members, self.groups.id_host_group),
            ),
            id_dtype=wire_id_dtype(stage),
            device=self.device,
        )

    def _make_towers(self, stage: TowerStage) -> None:
        towers = self.placement.group_towers(self.group)
        self.towers = nn.ModuleDict({str(tower): stage.towers[tower] for tower in towers})
        features = [stage.tower_features[tower] for tower in towers]
        self._mean_pooling = tower_mean_pooling(features)
        self._tower_shapes = [stage.tower_shapes[tower] for tower in towers]
        ends = list(accumulate(len(own) for own in features))
        self._length_rows = [slice(end - len(own), end) for own, end in zip(features, ends, strict=True)]
        members = self.topology.members(group=self.group)
        seats = [
            [ColumnBlock(name, *shard.columns) for name, shard in self.placement.lookups(member)] for member in members
        ]
        self._seat_widths = [sum(block.width for block in blocks) for blocks in seats]
        self._route_inside = ColumnRoute(seats, [[feature.block for feature in own] for own in features])
        outputs = [ColumnBlock(str(t), 0, m.out_features * m.out_dim) for t, m in enumerate(stage.tower_modules)]
        by_group = [self.placement.group_towers(group) for group in range(self.topology.num_groups)]
        self._group_outputs = [sum(stage.tower_modules[t].out_features for t in group) for group in by_group]
        self._route_across = ColumnRoute(
            [[outputs[tower] for tower in group] for group in by_group],
            [outputs],
            gradient_scale=1 / self.topology.world_size,
        )
        self._tower_reduction: InFlight | None = None

    def _share_initial_towers(self) -> None:
        """Start every rank of the group from its first seat's tower modules, buffers too, whatever their seeds were."""
        self.towers.to(self.device)
        if self.groups.host_group is not None:
            first = self.topology.members(group=self.group)[0]
            for tensor in [*self.towers.parameters(), *self.towers.buffers()]:
                dist.broadcast(tensor.detach(), src=first, group=self.groups.host_group)

    # (a) and (c): ids to the ranks that look them up, sources in peer order.

    def distribute(self, features: KeyedJaggedTensor) -> Distribution:
        return self.id_distribution.steps(features)

    def compute(self, distributed: LookupIds) -> Pending:
        """(b) to (f): look up, exchange inside the group, run the towers, send their outputs to the samples' ranks."""
        rows_by_seat = self._rows_by_seat(distributed.batch_sizes)
        pooled = self._exchange_inside(self._look_up(distributed), rows_by_seat)
        outputs = self._run_towers(pooled, distributed.group_lengths, rows_by_seat[self.seat])
        return self._exchange_across(outputs, distributed.batch_sizes)

    def _rows_by_seat(self, batch_sizes: Sequence[int]) -> list[int]:
        """Samples of all ranks with each seat."""
        seats = range(self.topology.num_seats)
        return [sum(batch_sizes[rank] for rank in self.topology.peers(seat=seat)) for seat in seats]

    # (b): this rank's shards, for all samples of the step.

    def _look_up(self, found: LookupIds) -> Tensor:
        """(R, W_s) in peer order."""
        if not self.embeddings.shards:
            # Without shards it must still take part in the backward collectives.
            grad = torch.is_grad_enabled()
            return torch.zeros(sum(found.batch_sizes), 0, device=self.device, requires_grad=grad)
        return self.embeddings(found.ids, bag_offsets(found.ids, found.lengths), found.weights)

    # (d): within the host group, so that every rank holds all of the group's features for its peers' samples.
    # (e) is fused into it: what arrives from a seat is (Q, W_s) with the samples by peer.

    def _exchange_inside(self, pooled: Tensor, rows_by_seat: Sequence[int]) -> Tensor:
        """(R, W_s) -> (Q, W_s) of each seat s, one after the other, for the samples of my peers.

        A ReduceScatter of row-wise shards is this AlltoAll and the sum in :class:`ColumnRoute`: the same bytes, in
        one collective with the other shards' columns, and for any number of samples.
        """
        exchange = RowExchange(
            self._inside,
            send_rows=[rows * pooled.shape[1] for rows in rows_by_seat],
            receive_rows=[rows_by_seat[self.seat] * width for width in self._seat_widths],
            width=1,
            forward_format=FLOAT32,
            backward_format=FLOAT32,
        )
        received = exchange.wait(exchange.start(pooled.reshape(-1, 1)))
        if not self._inside.is_local and received.requires_grad:
            received.register_hook(lambda _: self._start_reduction())  # once its gradient, and so the towers', is there
        return received

    def _run_towers(self, pooled: Tensor, group_lengths: Tensor | None, num_rows: int) -> Tensor:
        """(Q, W_s) of each seat, one after the other -> (Q, O_g, D)."""
        if not self.towers:
            return torch.zeros(num_rows, 0, self.out_dim, device=self.device, requires_grad=torch.is_grad_enabled())
        columns = self._route_inside(pooled, num_rows=num_rows)
        inputs = tower_inputs(columns, group_lengths, self._length_rows, self._mean_pooling, self._tower_shapes)
        # float32 on the wire: under autocast some towers come out in bf16 and some, or none, in float32, and all
        # ranks of the next exchange must send the same type.
        return run_towers(tower_modules(self.towers.values()), inputs).float()

    # (f): back to the ranks that own the samples, peers only.

    def _exchange_across(self, outputs: Tensor, batch_sizes: Sequence[int]) -> Pending:
        """(Q, O_g, D) -> (B, O, D) in plan order."""
        peers = self.topology.peers(seat=self.seat)
        batch_size = batch_sizes[peers[self.group]]
        # A gradient of a mean over the batch is that much smaller than one of a sample: fp16 needs it back.
        scale = 2.0 ** (max(sum(batch_sizes), 1) - 1).bit_length()
        exchange = RowExchange(
            self._across,
            send_rows=[batch_sizes[peer] * self._group_outputs[self.group] for peer in peers],
            receive_rows=[batch_size * outputs_of_group for outputs_of_group in self._group_outputs],
            width=self.out_dim,
            forward_format=wire_format(self.forward_precision),
            backward_format=wire_format(self.backward_precision, scale=scale),
        )
        token = exchange.start(outputs.reshape(-1, self.out_dim))
        return _Outputs(self, exchange, token, batch_size)

    def assemble(self, rows: Tensor, batch_size: int) -> Tensor:
        """Vectors (group, sample, output) of width D -> (B, O, D) in plan order."""
        shape = (batch_size, self.out_features, self.out_dim)
        if self.topology.num_groups == 1:  # all towers are here, in plan order
            if rows.requires_grad:
                rows.register_hook(lambda gradient: gradient * (1 / self.topology.world_size))
            return rows.view(shape)
        [ordered] = self._route_across(rows, num_rows=batch_size)
        return ordered.view(shape)

    def set_learning_rate(self, learning_rate: float) -> None:
        self.embeddings.set_learning_rate(learning_rate)

    def _start_reduction(self) -> None:
        """Begin to sum the tower modules' gradients over the host group, in one all-reduce and never across groups.

        Autograd calls it when the towers' gradients are complete; what is left of backward goes on meanwhile. The
        group's ranks together saw every sample's tower once, each gradient already divided by G, so the sum is the
        gradient of the global mean.
        """
        gradients = [p.grad for p in self.towers.parameters() if p.grad is not None]
        if self.groups.host_group is None or not gradients:
            return
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        work = dist.all_reduce(flat, group=self.groups.host_group, async_op=True)
        self.meter.add_ring("tower_gradients", self.topology.members(group=self.group), flat.nbytes)
        self._tower_reduction = InFlight(flat, [work], "tower_gradients", self.meter)

    def reduce_gradients(self) -> None:
        """Put the sums over the host group in the place of the tower modules' gradients."""
        if self._tower_reduction is None:
            # No gradient has come to the embeddings: towers that detach their input, or embeddings that need none. So
            # it is on all ranks of the group, which run the same towers, and no exchange of theirs is under way now.
            self._start_reduction()
        if self._tower_reduction is None:
            return
        flat = self._tower_reduction.wait()
        self._tower_reduction = None
        gradients = [p.grad for p in self.towers.parameters() if p.grad is not None]
        for gradient, piece in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(piece.view_as(gradient))

    def rank_local_names(self) -> list[str]:
        return [name for name, _ in [*self.named_parameters(), *self.named_buffers()]]

    def stage_state(self) -> ShardedState:
        tables = {f"embeddings.{name}": shards for name, shards in self.embeddings.sharded_state().items()}
        towers = self.towers.state_dict(prefix="towers.")
        return tables | {name: [TensorShard.whole(tensor)] for name, tensor in towers.items()}


@dataclass(frozen=True)
class _Outputs(Pending):
    """Tower outputs on their way to the ranks that own the samples."""

    stage: SpttStage
    exchange: RowExchange
    token: Tensor
    batch_size: int

    @torch.compiler.disable
    def wait(self) -> Tensor:
        return self.stage.assemble(self.exchange.wait(self.token), self.batch_size)
