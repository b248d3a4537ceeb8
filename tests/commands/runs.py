"""Runs that the commands look at: of `dmt fit`, and such as it would leave."""

import os
import subprocess
import sys
from collections.abc import Mapping
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
    data: str = "a.Data",
    width: int = 4,
) -> Path:
    """A finished run; its towers send ``width`` floats of a sample."""
    folder.mkdir(parents=True)
    tower = {"features": ["a", "b"], "out_features": 1, "out_dim": width}
    description = {
        "towers": [tower], "plan_method": "flat", "compression_ratio": 8 / width, "parameters": 10,
        "mflops_per_sample": width / 10, "layout": {"strategy": "single", "ranks": 1, "ranks_per_host": 1},
        "bytes_per_iteration": {"cross_host": 0},
    }  # fmt: skip
    metrics = {"test/auroc": auc, "test/log_loss": 0.4, "test/normalized_entropy": 0.8, "test/calibration": 1.0}
    RunSummary(
        data={"class_path": data}, description=description, metrics=metrics, samples_per_second=1000.0 * seed, steps=2,
        checkpoint="",
    ).save(folder)  # fmt: skip
    config = {
        "seed_everything": seed,
        "trainer": {"max_epochs": 1, "logger": {"save_dir": str(folder)}},
        "model": model or {"num_towers": 1},
        "data": {"class_path": data},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "metrics.csv").write_text(f"step,train/loss,val/auroc\n1,0.5,\n2,0.4,\n2,,{auc}\n")
    return folder
