"""A training step of DLRM in one process, beside what users have today, one after the other in every round.

    python benchmarks/step.py --dlrm DIR --output benchmarks/results/step.md

26 tables of 100,000 rows, N = 64, bottom 512-256-64, over arch 1024-512-256-1, batch 4096, random single-hot ids. Each
contender lives in a process of its own that waits while another runs. DIR is a checkout of facebookresearch/dlrm, whose
dlrm_s_pytorch.py runs as it is (SGD, sparse gradients), and once more with the settings of the host's memory that dmt
has (`dmt.reuse_host_memory`, which `dmt fit` calls); without DIR these rows are left out. A ratio is the time of that
script, or of dense Adam where there is none, over the contender's in the same round; dmt's are also compared with its
flat DLRM of the same precision.
"""

import argparse
import contextlib
import itertools
import multiprocessing
import os
import re
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from common import heading, median_interval, publish
from torch import Tensor, nn
from torch.nn import functional as F
from torchrec.datasets.utils import Batch
from torchrec.models.dlrm import DLRM as TorchRecDLRM
from torchrec.models.dlrm import DLRMTrain
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.fused_embedding_modules import FusedEmbeddingBagCollection
from torchrec.optim import RowWiseAdagrad

from dmt.datamodules import RandomClicks
from dmt.host_memory import KEPT_BLOCK_BYTES, KEPT_BYTES, reuse_host_memory
from dmt.modules import DLRM, ClickModel, DLRMTower, EmbeddingOptimizer, PassThrough

NUM_TABLES, DIM, NUM_DENSE = 26, 64, 13
BOTTOM, OVER = [512, 256], [1024, 512, 256]
NUM_BATCHES = 8
SCRIPT = "facebookresearch/dlrm (SGD)"
TUNED_SCRIPT = "facebookresearch/dlrm (SGD), memory as dmt has it"
# What `reuse_host_memory` tells glibc, as a process is told that does not call it.
GLIBC = {"MALLOC_MMAP_THRESHOLD_": str(KEPT_BLOCK_BYTES), "MALLOC_TRIM_THRESHOLD_": str(KEPT_BYTES)}
DENSE_ADAM = "dense Adam on embeddings"
FLAT = {precision: f"flat DLRM, {precision}" for precision in ("float32", "bf16-mixed")}

Step = Callable[[Batch], Tensor]
"""Trains on a batch; returns the loss."""


class PlainDLRM(nn.Module):
    """DLRM as FuxiCTR and DeepCTR would train it: nn.Embedding with dense gradients, plain torch."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(rows, DIM) for _ in range(NUM_TABLES))
        self.bottom = _layers([NUM_DENSE, *BOTTOM, DIM])
        num_vectors = NUM_TABLES + 1
        self.rows, self.columns = torch.triu_indices(num_vectors, num_vectors, offset=1)
        self.over = nn.Sequential(*_layers([DIM + len(self.rows), *OVER]), nn.Linear(OVER[-1], 1))

    def forward(self, batch: Batch) -> Tensor:
        ids = batch.sparse_features.values().view(NUM_TABLES, -1)
        dense = self.bottom(batch.dense_features)
        vectors = torch.stack([dense, *(table(own) for table, own in zip(self.tables, ids, strict=True))], dim=1)
        products = torch.bmm(vectors, vectors.transpose(1, 2))[:, self.rows, self.columns]
        return self.over(torch.cat([dense, products], dim=1)).squeeze(1)


def _layers(sizes: list[int]) -> nn.Sequential:
    return nn.Sequential(*(layer for a, b in itertools.pairwise(sizes) for layer in (nn.Linear(a, b), nn.ReLU())))


def dense_adam(rows: int) -> Step:
    """Every parameter, tables included, stepped by Adam."""
    model = PlainDLRM(rows)
    return _step(model, torch.optim.Adam(model.parameters(), lr=1e-3), bf16=False)


def torchrec_modules(rows: int) -> Step:
    """TorchRec's DLRM over its fused tables, which FBGEMM's CPU kernel updates."""
    tables = [
        EmbeddingBagConfig(name=f"t{i}", feature_names=[name], num_embeddings=rows, embedding_dim=DIM)
        for i, name in enumerate(make_data(rows, 1).schema.feature_names)
    ]
    collection = FusedEmbeddingBagCollection(tables, RowWiseAdagrad, {"lr": 0.01}, device=torch.device("cpu"))
    train = DLRMTrain(TorchRecDLRM(collection, NUM_DENSE, [*BOTTOM, DIM], [*OVER, 1]))
    dense = [p for name, p in train.named_parameters() if "embedding_bags" not in name]
    optimizer = torch.optim.SGD(dense, lr=0.01)

    def step(batch: Batch) -> Tensor:
        loss, _ = train(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return step


def ours(rows: int, *, tower: Any = PassThrough, num_towers: int = 1, bf16: bool = False, fused: bool = False) -> Step:
    """A ClickModel as `dmt fit` builds it, row-wise Adagrad on its rows."""
    reuse_host_memory()  # what of it is the environment's, main() has set before this process imported torch
    model = ClickModel(
        embedding_dim=DIM,
        num_towers=num_towers,
        tower=tower,
        top=partial(DLRM, bottom_layers=BOTTOM, over_layers=OVER),
        embedding_optimizer=EmbeddingOptimizer(name="rowwise_adagrad", learning_rate=0.01),
        compile_layers=fused,
    )
    model.build(make_data(rows, 1).schema)
    dense = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return _step(model, torch.optim.SGD(dense, lr=0.01), bf16=bf16)


def _step(model: nn.Module, optimizer: torch.optim.Optimizer, *, bf16: bool) -> Step:
    def step(batch: Batch) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logits = model(batch)
        loss = F.binary_cross_entropy_with_logits(logits.float(), batch.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return step


# Compression 2: half the width for every feature, as the paper's DLRM towers have it, or one vector for every two.
NARROW = {"tower": partial(DLRMTower, c=1, p=0, out_dim=DIM // 2), "num_towers": 4}
MIXED = {"tower": partial(DLRMTower, c=0, p=1, out_dim=DIM), "num_towers": NUM_TABLES // 2}
OTHERS: dict[str, Callable[[int], Step]] = {
    DENSE_ADAM: dense_adam,
    "TorchRec's modules, fused row-wise Adagrad": torchrec_modules,
}
OURS: dict[str, Callable[[int], Step]] = {
    FLAT["float32"]: ours,
    "flat DLRM, float32, compiled": partial(ours, fused=True),
    FLAT["bf16-mixed"]: partial(ours, bf16=True),
    "flat DLRM, bf16-mixed, compiled": partial(ours, bf16=True, fused=True),
    "DMT, 4 towers, c=1 p=0 D=32, float32": partial(ours, **NARROW),
    "DMT, 13 towers, c=0 p=1 D=64, float32": partial(ours, **MIXED),
    "DMT, 13 towers, c=0 p=1 D=64, bf16-mixed": partial(ours, **MIXED, bf16=True),
}


def make_data(rows: int, batch_size: int) -> RandomClicks:
    """The batches that all contenders train on."""
    data = RandomClicks(
        num_embeddings=[rows] * NUM_TABLES,
        num_dense=NUM_DENSE,
        num_train=NUM_BATCHES * batch_size,
        global_batch_size=batch_size,
    )
    data.setup()
    return data


def work(make: Callable[[int], Step], rows: int, batch_size: int, num_threads: int, parent: Connection) -> None:
    """A contender's process: run as many steps as the parent asks for, and send their median seconds."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(num_threads)
    step, batches = make(rows), list(make_data(rows, batch_size).train_dataloader())
    count = 0
    with contextlib.suppress(EOFError):
        while True:
            seconds = []
            for _ in range(parent.recv()):
                started = time.perf_counter()
                step(batches[count % NUM_BATCHES])
                seconds.append(time.perf_counter() - started)
                count += 1
            parent.send(statistics.median(seconds))


def start(make: Callable[[int], Step], rows: int, batch_size: int, num_threads: int) -> Connection:
    """Start a contender's process; what comes back has warmed up, and is asked for numbers of steps."""
    spawn = multiprocessing.get_context("spawn")
    asked, child = spawn.Pipe()
    spawn.Process(target=work, args=(make, rows, batch_size, num_threads, child), daemon=True).start()
    child.close()
    asked.send(3)  # warms up, and compiles
    asked.recv()
    return asked


# Their script reports to TensorBoard, which this project does not install.
_RUN_SCRIPT = """
import runpy, sys, types

class SummaryWriter:
    def __init__(self, *arguments): pass
    def __getattr__(self, name): return lambda *arguments: None

sys.modules["torch.utils.tensorboard"] = types.SimpleNamespace(SummaryWriter=SummaryWriter)
sys.argv[0] = "dlrm_s_pytorch.py"
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def script_seconds(
    folder: Path, rows: int, batch_size: int, num_threads: int, steps: int, *, environment: Mapping[str, str]
) -> float:
    """Seconds a step that dlrm_s_pytorch.py prints for its last steps; the first five are left out."""
    options = {
        "arch-sparse-feature-size": DIM,
        "arch-embedding-size": "-".join([str(rows)] * NUM_TABLES),
        "arch-mlp-bot": "-".join(map(str, [NUM_DENSE, *BOTTOM, DIM])),
        "arch-mlp-top": "-".join(map(str, [*OVER, 1])),
        "mini-batch-size": batch_size,
        "num-batches": steps + 5,
        "data-generation": "random",
        "num-indices-per-lookup": 1,
        "num-indices-per-lookup-fixed": "true",
        "print-freq": 5,
        "test-freq": -1,
    }
    words = [f"--{name}={value}" for name, value in options.items()]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _RUN_SCRIPT, *words, "--print-time"],
        cwd=folder,
        env={**environment, "OMP_NUM_THREADS": str(num_threads), "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    found = [float(ms) / 1e3 for ms in re.findall(r"([0-9.]+) ms/it", done.stdout)]
    if done.returncode or len(found) < 2:
        raise SystemExit(f"{folder}: dlrm_s_pytorch.py failed: {done.stderr[-500:]}")
    return statistics.median(found[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dlrm", type=Path, metavar="DIR", help="checkout of facebookresearch/dlrm")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=10, help="steps of a contender in a round (default 10)")
    parser.add_argument("--rows", type=int, default=100_000, help="rows of a table (default 100,000)")
    parser.add_argument("--batch-size", type=int, default=4096)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--output", type=Path, help="Markdown file to write; printed as well")
    arguments = parser.parse_args()
    size = (arguments.rows, arguments.batch_size, arguments.threads)

    plain = dict(os.environ)
    asked = {name: start(make, *size) for name, make in OTHERS.items()}
    reuse_host_memory()
    asked |= {name: start(make, *size) for name, make in OURS.items()}
    scripts = {SCRIPT: plain, TUNED_SCRIPT: os.environ | GLIBC} if arguments.dlrm else {}
    seconds: dict[str, list[float]] = {name: [] for name in (*scripts, *asked)}
    for number in range(arguments.rounds):
        for name, measured in seconds.items():
            if name in scripts:
                environment = scripts[name]
                measured.append(script_seconds(arguments.dlrm, *size, arguments.steps, environment=environment))
                continue
            asked[name].send(arguments.steps)
            measured.append(asked[name].recv())
        print(f"round {number + 1}:", {n: round(1e3 * s[-1]) for n, s in seconds.items()}, file=sys.stderr)
    for connection in asked.values():
        connection.close()
    publish([*heading("A training step of DLRM in one process"), *report(seconds, arguments)], arguments.output)


def report(seconds: dict[str, list[float]], arguments: argparse.Namespace) -> list[str]:
    """The table."""
    reference = next(iter(seconds))
    lines = [
        f"{NUM_TABLES} tables of {arguments.rows:,} x {DIM}, batch {arguments.batch_size}, {arguments.threads} "
        f"threads, {arguments.rounds} rounds of {arguments.steps} steps.",
        "The rows of dmt have its settings of the host's memory, as `dmt fit` has; of the others the one that says so.",
        "",
        f"| | ms a step, median | samples a second | times as fast as {reference} | as {DENSE_ADAM} "
        "| times flat, same precision |",
        "|---|---|---|---|---|---|",
    ]
    for name, own in seconds.items():
        flat = next((flat for precision, flat in FLAT.items() if precision in name), None)
        cells = []
        for other in (reference, DENSE_ADAM, flat):
            if other in (None, name):
                cells.append("" if other is None else "1")
                continue
            ratios = [a / b for a, b in zip(seconds[other], own, strict=True)]
            low, high = median_interval(ratios)
            cells.append(f"{statistics.median(ratios):.2f} ({low:.2f} to {high:.2f})")
        median = statistics.median(own)
        lines.append(f"| {name} | {1e3 * median:.0f} | {arguments.batch_size / median:,.0f} | {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    main()
