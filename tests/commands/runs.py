"""A run of `dmt fit` whose checkpoint the commands look at."""

import os
import subprocess
import sys
from pathlib import Path

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
