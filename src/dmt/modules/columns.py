"""Columns of pooled embeddings: from the order in which they come to the order in which they are read.

Shapes: B rows, W_s columns of piece s, W_o columns of output o.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class ColumnBlock:
    """Some columns of something that has a name, such as a feature's pooled embedding.

    Args:
        name: whose columns.
        start: first column.
        stop: the one after the last.
    """

    name: str
    start: int
    stop: int

    @property
    def width(self) -> int:
        """Number of columns."""
        return self.stop - self.start

    def cut(self, bounds: set[int]) -> list["ColumnBlock"]:
        """The block in parts that end where ``bounds`` say."""
        inside = [bound for bound in sorted(bounds) if self.start < bound < self.stop]
        return [ColumnBlock(self.name, *ends) for ends in pairwise([self.start, *inside, self.stop])]


@dataclass(frozen=True)
class _Run:
    """Adjoining columns of an output that adjoin in one piece, or in each of several whose sum they are.

    Args:
        places: piece, and first column in it.
        width: number of columns.
    """

    places: list[tuple[int, int]]
    width: int


class ColumnRoute:
    """Gathers each output's columns from pieces that hold them in any order.

    A block that several pieces hold is the sum of them: the partial results of row-wise shards. Every value is
    written once on its way, and so is every gradient on its way back.

    Args:
        pieces: blocks of each piece, left to right.
        outputs: blocks of each output, left to right; together they are all blocks of the pieces, each once.
        gradient_scale: factor of the gradients on their way back.

    Example:
        >>> pieces = [[ColumnBlock("a", 0, 2), ColumnBlock("b", 0, 1)], [ColumnBlock("b", 0, 1)]]
        >>> route = ColumnRoute(pieces, [[ColumnBlock("b", 0, 1)], [ColumnBlock("a", 0, 2)]])
        >>> [output.tolist() for output in route(torch.tensor([1, 2, 3, 10]), num_rows=1)]
        [[[13]], [[1, 2]]]
    """

    def __init__(
        self,
        pieces: Sequence[Sequence[ColumnBlock]],
        outputs: Sequence[Sequence[ColumnBlock]],
        *,
        gradient_scale: float = 1.0,
    ) -> None:
        bounds: dict[str, set[int]] = {}
        for block in (block for blocks in [*pieces, *outputs] for block in blocks):
            bounds.setdefault(block.name, set()).update((block.start, block.stop))
        places: dict[ColumnBlock, list[tuple[int, int]]] = {}
        for piece, blocks in enumerate(pieces):
            column = 0
            for part in (part for block in blocks for part in block.cut(bounds[block.name])):
                places.setdefault(part, []).append((piece, column))
                column += part.width
        self._piece_widths = [sum(block.width for block in blocks) for blocks in pieces]
        self._runs = [
            _join([_Run(places[part], part.width) for block in blocks for part in block.cut(bounds[block.name])])
            for blocks in outputs
        ]
        self._gradient_scale = gradient_scale

    def __call__(self, values: Tensor, *, num_rows: int) -> list[Tensor]:
        """The pieces (B, W_s), all of one and then all of the next, as one tensor of any shape -> (B, W_o) of each.

        An output whose columns adjoin in one piece is a view if all outputs are so.
        """
        if self._gradient_scale == 1.0 and all(_is_slice(runs) for runs in self._runs):
            return self._slices(values, num_rows)
        outputs: tuple[Tensor, ...] = _Gather.apply(values, self, num_rows)
        return list(outputs)

    def _slices(self, values: Tensor, num_rows: int) -> list[Tensor]:
        # split(), not slices: the gradient of a split is one concatenation, that of a slice a tensor full of zeros.
        pieces = self._pieces(values, num_rows)
        found: dict[int, Tensor] = {}
        for piece in {runs[0].places[0][0] for runs in self._runs}:
            here = [
                (runs[0].places[0][1], index) for index, runs in enumerate(self._runs) if runs[0].places[0][0] == piece
            ]
            indices = [index for _, index in sorted(here)]
            columns = _split(pieces[piece], [self._runs[index][0].width for index in indices], dim=1)
            found |= dict(zip(indices, columns, strict=True))
        return [found[index] for index in range(len(self._runs))]

    def _pieces(self, values: Tensor, num_rows: int) -> list[Tensor]:
        """(B, W_s) of each piece."""
        flat = _split(values.reshape(-1), [num_rows * width for width in self._piece_widths], dim=0)
        return [piece.view(num_rows, width) for piece, width in zip(flat, self._piece_widths, strict=True)]

    def gather(self, values: Tensor, num_rows: int) -> list[Tensor]:
        """Fill every output."""
        pieces = self._pieces(values, num_rows)
        outputs = []
        for runs in self._runs:
            parts = [
                reduce(torch.add, [pieces[piece].narrow(1, start, run.width) for piece, start in run.places])
                for run in runs
            ]
            outputs.append(torch.cat(parts, dim=1))
        return outputs

    def scatter(self, gradients: Sequence[Tensor], num_rows: int) -> Tensor:
        """Gradients of the outputs -> gradient of the values, flat."""
        flat = gradients[0].new_empty(num_rows * sum(self._piece_widths))
        pieces = self._pieces(flat, num_rows)
        for gradient, runs in zip(gradients, self._runs, strict=True):
            for run, part in zip(runs, gradient.split([run.width for run in runs], dim=1), strict=True):
                for piece, start in run.places:
                    target = pieces[piece].narrow(1, start, run.width)
                    torch.mul(part, self._gradient_scale, out=target)
        return flat


def _join(runs: Sequence[_Run]) -> list[_Run]:
    """The runs, those that go on where the one before ends as one with it."""
    joined: list[_Run] = []
    for run in runs:
        if joined and [(piece, start + joined[-1].width) for piece, start in joined[-1].places] == run.places:
            joined[-1] = _Run(joined[-1].places, joined[-1].width + run.width)
        else:
            joined.append(run)
    return joined


def _is_slice(runs: Sequence[_Run]) -> bool:
    return len(runs) == 1 and len(runs[0].places) == 1


def _split(values: Tensor, sizes: Sequence[int], *, dim: int) -> Sequence[Tensor]:
    """As torch's, which would copy the gradient also where there is one part only.

    The parts may be written to, as a tower that begins with ``ReLU(inplace=True)`` does: they do not overlap, and what
    they are parts of is read nowhere else.
    """
    return [values] if len(sizes) == 1 else torch.unsafe_split_with_sizes(values, list(sizes), dim=dim)


class _Gather(torch.autograd.Function):
    # By hand: autograd's own way would write gradients once for each split and view on the way.

    @staticmethod
    def forward(ctx: Any, values: Tensor, route: ColumnRoute, num_rows: int) -> tuple[Tensor, ...]:
        ctx.route, ctx.num_rows, ctx.shape = route, num_rows, values.shape
        return tuple(route.gather(values, num_rows))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return ctx.route.scatter(gradients, ctx.num_rows).view(ctx.shape), None, None
