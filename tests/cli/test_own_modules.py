"""Modules of the user's own, in a file in the current folder: the README's example, as it stands there."""

import json
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
DMT = [str(Path(sys.executable).with_name("dmt"))]
DATA = ["--data", "SyntheticClicks", "--data.num_train", "512", "--data.num_valid", "64", "--data.num_test", "64"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Holds the README's mine.py, and a file with a name of Python's own."""
    [(name, code)] = re.findall(r"(?s)in (\w+\.py):\n\n((?:    .*?\n|\n)+)", README.replace("`", ""))
    assert name == "mine.py"
    (tmp_path / name).write_text(textwrap.dedent(code))
    for taken in ("random.py", "torch.py"):
        (tmp_path / taken).write_text("raise RuntimeError('a file of the user hides a library')\n")
    return tmp_path


def dmt(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        [
            *DMT,
            *arguments,
            *DATA,
            "--model.num_towers",
            "2",
            "--model.tower",
            "mine.MeanTower",
            "--model.top",
            "mine.Linear",
        ],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_readmes_modules_are_found_and_described(folder: Path) -> None:
    told = json.loads(dmt(folder, "describe", "--json"))
    towers = [(tower["module"], tower["out_features"], tower["out_dim"]) for tower in told["towers"]]
    assert towers == [("MeanTower", 1, 16)] * 2


@pytest.mark.slow
def test_ranks_find_them_too(folder: Path) -> None:
    ranks = ["--trainer.strategy", "sptt", "--trainer.devices", "2", "--trainer.accelerator", "cpu"]
    short = ["--trainer.max_epochs", "1", "--trainer.logger", "false", "--data.global_batch_size", "64"]
    assert "test/auroc" in dmt(folder, "fit", *ranks, *short, "--ranks_per_host", "1")
