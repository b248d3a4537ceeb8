"""Columns of pooled embeddings find their towers, whatever pieces they come in."""

import random
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dmt.modules.columns import ColumnBlock, ColumnRoute


def test_towers_get_their_columns_and_pieces_their_gradients(rng: random.Random) -> None:
    """Whole features, blocks of columns, and partial sums on several pieces, in any order."""
    for _ in range(20):
        widths = {f"f{i}": rng.randint(1, 5) for i in range(rng.randint(1, 6))}
        pieces: list[list[ColumnBlock]] = [[] for _ in range(rng.randint(1, 4))]
        for name, width in widths.items():
            cut = rng.randint(1, width)
            for start, stop in {(0, cut), (cut, width)} - {(width, width)}:
                for piece in rng.sample(range(len(pieces)), rng.randint(1, len(pieces))):
                    pieces[piece].append(ColumnBlock(name, start, stop))
        for blocks in pieces:
            rng.shuffle(blocks)
        names = list(widths)
        rng.shuffle(names)
        cut = rng.randint(0, len(names))
        towers = [names[:cut], names[cut:]] if 0 < cut < len(names) else [names]

        scale, num_rows = rng.choice([1.0, 0.25]), rng.randint(0, 3)
        sizes = [num_rows * sum(b.width for b in blocks) for blocks in pieces]
        values = torch.randn(sum(sizes), requires_grad=True)
        wanted = [
            [ColumnBlock(name, *ends) for name in names for ends in cut_up(widths[name], rng)] for names in towers
        ]
        outputs = ColumnRoute(pieces, wanted, gradient_scale=scale)(values, num_rows=num_rows)

        expected = {name: torch.zeros(num_rows, width) for name, width in widths.items()}
        for blocks, value in zip(pieces, values.detach().split(sizes), strict=True):
            for block, columns in zip(blocks, columns_of(value, blocks, num_rows), strict=True):
                expected[block.name][:, block.start : block.stop] += columns
        factors = {name: torch.randn(num_rows, width) for name, width in widths.items()}
        loss = torch.zeros(())
        for features, output in zip(towers, outputs, strict=True):
            # Sums of at most four numbers, in the same order: equal.
            assert torch.equal(output, torch.cat([expected[name] for name in features], dim=1))
            loss = loss + (output * torch.cat([factors[name] for name in features], dim=1)).sum()
        loss.backward()
        assert values.grad is not None
        for blocks, gradient in zip(pieces, values.grad.split(sizes), strict=True):
            for block, columns in zip(blocks, columns_of(gradient, blocks, num_rows), strict=True):
                assert torch.equal(columns, scale * factors[block.name][:, block.start : block.stop])


def cut_up(width: int, rng: random.Random) -> list[tuple[int, int]]:
    """The columns in one or two parts, cut anywhere."""
    cut = rng.randint(1, width)
    return [ends for ends in ((0, cut), (cut, width)) if ends[0] < ends[1]]


def columns_of(value: torch.Tensor, blocks: list[ColumnBlock], num_rows: int) -> list[torch.Tensor]:
    return list(
        value.view(num_rows, -1 if num_rows else sum(b.width for b in blocks)).split([b.width for b in blocks], 1)
    )


def test_what_lies_in_order_is_not_copied() -> None:
    a, b, c, d = (ColumnBlock(name, 0, 2) for name in "abcd")
    value = torch.randn(3, 8)
    first, second = ColumnRoute([[a, b, c, d]], [[c, d], [a, b]])(value, num_rows=3)
    assert first.untyped_storage().data_ptr() == second.untyped_storage().data_ptr() == value.data_ptr()
    assert torch.equal(first, value[:, 4:]) and torch.equal(second, value[:, :4])


class _Concatenations(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten.cat.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("num_outputs", "copies"), [(1, 0), (2, 1)])
def test_the_gradient_of_a_single_output_is_not_copied(num_outputs: int, copies: int) -> None:
    blocks = [ColumnBlock(name, 0, 4) for name in "ab"]
    route = ColumnRoute([blocks], [blocks] if num_outputs == 1 else [blocks[:1], blocks[1:]])
    values = torch.randn(3 * 8, requires_grad=True)
    outputs = route(values, num_rows=3)
    with _Concatenations() as made:
        torch.autograd.backward(outputs, [torch.ones_like(output) for output in outputs])
    assert made.count == copies and values.grad is not None and bool((values.grad == 1).all())
