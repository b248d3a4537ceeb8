"""Lightning Strategies that shard a model's tower stages: ``sptt`` and the flat baseline ``torchrec``."""

from dmt.strategies.checkpoint import TowerCheckpointIO
from dmt.strategies.strategy import SpttStrategy, TorchRecStrategy, TowerStrategy, register_strategies
from dmt.strategies.topology import Placement, Topology

__all__ = [
    "Placement",
    "SpttStrategy",
    "Topology",
    "TorchRecStrategy",
    "TowerCheckpointIO",
    "TowerStrategy",
    "register_strategies",
]

register_strategies()
