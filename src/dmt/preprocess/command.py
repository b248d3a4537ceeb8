"""``dmt preprocess``: its options, its progress, and what it prints at the end."""

import argparse
import os
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from dmt.errors import OneLineParser, UserInputError
from dmt.preprocess.criteo import MANIFEST, OPTIONS, ConversionOptions, Hashing, PartReport, Vocabularies
from dmt.preprocess.criteo_run import Splits, preprocess_criteo
from dmt.preprocess.criteo_text import CATEGORIES
from dmt.preprocess.sources import find_sources

# Rows of the tables for the 1 TB logs, as TorchRec's DLRM example has them.
NUM_EMBEDDINGS = (
    *(45833188, 36746, 17245, 7413, 20243, 3, 7114, 1441, 62, 29275261, 1572176, 345138, 10),
    *(2209, 11267, 128, 4, 974, 14, 48937457, 11316796, 40094537, 452104, 12606, 104, 35),
)

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
        help=f"processes, of some 350 MB each (default: the CPUs that this one may use, at most {_MAX_WORKERS})",
    )
    if arguments[1:2] != ["criteo"]:
        found = arguments[1] if len(arguments) > 1 else "nothing"
        if found in ("-h", "--help"):
            parser.print_help()
            return
        raise UserInputError(f"dmt preprocess {found}: give criteo or tabular; see dmt preprocess criteo --help")
    options = parser.parse_args(arguments[2:])
    if options.workers is not None and options.workers < 1:
        raise UserInputError(f"--workers {options.workers}: give at least 1")
    categories = _categories(options)
    sources = find_sources(options.inputs)
    is_begun, made_before = (options.output / OPTIONS).exists(), _made_at(options.output / MANIFEST)
    started = time.monotonic()
    sizes_in_bytes = [source.num_bytes for source in sources]
    total = None if None in sizes_in_bytes else sum(filter(None, sizes_in_bytes))
    try:
        with _Progress(total) as progress:
            manifest = preprocess_criteo(
                sources,
                options.output,
                options=ConversionOptions(categories=categories, skip_bad_lines=options.on_bad_lines == "skip"),
                splits=Splits(fractions=_fractions(options.split, num_sources=len(sources))),
                workers=options.workers or min(len(os.sched_getaffinity(0)), _MAX_WORKERS),
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
        pace = f"gone on with for {seconds:.1f} s"
    else:
        pace = f"in {seconds:.1f} s, {rows / seconds:,.0f} a second"
    print(f"{rows:,} rows ({told}) {pace}: {options.output}")


def _made_at(file: Path) -> int | None:
    return file.stat().st_mtime_ns if file.exists() else None


def _categories(options: argparse.Namespace) -> Hashing | Vocabularies:
    if options.min_count is None:
        return Hashing(num_embeddings=_num_embeddings(options.num_embeddings or "1000000"))
    if options.num_embeddings is not None:
        raise UserInputError(
            f"--num-embeddings {options.num_embeddings}: with --min-count the vocabularies say how many rows there "
            "are; give one of the two"
        )
    if options.min_count < 1:
        raise UserInputError(f"--min-count {options.min_count}: give at least 1")
    return Vocabularies(min_count=options.min_count)


def _num_embeddings(text: str) -> tuple[int, ...]:
    try:
        numbers = [int(word) for word in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, len(CATEGORIES)) or not all(1 <= number < 2**31 for number in numbers):
        raise UserInputError(
            f"--num-embeddings {text}: give a number from 1 to 2147483647, or 26 of them separated by commas"
        )
    return tuple(numbers) if len(numbers) > 1 else tuple(min(size, numbers[0]) for size in NUM_EMBEDDINGS)


def _fractions(text: str | None, *, num_sources: int) -> tuple[float, float, float] | None:
    if text is None:
        return None if num_sources > 1 else (0.8, 0.1, 0.1)
    try:
        train, valid, test = (float(word) for word in text.split(","))
    except ValueError:
        train = valid = test = -1.0
    # (the other way around, NaN would pass)
    if not (train > 0 and valid >= 0 and test >= 0 and abs(train + valid + test - 1) <= 1e-9):
        raise UserInputError(f"--split {text}: give three numbers that sum to 1, such as 0.8,0.1,0.1")
    return train, valid, test


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
