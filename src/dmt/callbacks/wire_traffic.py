"""What training sends over the wire, and how long it does nothing but wait for it."""

from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
import numpy as np
from lightning.pytorch.callbacks import Callback
from numpy.typing import NDArray

from dmt.strategies.collectives import WireMeter
from dmt.strategies.sptt import SpttStage
from dmt.strategies.strategy import TowerStrategy

LINKS = ("intra_host", "cross_host")


class WireTraffic(Callback):
    """Logs bytes sent and communication time that nothing hides, whenever the Trainer logs.

    ``intra_host_mb`` and ``cross_host_mb`` are megabytes (1e6 bytes) that a rank sends in a training step inside its
    host and to others: what the tower stages' collectives counted, and the dense gradients, taken as a ring in rank
    order. ``exposed_comm_ms`` is the time of a step in which a rank waited for the tower stages' collectives with
    nothing else to do, waiting for slower ranks included; on CUDA, where the device waits, it stays near zero.

    All three are means over ranks and over the steps since the last time. The first step of a fit, which begins to
    send the second one's ids as well, is left out, and so is validation. In a single process nothing is logged,
    nor under the strategy ``torchrec``, whose collectives are TorchRec's.
    """

    def __init__(self) -> None:
        self._meters: list[WireMeter] = []
        self._dense = np.zeros(len(LINKS))  # bytes of a step's dense gradients
        self._counted_from: tuple[int, NDArray[np.float64]] | None = None
        self._paused: NDArray[np.float64] | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._meters, self._counted_from = [], None
        strategy = trainer.strategy
        if not isinstance(strategy, TowerStrategy) or trainer.world_size == 1:
            return
        stages = list(strategy.stages.values())
        meters = [stage.meter for stage in stages if isinstance(stage, SpttStage)]
        if len(meters) == len(stages):
            self._meters = meters
            self._dense = _sent([_dense_gradients(strategy, pl_module)])

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
        per_step = (totals - before) / (step - first_step)
        self._counted_from = step, totals
        intra_host, cross_host = per_step[:2] + self._dense
        values = {
            "intra_host_mb": intra_host / 1e6,
            "cross_host_mb": cross_host / 1e6,
            "exposed_comm_ms": per_step[2] * 1e3,
        }
        pl_module.log_dict({n: float(v) for n, v in values.items()}, prog_bar=True, sync_dist=True, batch_size=1)

    def _totals(self) -> NDArray[np.float64]:
        """Bytes inside hosts and across, and seconds waited, since the meters were made."""
        return np.append(_sent(self._meters), sum(sum(meter.waited_s.values()) for meter in self._meters))


def _sent(meters: Sequence[WireMeter]) -> NDArray[np.float64]:
    return np.array(
        [sum(n for m in meters for (_, at), n in m.sent_bytes.items() if at == link) for link in LINKS], float
    )


def _dense_gradients(strategy: TowerStrategy, pl_module: pl.LightningModule) -> WireMeter:
    """What DistributedDataParallel sends in a step: the gradients of all parameters that every rank has."""
    local = {f"{name}.{own}" for name, stage in strategy.stages.items() for own in stage.rank_local_names()}
    shared = [p for name, p in pl_module.named_parameters() if p.requires_grad and name not in local]
    meter = WireMeter(strategy.topology, strategy.global_rank)
    meter.add_ring("dense_gradients", range(strategy.world_size), sum(p.nbytes for p in shared))
    return meter
