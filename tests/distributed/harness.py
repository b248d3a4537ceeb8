"""Runs a function on several gloo processes of this machine and brings back results or tracebacks.

Importing torch, torchrec and lightning costs seconds a process, so ranks are forked from one server process
that has imported them once. One world should still serve many cases.
"""

import multiprocessing
import os
import socket
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import Any

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["torch", "torchrec", "lightning", "dmt.strategies", "dmt.modules", "dmt.datamodules"])


def free_port() -> int:
    """A TCP port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run_ranks(
    function: Callable[..., Any],
    *,
    world_size: int,
    args: tuple = (),
    ranks_per_node: int | None = None,
    timeout_s: float = 150,
) -> list[Any]:
    """Call ``function(*args)`` on every rank, with the environment a launcher would set.

    Returns:
        The ranks' return values, by rank; plain data, since a tensor would outlive the process that shares it.

    Raises:
        AssertionError: a rank raised, died or did not finish in time; holds the rank's traceback.
    """
    port = free_port()
    pipes, processes = [], []
    for rank in range(world_size):
        receiver, sender = _context.Pipe(duplex=False)
        process = _context.Process(
            target=_rank_main,
            args=(function, args, rank, world_size, ranks_per_node or world_size, port, sender),
        )
        process.start()
        sender.close()
        pipes.append(receiver)
        processes.append(process)
    try:
        return _collect(pipes, time.monotonic() + timeout_s)
    finally:
        for process in processes:
            process.join(timeout=10)
            if process.is_alive():
                process.kill()
                process.join()


def _collect(pipes: list[Connection], deadline: float) -> list[Any]:
    results: dict[int, Any] = {}
    failures: list[str] = []
    pending = dict(enumerate(pipes))
    while pending and time.monotonic() < deadline:
        for rank, pipe in list(pending.items()):
            if not pipe.poll(0.02):
                continue
            del pending[rank]
            try:
                succeeded, value = pipe.recv()
            except EOFError:
                succeeded, value = False, "died without a word"
            if succeeded:
                results[rank] = value
            else:
                failures.append(f"rank {rank}: {value}")
                deadline = min(deadline, time.monotonic() + 10)  # others may be stuck in a collective
    if failures or pending:
        stuck = [f"rank {rank}: did not finish" for rank in pending]
        raise AssertionError("\n".join(failures + stuck))
    return [results[rank] for rank in range(len(pipes))]


def _rank_main(
    function: Callable[..., Any],
    args: tuple,
    rank: int,
    world_size: int,
    ranks_per_node: int,
    port: int,
    sender: Connection,
) -> None:
    os.environ.update(
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        RANK=str(rank),
        LOCAL_RANK=str(rank % ranks_per_node),
        NODE_RANK=str(rank // ranks_per_node),
        WORLD_SIZE=str(world_size),
        LOCAL_WORLD_SIZE=str(ranks_per_node),
    )
    import torch

    torch.set_num_threads(1)
    try:
        sender.send((True, function(*args)))
    except BaseException:
        sender.send((False, traceback.format_exc()))
    finally:
        sender.close()
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def init_gloo() -> None:
    """Join the world's process group, with a timeout that turns a hang into a failure."""
    import torch.distributed as dist

    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
