"""Training through Lightning gives the same numbers under every strategy, also when it is interrupted."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed import own_module_cases as own
from tests.distributed.harness import run_ranks
from tests.distributed.training_cases import Run, corners, fit_all, load_state, waits_of_steps

# Six steps of float32 training. Products over another number of rows differ by rounding (1e-7 relative), and
# row-wise Adagrad divides a first, small gradient by its own size, which passes relative errors on unreduced: they are
# relative to the steps, and so to the tensor's largest element rather than to each.
TOLERANCE = {"relative": 1e-4, "absolute": 2e-6}


def train(world_size: int, runs: list[Run], **options: Any) -> list[list[dict[str, Any]]]:
    """Results of each run, by rank."""
    by_rank = run_ranks(fit_all, world_size=world_size, args=(runs, world_size), **options)
    return [list(results) for results in zip(*by_rank, strict=True)]


def assert_same_state(path: Path, wanted_path: Path) -> None:
    state, wanted_state = load_state(path), load_state(wanted_path)
    assert sorted(state) == sorted(wanted_state)
    for name, tensor in wanted_state.items():
        allowed = TOLERANCE["absolute"] + TOLERANCE["relative"] * float(tensor.abs().max())
        torch.testing.assert_close(
            state[name], tensor, msg=lambda m, n=name: f"{path.name} {n}: {m}", rtol=0, atol=allowed
        )


def assert_same_run(results: list[dict[str, Any]], path: Path, wanted: list[dict[str, Any]], wanted_path: Path) -> None:
    assert_same_state(path, wanted_path)
    # Every test sample is predicted once, on some rank.
    predictions = sorted(value for result in results for value in result["predictions"])
    assert predictions == pytest.approx(sorted(wanted[0]["predictions"]), rel=1e-4)
    for result in results:
        assert result["steps"] == wanted[0]["steps"]
        assert result["metrics"].keys() >= {
            "train/loss",
            "val/auroc",
            "test/auroc",
            "test/normalized_entropy",
            "test/calibration",
        }
        assert {k: v for k, v in result["metrics"].items() if "/" in k} == pytest.approx(
            {k: v for k, v in wanted[0]["metrics"].items() if "/" in k}, rel=1e-4
        )


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[dict[str, Any]]]]:
    """Single-process runs that the others must equal: an epoch and a step with SGD, two resumable ones with Adam."""
    folder = tmp_path_factory.mktemp("single")
    runs = {
        "sgd": Run(strategy="auto", max_steps=8, save=folder / "sgd.ckpt"),
        "half": Run(strategy="auto", max_steps=4, save=folder / "half.ckpt", dense_optimizer="Adam"),
        "adam": Run(strategy="auto", max_steps=8, save=folder / "adam.ckpt", dense_optimizer="Adam"),
    }
    return folder, dict(zip(runs, train(1, list(runs.values())), strict=True))


def test_strategies_train_alike(single: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, wanted = single
    runs = [
        Run(
            strategy=strategy,
            ranks_per_host=per_host,
            max_steps=8,
            save=tmp_path / f"{strategy}{per_host}.ckpt",
        )
        for strategy, per_host in [("sptt", 1), ("sptt", 2), ("sptt", 4), ("torchrec", 2)]
    ]
    for run, results in zip(runs, train(4, runs), strict=True):
        assert_same_run(results, run.save, wanted["sgd"], folder / "sgd.ckpt")


def test_models_side_by_side_train_alike(tmp_path: Path) -> None:
    def run(strategy: str) -> Run:
        # The last step is the one whose batch is too small to go round, also for the loss that is logged.
        return Run(strategy=strategy, ranks_per_host=2, max_steps=7, save=tmp_path / f"{strategy}.ckpt", num_sets=2)

    [wanted] = train(1, [run("auto")])
    runs = [run("sptt"), run("torchrec")]
    for one, results in zip(runs, train(4, runs), strict=True):
        assert_same_run(results, one.save, wanted, tmp_path / "auto.ckpt")


def test_modules_of_ones_own_train_alike_or_are_refused(tmp_path: Path) -> None:
    """On uneven local batches; see the classes of ``own_module_cases`` for what each is about."""
    [alone] = run_ranks(own.fit_own, world_size=1, args=("auto", tmp_path, 1))
    names = [kind.__name__ for kind in own.TRAINED]
    assert alone == dict.fromkeys(names, 1)
    for strategy in ("sptt", "torchrec"):
        for found in run_ranks(own.fit_own, world_size=4, args=(strategy, tmp_path, 4)):
            assert {name: found.pop(name) for name in names} == alone  # loaders are made once, as in a single process
            assert "tower stages saw batches of different sizes in one step" in found.pop("OneSample")
            assert found.pop("Unused").startswith("spare.weight and 1 more: trained, but this step's loss does not")
            assert found.pop("Clipped").startswith("Clipped: configure_gradient_clipping; a rank has only its own")
            assert not found
        for name in names:
            assert_same_state(tmp_path / f"{strategy}_{name}.ckpt", tmp_path / f"auto_{name}.ckpt")


def test_checkpoints_resume_under_any_strategy(single: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """Four steps here, four steps there = eight steps in one go, data order and Adam's state included."""
    folder, wanted = single

    def run(strategy: str, name: str, **options: Any) -> Run:
        options = {"max_steps": 8, "ranks_per_host": 2, "dense_optimizer": "Adam"} | options
        return Run(strategy=strategy, save=tmp_path / f"{name}.ckpt", **options)

    first = [
        run("sptt", "sptt_half", max_steps=4),
        run("torchrec", "torchrec_half", max_steps=4),
        run("sptt", "single_to_sptt", resume=folder / "half.ckpt"),
        run("torchrec", "sptt_to_torchrec", resume=tmp_path / "sptt_half.ckpt"),
    ]
    second = [run("sptt", "torchrec_to_two_ranks", ranks_per_host=1, resume=tmp_path / "torchrec_half.ckpt")]
    third = [run("auto", "sptt_to_single", resume=tmp_path / "sptt_half.ckpt")]
    for world_size, runs in [(4, first), (2, second), (1, third)]:
        for done, results in zip(runs, train(world_size, runs), strict=True):
            if done.max_steps == 8:
                assert_same_run(results, done.save, wanted["adam"], folder / "adam.ckpt")


def test_averages_of_weights_are_the_same_under_every_strategy_and_resume(tmp_path: Path) -> None:
    """Averages of dense layers and tables; a checkpoint has them as its model, and training goes on without them."""

    def run(strategy: str, name: str, **options: Any) -> Run:
        options = {"max_steps": 8, "ranks_per_host": 2, "averages": True, "embedding_optimizer": "adagrad"} | options
        return Run(strategy=strategy, save=tmp_path / f"{name}.ckpt", **options)

    # The early ones are from before the first average.
    alone = [run("auto", "alone"), run("auto", "half", max_steps=4), run("auto", "early", max_steps=1)]
    by_rows = {"sharding": "row_wise"}
    first = [
        run("sptt", "sptt", options=by_rows),
        run("torchrec", "torchrec"),
        run("sptt", "sptt_half", max_steps=4, options=by_rows),
        run("torchrec", "single_to_torchrec", resume=tmp_path / "half.ckpt"),
        run("sptt", "sptt_to_sptt", resume=tmp_path / "sptt_half.ckpt"),
        run("sptt", "sptt_early", max_steps=1, options=by_rows),
        run("sptt", "early_to_sptt", resume=tmp_path / "early.ckpt"),
        run("sptt", "sptt_early_to_sptt", resume=tmp_path / "sptt_early.ckpt"),
    ]
    last = [
        run("auto", "sptt_to_single", resume=tmp_path / "sptt_half.ckpt"),
        run("auto", "sptt_early_to_single", resume=tmp_path / "sptt_early.ckpt"),
    ]
    wanted, *_ = train(1, alone)
    for world_size, runs in [(4, first), (1, last)]:
        for done, results in zip(runs, train(world_size, runs), strict=True):
            if done.max_steps == 8:
                assert_same_run(results, done.save, wanted, tmp_path / "alone.ckpt")


def test_two_nodes_equal_one(single: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """NODE_RANK and MASTER_ADDR place ranks as on two machines; ranks per host default to a node's."""
    folder, wanted = single
    run = Run(strategy="sptt", ranks_per_host=2, max_steps=8, save=tmp_path / "nodes.ckpt", num_nodes=2)
    [results] = train(4, [run], ranks_per_node=2)
    assert_same_run(results, run.save, wanted["sgd"], folder / "sgd.ckpt")


def test_mixed_precision_with_towers_of_both_kinds_and_an_idle_host(tmp_path: Path) -> None:
    """Some ranks' towers come out in bf16, one rank has none; all must send the same type."""
    alone, shards = (
        Run(strategy=strategy, max_steps=3, save=tmp_path / strategy, precision="bf16-mixed")
        for strategy in ("auto", "sptt")
    )
    [wanted] = train(1, [alone])
    [results] = train(4, [shards])
    # bf16 keeps 8 bits: 2^-8 = 0.004 a product; the log loss averages many.
    assert results[0]["metrics"]["test/log_loss"] == pytest.approx(wanted[0]["metrics"]["test/log_loss"], rel=5e-3)


@pytest.mark.parametrize("strategy", ["sptt", "torchrec"])
def test_models_and_trainers_in_other_combinations(
    single: tuple[Path, dict[str, Any]], tmp_path: Path, strategy: str
) -> None:
    folder, wanted = single
    run = Run(strategy=strategy, max_steps=1, save=tmp_path / "a.ckpt")
    train(2, [Run(strategy="sptt", max_steps=1, save=tmp_path / "sharded.ckpt")])
    checkpoints = [folder / "sgd.ckpt", tmp_path / "sharded.ckpt"]
    for found in run_ranks(corners, world_size=2, args=(run, checkpoints, 2)):
        log_loss = wanted["sgd"][0]["metrics"]["test/log_loss"]
        # The same weights: only sums in another order.
        assert found["loaded_before"] == pytest.approx(log_loss, rel=1e-6)
        assert found["other_trainer"] == pytest.approx(log_loss, rel=1e-6)
        assert found["second_is_sharded"] == [{"sptt": "SpttStage", "torchrec": "FlatStage"}[strategy]]
        for kind in ("file", "directory"):
            assert "only the model has 'model.over." in found[f"{kind} [16, 16]"]
            assert "has shape" in found[f"{kind} [8]"]
        assert "DDPStrategy on 2 ranks" in found["ddp"]


def test_no_step_waits_for_all_ranks(tmp_path: Path) -> None:
    # Lightning asks in every step whether to end, by a broadcast; `dmt.strategies.ending` takes its private parts away.
    # And it has a barrier before every sum, such as that of the loss.
    for steps in run_ranks(waits_of_steps, world_size=2, args=(["sptt", "torchrec"], tmp_path, 2)):
        assert steps == [[0, 0, 0, 0]] * 2
