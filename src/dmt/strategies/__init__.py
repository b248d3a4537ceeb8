"""Lightning Strategies that shard a model's tower stages: ``sptt`` and the flat baseline ``torchrec``."""

from dmt.strategies.checkpoint import TowerCheckpointIO
from dmt.strategies.named import SpttStrategy, TorchRecStrategy, register_strategies
from dmt.strategies.placement import Placement
from dmt.strategies.strategy import TowerStrategy
from dmt.strategies.topology import Topology

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
