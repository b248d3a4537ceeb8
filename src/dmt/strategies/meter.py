"""Counts the bytes a rank puts on the wire, and the time in which it does nothing but wait for them."""

import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import Tensor

from dmt.strategies.dense import after_gradients
from dmt.strategies.topology import Topology


@dataclass
class WireMeter:
    """What this rank has sent to other ranks, by purpose and link, and how long it waited for them.

    ``sent_bytes[purpose, "intra_host"]`` counts bytes to ranks of the same host, ``sent_bytes[purpose,
    "cross_host"]`` those to other hosts; ``messages`` counts the ranks they went to. Nothing is counted for a rank's
    message to itself. ``waited_s[purpose]`` is the time in which the calling thread had nothing to do but wait; on
    CUDA, where waiting is left to the device, it stays near zero.
    """

    topology: Topology
    rank: int
    sent_bytes: Counter[tuple[str, str]] = field(default_factory=Counter)
    messages: Counter[tuple[str, str]] = field(default_factory=Counter)
    waited_s: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))

    def add(self, purpose: str, ranks: Sequence[int], num_bytes: Sequence[int]) -> None:
        """Count ``num_bytes[i]`` sent to ``ranks[i]``."""
        for rank, size in zip(ranks, num_bytes, strict=True):
            if rank != self.rank and size:
                key = purpose, self.topology.link(self.rank, rank)
                self.sent_bytes[key] += size
                self.messages[key] += 1

    def add_ring(self, purpose: str, ranks: Sequence[int], num_bytes: int) -> None:
        """Count an all-reduce of ``num_bytes`` as a ring in rank order: 2 (n-1)/n of them to the next rank."""
        following = ranks[(ranks.index(self.rank) + 1) % len(ranks)]
        self.add(purpose, [following], [2 * (len(ranks) - 1) * num_bytes // len(ranks)])

    def total_bytes(self, link: str) -> int:
        """Bytes sent on ``"intra_host"`` or ``"cross_host"`` links, for all purposes."""
        return sum(size for (_, where), size in self.sent_bytes.items() if where == link)

    @contextmanager
    def waiting(self, purpose: str) -> Iterator[None]:
        """Around code that only waits."""
        started = time.perf_counter()
        yield
        self.waited_s[purpose] += time.perf_counter() - started


class DenseReduction:
    """Counts what DistributedDataParallel sends in a training step, as a ring in rank order, and times its wait.

    It waits once all gradients are computed; see :func:`~dmt.strategies.dense.after_gradients`.

    Args:
        meter: where to count, under ``dense_gradients``.
        num_bytes: of all gradients that are reduced.
    """

    def __init__(self, meter: WireMeter, num_bytes: int) -> None:
        self.meter, self.num_bytes = meter, num_bytes
        self._computed_at: float | None = None

    def before_backward(self, loss: Tensor) -> None:
        """Note the time at which nothing is left of the coming backward pass but this wait."""
        after_gradients(loss, self._note_time)

    def _note_time(self) -> None:
        self._computed_at = time.perf_counter()

    def after_backward(self) -> None:
        """Count a step."""
        if self._computed_at is not None:
            self.meter.waited_s["dense_gradients"] += time.perf_counter() - self._computed_at
            self._computed_at = None
            self.meter.add_ring("dense_gradients", range(self.meter.topology.world_size), self.num_bytes)
