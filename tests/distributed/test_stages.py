"""sptt = plain torch: outputs, gradients and parameters over random stages, layouts, shardings and batches."""

import os
from pathlib import Path

import pytest

from tests.distributed.harness import fresh_seed, run_ranks
from tests.distributed.stage_cases import KINDS, OPTIMIZERS, all_state_shapes, check_many, plain_state_shapes
from tests.distributed.strategy_cases import check_optimizers, check_precision

# Cases a layout: 10 x 20 = 200 and more with DMT_STAGE_CASES=20.
NUM_CASES = int(os.environ.get("DMT_STAGE_CASES", "5"))

# hosts, ranks per host, hosts per group
LAYOUTS = [(1, 1, 1), (1, 2, 1), (2, 1, 1), (2, 2, 1), (4, 2, 1), (4, 1, 2), (2, 2, 2), (1, 4, 1), (3, 2, 1), (2, 4, 1)]


@pytest.mark.parametrize(("hosts", "ranks_per_host", "hosts_per_group"), LAYOUTS)
def test_sptt_equals_plain_torch(hosts: int, ranks_per_host: int, hosts_per_group: int) -> None:
    seed = fresh_seed()
    arguments = (ranks_per_host, hosts_per_group, seed, NUM_CASES, 5)
    checked = run_ranks(check_many, world_size=hosts * ranks_per_host, args=arguments, timeout_s=60 + 20 * NUM_CASES)
    assert set(checked) == {NUM_CASES}


@pytest.mark.parametrize("ranks_per_host", [2, 4])
def test_every_optimizer_equals_the_plain_stage_and_checkpoints_move_between_shardings(
    tmp_path: Path, ranks_per_host: int
) -> None:
    seed = fresh_seed()
    kinds = [kind for kind in KINDS if kind != "grid_shard" or ranks_per_host == 4]
    arguments = ("sptt", ranks_per_host, (*OPTIMIZERS, "adam"), kinds, str(tmp_path), seed)
    [checked, *_] = run_ranks(check_optimizers, world_size=4, args=arguments)
    assert len(checked) == 3 * len(kinds) + 3  # row-wise Adagrad has no blocks of columns


@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8"])
def test_precision_costs_its_own_rounding(precision: str) -> None:
    seed = fresh_seed()
    run_ranks(check_precision, world_size=4, args=("sptt", ("table_wise", "row_wise"), precision, seed))


def test_ranks_together_hold_the_plain_stages_state() -> None:
    """So that a checkpoint of any layout is whole: weights, accumulators and tower modules, under the same names."""
    by_rank = run_ranks(all_state_shapes, world_size=4)
    for ranks, plain in zip(zip(*by_rank, strict=True), plain_state_shapes(), strict=True):
        together = {name: shape for held in ranks for name, shapes in held.items() for shape in shapes}
        assert together == plain
