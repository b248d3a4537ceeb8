r"""One training iteration of the embedding part with tower modules: SPTT beside its relatives in TorchRec.

    python benchmarks/relatives.py --hosts 2 --ranks-per-host 2 --rate-mbit 500 none --compression 1 2 4 \
        --output benchmarks/results/relatives_2x2.md

An iteration is forward, backward with the fused update of the rows, and SGD on the tower modules; no dense
architecture. All variants live in the same processes and take turns in random order; before that they must compute
the same function. Hosts are network namespaces with links of the given rate; with `none` they are only a word, and
all ranks talk over the loopback of this machine.

A round's time is from the first rank's start to the last rank's end. `ratio` is a variant's time over SPTT's of the
same round; the interval is of its median over rounds (95 %, from order statistics).
"""

import argparse
import gc
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from common import heading, median_interval, publish
from embedding_variants import Sptt, Variant, Workload, build, check_agreement
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dmt.emulate import EmulatedCluster, own_link_counters, run_local_ranks

NUM_BATCHES = 4  # drawn beforehand, used in turn

Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class Timing:
    """What one rank has measured, by variant and round.

    Args:
        names: of the variants.
        starts: seconds of a clock that all processes of the machine share.
        ends: the same.
        link_bytes: payload that left the host over its link; the barriers around an iteration are taken off.
        metered_bytes: payload that SPTT's meter has counted as sent to other hosts; 0 for other variants.
    """

    names: list[str]
    starts: list[list[float]]
    ends: list[list[float]]
    link_bytes: list[list[float]]
    metered_bytes: list[list[float]]


def measure(workload: Workload, emulated: bool, sharding: str, rounds: int, warm_up: int, seed: int) -> Timing:
    """Runs on every rank."""
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    variants = build(workload, sharding=sharding)
    check_agreement(variants, workload, seed + rank)
    generator = torch.Generator().manual_seed(seed + rank)
    batches = [workload.batch(generator) for _ in range(NUM_BATCHES)]
    gradient = workload.gradient(generator)
    order = np.random.default_rng(seed)  # the same on every rank
    idle = statistics.median(_link_bytes(emulated, dist.barrier)[0] for _ in range(9))
    names = [variant.name for variant in variants]
    timing = Timing(names=names, starts=[], ends=[], link_bytes=[], metered_bytes=[])
    gc.disable()
    for index in range(warm_up + rounds):
        starts, ends, link_bytes, metered = ([0.0] * len(variants) for _ in range(4))
        for position in order.permutation(len(variants)):
            variant, source = variants[position], batches[index % NUM_BATCHES]
            # A new one: a KeyedJaggedTensor remembers what was computed from it.
            batch = KeyedJaggedTensor(source.keys(), source.values(), lengths=source.lengths())
            step = partial(_timed_step, variant, batch, gradient, workload.learning_rate)
            before = variant.cross_host_bytes() if isinstance(variant, Sptt) else 0
            link_bytes[position], (starts[position], ends[position]) = _link_bytes(emulated, step)
            link_bytes[position] -= idle
            metered[position] = variant.cross_host_bytes() - before if isinstance(variant, Sptt) else 0
        if index >= warm_up:
            timing.starts.append(starts)
            timing.ends.append(ends)
            timing.link_bytes.append(link_bytes)
            timing.metered_bytes.append(metered)
        gc.collect()
    return timing


def _timed_step(
    variant: Variant, batch: KeyedJaggedTensor, gradient: Tensor, learning_rate: float
) -> tuple[float, float]:
    """When an iteration started and ended."""
    dist.barrier()
    start = time.perf_counter()
    variant.step(batch, gradient, learning_rate)
    return start, time.perf_counter()


def _link_bytes(emulated: bool, action: Callable[[], Result]) -> tuple[float, Result]:
    """Payload that leaves this host while all ranks run an action, and the action's result."""
    dist.barrier()
    before = own_link_counters().payload_bytes if emulated else 0
    result = action()
    dist.barrier()  # what was sent has arrived
    return (own_link_counters().payload_bytes - before if emulated else 0), result


def report(timings: Sequence[Timing], workload: Workload, rate_mbit: float | None) -> list[str]:
    """A table of one workload on one network."""
    starts, ends = (
        np.array([getattr(t, field) for t in timings]) for field in ("starts", "ends")
    )  # rank, round, variant
    seconds = ends.max(axis=0) - starts.min(axis=0)
    ratios = seconds / seconds[:, :1]
    # Counters belong to a host, meters to a rank.
    first_ranks = timings[:: workload.ranks_per_host]
    link_mb = np.median(np.mean([t.link_bytes for t in first_ranks], axis=0), axis=0) / 1e6
    metered = np.sum([t.metered_bytes for t in timings], axis=0) / workload.num_hosts
    metered_mb = np.median(metered, axis=0) / 1e6
    network = "all ranks on one loopback" if rate_mbit is None else f"{rate_mbit:g} Mbit/s a host"
    hotness = f"0 to {2 * workload.mean_ids} ids a feature" if workload.mean_ids else "single-hot"
    lines = [
        f"## {network}, compression {workload.compression}, {hotness}",
        "",
        "| variant | ms, median | ratio to SPTT | 95 % interval | MB from a host, by the link | by SPTT's count |",
        "|---|---|---|---|---|---|",
    ]
    for index, name in enumerate(timings[0].names):
        low, high = median_interval(ratios[:, index])
        interval = "" if index == 0 else f"{low:.3f} to {high:.3f}"
        link = "" if rate_mbit is None else f"{link_mb[index]:.3f}"
        counted = f"{metered_mb[index]:.3f}" if metered_mb[index] else ""
        lines.append(
            f"| {name} | {1e3 * np.median(seconds[:, index]):.1f} | {np.median(ratios[:, index]):.3f} | {interval} | "
            f"{link} | {counted} |"
        )
    return [*lines, ""]


def run(workload: Workload, rate_mbit: float | None, options: tuple[Any, ...]) -> list[Timing]:
    """All ranks of one workload on one network."""
    ranks_per_host, timeout_s = workload.ranks_per_host, 3600.0
    if rate_mbit is None:
        num_ranks, args = workload.topology.world_size, (workload, False, *options)
        return run_local_ranks(
            measure, num_ranks=num_ranks, ranks_per_host=ranks_per_host, args=args, timeout_s=timeout_s
        )
    with EmulatedCluster(num_hosts=workload.num_hosts, rate_mbit=rate_mbit) as cluster:
        args = (workload, True, *options)
        return cluster.run_ranks(measure, ranks_per_host=ranks_per_host, args=args, timeout_s=timeout_s)


def rate(text: str) -> float | None:
    """An argument: Mbit/s, or `none`."""
    return None if text == "none" else float(text)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    command = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_argument("--hosts", type=int, default=2, help="hosts, and towers (default 2)")
    command.add_argument("--ranks-per-host", type=int, default=2, help="(default 2)")
    command.add_argument("--rate-mbit", type=rate, nargs="+", default=[500.0], help="Mbit/s of a host, or none")
    command.add_argument(
        "--compression", type=int, nargs="+", default=[1, 2], help="1 is no tower module (default 1 2)"
    )
    command.add_argument("--multi-hot", type=int, default=0, help="mean ids of a feature (default: exactly one)")
    command.add_argument("--rows", type=int, default=100_000, help="rows of each of the 26 tables (default 100000)")
    command.add_argument("--batch-size", type=int, default=512, help="samples of a rank (default 512)")
    command.add_argument("--sharding", default="auto", help="how SPTT cuts tables inside a host (default auto)")
    command.add_argument("--rounds", type=int, default=60, help="rounds that count (default 60)")
    command.add_argument("--warm-up", type=int, default=5, help="rounds before (default 5)")
    command.add_argument("--seed", type=int, default=1, help="of ids, gradients and the order of turns (default 1)")
    command.add_argument("--output", type=Path, help="Markdown file to write; printed as well")
    return command


def main() -> None:
    given = parser().parse_args()
    layout = f"{given.hosts} hosts of {given.ranks_per_host} ranks"
    lines = [
        *heading(f"SPTT and its relatives in TorchRec, {layout}"),
        f"26 tables of {given.rows:,} x 64, {given.batch_size} samples a rank, SGD, float32 on the wire, "
        f"{given.rounds} rounds.",
        "",
    ]
    for rate_mbit in given.rate_mbit:
        for compression in given.compression:
            workload = Workload(
                num_hosts=given.hosts,
                ranks_per_host=given.ranks_per_host,
                num_rows=given.rows,
                batch_size=given.batch_size,
                mean_ids=given.multi_hot,
                compression=compression,
            )
            timings = run(workload, rate_mbit, (given.sharding, given.rounds, given.warm_up, given.seed))
            lines += report(timings, workload, rate_mbit)
            print(*lines[-10:], sep="\n", file=sys.stderr)
    publish(lines, given.output)


if __name__ == "__main__":
    main()
