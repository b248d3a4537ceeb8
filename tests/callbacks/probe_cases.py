"""A fit whose end a probe looks at."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest

from dmt.datamodules import SyntheticClicks
from dmt.modules import ClickModel


def fit(
    folder: Path,
    data: SyntheticClicks,
    model: ClickModel,
    *callbacks: L.Callback,
    ckpt_path: Path | None = None,
    **options: Any,
) -> L.Trainer:
    """One epoch in one process; what a probe writes is in ``folder``."""
    trainer = L.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        default_root_dir=folder,
        callbacks=list(callbacks),
        **options,
    )
    trainer.fit(model, datamodule=data, ckpt_path=ckpt_path)
    return trainer


def told_by_probe(recorded: pytest.WarningsRecorder) -> str:
    """What a probe has warned of."""
    [told] = [str(warning.message) for warning in recorded if "Probe: " in str(warning.message)]
    return told


class Spoil(L.Callback):
    """Gives rows of features' tables another value when ``fit`` has ended, before the probe after it looks at them."""

    def __init__(self, rows: dict[str, tuple[slice, float]]) -> None:
        self.rows = rows

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for feature, (rows, value) in self.rows.items():
            [table] = [
                tensor for name, tensor in pl_module.state_dict().items() if feature in name and tensor.ndim == 2
            ]
            table[rows] = value
