"""Orders are permutations, whole or by windows, whichever way they are read."""

import threading
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmt.datamodules.order import EpochOrder


def make(num_samples: int, **options: int) -> EpochOrder:
    return EpochOrder(num_samples, **{"seed": 3, "epoch": 1, "max_permutation": 20} | options)


@given(
    num_samples=st.integers(0, 200),
    block_size=st.integers(1, 30),
    blocks_per_window=st.integers(1, 5),
    cuts=st.lists(st.integers(0, 200), max_size=8),
)
def test_every_sample_has_one_place(num_samples: int, block_size: int, blocks_per_window: int, cuts: list[int]) -> None:
    options = {"block_size": block_size, "blocks_per_window": blocks_per_window}
    whole = make(num_samples, **options).samples(0, num_samples)
    assert sorted(whole.tolist()) == list(range(num_samples))
    order, ends = make(num_samples, **options), sorted({0, num_samples, *(min(cut, num_samples) for cut in cuts)})
    pieces = [order.samples(begin, end) for begin, end in pairwise(ends)]
    assert np.concatenate([np.empty(0, int), *pieces]).tolist() == whole.tolist()
    # Back to an earlier place, as after a checkpoint.
    assert order.samples(0, num_samples // 2).tolist() == whole[: num_samples // 2].tolist()


def test_a_small_order_is_one_permutation() -> None:
    assert make(20).samples(0, 20).tolist() == np.random.default_rng((3, 1)).permutation(20).tolist()


def test_windows_mix_blocks_that_lie_apart() -> None:
    order = make(100_000, block_size=100, blocks_per_window=10)
    window = order.samples(0, 1000)
    assert len(set((window // 100).tolist())) == 10
    # Ten blocks of a thousand: one in 100 pairs would be neighbours by chance.
    assert np.ptp(window) > 50_000
    in_order = np.abs(np.diff(window)) == 1
    assert in_order.mean() < 0.05
    others = [make(100_000, block_size=100, blocks_per_window=10, **{name: 7}) for name in ("seed", "epoch")]
    assert all(set(other.samples(0, 1000).tolist()) != set(window.tolist()) for other in others)


def test_the_next_window_is_drawn_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: dict[int, str] = {}
    shuffled = EpochOrder._shuffled

    def record(order: EpochOrder, number: int) -> np.ndarray:
        drawn[number] = threading.current_thread().name
        return shuffled(order, number)

    monkeypatch.setattr(EpochOrder, "_shuffled", record)
    order = make(1000, block_size=10, blocks_per_window=10)
    here = threading.current_thread().name
    order.samples(0, 1)
    order.samples(100, 101)
    order.samples(500, 501)  # a leap, as to a checkpoint's place
    order.samples(600, 601)
    order._pool.shutdown()
    assert {number for number, thread in drawn.items() if thread == here} == {0, 5}
    assert sorted(drawn) == [0, 1, 2, 5, 6, 7]
