"""A cluster on one machine: hosts as network namespaces, with real links of a limited rate between them."""

from dmt.emulate.cluster import EmulatedCluster, can_emulate
from dmt.emulate.namespaces import LinkCounters, own_link_counters
from dmt.emulate.ranks import RankError, free_port, run_local_ranks

__all__ = [
    "EmulatedCluster",
    "LinkCounters",
    "RankError",
    "can_emulate",
    "free_port",
    "own_link_counters",
    "run_local_ranks",
]
