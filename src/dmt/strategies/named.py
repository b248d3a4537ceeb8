"""The two Strategies that a user names: ``sptt`` and the flat baseline ``torchrec``."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import StrategyRegistry
from typing_extensions import override

from dmt.errors import UserInputError
from dmt.modules.stage import TowerStage
from dmt.strategies.agreement import least
from dmt.strategies.flat import FlatStage
from dmt.strategies.flat_meter import count_torchrec
from dmt.strategies.meter import WireMeter
from dmt.strategies.placement import RESERVED
from dmt.strategies.sptt import ProcessGroups, SpttStage
from dmt.strategies.stage import ShardedStage
from dmt.strategies.strategy import DEFAULT_TIMEOUT, TowerStrategy
from dmt.strategies.topology import Topology


class SpttStrategy(TowerStrategy):
    """SPTT: towers on host groups, tables cut inside the group, tower modules before the cross-host hop.

    ``sharding`` is ``auto`` (the rule of :func:`~dmt.strategies.placement.place`), ``table_wise``, ``column_wise``,
    ``row_wise``, ``grid_shard``, or one of these by table. The precisions are those of the cross-host hop.
    """

    strategy_name = "sptt"
    default_sharding = "auto"

    @override
    def shard_stage(self, stage: TowerStage, topology: Topology) -> ShardedStage:
        return SpttStage(
            stage,
            topology=topology,
            groups=ProcessGroups.create(topology, timeout=self._timeout or DEFAULT_TIMEOUT),
            rank=self.global_rank,
            device=self.root_device,
            sharding=self.sharding,
            rank_memory_bytes=int((1 - RESERVED) * _rank_memory_bytes(self.root_device, ranks=self.num_processes)),
            forward_precision=self.forward_precision,
            backward_precision=self.backward_precision,
        )


class TorchRecStrategy(TowerStrategy):
    """The flat baseline: TorchRec's hybrid parallelism, tables over all ranks, tower modules data-parallel.

    ``sharding`` is ``planner`` (TorchRec's own), a kind, or a kind by table; see
    :class:`~dmt.strategies.flat.FlatStage`. The precisions are those of all embedding exchanges.
    """

    strategy_name = "torchrec"
    default_sharding = "table_wise"

    @override
    def refuse_unsupported(self, trainer: pl.Trainer) -> None:
        if self.hosts_per_group != 1:
            raise UserInputError(
                f"hosts_per_group={self.hosts_per_group}: strategy torchrec shards over all hosts; leave it out, or "
                "choose sptt"
            )
        super().refuse_unsupported(trainer)

    @contextmanager
    @override
    def metered(self) -> Iterator[list[WireMeter]]:
        with super().metered() as meters, count_torchrec(meters[0]):
            yield meters

    @override
    def shard_stage(self, stage: TowerStage, topology: Topology) -> ShardedStage:
        return FlatStage(
            stage,
            topology=topology,
            device=self.root_device,
            sharding=self.sharding,
            rank_memory_bytes=_rank_memory_bytes(self.root_device, ranks=self.num_processes),
            forward_precision=self.forward_precision,
            backward_precision=self.backward_precision,
        )


def _rank_memory_bytes(device: torch.device, *, ranks: int) -> int:
    """Memory that every rank has, its GPU's or its share of its machine's; collective.

    Every rank places all tables by itself, and by another number it might place them otherwise.
    """
    if device.type == "cuda":
        return least(torch.cuda.get_device_properties(device).total_memory)
    return least(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // ranks)


def register_strategies() -> None:
    """Make ``Trainer(strategy="sptt")`` and ``"torchrec"`` known to Lightning; importing ``dmt`` calls it."""
    for strategy in (SpttStrategy, TorchRecStrategy):
        if strategy.strategy_name not in StrategyRegistry:
            StrategyRegistry.register(strategy.strategy_name, strategy, description=strategy.__doc__ or "")
