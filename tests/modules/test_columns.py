"""Columns of pooled embeddings find their towers, whatever pieces they come in."""

import random

import torch

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

        values = [torch.randn(3, sum(b.width for b in blocks), requires_grad=True) for blocks in pieces]
        outputs = ColumnRoute(pieces, towers)(values)

        expected = {name: torch.zeros(3, width) for name, width in widths.items()}
        for blocks, value in zip(pieces, values, strict=True):
            for block, columns in zip(blocks, value.split([b.width for b in blocks], dim=1), strict=True):
                expected[block.feature][:, block.start : block.stop] += columns.detach()
        factors = {name: torch.randn(3, width) for name, width in widths.items()}
        loss = torch.zeros(())
        for features, output in zip(towers, outputs, strict=True):
            # Sums of at most four numbers, in the same order: equal.
            assert torch.equal(output, torch.cat([expected[name] for name in features], dim=1))
            loss = loss + (output * torch.cat([factors[name] for name in features], dim=1)).sum()
        loss.backward()
        for blocks, value in zip(pieces, values, strict=True):
            wanted = [factors[b.feature][:, b.start : b.stop] for b in blocks]
            if wanted:
                assert value.grad is not None and torch.equal(value.grad, torch.cat(wanted, dim=1))


def test_what_lies_in_order_is_not_copied() -> None:
    blocks = [ColumnBlock(name, 0, 2) for name in "abcd"]
    value = torch.randn(3, 8)
    first, second = ColumnRoute([blocks], [["a", "b"], ["c", "d"]])([value])
    assert first.untyped_storage().data_ptr() == second.untyped_storage().data_ptr() == value.data_ptr()
