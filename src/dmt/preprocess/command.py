"""``dmt preprocess``: its options, its progress, and what it prints at the end."""

import os
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from dmt.errors import OneLineParser
from dmt.preprocess.api import check_workers, choose_categories, choose_splits, wrong_shares, wrong_table_rows
from dmt.preprocess.criteo import MANIFEST, OPTIONS, ConversionOptions, PartReport
from dmt.preprocess.criteo_run import convert_sources
from dmt.preprocess.sources import find_sources

_DESCRIPTION = """\
Convert Criteo's click logs, the Kaggle file or days of the 1 TB logs, to what `dmt.CriteoDataModule` maps into
memory. Integers become log(x + 3), missing ones 0 first; a category becomes the row of its value modulo the table's
rows, or with --min-count the one that it has in its column's vocabulary.

Started again after a kill it goes on where it was. DIR/manifest.json is there when all is done.
"""


# Together within 2 GiB.
_MAX_WORKERS = 4


def run_preprocess_command(arguments: list[str]) -> None:
    """``dmt preprocess criteo INPUT... --output DIR``."""
    parser = OneLineParser(prog="dmt preprocess criteo", description=_DESCRIPTION)
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="train.txt, day_0 ... day_23, plain or .gz; X_dense.npy, beside X_sparse.npy and X_labels.npy; a folder "
        "of these; or a dataset: hf://datasets/OWNER/NAME, a folder of save_to_disk, a .parquet or .arrow file",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder to write")
    parser.add_argument(
        "--num-embeddings",
        metavar="N",
        help="at most so many rows a table, which otherwise has the column's of the 1 TB logs (default 1000000); or 26 "
        "numbers separated by commas",
    )
    parser.add_argument(
        "--min-count",
        type=int,
        metavar="N",
        help="vocabularies instead: a row for each value that the training rows have so often; row 0 is for missing "
        "values, row 1 for all others. Takes a second pass",
    )
    parser.add_argument(
        "--split",
        metavar="A,B,C",
        help="shares of the rows for training, validation and test, in order. Default: of several files the last one's "
        "halves are validation and test; of a single file 0.8,0.1,0.1",
    )
    parser.add_argument(
        "--on-bad-lines", choices=["error", "skip"], default="error", help="lines that are not Criteo's (default error)"
    )
    parser.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help=f"processes, of up to 500 MB each (default: the CPUs that this one may use, at most {_MAX_WORKERS})",
    )
    options = parser.parse_args(arguments[2:])
    workers = min(len(os.sched_getaffinity(0)), _MAX_WORKERS) if options.workers is None else options.workers
    check_workers(workers)
    categories = choose_categories(_table_rows(options.num_embeddings), options.min_count)
    shares = _shares(options.split)
    sources = find_sources(options.inputs)
    is_begun, made_before = (options.output / OPTIONS).exists(), _made_at(options.output / MANIFEST)
    started = time.monotonic()
    sizes_in_bytes = [source.num_bytes for source in sources]
    total = None if None in sizes_in_bytes else sum(filter(None, sizes_in_bytes))
    try:
        with _Progress(total) as progress:
            manifest = convert_sources(
                sources,
                options.output,
                options=ConversionOptions(categories=categories, skip_bad_lines=options.on_bad_lines == "skip"),
                splits=choose_splits(shares, num_sources=len(sources)),
                workers=workers,
                on_part=progress.add,
            )
    except KeyboardInterrupt:
        print("dmt: interrupted; the same command goes on from here", file=sys.stderr)
        raise SystemExit(130) from None
    for told in manifest["first_bad_lines"]:
        print(told)
    if manifest["bad_lines"]:
        print(f"lines left out: {manifest['bad_lines']:,}; the first ones are above")
    sizes = {name: end - start for name, (start, end) in manifest["splits"].items()}
    rows, seconds = sum(sizes.values()), time.monotonic() - started
    told = ", ".join(f"{size:,} {name}" for name, size in sizes.items())
    if made_before is not None and made_before == _made_at(options.output / MANIFEST):
        pace = "converted before"
    elif is_begun:
        pace = f"the rest in {seconds:.1f} s"
    else:
        pace = f"in {seconds:.1f} s, {rows / seconds:,.0f} a second"
    print(f"{rows:,} rows ({told}) {pace}: {options.output}")


def _made_at(file: Path) -> int | None:
    return file.stat().st_mtime_ns if file.exists() else None


def _table_rows(text: str | None) -> int | list[int] | None:
    if text is None:
        return None
    try:
        numbers = [int(word) for word in text.split(",")]
    except ValueError:
        raise wrong_table_rows(text) from None
    return numbers if len(numbers) > 1 else numbers[0]


def _shares(text: str | None) -> list[float] | None:
    if text is None:
        return None
    try:
        return [float(word) for word in text.split(",")]
    except ValueError:
        raise wrong_shares(text) from None


class _Progress:
    """On a terminal a bar with bytes, rows and time left; nothing otherwise.

    Args:
        total: bytes of text, if known.
    """

    def __init__(self, total: int | None) -> None:
        console = Console(stderr=True)
        columns = (BarColumn(bar_width=30), DownloadColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
        self._bar = Progress(*columns, console=console, disable=not console.is_terminal)
        self._total = total
        self._tasks: dict[str, TaskID] = {}
        self._rows: dict[str, int] = {}

    def __enter__(self) -> "_Progress":
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def add(self, stage: str, report: PartReport) -> None:
        """Count a part; each stage has a bar of its own."""
        if stage not in self._tasks:
            self._tasks[stage] = self._bar.add_task("", total=self._total)
        self._rows[stage] = self._rows.get(stage, 0) + report.num_rows
        told = f"{stage}: {self._rows[stage]:,} rows"
        self._bar.update(self._tasks[stage], advance=report.num_bytes, description=told)
