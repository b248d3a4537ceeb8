"""What a run's folder holds, with the loggers that users have."""

import hashlib
import itertools
import json
import socket
import subprocess
from pathlib import Path

import pytest
import wandb
import yaml

from dmt.callbacks import run_record
from dmt.cli import main
from dmt.plan import TowerPlan
from dmt.runs import find_runs

ROOT = Path(__file__).parents[2]


def fit(folder: Path, logger: str, *options: str) -> None:
    words = [
        f"--config={ROOT / 'configs/quickstart.yaml'}",
        "--data.num_train=3000",
        "--data.num_valid=200",
        "--data.num_test=200",
        "--trainer.max_epochs=1",
        "--trainer.log_every_n_steps=1",
        "--trainer.strategy=auto",
        "--trainer.devices=1",
        f"--trainer.logger={logger}",
        f"--trainer.logger.save_dir={folder}",
    ]
    main(["fit", *words, *options])


EVERY_STEP = ("--trainer.callbacks+=Throughput", "--trainer.callbacks.warmup_steps=0")
METRICS = {
    *("train/loss", "samples_per_s", "learning_rate/dense", "learning_rate/embeddings"),
    *(f"val/{name}" for name in ("auroc", "log_loss", "normalized_entropy", "calibration")),
    *(f"test/{name}" for name in ("auroc", "log_loss", "normalized_entropy", "calibration")),
}


def logged(folder: Path, logger: str) -> set[str]:
    """Those of METRICS that a run has logged into files."""
    pattern = {"CSVLogger": "metrics.csv", "TensorBoardLogger": "events.*"}[logger]
    held = b"".join(file.read_bytes() for file in folder.rglob(pattern))
    return {name for name in METRICS if name.encode() in held}


@pytest.mark.parametrize("logger", ["CSVLogger", "TensorBoardLogger", "WandbLogger"])
def test_a_run_can_be_repeated_from_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], logger: str
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    # tensorboardX names files by host and second: that of the test would take the place of a fit's that took no second.
    monkeypatch.setattr(socket, "gethostname", map("host{}".format, itertools.count()).__next__)
    artifacts: list[wandb.Artifact] = []
    log_artifact = wandb.Run.log_artifact
    monkeypatch.setattr(
        wandb.Run, "log_artifact", lambda run, artifact: artifacts.append(artifact) or log_artifact(run, artifact)
    )
    known: list[tuple[dict[str, object], set[str]]] = []  # to W&B, when it has said its last
    finish = wandb.Run.finish

    def finish_known(run: wandb.Run, *arguments: object, **options: object) -> None:
        known.append((dict(run.config), set(run.summary.keys())))
        finish(run, *arguments, **options)

    monkeypatch.setattr(wandb.Run, "finish", finish_known)
    fit(tmp_path, logger, "--trainer.logger.version=7", *EVERY_STEP)
    assert (known[0][1] & METRICS if logger == "WandbLogger" else logged(tmp_path, logger)) == METRICS
    [run] = find_runs([tmp_path])
    names = {file.name for file in run.folder.iterdir()}
    assert {"config.yaml", "towers.yaml", "record.json", "description.json", "summary.json"} <= names
    assert TowerPlan.load(run.folder / "towers.yaml").method == "strided"
    assert yaml.safe_load((run.folder / "config.yaml").read_text())["model"]["num_towers"] == 4
    record = json.loads((run.folder / "record.json").read_text())
    assert {"python", "torch", "torchrec", "lightning", "dmt"} <= set(record["versions"]) and record["command"]
    assert record["folder"] == str(Path.cwd()) and record["plan_sha256"] is None
    assert record["git"] is None or len(record["git"]["commit"]) == 40
    assert json.loads((run.folder / "description.json").read_text()) == run.summary.description

    # A report has curves of every run, whatever its logger.
    assert record["metrics"] == ("metrics.csv" if logger == "CSVLogger" else "csv/metrics.csv")
    assert run.metrics >= METRICS and len(run.curve("train/loss")[1]) > 1
    assert Path(run.summary.checkpoint).is_relative_to(run.folder)
    if logger == "WandbLogger":
        [artifact] = artifacts
        assert set(artifact.manifest.entries) == {"config.yaml", "record.json", "towers.yaml", "description.json"}
        # Kept here alone, for `wandb sync` to find.
        assert all(Path(entry.local_path).parent == run.folder for entry in artifact.manifest.entries.values())
        # What tells runs apart that have the same model.
        config = known[0][0]
        assert {"seed_everything", "data", "trainer"} <= set(config) and config["seed_everything"] == 1
    before = {file: file.read_bytes() for file in run.folder.rglob("*") if file.is_file()}
    with pytest.raises(SystemExit, match="2"):
        fit(tmp_path, logger, "--trainer.logger.version=7")
    assert "there are files in it; give the logger another name or version" in capsys.readouterr().err
    assert {file: file.read_bytes() for file in run.folder.rglob("*") if file.is_file()} == before


def test_a_run_is_repeated_without_its_plans_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [f"c{number:02}" for number in range(16)]
    TowerPlan(towers=[names[:5], names[5:]], method="manual").save(tmp_path / "plan.yaml")
    checksum = hashlib.sha256((tmp_path / "plan.yaml").read_bytes()).hexdigest()
    monkeypatch.chdir(tmp_path)
    fit(tmp_path / "runs", "CSVLogger", "--model.num_towers=2", "--model.plan=plan.yaml")
    [run] = find_runs([tmp_path / "runs"])
    record = json.loads((run.folder / "record.json").read_text())
    assert record["folder"] == str(tmp_path) and record["plan_sha256"] == checksum
    (tmp_path / "plan.yaml").unlink()
    again = ["fit", f"--config={run.folder / 'config.yaml'}"]
    with pytest.raises(SystemExit, match="2"):
        main(again)
    assert "a run's own plan is towers.yaml in its folder: --model.plan RUN/towers.yaml" in capsys.readouterr().err
    main([*again, f"--model.plan={run.folder / 'towers.yaml'}"])
    [repeated] = find_runs([run.folder.parent])
    assert repeated.folder != run.folder and repeated.towers == run.towers
    assert repeated.final("test/auroc") == run.final("test/auroc")


@pytest.mark.parametrize("first", ["CSVLogger", "WandbLogger"])
def test_beside_wandb_the_run_has_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: str) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    [second] = {"CSVLogger", "WandbLogger"} - {first}
    fit(tmp_path, first, f"--trainer.logger+={second}", f"--trainer.logger.save_dir={tmp_path}")
    wandb.finish()
    [file] = tmp_path.rglob("metrics.csv")
    [run] = find_runs([tmp_path])
    assert run.folder == file.parent and run.curve("val/auroc")[1]
    assert {"config.yaml", "record.json", "towers.yaml"} <= {path.name for path in run.folder.iterdir()}


def test_the_commit_is_of_what_is_tracked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    installed = tmp_path / ".venv" / "run_record.py"
    installed.parent.mkdir()
    for file in (installed, tmp_path / "mine.py"):
        file.touch()
    for words in (["init", "-q"], ["add", "mine.py"], ["commit", "-q", "-m", "mine"]):
        subprocess.run([*git, *words], check=True)
    monkeypatch.setattr(run_record, "__file__", str(installed))
    monkeypatch.chdir(tmp_path)
    record = run_record._record()
    assert record["git"] is None
    assert len(record["folder_git"]["commit"]) == 40 and not record["folder_git"]["is_changed"]
    (tmp_path / "mine.py").write_text("changed")
    assert run_record._record()["folder_git"]["is_changed"]
