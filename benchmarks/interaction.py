"""The dot interaction against TorchRec's InteractionArch, forward and backward, one after the other in every round.

    python benchmarks/interaction.py --output benchmarks/results/interaction.md

Both get the numeric columns' vector (B, D) and the features' (B, n-1, D), and return the former beside the products
of all pairs. `pairwise` is the routine without a batched matrix product that the DMT paper prefers for a large batch
and few features, row by row of the triangle. A ratio is TorchRec's time over ours in the same round; the interval is of
its median over rounds (95 %, from order statistics). On a GPU a round queues several calls before it waits, as training
does.
"""

import argparse
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from common import heading, median_interval, publish, time_in_turn
from torch import Tensor
from torchrec.models.dlrm import InteractionArch

from dmt.modules import DotInteraction

CALLS = 20 if torch.cuda.is_available() else 1  # a round
SHAPES = ((16384, 27), (16384, 14), (2048, 27), (512, 9))
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}


def pairwise(dense: Tensor, vectors: Tensor) -> Tensor:
    """The products one row of the triangle at a time, none of them twice."""
    every = torch.cat([dense.unsqueeze(1), vectors], dim=1)
    rows = [(every[:, i : i + 1] * every[:, i + 1 :]).sum(-1) for i in range(every.shape[1] - 1)]
    return torch.cat([dense, *rows], dim=1)


def measure(batch_size: int, num_vectors: int, dim: int, dtype: torch.dtype, rounds: int) -> list[str]:
    """Cells of a row of the table."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dense = torch.randn(batch_size, dim, dtype=dtype, device=device, requires_grad=True)
    vectors = torch.randn(batch_size, num_vectors - 1, dim, dtype=dtype, device=device, requires_grad=True)
    theirs, own = InteractionArch(num_vectors - 1).to(device), DotInteraction(num_vectors).to(device)
    gradient = torch.randn_like(own(vectors, dense))

    def forward(function: Callable[[], Tensor]) -> Callable[[], None]:
        def run() -> None:
            for _ in range(CALLS):
                function()
            _wait(device)

        return run

    def both(function: Callable[[], Tensor]) -> Callable[[], None]:
        def run() -> None:
            for _ in range(CALLS):
                dense.grad = vectors.grad = None
                function().backward(gradient)
            _wait(device)

        return run

    functions = {
        "theirs": lambda: theirs(dense, vectors),
        "own": lambda: own(vectors, dense),
        "pairwise": lambda: pairwise(dense, vectors),
    }
    cells = []
    for wrap in (forward, both):
        seconds = time_in_turn({n: wrap(f) for n, f in functions.items()}, rounds=rounds, warm_up=2)
        ratios = [a / b for a, b in zip(seconds["theirs"], seconds["own"], strict=True)]
        low, high = median_interval(ratios)
        times = [f"{1e3 * statistics.median(values) / CALLS:.3g}" for values in seconds.values()]
        cells += [*times, f"{statistics.median(ratios):.2f} ({low:.2f} to {high:.2f})"]
    return cells


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dims", type=int, nargs="+", default=[128, 64], help="D (default 128 64)")
    parser.add_argument("--rounds", type=int, default=31, help="rounds of the largest shape; small ones get more")
    parser.add_argument("--shrink", type=int, default=1, help="divide all batch sizes by it, for a quick look")
    parser.add_argument("--output", type=Path, help="Markdown file to write; printed as well")
    arguments = parser.parse_args()
    lines = [
        *heading("Dot interaction of n vectors of width D"),
        f"Milliseconds, medians of {arguments.rounds} rounds and more; {torch.get_num_threads()} threads.",
        "",
        "| B | n | D | type | forward: TorchRec | ours | pairwise | ratio | with backward: TorchRec | ours | pairwise "
        "| ratio |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for dim in arguments.dims:
        for batch_size, num_vectors in SHAPES:
            for name, dtype in DTYPES.items():
                rounds = arguments.rounds * (1 if batch_size > 10_000 else 4)
                cells = measure(max(batch_size // arguments.shrink, 1), num_vectors, dim, dtype, rounds)
                lines.append(f"| {batch_size} | {num_vectors} | {dim} | {name} | {' | '.join(cells)} |")
                print(lines[-1], file=sys.stderr)
    publish(lines, arguments.output)


if __name__ == "__main__":
    main()
