"""Updates of embedding rows on the CPU: this project's kernels against FBGEMM's, in turn in every round.

    python benchmarks/embedding_optimizers.py --output benchmarks/results/embedding_optimizers.md

26 tables of 100,000 rows, 64 columns, batch 4096, random single-hot ids. Before each update a large buffer is written,
as the layers of a model would, so that rows come from memory and not from the lookup's cache.
"""

import argparse
import os
import statistics
import sys
import time
from pathlib import Path

import torch
from common import heading, publish
from torch import Tensor

from dmt.modules.embeddings import EmbeddingOptimizer, fbgemm_optimizer
from dmt.modules.kernels import FbgemmKernel, Kernel
from dmt.modules.sparse_adagrad import SparseAdagradKernel, SparseRowwiseAdagradKernel
from dmt.modules.sparse_adam import SparseAdamKernel

NUM_TABLES, WIDTH = 26, 64
CPU = torch.device("cpu")


def make(name: str, rows: int) -> dict[str, Kernel]:
    """The kernels of an optimiser, by whose they are."""
    sizes, lookups = [(rows, WIDTH)] * NUM_TABLES, list(range(NUM_TABLES))
    optimizer = EmbeddingOptimizer(name=name, learning_rate=0.01)
    found: dict[str, Kernel] = {}
    if name != "adam":
        found["FBGEMM"] = FbgemmKernel(sizes, lookups, options=fbgemm_optimizer(optimizer), device=CPU)
    rate, eps = optimizer.learning_rate, optimizer.eps
    if name == "adagrad":
        found["dmt"] = SparseAdagradKernel(sizes, lookups, learning_rate=rate, eps=eps)
    if name == "rowwise_adagrad":
        found["dmt"] = SparseRowwiseAdagradKernel(sizes, lookups, learning_rate=rate, eps=eps)
    if name == "adam":
        found["dmt"] = SparseAdamKernel(sizes, lookups, learning_rate=rate, eps=eps, betas=optimizer.betas)
    return found


def update_seconds(kernel: Kernel, ids: Tensor, gradient: Tensor, buffer: Tensor) -> float:
    """Seconds of a backward pass."""
    output = kernel(ids, torch.arange(len(ids) + 1), None)
    buffer.add_(1)
    started = time.perf_counter()
    output.backward(gradient)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--rows", type=int, default=100_000, help="rows of a table (default 100,000)")
    parser.add_argument("--batch-size", type=int, default=4096)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, os.cpu_count() or 1])
    parser.add_argument("--output", type=Path, help="Markdown file to write; printed as well")
    arguments = parser.parse_args()
    gradient, buffer = torch.randn(arguments.batch_size, NUM_TABLES * WIDTH), torch.empty(50_000_000)
    lines = [
        *heading("Updates of embedding rows on the CPU"),
        f"{NUM_TABLES} tables of {arguments.rows:,} x {WIDTH}, batch {arguments.batch_size}; milliseconds, medians of "
        f"{arguments.rounds} rounds.",
        "",
        "| optimiser | threads | FBGEMM | dmt |",
        "|---|---|---|---|",
    ]
    for name in ("sgd", "adagrad", "rowwise_adagrad", "adam"):
        kernels = make(name, arguments.rows)
        for threads in arguments.threads:
            torch.set_num_threads(threads)
            seconds: dict[str, list[float]] = {whose: [] for whose in kernels}
            for number in range(arguments.rounds + 2):
                ids = torch.randint(0, arguments.rows, (NUM_TABLES * arguments.batch_size,))
                for whose, kernel in kernels.items():
                    taken = update_seconds(kernel, ids, gradient, buffer)
                    if number > 1:
                        seconds[whose].append(taken)
            cells = [f"{1e3 * statistics.median(seconds[w]):.1f}" if w in seconds else "" for w in ("FBGEMM", "dmt")]
            lines.append(f"| {name} | {threads} | {' | '.join(cells)} |")
            print(lines[-1], file=sys.stderr)
    publish(lines, arguments.output)


if __name__ == "__main__":
    main()
