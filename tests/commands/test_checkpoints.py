"""What `dmt explain` and `dmt partition` find out from the checkpoint of a run."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

from dmt.cli import main
from dmt.partition import Affinity
from dmt.plan import TowerPlan
from tests.commands.runs import ROOT, fit


@pytest.fixture(scope="module")
def flat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoint of a flat model, whose run has probed it as well."""
    probes = [f"--trainer.callbacks+=dmt.callbacks.{name}" for name in ("AffinityProbe", "InteractionProbe")]
    return fit(tmp_path_factory.mktemp("flat"), "--model.tower=PassThrough", "--model.num_towers=1", *probes)


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sharded checkpoint of a model of two towers."""
    ranks = ["--trainer.strategy=sptt", "--trainer.devices=2", "--ranks_per_host=1"]
    return fit(tmp_path_factory.mktemp("towers"), "--model.num_towers=2", *ranks)


@pytest.mark.parametrize("kind", ["interaction", "cosine"])
def test_a_checkpoint_is_probed_as_its_run_was(
    flat: Path, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--checkpoint", str(flat), "--probe", kind, "--towers", "2", "--save-affinity", str(tmp_path / "a.npz")]
    main(["partition", *options, "--output", str(tmp_path / "towers.yaml")])
    name = "affinity.npz" if kind == "cosine" else "interaction.npz"
    assert f"{kind} of each pair of features over " in capsys.readouterr().out
    then, now = Affinity.load(flat.parents[1] / name), Affinity.load(tmp_path / "a.npz")
    assert (now.kind, now.num_samples, now.costs) == (kind, then.num_samples, then.costs)
    # The same operations on the same numbers, on another number of threads.
    np.testing.assert_allclose(now.matrix, then.matrix, rtol=1e-4, atol=1e-6)
    assert now.costs == {"lookups": [1.0] * 6, "memory": [20 * 16 * 4.0] * 6, "outputs": [64.0] * 6}
    assert now.checksum in TowerPlan.load(tmp_path / "towers.yaml").record["affinity"]


def test_auto_keeps_the_plan_that_trains_better(flat: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = yaml.safe_load((flat.parents[1] / "config.yaml").read_text())
    tower = {"class_path": "dmt.modules.DLRMTower", "init_args": {"c": 0, "p": 1, "out_dim": 4}}
    config["model"] |= {"num_towers": 2, "tower": tower}
    config["trainer"]["callbacks"] = None
    (tmp_path / "towers.yaml").write_text(yaml.safe_dump(config))
    options = ["--affinity", str(flat.parents[1] / "interaction.npz"), "--towers", "2", "--method", "auto"]
    words = ["--config", str(tmp_path / "towers.yaml"), "--steps", "15", "--output", str(tmp_path / "auto.yaml")]
    main(["partition", *options, *words])
    plan = TowerPlan.load(tmp_path / "auto.yaml")
    losses = plan.record["losses"]
    assert plan.method == f"auto: {min(losses, key=lambda method: losses[method])}"
    assert sorted(losses) == ["coherent", "diverse"] and all(0.3 < loss < 0.7 for loss in losses.values())
    told = capsys.readouterr().out
    assert all(f"{method}: validation log loss {loss:.5f}" in told for method, loss in losses.items())


def test_auto_needs_towers_that_differ(flat: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = yaml.safe_load((flat.parents[1] / "config.yaml").read_text())
    config["model"] |= {"num_towers": 2}
    config["trainer"]["callbacks"] = None
    (tmp_path / "flat.yaml").write_text(yaml.safe_dump(config))
    options = ["--affinity", str(flat.parents[1] / "interaction.npz"), "--towers", "2", "--method", "auto"]
    with pytest.raises(SystemExit, match="2"):
        main(["partition", *options, "--config", str(tmp_path / "flat.yaml"), "--output", str(tmp_path / "auto.yaml")])
    assert "flat.yaml: its model has no tower modules, so that all plans are alike to it" in capsys.readouterr().err


def test_towers_are_explained(towers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["explain", "--checkpoint", str(towers), "--json", "--report", str(tmp_path / "report.html")])
    told = capsys.readouterr().out
    found = json.loads(told[told.index("{") :])
    assert found["num_samples"] == 2000 and found["features"] == [["c0", "c2", "c4"], ["c1", "c3", "c5"]]
    assert [one["towers"] for one in found["single"]] == [[0], [1]]
    assert all(one["auc_drop"] > 0.01 for one in found["single"])
    [pair] = found["pairs"]
    # What is left without both is what the dense columns tell.
    assert 0.5 < found["auc"] - pair["auc_drop"] < found["auc"] - 0.05
    assert pair["together"] > 3 * pair["together_deviation"] > 0
    page = (tmp_path / "report.html").read_text()
    assert "What 2 towers contribute" in page and '<td class="left">0 and 1</td>' in page
    assert [page.count(f'<td class="left">{names}</td>') for names in ("c0, c2, c4", "c1, c3, c5")] == [1, 1]
    main(["explain", "--checkpoint", str(towers), "--batches", "1", "--repeats", "1"])
    told = capsys.readouterr().out
    assert "AUC drop" in told and "0 and 1" in told and "on 1,024 validation samples" in told and "nan" not in told
    main(["explain", "--checkpoint", str(towers), "--batches", "1", "--repeats", "1", "--json"])
    told = capsys.readouterr().out
    found = json.loads(told[told.index("{") :], parse_constant=pytest.fail)
    assert found["single"][0]["deviation"] is None


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (lambda run: ["explain", "--checkpoint", "none.ckpt"], "--checkpoint none.ckpt: no such checkpoint"),
        (lambda run: ["explain", "--checkpoint", str(run), "--batches", "0"], "--batches 0: give at least 1"),
        (
            lambda run: ["explain", "--checkpoint", str(run), "--report", "x.gif"],
            "--report x.gif: give a name",
        ),
        (
            lambda run: ["partition", "--checkpoint", str(run), "--towers", "2", "--output", "never.yaml"],
            "InteractionProbe: the model has tower modules",
        ),
    ],
)
def test_wrong_checkpoints_and_options_are_named(
    towers: Path, words: Callable[[Path], list[str]], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(words(towers))
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("dmt: error")]
    assert told in line
    assert not (ROOT / "never.yaml").exists()


def test_a_checkpoint_without_its_run_needs_a_configuration(
    flat: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = tmp_path / "a" / "b" / "c"
    alone.mkdir(parents=True)
    shutil.copy(flat, alone / "model.ckpt")
    with pytest.raises(SystemExit, match="2"):
        main(["explain", "--checkpoint", str(alone / "model.ckpt")])
    assert "no config.yaml in the folders above it; give --config FILE" in capsys.readouterr().err
    main(["explain", "--checkpoint", str(alone / "model.ckpt"), "--config", str(flat.parents[1] / "config.yaml")])
    assert "AUC" in capsys.readouterr().out
