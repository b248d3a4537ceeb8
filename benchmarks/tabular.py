"""Encoding a tabular log of one's own: time and memory of what `dmt fit` does before it trains, by length of the log.

    python benchmarks/tabular.py --output benchmarks/results/tabular.md

Random rows of 20 categorical columns (text, integers and lists of integers, 100 to a million values each, Zipf) and 10
numeric ones, in parquet files; a process of its own then encodes them, with a last file for validation.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import polars as pl
from common import heading, publish
from ingest import run

VALUES = [100, 1_000, 10_000, 100_000, 1_000_000]
NUM_NUMERIC = 10
ENCODE = """
import sys
import dmt
import polars as pl
names = pl.read_parquet_schema(sys.argv[1] + "/valid.parquet")
dmt.TabularClicks(
    path=sys.argv[1],
    categorical=[name for name in names if name != "label" and not name.startswith("x")],
    numeric=[name for name in names if name.startswith("x")],
    global_batch_size=4096,
    cache_dir=sys.argv[1] + "/cache",
).prepare_data()
"""


def write_rows(file: Path, num_rows: int, rng: np.random.Generator) -> None:
    """A parquet file of random rows."""
    columns: dict[str, pl.Series] = {"label": pl.Series(rng.integers(0, 2, num_rows))}
    for size in VALUES:
        text, number, other = (pl.Series(_ids(num_rows, size, rng)) for _ in range(3))
        columns |= {f"text{size}": "v" + text.cast(pl.String), f"number{size}": number, f"other{size}": other}
        lists = pl.DataFrame({"row": np.arange(num_rows).repeat(2), "id": _ids(2 * num_rows, size, rng)})
        columns[f"list{size}"] = lists.group_by("row", maintain_order=True).agg("id")["id"]
    for index in range(NUM_NUMERIC):
        columns[f"x{index}"] = pl.Series(rng.lognormal(size=num_rows).astype(np.float32))
    file.parent.mkdir(parents=True, exist_ok=True)
    pl.DataFrame(columns).write_parquet(file)


def _ids(count: int, size: int, rng: np.random.Generator) -> np.ndarray:
    return rng.zipf(1.1, count) % size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 4_000_000, 16_000_000])
    parser.add_argument("--file-rows", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, help="where the rows go for a while (default: $TMPDIR)")
    parser.add_argument("--output", type=Path, help="Markdown file to write; printed as well")
    arguments = parser.parse_args()
    lines = [*heading("Encoding a tabular log"), f"Files of {arguments.file_rows:,} rows.", ""]
    lines += ["| rows | seconds | rows a second | memory, MiB |", "|---|---|---|---|"]
    for num_rows in arguments.rows:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as temporary:
            rng = np.random.default_rng(0)
            for first in range(0, num_rows, arguments.file_rows):
                part = min(arguments.file_rows, num_rows - first)
                write_rows(Path(temporary, "train", f"{first // arguments.file_rows:05}.parquet"), part, rng)
            write_rows(Path(temporary, "valid.parquet"), min(num_rows, 1000), rng)
            seconds, bytes_used = run([sys.executable, "-c", ENCODE, temporary])
        memory = f"{bytes_used / 2**20:,.0f}"
        lines.append(f"| {num_rows:,} | {seconds:.0f} | {num_rows / seconds:,.0f} | {memory} |")
    publish(lines, arguments.output)


if __name__ == "__main__":
    main()
