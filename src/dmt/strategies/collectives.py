"""Collectives that gradients pass through, and the count of bytes they put on the wire.

Everything the tower stage sends goes through :class:`Hop`, so the bytes counted here are the bytes sent.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from dmt.strategies.topology import Topology


@dataclass
class WireMeter:
    """Bytes this rank has sent to other ranks, by purpose and link.

    ``sent_bytes[purpose, "intra_host"]`` counts messages to ranks of the same host,
    ``sent_bytes[purpose, "cross_host"]`` those to other hosts. Nothing is counted for a rank's message to itself.
    """

    topology: Topology
    rank: int
    sent_bytes: Counter[tuple[str, str]] = field(default_factory=Counter)

    def add(self, purpose: str, ranks: Sequence[int], num_bytes: Sequence[int]) -> None:
        """Count ``num_bytes[i]`` sent to ``ranks[i]``."""
        for rank, size in zip(ranks, num_bytes, strict=True):
            if rank != self.rank and size:
                self.sent_bytes[purpose, self.topology.link(self.rank, rank)] += size


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

    def exchange(self, tensor: Tensor, *, send_sizes: Sequence[int], receive_sizes: Sequence[int]) -> Tensor:
        """AlltoAll of a flat tensor, without gradient.

        Args:
            tensor: (sum of ``send_sizes``,), the piece for each rank of the group in turn.
            send_sizes: elements for each rank.
            receive_sizes: elements from each rank.

        Returns:
            (sum of ``receive_sizes``,), the piece from each rank in turn.
        """
        if self.group is None:
            return tensor
        received = tensor.new_empty(sum(receive_sizes))
        dist.all_to_all_single(received, tensor.contiguous(), list(receive_sizes), list(send_sizes), group=self.group)
        self.meter.add(self.purpose, self.ranks, [size * tensor.element_size() for size in send_sizes])
        return received

    def exchange_rows(self, tensor: Tensor, *, send_sizes: Sequence[int], receive_sizes: Sequence[int]) -> Tensor:
        """:meth:`exchange` that gradients pass through, on their way back by the reverse AlltoAll.

        Every rank takes part in the backward collective, also one whose own piece needs no gradient.
        """
        if self.group is None:
            return tensor
        result: Tensor = _Exchange.apply(tensor, self, send_sizes, receive_sizes)
        return result


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, hop: Hop, send_sizes: Sequence[int], receive_sizes: Sequence[int]) -> Tensor:
        ctx.hop, ctx.send_sizes, ctx.receive_sizes = hop, send_sizes, receive_sizes
        return hop.exchange(tensor, send_sizes=send_sizes, receive_sizes=receive_sizes)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        # Forward and backward carry the same bytes; one key with a suffix keeps them apart.
        hop: Hop = ctx.hop
        back = Hop(f"{hop.purpose}_backward", hop.ranks, hop.group, hop.meter)
        return (
            back.exchange(gradient, send_sizes=ctx.receive_sizes, receive_sizes=ctx.send_sizes),
            None,
            None,
            None,
        )


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.scale, None


def scale_gradient(tensor: Tensor, scale: float) -> Tensor:
    """``tensor`` itself; its gradient is multiplied by ``scale`` on the way back."""
    result: Tensor = _ScaleGradient.apply(tensor, scale)
    return result


class PendingSizes:
    """Gathers one integer from every rank while other work goes on."""

    def __init__(self, *, world_size: int, device: torch.device) -> None:
        self.world_size, self.device = world_size, device
        self._sizes: list[Tensor] = []
        self._work: dist.Work | None = None

    def start(self, size: int) -> None:
        """Begin to gather; every rank calls it with its own ``size``."""
        own = torch.tensor([size], device=self.device)
        if self.world_size == 1:
            self._sizes = [own]
            return
        # Fresh tensors: an earlier gather that nobody waited for may still be writing to the last ones.
        self._sizes = [torch.empty_like(own) for _ in range(self.world_size)]
        self._work = dist.all_gather(self._sizes, own, async_op=True)

    def wait(self) -> list[int]:
        """The gathered integers, by rank."""
        if self._work is not None:
            self._work.wait()
            self._work = None
        return [int(size) for size in self._sizes]
