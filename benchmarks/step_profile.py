"""Where the time of a training step goes: torch's profiler over the contenders of `benchmarks/step.py`.

    python benchmarks/step_profile.py --output benchmarks/results/step_profile.md

Times are of the operators themselves, without those that they call, in milliseconds a step.
"""

import argparse
import itertools
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import step
import torch
from common import heading, publish
from torch.profiler import ProfilerActivity, profile

from dmt.host_memory import reuse_host_memory

NAMES = ("flat DLRM, float32", "flat DLRM, bf16-mixed", "DMT, 13 towers, c=0 p=1 D=64, bf16-mixed")
# Operators by what they are for; what is in none is summed up as "other".
PARTS = {
    "matrix products of the layers": ("aten::mm", "aten::addmm"),
    "their activations and biases": ("aten::clamp_min", "aten::threshold_backward", "aten::sum"),
    "embedding look-up": ("fbgemm::split_embedding_codegen_forward_cpu", "fbgemm::bounds_check_indices"),
    "embedding update": (
        *("aten::scatter_add_", "aten::_embedding_bag_forward_only", "aten::sort", "aten::linalg_vector_norm"),
        *("aten::index_select", "aten::index_copy_", "aten::index", "_LookupBackward"),
    ),
    "dot interaction": ("aten::bmm", "aten::gather", "_DotProducts", "_DotProductsBackward"),
    "copies, casts, concatenation": ("aten::cat", "aten::copy_"),
}


def parts_ms(name: str, *, rows: int, batch_size: int, steps: int, num_threads: int) -> dict[str, float]:
    """Milliseconds a step of each part, and in all."""
    torch.set_num_threads(num_threads)
    run = step.OURS[name](rows)
    batches = itertools.cycle(list(step.make_data(rows, batch_size).train_dataloader()))
    for batch in itertools.islice(batches, 4):
        run(batch)
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        for batch in itertools.islice(batches, steps):
            run(batch)
    own = {event.key: event.self_cpu_time_total / 1e3 / steps for event in recorded.key_averages()}
    found = {part: sum(own.get(operator, 0.0) for operator in operators) for part, operators in PARTS.items()}
    found["other"] = sum(own.values()) - sum(found.values())
    return found | {"all": sum(own.values())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rows", type=int, default=100_000, help="rows of a table (default 100,000)")
    parser.add_argument("--batch-size", type=int, default=4096)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--output", type=Path, help="Markdown file to write; printed as well")
    arguments = parser.parse_args()
    measure = partial(
        parts_ms,
        rows=arguments.rows,
        batch_size=arguments.batch_size,
        steps=arguments.steps,
        num_threads=arguments.threads,
    )
    reuse_host_memory()  # in processes that have not imported torch yet
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, max_tasks_per_child=1) as processes:
        found = dict(zip(NAMES, processes.map(measure, NAMES), strict=True))
    lines = [
        *heading("Where the time of a training step goes"),
        f"The sizes of `step.md`; {arguments.threads} threads, means of {arguments.steps} steps.",
        "",
        f"| ms a step | {' | '.join(NAMES)} |",
        "|---|" + "---|" * len(NAMES),
    ]
    for part in found[NAMES[0]]:
        lines.append(f"| {part} | {' | '.join(f'{found[name][part]:.1f}' for name in NAMES)} |")
    publish(lines, arguments.output)


if __name__ == "__main__":
    main()
