"""Columns of pooled embeddings: from the order in which lookups leave them to the order that towers read them in.

Shapes: B rows, W_s columns of piece s, W_t columns of tower t.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import pairwise

import torch
from torch import Tensor


@dataclass(frozen=True)
class ColumnBlock:
    """Some columns of a feature's pooled embedding.

    Args:
        feature: whose embedding.
        start: first column.
        stop: the one after the last.
    """

    feature: str
    start: int
    stop: int

    @property
    def width(self) -> int:
        """Number of columns."""
        return self.stop - self.start


class ColumnRoute:
    """Gathers each tower's columns from pieces that hold them in any order.

    A block that several pieces hold is the sum of them: the partial results of row-wise shards. Adjoining blocks
    move together, so that what already lies in order is a view and costs nothing.

    Args:
        pieces: blocks of each piece, left to right.
        towers: features of each tower, in the order in which it reads them.

    Example:
        >>> pieces = [[ColumnBlock("a", 0, 2), ColumnBlock("b", 0, 1)], [ColumnBlock("b", 0, 1)]]
        >>> route = ColumnRoute(pieces, [["b"], ["a"]])
        >>> [t.tolist() for t in route([torch.tensor([[1, 2, 3]]), torch.tensor([[10]])])]
        [[[13]], [[1, 2]]]
    """

    def __init__(self, pieces: Sequence[Sequence[ColumnBlock]], towers: Sequence[Sequence[str]]) -> None:
        places: dict[ColumnBlock, list[tuple[int, int]]] = {}
        for piece, blocks in enumerate(pieces):
            for position, block in enumerate(blocks):
                places.setdefault(block, []).append((piece, position))
        by_feature: dict[str, list[ColumnBlock]] = {}
        for block in sorted(places, key=lambda b: b.start):
            by_feature.setdefault(block.feature, []).append(block)
        # Runs of adjoining blocks: each is a list of places where it starts, and a number of blocks.
        self._towers: list[list[list[tuple[int, int]]]] = []
        starts: list[set[int]] = [{0} for _ in pieces]
        for features in towers:
            runs: list[list[tuple[int, int]]] = []
            expected: list[tuple[int, int]] = []
            for block in (b for feature in features for b in by_feature[feature]):
                if places[block] != expected:
                    runs.append(places[block])
                    for piece, position in places[block]:
                        starts[piece].add(position)
                expected = [(piece, position + 1) for piece, position in places[block]]
            for piece, position in expected:
                starts[piece].add(position)
            self._towers.append(runs)
        self._sizes: list[list[int]] = []
        self._run_at: dict[tuple[int, int], int] = {}
        for piece, blocks in enumerate(pieces):
            bounds = sorted(starts[piece] | {len(blocks)})
            widths = [sum(b.width for b in blocks[i:j]) for i, j in pairwise(bounds)]
            self._sizes.append(widths)
            self._run_at |= {(piece, position): index for index, position in enumerate(bounds[:-1])}

    def __call__(self, pieces: Sequence[Tensor]) -> list[Tensor]:
        """(B, W_s) of each piece -> (B, W_t) of each tower."""
        # split(), not slices: the gradient of a split is one concatenation, that of a slice a tensor full of zeros.
        runs = [piece.split(sizes, dim=1) for piece, sizes in zip(pieces, self._sizes, strict=True)]
        towers = []
        for tower in self._towers:
            parts = [reduce(torch.add, [runs[p][self._run_at[p, i]] for p, i in places]) for places in tower]
            towers.append(torch.cat(parts, dim=1) if len(parts) > 1 else parts[0])
        return towers
