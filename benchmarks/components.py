"""Where the time of a training step of DLRM goes on one device, beside what that device can do.

    python benchmarks/components.py --output benchmarks/results/components.md

Parts of a real model run on their own, on what they get in a step. Beside their TFLOP/s and GB/s stand those of a large
matrix product and a large copy in the same run, and beside their sum the training step itself. FLOPs are counted by
torch, which does not see those of the dot interaction's kernels on a GPU. Bytes are the least that could move: what a
part reads, its parameters and its output once; in backward what it read once more, and gradients; of tables the rows of
a batch once. An MLP's hidden activations are not among them.

On a GPU the times of parts are the device's own: their calls queue up behind a pause, so that none waits for the host.
Steps follow each other as in training, with no pause. Batches are on the device already. Per size there is a table of
times in all modes, and what the fastest mode and the fastest compiled one leave of the device unused.
"""

import argparse
import gc
import itertools
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import heading, publish
from step import BOTTOM, DIM, NUM_BATCHES, NUM_TABLES, OVER, make_data
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from torchrec.datasets.utils import Batch

from dmt.host_memory import reuse_host_memory
from dmt.modules import DLRM, ClickModel, DLRMTower
from dmt.modules.stage import run_towers

# Dense layers as in benchmarks/step.py, configs/paper/dlrm.yaml and configs/paper/dlrm_8t.yaml.
FLAT, TOWERS = (partial(DLRM, over_layers=sizes) for sizes in ([1024, 1024, 512, 256], [1024, 512, 256]))
HALF = partial(DLRMTower, c=1, p=0, out_dim=64)
SIZES: dict[str, dict[str, Any]] = {
    "step": {"embedding_dim": DIM, "top": partial(DLRM, bottom_layers=BOTTOM, over_layers=OVER)},
    "paper": {"embedding_dim": 128, "top": FLAT},
    "paper-8t": {"embedding_dim": 128, "top": TOWERS, "tower": HALF, "num_towers": 8},
}
ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda", 0) if ON_GPU else torch.device("cpu")
COMPILED = "-compiled"
GPU_MODES, CPU_MODES = ("TF32", "bf16", "TF32-compiled", "bf16-compiled"), ("bf16", "float32-compiled", "bf16-compiled")
MODES = ["float32", *(GPU_MODES if ON_GPU else CPU_MODES)]
PAUSE_CYCLES = 15_000_000  # a call: some 8 ms, longer than a slow host takes to queue one

Ceilings = dict[str, float]  # TFLOP/s of a matrix product by precision, and GB/s of a "copy"


@dataclass
class Part:
    """A part of the step: of its forward and its backward pass the FLOPs, the least bytes and milliseconds by call."""

    forward: Callable[[], Any]
    backward: Callable[[Any], object]
    flops: tuple[int, int]
    num_bytes: tuple[int, int]
    laps: list[tuple[float, float]] = field(default_factory=list)

    @property
    def ms(self) -> list[float]:
        """Medians; 0 for a pass that there is none of."""
        times = zip(zip(*self.laps, strict=True), self.num_bytes, strict=True)
        return [statistics.median(own) if moved else 0.0 for own, moved in times]

    def least_ms(self, ceilings: Ceilings, precision: str) -> list[float]:
        """Milliseconds of both passes at the lower ceiling of the two."""
        counted = zip(self.flops, self.num_bytes, strict=True)
        return [max(flops / ceilings[precision] / 1e9, moved / ceilings["copy"] / 1e6) for flops, moved in counted]


@dataclass
class Run:
    """A model in a mode: its parts, and its steps by round, each with the milliseconds until the host had queued it."""

    mode: str
    precision: str
    parts: dict[str, Part] = field(default_factory=dict)
    steps: list[tuple[float, float]] = field(default_factory=list)
    peak_gib: float = math.nan

    @property
    def step_ms(self) -> list[float]:
        """Medians of the two."""
        return [statistics.median(own) for own in zip(*self.steps, strict=True)]


@contextmanager
def running(mode: str) -> Iterator[None]:
    """Compile or not, and compute float32 products as the mode says; autocast is for forward passes alone."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if mode.startswith("TF32") else "highest")
    try:
        with torch.compiler.set_stance("default" if mode.endswith(COMPILED) else "force_eager"):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def autocast(mode: str) -> torch.autocast:
    """As Lightning's bf16-mixed."""
    return torch.autocast(DEVICE.type, torch.bfloat16, enabled=mode.startswith("bf16"), cache_enabled=False)


def mark() -> Any:
    """A moment on the device."""
    if not ON_GPU:
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def between(start: Any, end: Any) -> float:
    """Milliseconds; waits for the device."""
    if not ON_GPU:
        return 1e3 * (end - start)
    end.synchronize()
    return start.elapsed_time(end)


def time_calls(
    forward: Callable[[], Any], backward: Callable[[Any], object] = id, *, calls: int = 10
) -> list[tuple[float, float]]:
    """Milliseconds of both passes of each call."""
    marks = []
    if ON_GPU:
        torch.cuda._sleep(calls * PAUSE_CYCLES)
    for _ in range(calls):
        start, output = mark(), forward()
        middle, _ = mark(), backward(output)
        marks.append((start, middle, mark()))
    return [(between(start, middle), between(middle, end)) for start, middle, end in marks]


def measure_ceilings(precisions: Sequence[str]) -> Ceilings:
    size, num_floats = (8192, 2**28) if ON_GPU else (1024, 2**25)
    found = {}
    for precision in precisions:
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        square = torch.randn(size, size, device=DEVICE, dtype=dtype)
        with running(precision):
            found[precision] = 2 * size**3 / min(time_calls(partial(torch.mm, square, square)))[0] / 1e9
    both = torch.ones(2, num_floats, device=DEVICE)
    return found | {"copy": size_of([both]) / min(time_calls(partial(both[0].copy_, both[1])))[0] / 1e6}


def size_of(tensors: Sequence[Tensor]) -> int:
    """Bytes."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def mean_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """As ``ClickModel.training_step``, which logs too."""
    return F.binary_cross_entropy_with_logits(logits.float(), labels, reduction="sum") / labels.numel()


def measure_steps(runs: Sequence[Run], model: ClickModel, optimizer: Any, batches: Sequence[Batch], size: Any) -> None:
    """Training steps; the modes take turns in every round."""
    following = itertools.cycle(batches)

    def train(mode: str, steps: int) -> None:
        for batch in itertools.islice(following, steps):
            with autocast(mode):
                loss = mean_loss(model(batch), batch.labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    for run in runs:
        with running(run.mode):
            train(run.mode, 3)  # warms up, and compiles
            if ON_GPU:
                torch.cuda.reset_peak_memory_stats()
            train(run.mode, 1)
            run.peak_gib = torch.cuda.max_memory_allocated() / 2**30 if ON_GPU else math.nan
    for _, run in itertools.product(range(size.rounds), runs):
        with running(run.mode):
            began, start = time.perf_counter(), mark()
            train(run.mode, size.calls)
            queued, end = time.perf_counter(), mark()
        run.steps.append((between(start, end) / size.calls, 1e3 * (queued - began) / size.calls))


def make_parts(model: ClickModel, optimizer: Any, batches: Sequence[Batch], precision: str) -> dict[str, Part]:
    """The model's own modules, on what they get in a step of this precision."""
    top: Any = model.model
    stage = top.stage
    bottom, interaction, over = map(torch.compile, (top.bottom, top.interaction, top.over))
    widths = [math.prod(shape) for shape in stage.tower_shapes]

    def towers(pooled: Tensor) -> Tensor:
        columns = zip(pooled.split(widths, dim=1), stage.tower_shapes, strict=True)
        return run_towers(stage.tower_modules, [own.view(-1, *shape) for own, shape in columns])

    def leaf(tensor: Tensor) -> Tensor:
        return tensor.detach().requires_grad_()

    features, labels = batches[0].dense_features, batches[0].labels
    bags = [stage.bag_order(batch.sparse_features) for batch in batches]
    lookups = itertools.cycle([(own.ids, own.offsets()) for own in bags])
    with autocast(precision):
        pooled = leaf(stage.embeddings(*next(lookups)))
        vectors, dense = leaf(towers(pooled)), leaf(bottom(features))
        crossed = leaf(interaction(vectors, dense))
        logits = leaf(over(crossed).squeeze(1))
    dense_part = partial(make_dense_part, precision)
    parts = {"embedding lookup": make_lookup_part(stage, lambda: stage.embeddings(*next(lookups)), bags[0].ids, pooled)}
    if list(stage.towers.parameters()):
        parts["tower modules"] = dense_part(towers, [pooled], stage.towers)
    return parts | {
        "bottom arch": dense_part(bottom, [features], top.bottom),
        "dot interaction": dense_part(interaction, [vectors, dense]),
        "over arch": dense_part(lambda crossed: over(crossed).squeeze(1), [crossed], top.over),
        "loss": dense_part(mean_loss, [logits, labels]),
        f"{type(optimizer).__name__} of dense layers": make_optimizer_part(optimizer),
    }


def make_dense_part(
    precision: str, run: Callable[..., Tensor], inputs: list[Tensor], module: nn.Module | None = None
) -> Part:
    read = [*inputs, *(module.parameters() if module else ())]
    leaves = [tensor for tensor in read if tensor.requires_grad]

    def forward() -> Tensor:
        with autocast(precision):
            return run(*inputs)

    with FlopCounterMode(display=False) as counter:
        output = forward()
        flops = counter.get_total_flops()
        gradient = torch.rand_like(output)
        output.backward(gradient)
    return Part(
        forward,
        lambda output: torch.autograd.grad(output, leaves, gradient),  # adds to no .grad
        flops=(flops, counter.get_total_flops() - flops),
        num_bytes=(size_of([*read, gradient]), size_of([*read, gradient, *leaves])),  # it has the output's size
    )


def make_lookup_part(stage: Any, forward: Callable[[], Tensor], ids: Tensor, pooled: Tensor) -> Part:
    """Its backward pass updates rows, and the optimiser's state of them."""
    num_rows = sum(own.unique().numel() for own in ids.view(len(stage.tables), -1))
    state_floats = stage.embeddings.optimizer.state_floats(stage.embedding_dim)
    gradient, around = torch.rand_like(pooled), size_of([ids, pooled])
    read, updated = 4 * num_rows * stage.embedding_dim, 4 * num_rows * (stage.embedding_dim + state_floats)
    return Part(forward, lambda output: output.backward(gradient), (0, 0), (around + read, around + 2 * updated))


def make_optimizer_part(optimizer: torch.optim.Optimizer) -> Part:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)  # as dear as others, and the layers stay as they are
    states = [value for state in optimizer.state.values() for value in state.values() if value.dim()]
    moved = size_of(parameters) + 2 * size_of([*parameters, *states])  # gradients are read; the others written too
    return Part(optimizer.step, id, (0, 0), (moved, 0))  # id: no backward pass


def measure(name: str, size: Any) -> list[Run]:
    """A size in all modes."""
    data = make_data(size.rows, size.batch_size)
    batches = [batch.to(DEVICE) for batch in itertools.islice(data.train_dataloader(), NUM_BATCHES)]
    torch.compiler.reset()
    gc.collect()  # the size before is not to count as memory of this one
    with DEVICE:
        model = ClickModel(**SIZES[name], compile_layers=any(mode.endswith(COMPILED) for mode in size.modes))
        model.build(data.schema)
    optimizer = model.configure_optimizers()
    runs = [Run(mode, mode.removesuffix(COMPILED)) for mode in size.modes]
    measure_steps(runs, model, optimizer, batches, size)
    for run in runs:
        with running(run.precision):
            run.parts = make_parts(model, optimizer, batches, run.precision)
    for number, run in itertools.product(range(size.rounds + 1), runs):
        with running(run.mode):
            for part in run.parts.values():
                laps = time_calls(part.forward, part.backward, calls=size.calls if number else 2)
                part.laps += laps if number else []  # the first round warms up, and compiles
    return runs


def three(value: float, share: float | None = None) -> str:
    """Three digits, and a share; a dash for what there is none of."""
    if not value or math.isnan(value):
        return "–"
    digits = max(2 - math.floor(math.log10(abs(value))), 0)
    return f"{value:,.{digits}f}" + ("" if share is None else f" ({share:.0%})")


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (heads, ["---"] * len(heads), *rows)] + [""]


def report_times(runs: Sequence[Run]) -> list[str]:
    """Every part in every mode, and what they leave out."""
    sums, steps = [sum(sum(part.ms) for part in run.parts.values()) for run in runs], [run.step_ms[0] for run in runs]
    rows = [
        [name, *(" + ".join(three(ms) for ms in run.parts[name].ms if ms) for run in runs)] for name in runs[0].parts
    ]
    rows.append(["sum of the parts", *map(three, sums)])
    rows.append(["step less this sum", *(three(whole - own) for whole, own in zip(steps, sums, strict=True))])
    rows.append(["**training step**", *map(three, steps)])
    return table(["ms, forward + backward", *(run.mode for run in runs)], rows)


def report_ceilings(run: Run, ceilings: Ceilings) -> list[str]:
    """What the fastest mode, compiled or not, makes of the device, pass by pass."""
    rows = []
    for name, part in run.parts.items():
        passes = zip(part.ms, part.flops, part.num_bytes, part.least_ms(ceilings, run.precision), strict=True)
        for direction, (ms, flops, moved, least) in zip(("forward", "backward"), passes, strict=True):
            if ms:
                product, copy = flops / ms / 1e9, moved / ms / 1e6
                made = [three(product, product / ceilings[run.precision]), three(copy, copy / ceilings["copy"])]
                cells = [three(ms), three(flops / 1e9), three(moved / 1e6), *made, three(least), three(ms - least)]
                rows.append([f"{name}, {direction}" if part.num_bytes[1] else name, *cells])
    heads = ["ms", "GFLOP", "MB at least", "TFLOP/s (of product)", "GB/s (of copy)", "ms at the ceilings", "ms above"]
    return table([run.mode, *heads], rows)


STEP_HEADS = [
    *("size", "mode", "ms a step", "samples a second", "times as fast as float32", "TFLOP/s (of product)"),
    *("ms of parts at the ceilings", "ms until the host has queued it", "peak GiB"),
]


def report(name: str, size: Any, ceilings: Ceilings) -> tuple[list[str], list[list[str]]]:
    """Measure a size; its own two tables, and its rows of the table of steps."""
    runs = measure(name, size)
    lines, rows = [f"## {name}", "", *report_times(runs)], []
    for is_compiled in (False, True):
        if own := [run for run in runs if run.mode.endswith(COMPILED) == is_compiled]:
            lines += report_ceilings(min(own, key=lambda run: run.step_ms[0]), ceilings)
    reference = next((run.step_ms[0] for run in runs if run.mode == "float32"), math.nan)
    for run in runs:
        (ms, host_ms), parts = run.step_ms, run.parts.values()
        made = sum(sum(part.flops) for part in parts) / ms / 1e9
        least = sum(sum(part.least_ms(ceilings, run.precision)) for part in parts)
        speed = [three(ms), three(1e3 * size.batch_size / ms), three(reference / ms)]
        rest = [three(made, made / ceilings[run.precision]), *map(three, (least, host_ms, run.peak_gib))]
        rows.append([name, run.mode, *speed, *rest])
    print("\n".join([*lines, *table(STEP_HEADS, rows)]), file=sys.stderr, flush=True)  # a run may be cut off
    return lines, rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES)
    parser.add_argument("--rows", type=int, default=100_000, help="rows of a table (default 100,000)")
    parser.add_argument("--batch-size", type=int, default=16384 if ON_GPU else 2048)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--calls", type=int, default=10, help="calls of a part, or steps, in a round (default 10)")
    parser.add_argument("--output", type=Path, help="Markdown file to write; printed as well")
    arguments = parser.parse_args()
    reuse_host_memory()
    ceilings = measure_ceilings(list(dict.fromkeys(mode.removesuffix(COMPILED) for mode in arguments.modes)))
    products = ", ".join(f"{three(made)} in {name}" for name, made in ceilings.items() if name != "copy")
    lines = [
        *heading("What the parts of a training step take, and what the device could do"),
        f"{NUM_TABLES} tables of {arguments.rows:,} rows, batch {arguments.batch_size}, {torch.get_num_threads()} "
        f"threads; medians of {arguments.rounds} rounds of {arguments.calls} calls.",
        f"Ceilings: TFLOP/s of a matrix product {products}; GB/s of a copy {three(ceilings['copy'])}.",
        "",
    ]
    print("\n".join(lines), file=sys.stderr, flush=True)
    reports = [report(name, arguments, ceilings) for name in arguments.sizes]
    steps = table(STEP_HEADS, [row for _, rows in reports for row in rows])
    publish([*lines, "## Steps", "", *steps, *(line for own, _ in reports for line in own)], arguments.output)


if __name__ == "__main__":
    main()
