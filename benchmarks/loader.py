"""Samples a second from memory-mapped Criteo data, shuffled, in one process on one core, all its threads included.

    python benchmarks/loader.py --output benchmarks/results/loader.md

Writes random rows in the training format, 26 + 13 columns, in parts of 560,000; then draws batches of an epoch through
CriteoDataModule's loader, shuffled and in the stored order. At last it trains the DLRM of benchmarks/step.py in
float32 and in bf16-mixed, on all cores, and tells which share of its steps is spent waiting for batches, and the
longest that one of them waits. A window of the shuffled order, 256 steps, ends within them.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
import zlib
from functools import partial
from itertools import count
from pathlib import Path

import numpy as np
import torch
from common import heading, publish
from torch.nn.functional import binary_cross_entropy_with_logits

from dmt.datamodules import CriteoDataModule, GlobalBatchSampler
from dmt.modules import DLRM, ClickModel, EmbeddingOptimizer
from dmt.preprocess.criteo import FORMAT_VERSION, MANIFEST, PARTS, ROWS
from dmt.preprocess.criteo_text import CATEGORIES, INTEGERS
from dmt.schema import CategoricalFeature, FeatureSchema

PART_ROWS = 560_000
WARM_UP = 5


def write_log(folder: Path, rows: int) -> None:
    """Random rows in what `dmt preprocess criteo` writes."""
    rng = np.random.default_rng(0)
    parts = []
    for number, start in enumerate(range(0, rows, PART_ROWS)):
        count = min(PART_ROWS, rows - start)
        part = rng.integers(0, 1000, (count, 40), dtype=np.int32)
        part[:, :13] = rng.random((count, 13), dtype=np.float32).view(np.int32)
        part[:, -1] &= 1
        (folder / PARTS / str(number)).mkdir(parents=True)
        np.save(folder / PARTS / str(number) / ROWS, part)
        parts.append({"folder": f"{PARTS}/{number}", "rows": count, "crc32": zlib.crc32(part.data)})
    schema = FeatureSchema(
        categorical=[CategoricalFeature(name=c, num_embeddings=1000) for c in CATEGORIES], dense=INTEGERS
    )
    splits = {"train": (0, rows), "valid": (rows, rows), "test": (rows, rows)}
    manifest = {"version": FORMAT_VERSION, "schema": schema.to_dict(), "splits": splits, "parts": parts}
    (folder / MANIFEST).write_text(json.dumps(manifest))


def samples_per_second(batches: object, *, num_batches: int, batch_size: int) -> float:
    """Of the first batches of a loader, the first one, which maps and permutes, included."""
    started = time.perf_counter()
    for number, _ in enumerate(batches, start=1):  # type: ignore[var-annotated, arg-type]
        if number == num_batches:
            break
    return number * batch_size / (time.perf_counter() - started)


def waits_and_steps(data: CriteoDataModule, *, num_steps: int, is_bf16: bool) -> tuple[list[float], list[float]]:
    """Seconds that each step of training waits for its batch, and that it takes with it."""
    model = ClickModel(
        embedding_dim=64,
        top=partial(DLRM, bottom_layers=[512, 256], over_layers=[1024, 512, 256]),
        embedding_optimizer=EmbeddingOptimizer(name="rowwise_adagrad", learning_rate=0.05),
    )
    parameters = [p for p in model.build(data.schema).parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=0.001)
    loader = data.train_dataloader()
    batches = (batch for _ in count() for batch in loader)  # epoch after epoch
    waits, steps = [], []
    for _ in range(WARM_UP + num_steps):
        asked = time.perf_counter()
        batch = next(batches)
        waits.append(time.perf_counter() - asked)
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=is_bf16):
            logits = model(batch)
        binary_cross_entropy_with_logits(logits.float(), batch.labels).backward()
        optimizer.step()
        steps.append(time.perf_counter() - asked)
    return waits[WARM_UP:], steps[WARM_UP:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000_000)
    parser.add_argument("--batch-size", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=300, help="of training")
    parser.add_argument("--folder", type=Path, help="where the log goes for a while (default: $TMPDIR)")
    parser.add_argument("--output", type=Path, help="Markdown file to write; printed as well")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})  # the loader has threads of its own
    batch_size, num_batches = arguments.batch_size, arguments.rows // arguments.batch_size
    with tempfile.TemporaryDirectory(dir=arguments.folder) as temporary:
        write_log(folder := Path(temporary), arguments.rows)
        rates: dict[str, list[float]] = {"shuffled": [], "stored order": []}
        for number in range(arguments.rounds):
            data = CriteoDataModule(path=folder, global_batch_size=batch_size, seed=number)
            data.setup()
            dataset = data._split("train")
            in_order = GlobalBatchSampler(num_samples=len(dataset), global_batch_size=batch_size)
            contenders = {
                "shuffled": data.train_dataloader(),
                "stored order": (dataset.batch(indices) for indices in in_order),
            }
            for name, batches in contenders.items():
                rate = samples_per_second(batches, num_batches=num_batches, batch_size=batch_size)
                rates[name].append(rate)
        size = sum(path.stat().st_size for path in folder.rglob("*.npy"))
        os.sched_setaffinity(0, cores)
        torch.set_num_threads(len(cores))
        waiting = {}
        for precision in ("float32", "bf16-mixed"):
            for num_workers in (0, 1):
                data = CriteoDataModule(path=folder, global_batch_size=batch_size, num_workers=num_workers)
                data.setup()
                times = waits_and_steps(data, num_steps=arguments.steps, is_bf16=precision == "bf16-mixed")
                waiting[precision, num_workers] = times
    lines = [
        *heading("Loading Criteo data"),
        f"{arguments.rows:,} rows of 13 numeric and 26 categorical columns, {size / 1e9:.1f} GB in parts of "
        f"{PART_ROWS:,}; batches of {batch_size:,}, one process on one core; medians of {arguments.rounds} epochs.",
        "",
        "| order | samples a second | lowest to highest |",
        "|---|---|---|",
    ]
    for name, found in rates.items():
        lines.append(f"| {name} | {statistics.median(found):,.0f} | {min(found):,.0f} to {max(found):,.0f} |")
    lines += ["", f"Waiting for batches while a DLRM trains, {arguments.steps} steps:", ""]
    lines += ["| precision | num_workers | a step, ms, median | waiting, share of all | one step's longest, ms |"]
    lines += ["|---|---|---|---|---|"]
    lines += [
        f"| {precision} | {num_workers} | {1e3 * statistics.median(steps):.1f} | {sum(waits) / sum(steps):.2%} | "
        f"{1e3 * max(waits):.1f} |"
        for (precision, num_workers), (waits, steps) in waiting.items()
    ]
    publish(lines, arguments.output)


if __name__ == "__main__":
    main()
