"""What training sends over the wire, and how long it does nothing but wait for it."""

from contextlib import ExitStack
from typing import Any

import lightning.pytorch as pl
import numpy as np
from lightning.pytorch.callbacks import Callback
from numpy.typing import NDArray

from dmt.strategies.meter import WireMeter
from dmt.strategies.strategy import TowerStrategy

LINKS = ("intra_host", "cross_host")


class WireTraffic(Callback):
    """Logs bytes sent and communication time that nothing hides, whenever the Trainer logs.

    ``intra_host_mb`` and ``cross_host_mb`` are megabytes (1e6 bytes) that a rank sends in a training step inside its
    host and to others: what the tower stages' collectives counted, and the dense gradients, taken as a ring in rank
    order. ``exposed_comm_ms`` is the time of a step in which a rank waited for these collectives with nothing else to
    do, waiting for slower ranks included; on CUDA, where the device waits, it stays near zero.

    All three are means over ranks and over the steps since the last time. The first step of a fit, which begins to
    send the second one's ids as well, is left out, and so is validation. On a single rank nothing is logged.
    """

    def __init__(self) -> None:
        self._meters: list[WireMeter] = []
        self._counting = ExitStack()
        self._counted_from: tuple[int, NDArray[np.float64]] | None = None
        self._paused: NDArray[np.float64] | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._meters, self._counted_from = [], None
        if isinstance(trainer.strategy, TowerStrategy) and trainer.world_size > 1:
            self._meters = self._counting.enter_context(trainer.strategy.metered())

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._counting.close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._counting.close()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._paused = self._totals()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._counted_from is not None and self._paused is not None:
            step, totals = self._counted_from
            self._counted_from = step, totals + self._totals() - self._paused

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not self._meters:
            return
        step = trainer.global_step
        if self._counted_from is None:
            self._counted_from = step, self._totals()
            return
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        first_step, before = self._counted_from
        if step == first_step or not every or step % every:
            return
        totals = self._totals()
        intra_host, cross_host, waited = (totals - before) / (step - first_step)
        self._counted_from = step, totals
        values = {
            "intra_host_mb": intra_host / 1e6,
            "cross_host_mb": cross_host / 1e6,
            "exposed_comm_ms": waited * 1e3,
        }
        pl_module.log_dict({n: float(v) for n, v in values.items()}, sync_dist=True, batch_size=1)

    def _totals(self) -> NDArray[np.float64]:
        """Bytes inside hosts and across, and seconds waited, since the meters were made."""
        sent = [sum(meter.total_bytes(link) for meter in self._meters) for link in LINKS]
        return np.array([*sent, sum(sum(meter.waited_s.values()) for meter in self._meters)])
