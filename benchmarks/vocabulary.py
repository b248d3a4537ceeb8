"""The vocabulary of a column of very many values: time and memory of a worker of `dmt preprocess criteo --min-count`.

    python benchmarks/vocabulary.py --output benchmarks/results/vocabulary.md

Counts of parts are written first, as the command writes them: random values of 32 bits, most of them once in a part.
Then a process of its own adds them up, and puts the values in order of frequency. The most that a column can have is
4.3 billion values; the 1 TB logs have up to 293 million of one column before rare ones are left out.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
from common import heading, publish
from ingest import run

from dmt.preprocess.criteo_text import CATEGORIES
from dmt.preprocess.vocabulary import ValueCounts

MAKE = """
import sys
from pathlib import Path
from dmt.preprocess.criteo import make_vocabulary
output = Path(sys.argv[1])
parts = sorted(output.glob("part*"))
(output / "size").write_text(str(make_vocabulary(parts, 0, min_count=1, output=output)))
"""


def write_counts(folder: Path, count: int, rng: np.random.Generator) -> None:
    """Counts of a part whose first column alone has values: ``count`` of them, and some are frequent."""
    folder.mkdir()
    values = np.unique(rng.integers(1, 2**32, count, dtype=np.uint32))
    counts = np.minimum(rng.zipf(2.0, len(values)), 1000).astype(np.uint32)
    ValueCounts(np.stack([values, counts], axis=1), np.array([0] + [len(values)] * len(CATEGORIES))).save(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--values", type=int, nargs="+", default=[25_000_000, 100_000_000, 300_000_000])
    parser.add_argument("--parts", type=int, default=40)
    parser.add_argument("--folder", type=Path, help="where the counts go for a while (default: $TMPDIR)")
    parser.add_argument("--output", type=Path, help="Markdown file to write; printed as well")
    arguments = parser.parse_args()
    rows = []
    for number in arguments.values:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as temporary:
            output, rng = Path(temporary), np.random.default_rng(0)
            (output / "values").mkdir()
            for part in range(arguments.parts):
                write_counts(output / f"part{part:04}", number // arguments.parts, rng)
            seconds, bytes_used = run([sys.executable, "-c", MAKE, temporary])
            size = int((output / "size").read_text())
        rows.append(f"| {size:,} | {seconds:.0f} | {bytes_used / 2**20:,.0f} |")
    lines = [*heading("The vocabulary of a column"), f"{arguments.parts} parts.", ""]
    lines += ["| distinct values | seconds | memory, MiB |", "|---|---|---|", *rows]
    publish(lines, arguments.output)


if __name__ == "__main__":
    main()
