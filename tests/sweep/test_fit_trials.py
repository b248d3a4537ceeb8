"""Sweeps of `dmt fit` itself: options are checked before anything runs, and a run lands in its trial's folder."""

import json
import subprocess
from pathlib import Path

import pytest
import yaml

from dmt.cli import main

# Imported before any test runs: Lightning's log handler keeps the standard error of its first import.
from dmt.preflight import check
from dmt.sweep.algorithms import grid_points
from dmt.sweep.commandline import expand, fit_options
from dmt.sweep.spec import read_spec

ROOT = Path(__file__).parents[2]
BASE = ["--config=configs/quickstart.yaml", "--trainer.strategy=auto", "--trainer.devices=1"]


def asked(*own: str, metric: str | None = None, early: bool = False) -> dict | None:
    names = [word.removeprefix("--").partition("=")[0] for word in own]
    trials = [{"options": [*BASE, *own], "names": names}]
    return check({"base": BASE, "trials": trials, "metric": metric, "early": early})


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ("--model.num_twers=2", ["model.num_twers", "did you mean model.num_towers?"]),
        ("--mdel.num_towers=2", ["mdel.num_towers", "did you mean model.num_towers?"]),
        ("--data.num_trian=2", ["num_trian", "did you mean num_train?"]),
        ("--model.tower.init_args.q=2", ["'q' is not accepted"]),
        ("--model.num_towers=two", ["model.num_towers", "two"]),
        ("--trainer.devices=4", ["4 ranks", "sptt"]),
        ("--trainer.callbacks.monitor=val/auc", ["monitor=val/auc", "val/auroc"]),
        ('--config={"model.tower": {"class_path": "dmt.modules.DLRMTowr"}}', ["DLRMTowr"]),
        ("--model.plan=nope.yaml", ["plan=nope.yaml", "no such file"]),
        ("--model.plan=stride", ["plan=stride", "strided"]),
        ("--model.num_towers=0", ["num_towers=0", "give a positive number"]),
        ("--model.num_towers=99", ["num_towers=99", "choose"]),
        ("--ckpt_path=nope.ckpt", ["nope.ckpt", "no such checkpoint"]),
        ("--model.dense_optimizer.lr=-1", ["model.dense_optimizer", "-1.0"]),
        ("--trainer.logger=false", ["trainer.logger=false", "--trainer.logger+=CSVLogger"]),
    ],
)
def test_wrong_options_are_found_without_training(option: str, told: list[str]) -> None:
    answer = asked(option)
    assert answer is not None and answer["trial"] == 0
    assert all(part in answer["told"] for part in told), answer


@pytest.mark.parametrize(
    ("metric", "early", "told"),
    [
        ("auroc", False, ["metric.name=auroc", "val/auroc, test/auroc"]),
        ("val/auc", False, ["metric.name=val/auc", "val/auroc"]),
        ("test/auroc", True, ["early_terminate", "val/auroc"]),
    ],
)
def test_wrong_metrics_are_found_without_training(metric: str, early: bool, told: list[str]) -> None:
    answer = asked(metric=metric, early=early)
    assert answer is not None and answer["trial"] is None
    assert all(part in answer["told"] for part in told), answer


@pytest.mark.parametrize(
    ("metric", "early"), [("val/auroc", False), ("train/loss", False), ("val/auroc", True), ("a_callbacks_own", True)]
)
def test_any_logger_serves_any_metric(metric: str, early: bool) -> None:
    assert asked("--trainer.logger=WandbLogger", metric=metric, early=early) is None


def test_a_validation_metric_without_validation() -> None:
    answer = asked("--trainer.limit_val_batches=0", "--trainer.callbacks=null", metric="val/auroc")
    assert answer is not None and "trainer.limit_val_batches=0 leaves out validation" in answer["told"]


def test_towers_of_a_log_that_is_not_prepared(tmp_path: Path) -> None:
    for split in ("train", "valid"):
        (tmp_path / f"{split}.csv").write_text("a,b,c,d,label\n1,2,3,0.5,1\n")
    log = [f"--data.path={tmp_path}", "--data.categorical=[a, b, c]", "--data.numeric=[d]"]
    log = ["--data=TabularClicks", *log, f"--data.cache_dir={tmp_path / 'cache'}"]
    answer = asked(*log, "--model.num_towers=3")
    assert answer is not None and "there is no test split" in answer["told"]
    (tmp_path / "test.csv").write_text("a,b,c,d,label\n1,2,3,0.5,1\n")
    assert asked(*log, "--model.num_towers=3") is None
    answer = asked(*log, "--model.num_towers=4", "--model.plan=contiguous")
    assert answer is not None and "3 features fill between 1 and 3 towers" in answer["told"]
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("name", ["tower_count", "tp_method", "compression", "strategy"])
def test_shipped_sweeps_are_sound(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(ROOT)
    spec = read_spec(ROOT / f"configs/sweeps/{name}.yaml")
    points = grid_points(spec.config)
    trials = [{"options": fit_options(expand(spec.command, point)), "names": []} for point in (points[0], points[-1])]
    assert check({"base": [], "trials": trials, "metric": spec.metric, "early": spec.stops_early}) is None


@pytest.mark.parametrize("metric", [None, "test/auroc", "val/log_loss", "a_callbacks_own"])
def test_sound_trials_pass(metric: str | None) -> None:
    assert asked("--model.num_towers=2", "--seed_everything=3", metric=metric) is None


def test_trials_of_fit_end_to_end(dmt: str, tmp_path: Path) -> None:
    """Logged as CSV and in W&B's offline format; a linked point; validation and test metrics."""
    config = yaml.safe_load((ROOT / "configs/quickstart.yaml").read_text())
    config["trainer"] |= {"strategy": "auto", "devices": 1, "max_epochs": 1}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    sweep = {
        "method": "grid",
        "metric": {"name": "val/auroc", "goal": "maximize"},
        "program": "dmt",
        "command": [
            *("${env}", "${program}", "fit", f"--config={tmp_path / 'config.yaml'}"),
            *("--trainer.logger+=WandbLogger", "${args}"),
        ],
        "parameters": {
            "config": {"values": [{"model.num_towers": 2, "model.tower.init_args.p": 4}]},
            "data": {"parameters": {name: {"value": 2000} for name in ("num_train", "num_valid", "num_test")}},
        },
    }
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    command = [dmt, "sweep", str(tmp_path / "sweep.yaml"), "--output", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    [result] = (tmp_path / "out").glob("*/result.json")
    told = json.loads(result.read_text())
    assert {"val/auroc", "test/auroc", "test/normalized_entropy"} <= set(told["metrics"])
    [summary] = result.parent.rglob("summary.json")
    described = json.loads(summary.read_text())
    assert len(described["description"]["towers"]) == 2
    assert told["metrics"]["test/auroc"] == described["metrics"]["test/auroc"]
    assert Path(described["checkpoint"]).is_relative_to(result.parent)
    [kept] = result.parent.glob("wandb/offline-run-*/*.wandb")
    assert b"test/auroc" in kept.read_bytes()
    [log] = result.parent.rglob("metrics.csv")
    assert "test/auroc" in log.read_text().splitlines()[0]
    assert {path.name for path in tmp_path.iterdir()} == {"config.yaml", "sweep.yaml", "out"}


def test_a_wrong_option_ends_a_sweep_before_it_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    # Asked in this process, which has imported torch; the test above asks as the command does.
    monkeypatch.setattr("dmt.sweep.checks._ask", check)
    sweep = {
        "method": "grid",
        "command": ["dmt", "fit", *BASE, "${args}"],
        "parameters": {"model.num_towers": {"values": [2, 4]}, "data.num_trian": {"value": 5}},
    }
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    with pytest.raises(SystemExit) as exit_info:
        main(["sweep", str(tmp_path / "sweep.yaml"), "--output", str(tmp_path / "out")])
    assert exit_info.value.code == 2 and not (tmp_path / "out").exists()
    line = capfd.readouterr().err.splitlines()[-1]
    assert "trial with data.num_trian=5 model.num_towers=2" in line
    assert "did you mean num_train?" in line
