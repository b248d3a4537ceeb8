"""A fit whose end a probe looks at."""

from pathlib import Path

import lightning as L

from dmt.datamodules import SyntheticClicks
from dmt.modules import ClickModel


def fit(folder: Path, data: SyntheticClicks, model: ClickModel, probe: L.Callback) -> None:
    """One epoch in one process; what the probe writes is in ``folder``."""
    trainer = L.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        default_root_dir=folder,
        callbacks=[probe],
    )
    trainer.fit(model, datamodule=data)
