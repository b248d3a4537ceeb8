"""Criteo text to the training format: `dmt preprocess criteo` against TorchRec's converter and a plain polars pipeline.

    python benchmarks/ingest.py --output benchmarks/results/ingest.md

A log of random lines is written first: categories by Zipf's law over as many values as the 1 TB logs have, a tenth of
all values missing. Every round converts it with each contender in turn, as a process of its own, start included; once
in hash mode and once with vocabularies; and in both ways a log in which no value comes twice, the worst for
vocabularies. TorchRec's converter, which keeps all rows as Python lists, gets a
shorter log, and its start is not counted. The plain pipeline reads the same log in
batches, hashes, takes logarithms and saves arrays, with no checks, parts or restarts. Memory is the largest sum over a
contender's processes of what they do not share (PSS), sampled every 50 ms.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import polars as pl
from common import heading, publish

from dmt.preprocess.api import NUM_EMBEDDINGS
from dmt.preprocess.criteo_text import CATEGORIES, INTEGERS

BLOCK_ROWS = 250_000
ZIPF_EXPONENT = 1.1
HASH, VOCABULARY = "dmt preprocess criteo", "dmt preprocess criteo --min-count 2"
DISTINCT_HASH, DISTINCT = "dmt preprocess criteo, no value twice", "dmt preprocess criteo --min-count 1, no value twice"

TORCHREC = """
import sys, time
from types import ModuleType, SimpleNamespace

# TorchRec opens files by iopath, which is not installed with it; for files of this machine that is open().
manager = SimpleNamespace(open=open, set_strict_kwargs_checking=lambda is_strict: None)
file_io = ModuleType("iopath.common.file_io")
file_io.PathManagerFactory = lambda: SimpleNamespace(get=lambda key: manager)
sys.modules |= {"iopath": ModuleType("iopath"), "iopath.common": ModuleType("iopath.common")}
sys.modules[file_io.__name__] = file_io
from torchrec.datasets.criteo import BinaryCriteoUtils
source, folder = sys.argv[1:]
started = time.perf_counter()
BinaryCriteoUtils.tsv_to_npys(source, *(f"{folder}/{name}.npy" for name in ("dense", "sparse", "labels")))
open(f"{folder}/seconds", "w").write(str(time.perf_counter() - started))
"""
POLARS = """
import sys
import numpy as np, polars as pl
source, folder = sys.argv[1:]
integers, categories = [f"I{i}" for i in range(1, 14)], [f"C{i}" for i in range(1, 27)]
schema = {"label": pl.UInt8} | dict.fromkeys(integers, pl.Int64) | dict.fromkeys(categories, pl.String)
lines = pl.scan_csv(source, has_header=False, separator="\\t", quote_char=None, schema=schema)
values = pl.col(categories).str.to_integer(base=16, dtype=pl.Int64).fill_null(0)
columns = lines.select(
    "label",
    (pl.col(integers).fill_null(0).clip(-2) + 3).log().cast(pl.Float32),
    (values % 1_000_000).cast(pl.Int32),
)
for number, frame in enumerate(columns.collect_batches()):
    np.save(f"{folder}/labels{number}.npy", frame["label"].to_numpy())
    np.save(f"{folder}/dense{number}.npy", frame.select(integers).to_numpy(order="c"))
    np.save(f"{folder}/ids{number}.npy", frame.select(categories).to_numpy(order="c"))
"""


def zipf_values(rng: np.random.Generator, column: int, count: int) -> np.ndarray:
    """Values of a column by Zipf's law, of eight hexadecimal digits."""
    ranks = rng.zipf(ZIPF_EXPONENT, count).astype(np.uint64) % np.uint64(NUM_EMBEDDINGS[column])
    return (ranks * np.uint64(2654435761) + np.uint64(column)) % np.uint64(2**32 - 2**28) + np.uint64(2**28)


def other_values(rng: np.random.Generator, column: int, count: int) -> np.ndarray:
    """Values of a column that hardly ever come twice."""
    return rng.integers(2**28, 2**32, count, dtype=np.uint64)


def write_log(path: Path, rows: int, draw: Callable[[np.random.Generator, int, int], np.ndarray]) -> None:
    """Random lines in Criteo's format, with values of a column by ``draw``."""
    rng = np.random.default_rng(0)
    with path.open("wb") as file:
        for start in range(0, rows, BLOCK_ROWS):
            count = min(BLOCK_ROWS, rows - start)
            columns = {"label": rng.integers(0, 2, count)}
            columns |= {name: rng.geometric(0.03, count) - 3 for name in INTEGERS}
            columns |= {name: draw(rng, column, count) for column, name in enumerate(CATEGORIES)}
            frame = pl.DataFrame(columns).with_columns(pl.col(CATEGORIES).map_batches(_hexadecimal, pl.String))
            missing = rng.random((count, 39)) < 0.1
            frame = frame.with_columns(
                pl.when(pl.lit(pl.Series(missing[:, index]))).then(None).otherwise(pl.col(name)).alias(name)
                for index, name in enumerate((*INTEGERS, *CATEGORIES))
            )
            frame.write_csv(file, separator="\t", include_header=False)


def _hexadecimal(values: pl.Series) -> pl.Series:
    numbers = values.to_numpy().astype(">u4").view(np.uint8).reshape(-1, 4)
    digits = np.frombuffer(b"0123456789abcdef", dtype=np.uint8)
    letters = np.stack([digits[numbers >> 4], digits[numbers & 15]], axis=2).reshape(-1, 8)
    return pl.Series(values.name, letters.view("S8").ravel().astype(str))


def run(words: list[str]) -> tuple[float, int]:
    """Seconds and largest memory, in bytes, of a command with all its children."""
    started, largest = time.perf_counter(), 0
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        largest = max(largest, sum(_unshared_bytes(pid) for pid in _family(process.pid)))
        time.sleep(0.05)
    if process.returncode:
        sys.exit(f"{words[:6]} ended with {process.returncode}")
    return time.perf_counter() - started, largest


def _family(pid: int) -> list[int]:
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return []
    return [pid, *(one for child in text.split() for one in _family(int(child)))]


def _unshared_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)


def slower(rates: Sequence[float], others: Sequence[float]) -> float:
    """How many times as long the others take."""
    return statistics.median(rates) / statistics.median(others)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--torchrec-rows", type=int, default=250_000)
    parser.add_argument("--distinct-rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where the logs and results go for a while (default: $TMPDIR)")
    parser.add_argument("--output", type=Path, help="Markdown file to write; printed as well")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as temporary:
        folder = Path(temporary)
        write_log(long := folder / "long", arguments.rows, zipf_values)
        write_log(short := folder / "short", arguments.torchrec_rows, zipf_values)
        write_log(distinct := folder / "distinct", arguments.distinct_rows, other_values)
        dmt = [sys.executable, "-m", "dmt.cli", "preprocess", "criteo"]
        commands = {
            "TorchRec tsv_to_npys": (
                [sys.executable, "-W", "ignore", "-c", TORCHREC, str(short)],
                arguments.torchrec_rows,
            ),
            "plain polars": ([sys.executable, "-c", POLARS, str(long)], arguments.rows),
            VOCABULARY: ([*dmt, str(long), "--min-count", "2", "--output"], arguments.rows),
            DISTINCT: ([*dmt, str(distinct), "--min-count", "1", "--output"], arguments.distinct_rows),
            DISTINCT_HASH: ([*dmt, str(distinct), "--output"], arguments.distinct_rows),
            HASH: ([*dmt, str(long), "--output"], arguments.rows),
        }
        rates: dict[str, list[float]] = {name: [] for name in commands}
        memory = dict.fromkeys(commands, 0)
        for _ in range(arguments.rounds):
            for name, (words, rows) in commands.items():
                shutil.rmtree(result := folder / "result", ignore_errors=True)
                if not name.startswith("dmt"):
                    result.mkdir()
                seconds, bytes_used = run([*words, str(result)])
                if (told := result / "seconds").exists():
                    seconds = float(told.read_text())
                rates[name].append(rows / seconds)
                memory[name] = max(memory[name], bytes_used)
        bytes_a_row = sum(path.stat().st_size for path in result.rglob("*") if path.is_file()) / arguments.rows
        text_bytes = long.stat().st_size
    base = statistics.median(rates["TorchRec tsv_to_npys"])
    lines = [
        *heading("Criteo text to the training format"),
        f"{arguments.rows:,} rows, {text_bytes / 1e9:.2f} GB of text ({arguments.torchrec_rows:,} rows for TorchRec, "
        f"{arguments.distinct_rows:,} in which no value comes twice, {26 * arguments.distinct_rows:,} values); "
        f"medians of {arguments.rounds} rounds; {os.cpu_count()} workers. dmt writes {bytes_a_row:.1f} bytes a row.",
        f"Vocabularies take {slower(rates[HASH], rates[VOCABULARY]):.2f} times as long as hash mode, and "
        f"{slower(rates[DISTINCT_HASH], rates[DISTINCT]):.2f} times where no value comes twice.",
        "",
        "| | rows a second | lowest to highest | times TorchRec's | memory, MiB |",
        "|---|---|---|---|---|",
    ]
    for name, found in rates.items():
        spread = f"{min(found):,.0f} to {max(found):,.0f}"
        ratio = statistics.median(found) / base
        lines.append(
            f"| {name} | {statistics.median(found):,.0f} | {spread} | {ratio:.1f} | {memory[name] / 2**20:,.0f} |"
        )
    publish(lines, arguments.output)


if __name__ == "__main__":
    main()
