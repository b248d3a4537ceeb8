"""What ranks on emulated hosts do in the tests: importable, so that their processes find it."""

import os
import signal
import time

import torch
import torch.distributed as dist

from dmt.emulate import own_link_counters
from tests.distributed.harness import join_world


def fan(num_floats: int) -> dict[str, float]:
    """Rank 0 sends so much to every other rank, then they to it; rank 0 returns the seconds that each took.

    It starts both and waits for the last word of both, so no message was under way outside of what it timed.
    """
    join_world()
    others = range(1, dist.get_world_size())
    data, word = torch.zeros(num_floats), torch.zeros(1)
    if dist.get_rank() in others:
        dist.recv(data, src=0)
        dist.send(word, dst=0)
        dist.recv(word, src=0)
        dist.send(data, dst=0)
        return {}
    started = time.perf_counter()
    for work in [dist.isend(data, dst=rank) for rank in others]:
        work.wait()
    for rank in others:
        dist.recv(word, src=rank)
    sent = time.perf_counter()
    for rank in others:
        dist.send(word, dst=rank)
    for work in [dist.irecv(torch.zeros(num_floats), src=rank) for rank in others]:
        work.wait()
    return {"out": sent - started, "in": time.perf_counter() - sent}


def exchange(num_bytes: int) -> int:
    """Payload bytes that leave this rank's host while every rank sends ``num_bytes`` to each other one."""
    join_world()
    sent = torch.zeros(num_bytes * dist.get_world_size(), dtype=torch.uint8)
    received = torch.empty_like(sent)
    dist.all_to_all_single(received, sent)  # connects
    dist.barrier()
    before = own_link_counters()
    dist.all_to_all_single(received, sent)
    dist.barrier()
    return (own_link_counters() - before).payload_bytes


def environment() -> tuple[int, ...]:
    """What a launcher tells a rank, confirmed by a collective."""
    join_world()
    total = torch.ones(1)
    dist.all_reduce(total)
    names = ("RANK", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
    return (*(int(os.environ[name]) for name in names), int(total))


def fail_on(rank: int) -> None:
    """One rank raises, the others wait for it in a collective."""
    join_world()
    if dist.get_rank() == rank:
        raise ValueError(f"rank {rank} fails on purpose")
    dist.all_reduce(torch.ones(1))


def die_on(rank: int) -> None:
    """One rank is killed, the others would wait for longer than any test."""
    if int(os.environ["RANK"]) == rank:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(1000)


def sleep() -> None:
    """A rank that does not end."""
    time.sleep(1000)


def unsendable() -> object:
    """A result that no pipe can carry."""
    return lambda: None
