"""Sending ids ahead of time, inside Lightning's own loops, changes no number and no position."""

from pathlib import Path
from typing import Any

import torch

from tests.distributed.test_training import train
from tests.distributed.training_cases import Run, load_state

VALIDATED = {"val_check_interval": 2, "limit_val_batches": 1, "num_sanity_val_steps": 1}


def pair(folder: Path, name: str, strategy: str = "sptt", **settings: Any) -> list[Run]:
    """The same run with overlap and without."""
    return [
        Run(strategy=strategy, ranks_per_host=2, save=folder / f"{name}_{on}.ckpt", options={"overlap": on}, **settings)
        for on in (True, False)
    ]


def test_overlap_changes_no_number(tmp_path: Path) -> None:
    # Validation between training steps, also of fewer batches than its loader has; epochs cut short; a step limit
    # inside an epoch.
    runs = [
        *pair(tmp_path, "validated", max_steps=9, limits=VALIDATED),
        *pair(tmp_path, "cut", max_steps=9, limits={"limit_train_batches": 3}),
        *pair(tmp_path, "flat", "torchrec", max_steps=9, limits=VALIDATED),
    ]
    results = train(4, runs)
    for index in range(0, len(runs), 2):
        ahead, plain = runs[index], runs[index + 1]
        # Bytes too: ids that went ahead are not sent again, and none go ahead that no step will have.
        assert results[index] == results[index + 1]
        states = load_state(ahead.save), load_state(plain.save)
        for name, tensor in states[1].items():
            assert torch.equal(states[0][name], tensor), name  # the same operations, only earlier


def test_a_run_resumed_while_a_batch_was_ahead_equals_one_in_one_go(tmp_path: Path) -> None:
    whole = Run(strategy="sptt", max_steps=8, save=tmp_path / "whole.ckpt", dense_optimizer="Adam")
    half = Run(strategy="sptt", max_steps=3, save=tmp_path / "half.ckpt", dense_optimizer="Adam")
    rest = Run(strategy="sptt", max_steps=8, save=tmp_path / "rest.ckpt", dense_optimizer="Adam", resume=half.save)
    train(2, [whole, half, rest])
    resumed, wanted = load_state(rest.save), load_state(whole.save)
    for name, tensor in wanted.items():
        assert torch.equal(resumed[name], tensor), name
