"""The command on a GPU: a fit with every callback, and what follows it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SHORT = ["--data.num_train=4000", "--data.num_valid=1000", "--data.num_test=1000", "--trainer.max_epochs=1"]
GPU = ["--trainer.accelerator=gpu", "--trainer.devices=1"]


def dmt(*words: str) -> str:
    code = "import sys; from dmt.cli import main; sys.exit(main())"
    ended = subprocess.run([sys.executable, "-c", code, *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:] + ended.stdout[-1000:]
    return ended.stdout


@pytest.mark.parametrize("strategy", ["auto", "sptt", "torchrec"])
def test_a_run_and_what_follows_it(strategy: str, tmp_path: Path) -> None:
    probes = [f"--trainer.callbacks+=dmt.callbacks.{name}" for name in ("AffinityProbe", "InteractionProbe")]
    config = [
        "--config=configs/quickstart.yaml",
        *SHORT,
        *GPU,
        f"--trainer.strategy={strategy}",
        "--ranks_per_host=1",
        "--trainer.precision=bf16-mixed",
        f"--trainer.logger.init_args.save_dir={tmp_path}",
    ]
    if strategy == "auto":
        config.remove("--ranks_per_host=1")
    dmt("fit", *config, *probes, "--model.tower=PassThrough")
    [run] = (tmp_path / "quickstart").iterdir()
    assert {"affinity.npz", "interaction.npz"} <= {path.name for path in run.rglob("*.npz")}
    [checkpoint] = (run / "checkpoints").iterdir()
    again = [f"--config={run}/config.yaml", f"--ckpt_path={checkpoint}", f"--trainer.logger.init_args.save_dir={run}"]
    assert "test/auroc" in dmt("test", *again)
    explained = json.loads(dmt("explain", f"--checkpoint={checkpoint}", f"--config={run}/config.yaml", "--json"))
    assert len(explained["features"]) == 4
