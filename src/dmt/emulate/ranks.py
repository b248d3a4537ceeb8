"""Ranks of a run as processes that share one import of torch, each on its host.

Importing torch, torchrec and lightning takes seconds a process, so ranks are forked from one server process that has
imported them once, and enter their host's namespace before anything of theirs opens a connection.
"""

import multiprocessing
import os
import signal
import socket
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any

from dmt.emulate.namespaces import enter_namespace
from dmt.errors import UserInputError

_PRELOAD = ["torch", "torchrec", "lightning", "dmt.strategies"]
_GRACE_S = 5.0  # after a rank has failed: others may be about to tell why, or be stuck in a collective

_context = multiprocessing.get_context("forkserver")


class RankError(RuntimeError):
    """Ranks have raised, died or not finished in time. The message holds each one's traceback."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a rank runs.

    Args:
        namespace: file of the network namespace; ``None`` for the one of the calling process.
        environment: variables to set, beside those that every launcher sets.
    """

    namespace: str | None = None
    environment: dict[str, str] = field(default_factory=dict)


def free_port() -> int:
    """A TCP port of this machine that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run_local_ranks(
    function: Callable[..., Any],
    *,
    num_ranks: int,
    ranks_per_host: int | None = None,
    args: tuple[Any, ...] = (),
    timeout_s: float = 300,
) -> list[Any]:
    """Run ranks on this machine without any emulated network.

    Args:
        function: what every rank calls; an importable one.
        num_ranks: how many.
        ranks_per_host: what the environment says of hosts; default all on one.
        args: its arguments.
        timeout_s: seconds until all must have returned.

    Returns:
        What each rank returned, by rank; plain data, since a tensor would outlive the process that shares it.

    Raises:
        RankError: see there.
    """
    places = [Place()] * num_ranks
    address = ("127.0.0.1", free_port())
    ranks_per_host = ranks_per_host or num_ranks
    return run_ranks(
        function, places=places, ranks_per_host=ranks_per_host, master=address, args=args, timeout_s=timeout_s
    )


def run_ranks(
    function: Callable[..., Any],
    *,
    places: Sequence[Place],
    ranks_per_host: int,
    master: tuple[str, int],
    args: tuple[Any, ...],
    timeout_s: float,
) -> list[Any]:
    """Call ``function(*args)`` on a rank at each place, with the environment that a launcher would set.

    Args:
        function: an importable function.
        places: where each rank runs.
        ranks_per_host: L.
        master: address and port where rank 0 will listen.
        args: its arguments.
        timeout_s: seconds until all must have returned.

    Returns:
        What each rank returned, by rank.

    Raises:
        RankError: a rank raised, died or did not finish in time; the others are ended.
    """
    if ranks_per_host < 1 or len(places) % ranks_per_host:
        raise UserInputError(f"ranks_per_host={ranks_per_host}: it must divide the number of ranks, {len(places)}")
    _context.set_forkserver_preload(_PRELOAD)  # without effect if the server runs already
    pipes: list[Connection] = []
    processes = []
    deadline = time.monotonic() + timeout_s
    try:
        for rank, place in enumerate(places):
            environment = _environment(rank, len(places), ranks_per_host, master) | place.environment
            receiver, sender = _context.Pipe(duplex=False)
            process = _context.Process(target=_main, args=(function, args, place.namespace, environment, sender))
            process.start()
            sender.close()
            pipes.append(receiver)
            processes.append(process)
        return _collect(pipes, deadline)
    except BaseException:
        for process in processes:
            process.kill()
        raise
    finally:
        for process in processes:
            process.join(timeout=_GRACE_S)
            if process.is_alive():
                process.kill()
                process.join()
            process.close()
        for pipe in pipes:
            pipe.close()


def _environment(rank: int, world_size: int, ranks_per_host: int, master: tuple[str, int]) -> dict[str, str]:
    return {
        "MASTER_ADDR": master[0],
        "MASTER_PORT": str(master[1]),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank % ranks_per_host),
        "NODE_RANK": str(rank // ranks_per_host),
        "GROUP_RANK": str(rank // ranks_per_host),
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(ranks_per_host),
    }


def _collect(pipes: Sequence[Connection], deadline: float) -> list[Any]:
    results: dict[int, Any] = {}
    failures: dict[int, str] = {}
    pending = {pipe: rank for rank, pipe in enumerate(pipes)}
    while pending and (left := deadline - time.monotonic()) > 0:
        for pipe in wait(list(pending), timeout=left):
            assert isinstance(pipe, Connection)
            rank = pending.pop(pipe)
            try:
                succeeded, value = pipe.recv()
            except EOFError:
                succeeded, value = False, "died without a word"
            if succeeded:
                results[rank] = value
            else:
                failures[rank] = value
                deadline = min(deadline, time.monotonic() + _GRACE_S)
    failures |= dict.fromkeys(pending.values(), "did not finish")
    if failures:
        raise RankError("\n".join(f"rank {rank}: {text}" for rank, text in failures.items()))
    return [results[rank] for rank in range(len(pipes))]


def _main(
    function: Callable[..., Any],
    args: tuple[Any, ...],
    namespace: str | None,
    environment: dict[str, str],
    sender: Connection,
) -> None:
    threading.Thread(target=_end_with_program, daemon=True).start()
    try:
        if namespace is not None:
            enter_namespace(namespace)
        os.environ.update(environment)
        import torch

        torch.set_num_threads(1)  # the ranks of all hosts share the cores of one machine
        message = (True, function(*args))
    except BaseException:
        message = (False, traceback.format_exc())
    try:
        sender.send(message)
    except Exception:  # a result that cannot be pickled
        sender.send((False, traceback.format_exc()))
    sender.close()
    _leave_process_group()


def _end_with_program() -> None:
    """End this rank when the program that asked for it ends, however that does.

    The kernel's PR_SET_PDEATHSIG would tell of the server that forked this process, which lives as long as a rank.
    """
    program = multiprocessing.parent_process()
    assert program is not None
    program.join()
    os.kill(os.getpid(), signal.SIGKILL)


def _leave_process_group() -> None:
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()
