"""Which features share a tower: affinities, points, balanced groups (paper section 3.3)."""

from dmt.partition.affinity import Affinity
from dmt.partition.partitioner import TowerPartitioner

__all__ = ["Affinity", "TowerPartitioner"]
