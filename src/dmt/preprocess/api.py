"""Converting Criteo's logs as users ask for it: their options, checked."""

import operator
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dmt.errors import UserInputError
from dmt.preprocess.criteo import ConversionOptions, Hashing, PartReport, Vocabularies
from dmt.preprocess.criteo_manifest import Splits
from dmt.preprocess.criteo_run import convert_sources
from dmt.preprocess.criteo_text import CATEGORIES
from dmt.preprocess.dataset_text import HUB
from dmt.preprocess.sources import find_sources

# Rows of the tables for the 1 TB logs, as TorchRec's DLRM example has them.
NUM_EMBEDDINGS = (
    *(45833188, 36746, 17245, 7413, 20243, 3, 7114, 1441, 62, 29275261, 1572176, 345138, 10),
    *(2209, 11267, 128, 4, 974, 14, 48937457, 11316796, 40094537, 452104, 12606, 104, 35),
)


def preprocess_criteo(
    inputs: str | Path | Sequence[str | Path],
    output: str | Path,
    *,
    num_embeddings: int | Sequence[int] | None = None,
    min_count: int | None = None,
    split: Sequence[float] | None = None,
    skip_bad_lines: bool = False,
    workers: int = 1,
    on_part: Callable[[str, PartReport], None] = lambda stage, report: None,
) -> Mapping[str, Any]:
    """Convert logs for :class:`dmt.CriteoDataModule`, or go on with a conversion that was interrupted.

    Args:
        inputs: ``train.txt``, days, plain or gzip, arrays, datasets, or folders of these.
        output: folder to write.
        num_embeddings: at most so many rows a table, which otherwise has the column's of the 1 TB logs (by default
            1,000,000); or those of each of the 26 tables.
        min_count: vocabularies instead: a row for each value that the training rows have so often.
        split: shares of the rows for training, validation and test, in order. By default the last one's halves of
            several inputs are for validation and test, and a single one is divided in 0.8, 0.1 and 0.1.
        skip_bad_lines: leave lines out that are not Criteo's; otherwise the first one is an error.
        workers: processes, of up to 500 MB each. With more than one, a script that calls this needs
            ``if __name__ == "__main__"``.
        on_part: called with each part as it is done: the folder that it is in, and a report with its ``num_rows`` and
            ``num_bytes``.

    Returns:
        the content of ``manifest.json``.

    Raises:
        UserInputError: an input or an option is wrong (by its name at the command), there are no training rows, or the
            output is not of this conversion, is being written by another process or cannot be written.

    Example::

        dmt.preprocess_criteo(["logs/day_0", "logs/day_1"], "criteo", num_embeddings=100_000)
        data = dmt.CriteoDataModule(path="criteo")
    """
    check_workers(workers)
    categories = choose_categories(num_embeddings, min_count)
    sources = find_sources([_expanded(name) for name in ([inputs] if isinstance(inputs, str | Path) else inputs)])
    if not sources:
        raise UserInputError("inputs: there are none; give files, folders or datasets")
    return convert_sources(
        sources,
        Path(output).expanduser(),
        options=ConversionOptions(categories=categories, skip_bad_lines=skip_bad_lines),
        splits=choose_splits(split, num_sources=len(sources)),
        workers=workers,
        on_part=on_part,
    )


def choose_categories(num_embeddings: int | Sequence[int] | None, min_count: int | None) -> Hashing | Vocabularies:
    """How categories become rows; see :func:`preprocess_criteo`."""
    if min_count is None:
        return Hashing(num_embeddings=_table_rows(1_000_000 if num_embeddings is None else num_embeddings))
    if num_embeddings is not None:
        raise UserInputError(
            f"--num-embeddings {_written(num_embeddings)}: with --min-count the vocabularies say how many rows there "
            "are; give one of the two"
        )
    if min_count < 1:
        raise UserInputError(f"--min-count {min_count}: give at least 1")
    return Vocabularies(min_count=min_count)


def _table_rows(num_embeddings: int | Sequence[int]) -> tuple[int, ...]:
    try:
        if isinstance(num_embeddings, Sequence):
            rows = tuple(operator.index(number) for number in num_embeddings)
        else:
            rows = tuple(min(size, operator.index(num_embeddings)) for size in NUM_EMBEDDINGS)
    except TypeError:  # of what are no whole numbers
        rows = ()
    if len(rows) != len(CATEGORIES) or not all(1 <= number < 2**31 for number in rows):
        raise wrong_table_rows(_written(num_embeddings))
    return rows


def wrong_table_rows(written: str) -> UserInputError:
    """What is said of rows of the tables that cannot be."""
    return UserInputError(
        f"--num-embeddings {written}: give a number from 1 to 2147483647, or 26 of them separated by commas"
    )


def choose_splits(shares: Sequence[float] | None, *, num_sources: int) -> Splits:
    """Which rows are for what; see :func:`preprocess_criteo`."""
    if shares is None:
        return Splits(fractions=None if num_sources > 1 else (0.8, 0.1, 0.1))
    # (the other way around, NaN would pass)
    if isinstance(shares, str) or not (
        len(shares) == 3 and shares[0] > 0 and min(shares) >= 0 and abs(sum(shares) - 1) <= 1e-9
    ):
        raise wrong_shares(_written(shares))
    train, valid, test = shares
    return Splits(fractions=(train, valid, test))


def wrong_shares(written: str) -> UserInputError:
    """What is said of shares that are none."""
    return UserInputError(f"--split {written}: give three numbers that sum to 1, such as 0.8,0.1,0.1")


def check_workers(workers: int) -> None:
    """Refuse a number of processes that cannot be."""
    if workers < 1:
        raise UserInputError(f"--workers {workers}: give at least 1")


def _written(numbers: float | Sequence[float]) -> str:
    """As the command takes them."""
    return ",".join(map(str, numbers)) if isinstance(numbers, Sequence) else str(numbers)


def _expanded(name: str | Path) -> str:
    """A path without ``~``, which no shell has replaced; an address as it is."""
    return str(name) if str(name).startswith(HUB) else str(Path(name).expanduser())
