"""Runs a function on several processes of this machine and brings back results or tracebacks."""

import random
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from dmt.emulate import run_local_ranks


def fresh_seed() -> int:
    """Other cases on each run; a failure names its seed."""
    return random.SystemRandom().randrange(2**31)


def run_ranks(
    function: Callable[..., Any],
    *,
    world_size: int,
    args: tuple = (),
    ranks_per_node: int | None = None,
    timeout_s: float = 150,
    device: str = "cpu",
) -> list[Any]:
    """Call ``function(*args)`` on every rank; see :func:`~dmt.emulate.run_local_ranks`.

    One world should still serve many cases: to start one takes a second.

    Args:
        function: an importable function.
        world_size: how many ranks.
        args: its arguments.
        ranks_per_node: what the environment says of hosts; default all on one.
        timeout_s: seconds until all must have returned.
        device: torch's default device on every rank; all of them share it where it is a GPU.
    """
    if device != "cpu":
        function, args = _with_default_device, (device, function, *args)
    return run_local_ranks(
        function, num_ranks=world_size, ranks_per_host=ranks_per_node, args=args, timeout_s=timeout_s
    )


def _with_default_device(device: str, function: Callable[..., Any], *args: Any) -> Any:
    import torch

    torch.set_default_device(device)
    return function(*args)


def join_world() -> None:
    """Join the world's process group, with a timeout that turns a hang into a failure."""
    import torch
    import torch.distributed as dist

    from tests.distributed import staged_group

    staged_group.register()
    backend = "gloo" if torch.get_default_device().type == "cpu" else staged_group.NAME
    dist.init_process_group(backend, timeout=timedelta(seconds=60))
