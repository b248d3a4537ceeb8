"""Runs a function on several gloo processes of this machine and brings back results or tracebacks."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

from dmt.emulate import run_local_ranks


def run_ranks(
    function: Callable[..., Any],
    *,
    world_size: int,
    args: tuple = (),
    ranks_per_node: int | None = None,
    timeout_s: float = 150,
) -> list[Any]:
    """Call ``function(*args)`` on every rank; see :func:`~dmt.emulate.run_local_ranks`.

    One world should still serve many cases: to start one takes a second.
    """
    return run_local_ranks(
        function, num_ranks=world_size, ranks_per_host=ranks_per_node, args=args, timeout_s=timeout_s
    )


def init_gloo() -> None:
    """Join the world's process group, with a timeout that turns a hang into a failure."""
    import torch.distributed as dist

    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
