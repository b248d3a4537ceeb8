"""Collectives that gradients pass through, each counting the bytes it puts on the wire.

Everything SPTT's tower stage sends goes through :class:`Hop`, so the bytes counted here are the bytes sent.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from dmt.strategies.meter import WireMeter
from dmt.strategies.wire import WireFormat


@dataclass
class InFlight:
    """A collective under way."""

    received: Tensor
    works: list[dist.Work]
    purpose: str
    meter: WireMeter

    def wait(self) -> Tensor:
        """What this rank receives, once it is there."""
        if self.works:
            with self.meter.waiting(self.purpose):
                for work in self.works:
                    work.wait()
            self.works = []
        return self.received


@dataclass(frozen=True)
class Hop:
    """One AlltoAll of the tower stage: its process group, the global ranks in it, and what it carries.

    Args:
        purpose: key under which :class:`WireMeter` counts the bytes.
        ranks: global ranks of the group, in the group's order.
        group: the process group; ``None`` when it has one rank, and then nothing is sent.
        meter: where to count.
    """

    purpose: str
    ranks: Sequence[int]
    group: dist.ProcessGroup | None
    meter: WireMeter

    @property
    def is_local(self) -> bool:
        """Whether the group is this rank alone."""
        return self.group is None

    @property
    def crosses_hosts(self) -> bool:
        """Whether ranks of the group are on several hosts."""
        return len({self.meter.topology.host(rank) for rank in self.ranks}) > 1

    def start(self, tensor: Tensor, *, send_sizes: Sequence[int], receive_sizes: Sequence[int]) -> InFlight:
        """Begin an AlltoAll of a flat tensor, without gradient.

        Args:
            tensor: (sum of ``send_sizes``,), the piece for each rank of the group in turn.
            send_sizes: elements for each rank.
            receive_sizes: elements from each rank.

        Returns:
            What becomes (sum of ``receive_sizes``,), the piece from each rank in turn.
        """
        if self.group is None:
            return InFlight(tensor, [], self.purpose, self.meter)
        received = tensor.new_empty(sum(receive_sizes))
        if tensor.is_cpu and self.crosses_hosts:
            works = self._start_by_pairs(tensor.split(list(send_sizes)), received.split(list(receive_sizes)))
        else:
            work = dist.all_to_all_single(
                received, tensor, list(receive_sizes), list(send_sizes), group=self.group, async_op=True
            )
            works = [work]
        self.meter.add(self.purpose, self.ranks, [size * tensor.element_size() for size in send_sizes])
        return InFlight(received, works, self.purpose, self.meter)

    def _start_by_pairs(self, sent: Sequence[Tensor], received: Sequence[Tensor]) -> list[dist.Work]:
        """The same AlltoAll by point-to-point messages, of which all that this rank receives come first.

        gloo sends nothing before the receiver has said that it is ready. Its own AlltoAll says so after it has begun
        to send, so the word waits behind the data, and the two directions of a slow link take turns. On fast links
        its AlltoAll costs less. ``benchmarks/relatives.py`` shows both.
        """
        own = self.ranks.index(dist.get_rank())
        others = [(own + step) % len(self.ranks) for step in range(1, len(self.ranks))]
        works = [dist.irecv(received[i], self.ranks[i], group=self.group) for i in others if received[i].numel()]
        works += [dist.isend(sent[i], self.ranks[i], group=self.group) for i in others if sent[i].numel()]
        received[own].copy_(sent[own])
        return [work for work in works if work is not None]

    def back(self) -> "Hop":
        """The same hop for gradients, counted under a key of its own."""
        return Hop(f"{self.purpose}_backward", self.ranks, self.group, self.meter)


class RowExchange:
    """One AlltoAll of rows that gradients pass through, on their way back by the reverse AlltoAll.

    Both ways can be left running while other work goes on: forward between :meth:`start` and :meth:`wait`, backward
    between the same two points in reverse, where autograd runs what was recorded between them. Every rank takes
    part in the backward collective, also one whose own piece needs no gradient.

    Args:
        hop: where rows go.
        send_rows: rows for each rank of the hop.
        receive_rows: rows from each rank.
        width: columns of a row.
        forward_format: how rows travel.
        backward_format: how their gradients do.
    """

    def __init__(
        self,
        hop: Hop,
        *,
        send_rows: Sequence[int],
        receive_rows: Sequence[int],
        width: int,
        forward_format: WireFormat,
        backward_format: WireFormat,
    ) -> None:
        self.hop, self.width = hop, width
        self.send_rows, self.receive_rows = send_rows, receive_rows
        self.forward_format, self.backward_format = forward_format, backward_format
        self._flying: InFlight | None = None

    def start(self, rows: Tensor) -> Tensor:
        """Send float32 (sum of ``send_rows``, width); returns a token for :meth:`wait`."""
        if self.hop.is_local:
            return rows
        token: Tensor = _Start.apply(rows, self)
        return token

    def wait(self, token: Tensor) -> Tensor:
        """(sum of ``receive_rows``, width)."""
        if self.hop.is_local:
            return token
        rows: Tensor = _Wait.apply(token, self)
        return rows

    def send(self, rows: Tensor) -> None:
        """Put rows on the way."""
        self._flying = self._start(self.hop, self.forward_format, rows, send=self.send_rows, receive=self.receive_rows)

    def receive(self) -> Tensor:
        """Take delivery of the rows."""
        return self._take(self.forward_format)

    def send_back(self, gradient: Tensor) -> None:
        """Put the gradient of the received rows on the way."""
        self._flying = self._start(
            self.hop.back(), self.backward_format, gradient, send=self.receive_rows, receive=self.send_rows
        )

    def receive_back(self) -> Tensor:
        """Take delivery of the gradient of the sent rows."""
        return self._take(self.backward_format)

    def _start(
        self, hop: Hop, wire: WireFormat, rows: Tensor, *, send: Sequence[int], receive: Sequence[int]
    ) -> InFlight:
        row_size = wire.row_size(self.width)
        return hop.start(
            wire.encode(rows).reshape(-1),
            send_sizes=[n * row_size for n in send],
            receive_sizes=[n * row_size for n in receive],
        )

    def _take(self, wire: WireFormat) -> Tensor:
        assert self._flying is not None, "start runs before wait"
        received = self._flying.wait()
        self._flying = None
        return wire.decode(received.view(-1, wire.row_size(self.width)))


class _Start(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, exchange: RowExchange) -> Tensor:
        ctx.exchange = exchange
        exchange.send(rows)
        return rows.new_empty(0)

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> tuple[Tensor, None]:
        return ctx.exchange.receive_back(), None


class _Wait(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, token: Tensor, exchange: RowExchange) -> Tensor:
        ctx.exchange = exchange
        return exchange.receive()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        ctx.exchange.send_back(gradient)
        return gradient.new_empty(0), None


class PendingSizes:
    """Gathers one integer from every rank while other work goes on.

    Args:
        group: the ranks; ``None`` for this one alone.
        device: where the backend wants tensors.
        meter: counts the time spent waiting, though not these few bytes.
    """

    def __init__(self, size: int, *, group: dist.ProcessGroup | None, device: torch.device, meter: WireMeter) -> None:
        self.meter = meter
        own = torch.tensor([size], device=device)
        self._sizes, self._work = [own], None
        if group is not None:
            self._sizes = [torch.empty_like(own) for _ in range(group.size())]
            self._work = dist.all_gather(self._sizes, own, group=group, async_op=True)

    def wait(self) -> list[int]:
        """The gathered integers, by rank."""
        if self._work is not None:
            with self.meter.waiting("sizes"):
                self._work.wait()
            self._work = None
        return torch.cat(self._sizes).tolist()
