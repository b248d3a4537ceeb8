"""Training on a GPU against the CPU: one process, both strategies alone, and four ranks that share the GPU."""

from pathlib import Path
from typing import Any

import pytest

from tests.distributed import flat_cases
from tests.distributed.harness import fresh_seed, run_ranks
from tests.distributed.stage_cases import check_many
from tests.distributed.strategy_cases import check_optimizers, check_precision
from tests.distributed.test_training import assert_same_run, train
from tests.distributed.training_cases import Run

STRATEGIES = ("sptt", "torchrec")


@pytest.fixture(scope="module")
def on_the_cpu(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A step on the CPU, from which every run goes on: a GPU draws other initial values for dense layers."""
    folder = tmp_path_factory.mktemp("cpu")
    start = Run(strategy="auto", max_steps=1, save=folder / "start.ckpt", dense_optimizer="Adam")
    wanted = Run(
        strategy="auto", max_steps=8, save=folder / "cpu.ckpt", dense_optimizer="Adam", resume=folder / "start.ckpt"
    )
    return folder, train(1, [start, wanted])[1]


def resumed(folder: Path, path: Path, strategy: str, **options: Any) -> Run:
    options = {"max_steps": 8, "dense_optimizer": "Adam", "resume": folder / "start.ckpt", "device": "cuda"} | options
    return Run(strategy=strategy, save=path, **options)


def test_one_rank_trains_as_on_the_cpu(on_the_cpu: tuple[Path, Any], tmp_path: Path) -> None:
    folder, wanted = on_the_cpu
    runs = [resumed(folder, tmp_path / f"{strategy}.ckpt", strategy) for strategy in ("auto", "sptt", "torchrec")]
    for run, results in zip(runs, train(1, runs), strict=True):
        assert_same_run(results, run.save, wanted, folder / "cpu.ckpt")


def test_four_ranks_train_as_on_the_cpu_and_checkpoints_move(on_the_cpu: tuple[Path, Any], tmp_path: Path) -> None:
    folder, wanted = on_the_cpu
    runs = [resumed(folder, tmp_path / f"{strategy}.ckpt", strategy, ranks_per_host=2) for strategy in STRATEGIES]
    half = resumed(folder, tmp_path / "half.ckpt", "sptt", ranks_per_host=2, max_steps=4)
    for run, results in zip([*runs, half], train(4, [*runs, half]), strict=True):
        if run is not half:
            assert_same_run(results, run.save, wanted, folder / "cpu.ckpt")
    back = resumed(folder, tmp_path / "back.ckpt", "auto", resume=half.save, device="cpu")
    assert_same_run(train(1, [back])[0], back.save, wanted, folder / "cpu.ckpt")


@pytest.mark.parametrize("embedding_optimizer", ["sgd", "adagrad", "adam"])
def test_other_optimizers_and_averages(tmp_path: Path, embedding_optimizer: str) -> None:
    shared = {"embedding_optimizer": embedding_optimizer, "averages": True}
    start = Run(strategy="auto", max_steps=1, save=tmp_path / "start.ckpt", dense_optimizer="Adam", **shared)
    on_cpu = resumed(tmp_path, tmp_path / "cpu.ckpt", "auto", device="cpu", **shared)
    on_gpu = resumed(tmp_path, tmp_path / "gpu.ckpt", "sptt", **shared)
    _, wanted, found = train(1, [start, on_cpu, on_gpu])
    assert_same_run(found, on_gpu.save, wanted, on_cpu.save)


def test_sptt_equals_plain_torch() -> None:
    checked = run_ranks(check_many, world_size=4, args=(2, 1, fresh_seed(), 8, 3), device="cuda")
    assert set(checked) == {8}


def test_every_torchrec_sharding_equals_plain_torch() -> None:
    checked = run_ranks(flat_cases.check_shardings, world_size=4, args=(2, fresh_seed(), 1), device="cuda")
    assert checked == [list(flat_cases.SHARDINGS)] * 4


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_optimizer_under_shardings(tmp_path: Path, strategy: str) -> None:
    optimizers, kinds = ("sgd", "adagrad", "rowwise_adagrad"), ("table_wise", "row_wise")
    arguments = (strategy, 2, optimizers, kinds, str(tmp_path), fresh_seed())
    [checked, *_] = run_ranks(check_optimizers, world_size=4, args=arguments, device="cuda")
    assert len(checked) == 6


@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_precision_costs_its_own_rounding(strategy: str, precision: str) -> None:
    arguments = (strategy, ("table_wise",), precision, fresh_seed())
    run_ranks(check_precision, world_size=4, args=arguments, device="cuda")
