"""Fixtures that the tests of modules and of strategies share."""

import os
import random
from collections.abc import Iterator

import pytest
import torch


@pytest.fixture
def seed() -> Iterator[int]:
    """A new seed on every run, also for torch; DMT_TEST_SEED repeats a run whose failure printed it."""
    value = int(os.environ.get("DMT_TEST_SEED") or random.SystemRandom().randrange(2**31))
    print(f"DMT_TEST_SEED={value}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(value)
        yield value


@pytest.fixture
def rng(seed: int) -> random.Random:
    """Python's random numbers of the same seed."""
    return random.Random(seed)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors here are tiny: more threads only wait for each other, most of all on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
