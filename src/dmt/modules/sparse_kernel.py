"""Tables on the CPU whose rows this project updates in backward.

FBGEMM looks them up. Its own Adagrads on the CPU use one thread (``benchmarks/embedding_optimizers.py``), the row-wise
one is wrong above 4 GiB a table (its ``GenerateSparseAdaGrad<int>`` keeps a row's place in bytes in 32 bits), and there
is no Adam. (fbgemm-gpu 1.8.0.)

Shapes: B samples, F lookups, V ids, V_g ids of a group's lookups, U different rows among them, W columns of a table.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from torch import Tensor
from torch.nn import functional as F

from dmt.modules.kernels import fbgemm_tables

# Floats of a block of rows. Small enough that a block of weights, moments and gradients stays in a core's caches
# while a step passes over it several times; large enough that threads rarely wait for each other.
_BLOCK_FLOATS = 524_288


@dataclass(frozen=True)
class Group:
    """The tables of one width, seen as one table.

    Args:
        tables: which they are, in the order of their rows.
        lookups: which of the F lookups read them, in order.
        weights: (R, W) rows of all of them.
        positions: (F,) place of each lookup in ``lookups``, -1 for those of other groups.
    """

    tables: list[int]
    lookups: list[int]
    weights: Tensor
    positions: Tensor

    @property
    def width(self) -> int:
        return self.weights.shape[1]


@dataclass(frozen=True)
class Gradients:
    """Gradients of a group's rows, by occurrence: that of ``rows[i]`` is ``factors[i] * values[slots[i]]``.

    Args:
        rows: (V_g,) rows of the group's table.
        values: (B * lookups of the group, W).
        slots: (V_g,).
        factors: (V_g,), or ``None`` for ones.
    """

    rows: Tensor
    values: Tensor
    slots: Tensor
    factors: Tensor | None

    def by_row(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Block by block (U',) different rows in rising order, and (U', W) the sums of their gradients."""
        # Stable, so that a row's gradients are always summed in the same order.
        rows, order = self.rows.sort(stable=True)
        slots = self.slots[order]
        factors = None if self.factors is None else self.factors[order]
        is_first = torch.ones_like(rows, dtype=torch.bool)
        torch.ne(rows[1:], rows[:-1], out=is_first[1:])
        starts = is_first.nonzero().view(-1)  # (U,)
        block_rows = max(_BLOCK_FLOATS // self.values.shape[1], 1)
        bounds = [*starts[::block_rows].tolist(), rows.numel()]
        for part, start, stop in zip(starts.split(block_rows), bounds, bounds[1:], strict=False):
            own = slice(start, stop)
            summed = F.embedding_bag(
                slots[own],
                self.values,
                part - start,
                mode="sum",
                per_sample_weights=None if factors is None else factors[own],
            )
            yield rows[part], summed


class SparseKernel(ABC):
    """Looks rows up by FBGEMM's kernel; a subclass says which state rows have, and how backward changes them.

    Only rows that were looked up ever move. Gradients of a row that occurs several times are summed first.

    Args:
        sizes: rows and width of each table.
        table_of_lookup: which table each of the F lookups reads.
        learning_rate: step size.
        eps: added to the root of what squared gradients have come to.
    """

    step: Tensor | None

    def __init__(
        self, sizes: Sequence[tuple[int, int]], table_of_lookup: Sequence[int], *, learning_rate: float, eps: float
    ) -> None:
        self.learning_rate, self.eps = learning_rate, eps
        self.step = None
        self._sizes = sizes
        self._widths = [sizes[table][1] for table in table_of_lookup]
        # Tables of one width lie side by side in FBGEMM's storage and are updated as one.
        stored = sorted(range(len(sizes)), key=lambda table: sizes[table][1])
        self.tables = fbgemm_tables(
            [sizes[table] for table in stored],
            [stored.index(table) for table in table_of_lookup],
            options={"optimizer": EmbOptimType.EXACT_SGD},  # it has no state
            device=torch.device("cpu"),
        )
        self.groups = _make_groups(self.tables.weights_host.detach(), sizes, table_of_lookup)
        self.group_states = [self.first_state(group.weights) for group in self.groups]
        self.weights = self._by_table([group.weights for group in self.groups])
        self.states = {
            kind: self._by_table([state[kind] for state in self.group_states]) for kind in self.group_states[0]
        }
        first_rows = [0] * len(sizes)
        for group in self.groups:
            start = 0
            for table in group.tables:
                first_rows[table] = start
                start += sizes[table][0]
        self._first_rows = torch.tensor([first_rows[table] for table in table_of_lookup])

    @abstractmethod
    def first_state(self, weights: Tensor) -> dict[str, Tensor]:
        """The optimiser state of (R, W) rows before any step, by kind; of each, R rows."""

    def _by_table(self, by_group: Sequence[Tensor]) -> list[Tensor]:
        """Views of each table's rows, given those of each group's."""
        views: dict[int, Tensor] = {}
        for group, tensor in zip(self.groups, by_group, strict=True):
            parts = tensor.split([self._sizes[table][0] for table in group.tables])
            views |= dict(zip(group.tables, parts, strict=True))
        return [views[table] for table in range(len(self._sizes))]

    def __call__(self, indices: Tensor, offsets: Tensor, factors: Tensor | None) -> Tensor:
        # Something has to require a gradient for autograd to call back; no table does.
        anchor = torch.empty(0, requires_grad=True)
        output: Tensor = _Lookup.apply(anchor, self, indices, offsets, factors)
        return output

    def lookup(self, indices: Tensor, offsets: Tensor, factors: Tensor | None) -> Tensor:
        """(V,) ids, (F*B + 1,) offsets, (V,) factors of ids -> (B, sum of the lookups' widths), without a graph."""
        with torch.no_grad():
            output: Tensor = self.tables(indices, offsets, factors)
        return output

    def update(self, gradient: Tensor, indices: Tensor, offsets: Tensor, factors: Tensor | None) -> None:
        """One step for the rows of a lookup, given the gradient of what it returned."""
        if not indices.numel():
            return
        for group, gradients in enumerate(self._gradients(gradient, indices, offsets, factors)):
            for rows, summed in gradients.by_row():
                self.step_rows(group, rows, summed)

    @abstractmethod
    def step_rows(self, group: int, rows: Tensor, gradient: Tensor) -> None:
        """Step (U,) different rows of a group's table, given their (U, W) gradient, which may be overwritten."""

    def _gradients(self, gradient: Tensor, indices: Tensor, offsets: Tensor, factors: Tensor | None) -> list[Gradients]:
        """The gradients of each group's rows, given that of the lookup."""
        batch_size = (offsets.numel() - 1) // len(self._widths)
        bags = torch.arange(offsets.numel() - 1).repeat_interleave(offsets.diff(), output_size=indices.numel())
        lookups, samples = bags // batch_size, bags % batch_size  # (V,) each: bags are lookup-major
        rows = indices + self._first_rows[lookups]
        blocks = gradient.split(self._widths, dim=1)
        found = []
        for group in self.groups:
            is_all = len(group.lookups) == len(self._widths)
            ids = slice(None) if is_all else (group.positions[lookups] >= 0).nonzero().view(-1)
            own = gradient if is_all else torch.cat([blocks[index] for index in group.lookups], dim=1)  # (B, F_g*W)
            found.append(
                Gradients(
                    rows=rows[ids],
                    values=own.reshape(-1, group.width),
                    slots=samples[ids] * len(group.lookups) + group.positions[lookups[ids]],
                    factors=None if factors is None else factors[ids],
                )
            )
        return found

    def set_learning_rate(self, learning_rate: float) -> None:
        self.learning_rate = learning_rate

    def get_learning_rate(self) -> float:
        return self.learning_rate


def _make_groups(flat: Tensor, sizes: Sequence[tuple[int, int]], table_of_lookup: Sequence[int]) -> list[Group]:
    """The groups by rising width, given one storage of all tables' weights in that order."""
    groups = []
    for width in sorted({width for _, width in sizes}):
        tables = [table for table, (_, own) in enumerate(sizes) if own == width]
        lookups = [index for index, table in enumerate(table_of_lookup) if table in tables]
        positions = torch.full((len(table_of_lookup),), -1)
        positions[lookups] = torch.arange(len(lookups))
        num_rows = sum(sizes[table][0] for table in tables)
        own, flat = flat.tensor_split([num_rows * width])
        groups.append(Group(tables, lookups, own.view(num_rows, width), positions))
    return groups


class _Lookup(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, anchor: Tensor, kernel: SparseKernel, indices: Tensor, offsets: Tensor, factors: Tensor | None
    ) -> Tensor:
        ctx.kernel = kernel
        ctx.save_for_backward(indices, offsets, factors)
        return kernel.lookup(indices, offsets, factors)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, ...]:
        with torch.no_grad():  # also where backward runs with create_graph
            ctx.kernel.update(gradient, *ctx.saved_tensors)
        return None, None, None, None, None
