"""Training runs with the wire meter; run inside the ranks of ``test_wire_traffic``."""

from typing import Any

import lightning as L
import torch

from dmt.callbacks import WireTraffic
from dmt.describe import Layout, describe
from dmt.strategies.strategy import TowerStrategy
from tests.distributed.training_cases import GLOBAL_BATCH, Run, make_data, make_model, make_trainer

NAMES = ("intra_host_mb", "cross_host_mb", "exposed_comm_ms")


class _Kept(L.Callback):
    """What was logged, by step; comes after the meter, so that it sees its values of the same step."""

    def __init__(self) -> None:
        self.by_step: dict[int, dict[str, float]] = {}

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *rest: Any) -> None:
        found = {name: float(trainer.callback_metrics[name]) for name in NAMES if name in trainer.callback_metrics}
        self.by_step[trainer.global_step] = found


def metered_fit(run: Run, world_size: int) -> dict[str, Any]:
    """Train with the meter; returns what it logged, by step, and what ``describe`` predicts."""
    torch.set_num_threads(1)
    kept = _Kept()
    run.limits["callbacks"] = [WireTraffic(), kept]
    trainer, model, data = make_trainer(run, world_size), make_model(run), make_data()
    trainer.fit(model, datamodule=data)
    predicted: dict[str, Any] = {}
    if isinstance(trainer.strategy, TowerStrategy):
        layout = Layout(
            strategy=run.strategy,
            topology=trainer.strategy.topology,
            global_batch_size=GLOBAL_BATCH,
            **{"sharding": trainer.strategy.sharding},
        )
        predicted = describe(make_model(run), data.schema, layout)["bytes_per_iteration"]
    shown = sorted(name for name in NAMES if name in trainer.progress_bar_metrics)
    return {"logged": kept.by_step, "predicted": predicted, "progress_bar": shown}


def metered_fits(runs: list[Run], world_size: int) -> list[dict[str, Any]]:
    """Several runs in one world."""
    return [metered_fit(run, world_size) for run in runs]
