"""Bags of ids cut into segments, which collectives send and receive in one order and lookups want in another.

Shapes: n segments, V ids.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor


@dataclass(frozen=True)
class Segments:
    """Consecutive bags of ids, cut into segments.

    Args:
        ids: (V,).
        lengths: ids of each bag, one after the other; ``None`` when every bag holds exactly one.
        weights: (V,) or ``None``.
        bag_counts: bags of each segment.
    """

    ids: Tensor
    lengths: Tensor | None
    weights: Tensor | None
    bag_counts: Sequence[int]

    def id_counts(self) -> Tensor:
        """Ids of each segment: (n,) int64, on the device of the lengths."""
        counts = torch.tensor(self.bag_counts, dtype=torch.int64)
        if self.lengths is None:
            return counts
        ends = torch.cumsum(self.lengths, 0, dtype=torch.int64)
        ends = torch.cat([ends.new_zeros(1), ends])
        bounds = torch.cat([counts.new_zeros(1), counts.cumsum(0)]).to(ends.device)
        return ends[bounds].diff()

    def select(self, order: Sequence[int]) -> "Segments":
        """The segments at ``order``; one may be taken several times."""
        if list(order) == list(range(len(self.bag_counts))):
            return self
        index = torch.tensor(order, dtype=torch.int32, device=self.ids.device)
        bag_counts = [self.bag_counts[i] for i in order]
        select = partial(_select, index=index, counts=self.bag_counts, num_selected=sum(bag_counts))
        if self.lengths is None:
            ids = select(self.ids)
            return Segments(ids, None, None if self.weights is None else select(self.weights), bag_counts)
        lengths = select(self.lengths)
        _, ids, weights = torch.ops.fbgemm.permute_1D_sparse_data(index, self.id_counts(), self.ids, self.weights, None)
        return Segments(ids, lengths, weights, bag_counts)

    def joined(self, other: "Segments") -> "Segments":
        """These segments, then the other's; both with lengths or both without."""
        lengths = None if self.lengths is None or other.lengths is None else torch.cat([self.lengths, other.lengths])
        weights = None if self.weights is None or other.weights is None else torch.cat([self.weights, other.weights])
        return Segments(torch.cat([self.ids, other.ids]), lengths, weights, [*self.bag_counts, *other.bag_counts])

    def with_lengths(self) -> "Segments":
        """The same with lengths, ones where there were none."""
        if self.lengths is not None:
            return self
        ones = torch.ones(sum(self.bag_counts), dtype=torch.int32, device=self.ids.device)
        return Segments(self.ids, ones, self.weights, self.bag_counts)


def _select(values: Tensor, index: Tensor, counts: Sequence[int], *, num_selected: int) -> Tensor:
    """Segments of ``counts`` values each, at ``index``; ``num_selected`` values together."""
    if len(set(counts)) == 1:
        return values.view(len(counts), counts[0]).index_select(0, index).view(-1)
    sizes = torch.tensor(counts, dtype=torch.int64, device=values.device)
    # With their number, for which FBGEMM would wait for the GPU.
    selected: Tensor = torch.ops.fbgemm.permute_1D_sparse_data(index, sizes, values, None, num_selected)[1]
    return selected
