"""Adam for embedding tables on the CPU, where FBGEMM has none.

Shapes: B samples, F lookups, V ids, U different rows among them, W columns of a table.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from torch import Tensor
from torch.nn import functional as F
from torch.optim.adam import adam

from dmt.modules.kernels import fbgemm_tables

# Floats of a block of rows. Small enough that a block of weights, moments and gradients stays in a core's caches
# while a step passes over it several times; large enough that threads rarely wait for each other.
_BLOCK_FLOATS = 524_288


@dataclass(frozen=True)
class _Group:
    """The tables of one width, seen as one table.

    Args:
        tables: which they are, in the order of their rows.
        lookups: which of the F lookups read them, in order.
        weights: (R, W) rows of all of them.
        exp_avg: (R, W) mean gradients.
        exp_avg_sq: (R, W) mean squared gradients.
        positions: (F,) place of each lookup in ``lookups``, -1 for those of other groups.
    """

    tables: list[int]
    lookups: list[int]
    weights: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    positions: Tensor

    @property
    def width(self) -> int:
        return self.weights.shape[1]


class SparseAdamKernel:
    """Rows looked up take one step of ``torch.optim.Adam`` in backward; the others, and their moments, never move.

    That is what FBGEMM does on a GPU, and ``torch.optim.SparseAdam`` up to the place of eps (here it is added to
    the root of the *corrected* second moment). Gradients of a row that occurs several times are summed first. The
    bias correction counts all backward passes, whichever rows they reached.

    Args:
        sizes: rows and width of each table.
        table_of_lookup: which table each of the F lookups reads.
        learning_rate: step size.
        betas: decay of the two moments.
        eps: added to the root of the corrected second moment.
    """

    def __init__(
        self,
        sizes: Sequence[tuple[int, int]],
        table_of_lookup: Sequence[int],
        *,
        learning_rate: float,
        betas: tuple[float, float],
        eps: float,
    ) -> None:
        self._learning_rate = learning_rate
        self._betas = betas
        self._eps = eps
        self.step: Tensor | None = torch.zeros((), dtype=torch.int64)
        self._widths = [sizes[table][1] for table in table_of_lookup]
        # Tables of one width lie side by side in FBGEMM's storage and are updated as one.
        stored = sorted(range(len(sizes)), key=lambda table: sizes[table][1])
        self._tables = fbgemm_tables(
            [sizes[table] for table in stored],
            [stored.index(table) for table in table_of_lookup],
            options={"optimizer": EmbOptimType.EXACT_SGD},  # it has no state; its backward is never asked for
            device=torch.device("cpu"),
        )
        self._groups = _make_groups(self._tables.weights_host.detach(), sizes, table_of_lookup)
        self.weights = [torch.empty(0)] * len(sizes)
        self.states = {"exp_avg": list(self.weights), "exp_avg_sq": list(self.weights)}
        first_rows = [0] * len(sizes)
        for group in self._groups:
            start = 0
            for table in group.tables:
                own = slice(start, start + sizes[table][0])
                self.weights[table] = group.weights[own]
                self.states["exp_avg"][table] = group.exp_avg[own]
                self.states["exp_avg_sq"][table] = group.exp_avg_sq[own]
                first_rows[table], start = own.start, own.stop
        self._first_rows = torch.tensor([first_rows[table] for table in table_of_lookup])

    def __call__(self, indices: Tensor, offsets: Tensor, factors: Tensor | None) -> Tensor:
        # Something has to require a gradient for autograd to call back; no table does.
        anchor = torch.empty(0, requires_grad=True)
        output: Tensor = _Lookup.apply(anchor, self, indices, offsets, factors)
        return output

    def lookup(self, indices: Tensor, offsets: Tensor, factors: Tensor | None) -> Tensor:
        """(V,) ids, (F*B + 1,) offsets, (V,) factors of ids -> (B, sum of the lookups' widths), without a graph."""
        with torch.no_grad():
            output: Tensor = self._tables(indices, offsets, factors)
        return output

    @torch.no_grad()  # also where backward runs with create_graph
    def update(self, gradient: Tensor, indices: Tensor, offsets: Tensor, factors: Tensor | None) -> None:
        """One step for the rows of a lookup, given the gradient of what it returned."""
        assert self.step is not None
        self.step += 1
        if not indices.numel():
            return
        batch_size = (offsets.numel() - 1) // len(self._widths)
        bags = torch.arange(offsets.numel() - 1, device=offsets.device).repeat_interleave(
            offsets.diff(), output_size=indices.numel()
        )
        lookups, samples = bags // batch_size, bags % batch_size  # (V,) each: bags are lookup-major
        rows = indices + self._first_rows[lookups]
        blocks = gradient.split(self._widths, dim=1)
        for group in self._groups:
            is_all = len(group.lookups) == len(self._widths)
            ids = slice(None) if is_all else (group.positions[lookups] >= 0).nonzero().view(-1)
            own = gradient if is_all else torch.cat([blocks[index] for index in group.lookups], dim=1)  # (B, F_g*W)
            slots = samples[ids] * len(group.lookups) + group.positions[lookups[ids]]
            own_factors = None if factors is None else factors[ids]
            self._update_group(group, own.reshape(-1, group.width), slots, rows[ids], own_factors)

    def _update_group(
        self, group: _Group, gradients: Tensor, slots: Tensor, rows: Tensor, factors: Tensor | None
    ) -> None:
        """Step ``group`` on ``rows[i]``, whose gradient is ``factors[i] * gradients[slots[i]]``, for all V_g i."""
        # Stable, so that a row's gradients are always summed in the same order.
        rows, order = rows.sort(stable=True)
        slots = slots[order]
        factors = None if factors is None else factors[order]
        is_first = torch.ones_like(rows, dtype=torch.bool)
        torch.ne(rows[1:], rows[:-1], out=is_first[1:])
        starts = is_first.nonzero().view(-1)  # (U,)
        block_rows = max(_BLOCK_FLOATS // group.width, 1)
        bounds = [*starts[::block_rows].tolist(), rows.numel()]
        for part, start, stop in zip(starts.split(block_rows), bounds, bounds[1:], strict=False):
            own = slice(start, stop)
            summed = F.embedding_bag(
                slots[own],
                gradients,
                part - start,
                mode="sum",
                per_sample_weights=None if factors is None else factors[own],
            )
            self._step_rows(group, rows[part], summed)

    def _step_rows(self, group: _Group, rows: Tensor, gradient: Tensor) -> None:
        """One Adam step on (U',) different rows, given their (U', W) gradient."""
        assert self.step is not None
        stored = (group.weights, group.exp_avg, group.exp_avg_sq)
        weights, exp_avg, exp_avg_sq = (tensor[rows] for tensor in stored)
        adam(
            [weights],
            [gradient],
            [exp_avg],
            [exp_avg_sq],
            [],
            [(self.step - 1).float()],  # torch counts up before it steps
            fused=True,
            amsgrad=False,
            beta1=self._betas[0],
            beta2=self._betas[1],
            lr=self._learning_rate,
            weight_decay=0.0,
            eps=self._eps,
            maximize=False,
        )
        for tensor, values in zip(stored, (weights, exp_avg, exp_avg_sq), strict=True):
            tensor.index_copy_(0, rows, values)

    def set_learning_rate(self, learning_rate: float) -> None:
        self._learning_rate = learning_rate

    def get_learning_rate(self) -> float:
        return self._learning_rate


def _make_groups(flat: Tensor, sizes: Sequence[tuple[int, int]], table_of_lookup: Sequence[int]) -> list[_Group]:
    """The groups by rising width, given one storage of all tables' weights in that order."""
    groups = []
    for width in sorted({width for _, width in sizes}):
        tables = [table for table, (_, own) in enumerate(sizes) if own == width]
        lookups = [index for index, table in enumerate(table_of_lookup) if table in tables]
        positions = torch.full((len(table_of_lookup),), -1)
        positions[lookups] = torch.arange(len(lookups))
        num_rows = sum(sizes[table][0] for table in tables)
        own, flat = flat.tensor_split([num_rows * width])
        weights = own.view(num_rows, width)
        groups.append(_Group(tables, lookups, weights, torch.zeros_like(weights), torch.zeros_like(weights), positions))
    return groups


class _Lookup(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, anchor: Tensor, kernel: SparseAdamKernel, indices: Tensor, offsets: Tensor, factors: Tensor | None
    ) -> Tensor:
        ctx.kernel = kernel
        ctx.save_for_backward(indices, offsets, factors)
        return kernel.lookup(indices, offsets, factors)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, ...]:
        ctx.kernel.update(gradient, *ctx.saved_tensors)
        return None, None, None, None, None
