"""A loader that looks one batch ahead: what it hands over, when it draws, and the position it tells."""

from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dmt.strategies.lookahead import StatefulLookAhead, jagged_tensors, look_ahead


class Numbers:
    """Counts to five; resumable."""

    def __init__(self) -> None:
        self.at = 0

    def __iter__(self) -> Any:
        while self.at < 5:
            self.at += 1
            yield self.at
        self.at = 0

    def __len__(self) -> int:
        return 5

    def state_dict(self) -> int:
        return self.at

    def load_state_dict(self, state: int) -> None:
        self.at = state


def watched(loader: Any, *, wanted: float = float("inf")) -> tuple[Any, list[Any]]:
    log: list[Any] = []

    def begin() -> float:
        log.append("begin")
        return wanted

    return look_ahead(loader, prepare=lambda b: (log.append(f"draw {b}"), b)[1], begin=begin), log


def test_each_batch_is_drawn_while_the_one_before_is_out() -> None:
    ahead, log = watched([1, 2, 3])
    for batch in ahead:
        log.append(f"use {batch}")
    assert log == ["begin", "draw 1", "draw 2", "use 1", "draw 3", "use 2", "use 3"]
    assert len(ahead) == 3 and list(ahead) == [1, 2, 3]


def test_nothing_is_drawn_ahead_of_what_is_wanted() -> None:
    """Where an epoch is cut short, some ranks' loaders may end there and others' go on."""
    ahead, log = watched([1, 2, 3, 4], wanted=2)
    batches = iter(ahead)
    assert [next(batches), next(batches)] == [1, 2]
    assert log == ["begin", "draw 1", "draw 2"]
    assert list(batches) == [3, 4]  # who asks for more gets it
    assert list(watched([1, 2], wanted=0)[0]) == [1, 2]


def test_a_position_counts_what_was_handed_over() -> None:
    ahead, _ = watched(Numbers())
    assert isinstance(ahead, StatefulLookAhead) and ahead.state_dict() == 0
    positions = [ahead.state_dict() for _ in ahead]
    assert positions == [1, 2, 3, 4, 5]

    source = iter(ahead)
    assert [next(source), next(source)] == [1, 2]
    resumed, _ = watched(Numbers())
    resumed.load_state_dict(ahead.state_dict())
    assert list(resumed) == [3, 4, 5]


def test_an_empty_loader_hands_over_nothing() -> None:
    ahead, log = watched([])
    assert list(ahead) == [] and log == ["begin"]


def test_what_lightning_asks_of_a_torch_loader_reaches_it() -> None:
    loader = DataLoader(list(range(4)), batch_size=2)  # type: ignore[arg-type]
    ahead, _ = watched(loader)
    assert ahead.sampler is loader.sampler and not hasattr(ahead, "state_dict")
    assert ahead.worker_init_fn is None
    ahead.worker_init_fn = print
    assert loader.worker_init_fn is print
    assert not hasattr(watched([1])[0], "worker_init_fn")


def test_jagged_tensors_are_found_in_any_batch() -> None:
    @dataclass
    class Pair:
        left: Any
        right: Any

    def jagged(key: str) -> KeyedJaggedTensor:
        return KeyedJaggedTensor([key], torch.zeros(1, dtype=torch.int64), lengths=torch.ones(1).int())

    a, b, c = jagged("a"), jagged("b"), jagged("c")
    batch = Pair(left={"x": a, "y": torch.zeros(1)}, right=(1, [b], Pair(left=c, right=None)))
    assert [found.keys() for found in jagged_tensors(batch)] == [["a"], ["b"], ["c"]]
