"""Runs that the commands look at: of `dmt fit`, and such as it would leave."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from dmt.runs import RunSummary

ROOT = Path(__file__).parents[2]
OPTIONS = [
    "--config=configs/quickstart.yaml",
    "--data.num_features=6",
    "--data.num_groups=2",
    "--data.num_embeddings=20",
    "--data.num_train=20000",
    "--data.num_valid=2000",
    "--data.num_test=100",
    "--trainer.max_epochs=1",
    "--trainer.strategy=auto",
    "--trainer.devices=1",
]


def fit(folder: Path, *options: str) -> Path:
    """The checkpoint of a short run in one process, or as the options say."""
    done = subprocess.run(
        [sys.executable, "-m", "dmt.cli", "fit", *OPTIONS, *options],
        cwd=ROOT,
        env=os.environ | {"DMT_SAVE_DIR": str(folder), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    [checkpoint] = folder.rglob("*.ckpt")
    return checkpoint


def write_run(
    folder: Path,
    auc: float,
    *,
    seed: int = 1,
    model: Mapping[str, Any] | None = None,
    data: Mapping[str, Any] | None = None,
    width: int = 4,
    towers: Sequence[Sequence[str]] = (("a", "b"),),
    layout: Mapping[str, Any] | None = None,
    cross_host: float = 0,
    logger: Any = None,
) -> Path:
    """A finished run; each of its towers sends ``width`` floats of a sample."""
    folder.mkdir(parents=True)
    description = {
        "towers": [{"features": features, "out_features": 1, "out_dim": width} for features in towers],
        "plan_method": "flat", "compression_ratio": 8 / width, "parameters": 10, "mflops_per_sample": width / 10,
        "layout": layout or {"strategy": "single", "ranks": 1, "ranks_per_host": 1},
        "bytes_per_iteration": {"cross_host": cross_host},
    }  # fmt: skip
    data = {"class_path": "a.Data", **(data or {})}
    metrics = {"test/auroc": auc, "test/log_loss": 0.4, "test/normalized_entropy": 0.8, "test/calibration": 1.0}
    RunSummary(
        data=data, description=description, metrics=metrics, samples_per_second=1000.0 * seed, steps=2, checkpoint=""
    ).save(folder)
    config = {
        "seed_everything": seed,
        "trainer": {"max_epochs": 1, "logger": logger or {"class_path": "CSVLogger"}},
        "model": model or {"num_towers": 1},
        "data": data,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "metrics.csv").write_text(
        f"step,train/loss,val/auroc,test/auroc\n1,0.5,,\n2,0.4,,\n2,,{auc - 0.1},\n2,,,{auc}\n"
    )
    return folder


def write_trial(sweep: Path, number: int, state: str | None) -> Path:
    """A trial's folder, as `dmt sweep` leaves it of a state, or of none yet."""
    folder = sweep / f"{9 - number}abc"
    folder.mkdir(parents=True)
    (sweep / "sweep.json").write_text("{}")
    (folder / "trial.json").write_text(json.dumps({"number": number}))
    if state is not None:
        (folder / "result.json").write_text(json.dumps({"state": state, "seconds": 1.0}))
    return folder
