"""sptt = torchrec = plain torch: outputs, gradients and parameters over random stages, layouts and batches."""

import random

import pytest

from tests.distributed.harness import run_ranks
from tests.distributed.stage_cases import all_state_shapes, check_many, plain_state_shapes


@pytest.mark.parametrize(("hosts", "ranks_per_host"), [(1, 1), (1, 2), (2, 1), (2, 2), (4, 2)])
def test_sharded_stages_equal_plain_torch(hosts: int, ranks_per_host: int) -> None:
    seed = random.SystemRandom().randrange(2**31)  # fresh cases each run; a failure names its seed
    assert set(run_ranks(check_many, world_size=hosts * ranks_per_host, args=(ranks_per_host, seed, 6))) == {6}


def test_ranks_together_hold_the_plain_stages_state() -> None:
    """So that a checkpoint of any layout is whole: weights, accumulators and tower modules, under the same names."""
    by_rank = run_ranks(all_state_shapes, world_size=4)
    for plain, ranks in zip(plain_state_shapes(), zip(*by_rank, strict=True), strict=True):
        together: dict[str, list[int]] = {}
        for state in ranks:
            together |= state
        assert together == plain
