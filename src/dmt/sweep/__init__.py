"""Sweeps: W&B's files and search algorithms, run on this machine with no account, server or network.

Nothing here imports torch, so that `dmt sweep --help` starts at once.
"""

from dmt.sweep.api import SweepOutcome, run_sweep

__all__ = ["SweepOutcome", "run_sweep"]
