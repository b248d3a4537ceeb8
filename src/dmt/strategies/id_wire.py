"""Ids between hosts: each feature's in the narrowest type that names the rows of its table.

Shapes: F features, V ids.
"""

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor

from dmt.strategies.collectives import Hop, InFlight

_NARROW = ((2**8, torch.uint8), (2**16, torch.uint16), (2**31, torch.int32))


def wire_dtype(num_embeddings: int, *, device_type: str) -> torch.dtype:
    """The type that ids of a table travel in between hosts.

    On a GPU no less than int32: to refuse an id that would wrap in a narrower type is to look at it, which would wait
    for the device; see :func:`narrowed`.
    """
    fitting = [dtype for size, dtype in _NARROW if num_embeddings <= size]
    dtype = fitting[0] if fitting else torch.int64
    return dtype if device_type == "cpu" or dtype.itemsize >= 4 else torch.int32


def narrowed(ids: Tensor, dtype: torch.dtype) -> Tensor:
    """Ids in a narrower type.

    On the CPU they have been checked. On a GPU one that could wrap becomes -1, which the lookup's own check refuses.
    """
    if not ids.is_cpu and dtype.itemsize < ids.element_size():
        ids = torch.where((ids < 0) | (ids > torch.iinfo(dtype).max), -1, ids)
    return ids.to(dtype)


class IdWire:
    """Packs ids, and their weights where they have some, into one message of bytes, and unpacks it.

    Args:
        dtypes: what each of the F features' ids travel in. A run of the same type is converted in one go.
        id_dtype: what ids are unpacked to.
        weighted: whether each id has a float32 weight.
    """

    def __init__(self, dtypes: Sequence[torch.dtype], *, id_dtype: torch.dtype, weighted: bool) -> None:
        self.id_dtype, self._weighted = id_dtype, weighted
        self._runs = [(dtype, len(list(run))) for dtype, run in groupby(dtypes)]

    def _run_counts(self, counts: Sequence[int]) -> list[int]:
        """Ids of each run, from those of each feature."""
        totals, start = [], 0
        for _, length in self._runs:
            totals.append(sum(counts[start : start + length]))
            start += length
        return totals

    def _sizes(self, counts: Sequence[int]) -> list[int]:
        """Bytes of each run, and of the weights."""
        sizes = [n * dtype.itemsize for n, (dtype, _) in zip(self._run_counts(counts), self._runs, strict=True)]
        return [*sizes, 4 * sum(counts) * self._weighted]

    def num_bytes(self, counts: Sequence[int]) -> int:
        """Bytes of a message, from the ids of each feature."""
        return sum(self._sizes(counts))

    def pack(self, ids: Tensor, weights: Tensor | None, counts: Sequence[int]) -> list[Tensor]:
        """The parts of a message, uint8.

        Args:
            ids: (V,), feature-major.
            weights: (V,) or ``None``.
            counts: ids of each feature.
        """
        pieces = ids.split(self._run_counts(counts))
        parts = [narrowed(piece, dtype).view(torch.uint8) for piece, (dtype, _) in zip(pieces, self._runs, strict=True)]
        return parts if weights is None else [*parts, weights.view(torch.uint8)]

    def unpack(self, message: Tensor, counts: Sequence[int]) -> tuple[list[Tensor], Tensor | None]:
        """The inverse of :meth:`pack`: parts that together are the ids (V,), and the weights (V,)."""
        *pieces, weights = message.split(self._sizes(counts))
        ids = [_read(piece, dtype).to(self.id_dtype) for piece, (dtype, _) in zip(pieces, self._runs, strict=True)]
        return ids, _read(weights, torch.float32) if self._weighted else None


def _read(data: Tensor, dtype: torch.dtype) -> Tensor:
    """Bytes as another type, which can be read only from where its size divides the address."""
    return (data.clone() if data.storage_offset() % dtype.itemsize else data).view(dtype)


class IdMessages:
    """Packs one message for each rank of a hop, and unpacks what comes.

    Args:
        targets: the wire format of the message to each rank.
        own: that of every message to this rank.
    """

    def __init__(self, targets: Sequence[IdWire], own: IdWire) -> None:
        self._targets, self._own = targets, own

    def start(
        self,
        hop: Hop,
        ids: Tensor,
        weights: Tensor | None,
        *,
        send_counts: Sequence[Sequence[int]],
        receive_counts: Sequence[Sequence[int]],
    ) -> InFlight:
        """Put ids (and weights) on their way; counts are by rank and feature."""
        totals = [sum(counts) for counts in send_counts]
        weight_pieces = [None] * len(totals) if weights is None else weights.split(totals)
        pieces = zip(self._targets, ids.split(totals), weight_pieces, send_counts, strict=True)
        return hop.start(
            torch.cat([part for wire, own, weight, counts in pieces for part in wire.pack(own, weight, counts)]),
            send_sizes=[wire.num_bytes(counts) for wire, counts in zip(self._targets, send_counts, strict=True)],
            receive_sizes=[self._own.num_bytes(counts) for counts in receive_counts],
        )

    def finish(self, flying: InFlight, receive_counts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor | None]:
        """Ids and weights from each rank in turn."""
        messages = flying.wait().split([self._own.num_bytes(counts) for counts in receive_counts])
        unpacked = [self._own.unpack(m, counts) for m, counts in zip(messages, receive_counts, strict=True)]
        ids = [part for parts, _ in unpacked for part in parts]
        weights = [part for _, part in unpacked if part is not None]
        joined = torch.cat(ids) if ids else flying.received.new_empty(0, dtype=self._own.id_dtype)
        return joined, torch.cat(weights) if weights else None
