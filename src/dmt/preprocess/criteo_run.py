"""A whole conversion of Criteo's logs: parts, by workers, and the manifest at the end."""

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl

from dmt.errors import UserInputError, is_disk_full
from dmt.preprocess.criteo import (
    FORMAT_VERSION,
    MANIFEST,
    OPTIONS,
    PART,
    PARTS,
    ROWS,
    VOCABULARY,
    ConversionOptions,
    Hashing,
    PartReport,
    convert_arrays,
    convert_stream,
    convert_text,
    count_training,
    encode_part,
    make_vocabulary,
    num_parts,
    write_vocabularies,
)
from dmt.preprocess.criteo_manifest import Splits, describe, rows_by_source
from dmt.preprocess.criteo_text import CATEGORIES
from dmt.preprocess.sources import ArrayTriple, PlainText, Source, TextStream
from dmt.preprocess.vocabulary import NUM_SPECIAL
from dmt.preprocess.workers import Tell, Workers
from dmt.whole_files import write_whole

Task = Callable[[Tell], list[PartReport]]


def convert_sources(
    sources: Sequence[Source],
    output: Path,
    *,
    options: ConversionOptions,
    splits: Splits,
    workers: int = 1,
    on_part: Callable[[str, PartReport], None] = lambda stage, report: None,
) -> Mapping[str, Any]:
    """Convert logs, or go on with a conversion that was interrupted.

    Args:
        sources: the files, by :func:`find_sources`.
        output: folder to write.
        options: how.
        splits: which rows are for what.
        workers: processes. With more than one, a script that calls this needs ``if __name__ == "__main__"``.
        on_part: told of each part as it is done, and of the folder that it is in.

    Returns:
        the content of ``manifest.json``.

    Raises:
        UserInputError: an input is wrong, there are no training rows, or the output is not of this conversion, is
            being written by another process or cannot be written.
    """
    with writing(output), _locked(output):
        start_output(output, sources=sources, options=options, splits=splits)
        if not _is_done(output):
            with Workers(workers) as pool:
                manifest = _convert(pool, sources, output, options=options, splits=splits, on_part=on_part)
            write_whole(output / MANIFEST, json.dumps(manifest, indent=1))
        _discard(output / "values")
        done: Mapping[str, Any] = json.loads((output / MANIFEST).read_text())
    return done


def _discard(folder: Path) -> None:
    """Remove a folder; a kill meanwhile leaves none of that name, which half of its files would be missed in."""
    hidden = folder.with_name(f".{folder.name}")
    shutil.rmtree(hidden, ignore_errors=True)
    if folder.exists():
        folder.rename(hidden)
        shutil.rmtree(hidden, ignore_errors=True)


def _is_done(output: Path) -> bool:
    """Whether all is there that the manifest tells of: parts may have been removed since, to be made again."""
    file = output / MANIFEST
    try:
        folders = [output / part["folder"] for part in json.loads(file.read_text())["parts"]]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return all((folder / name).exists() for folder in folders for name in (ROWS, PART))


def _convert(
    pool: Workers,
    sources: Sequence[Source],
    output: Path,
    *,
    options: ConversionOptions,
    splits: Splits,
    on_part: Callable[[str, PartReport], None],
) -> dict[str, Any]:
    """Make all parts that are not there; returns the manifest."""
    reports = _flat(pool.run(_reading_tasks(sources, options, output), partial(on_part, options.stage)))
    _check_training(sources, reports, splits)
    if isinstance(options.categories, Hashing):
        num_embeddings = options.categories.num_embeddings
    else:
        num_train = splits.ranges(rows_by_source(sources, reports))["train"][1]
        folders = count_training(sources, reports, num_rows=num_train, output=output)
        make = partial(_make_vocabulary, folders, min_count=options.categories.min_count, output=output)
        sizes = pool.run([partial(make, column) for column in range(len(CATEGORIES))])
        if not (output / VOCABULARY).exists():
            write_vocabularies(output)
        encoding = [
            partial(_told, partial(encode_part, sources[report.source], report, output=output)) for report in reports
        ]
        reports = _flat(pool.run(encoding, partial(on_part, PARTS)))
        num_embeddings = tuple(NUM_SPECIAL + size for size in sizes)
    return describe(sources, reports, num_embeddings=num_embeddings, options=options, splits=splits)


_SAID_BY = {
    "version": "version of dmt",
    "sources": "input files",
    "categories": "--num-embeddings or --min-count",
    "skip_bad_lines": "--on-bad-lines",
    "part_bytes": "part_bytes",
    "fractions": "--split",
}


def start_output(output: Path, *, sources: Sequence[Source], options: ConversionOptions, splits: Splits) -> None:
    """Begin a conversion in the output folder, or check that it was begun with the same files and options.

    Raises:
        UserInputError: it holds something else.
    """
    identities = [source.identity() for source in sources]
    wanted = json.loads(
        json.dumps({"version": FORMAT_VERSION, "sources": identities, **asdict(options), **asdict(splits)})
    )
    file = output / OPTIONS
    if file.exists():
        found = json.loads(file.read_text())
        differing = [name for name in wanted if found.get(name) != wanted[name]]
        if not differing:
            return
        # Parts that are done had no bad line and would be the same, so that skipping them may begin in the middle.
        begins_to_skip = differing == ["skip_bad_lines"] and options.skip_bad_lines
        if not begins_to_skip and any(output.glob("*/[0-9]*/part.json")):
            told = " and ".join(_SAID_BY[name] for name in differing)
            raise UserInputError(f"--output {output}: it was begun with other {told}; give another folder or remove it")
    elif output.exists() and (not output.is_dir() or {file.name for file in output.iterdir()} - {f".{OPTIONS}"}):
        raise UserInputError(f"--output {output}: it exists and is not of dmt preprocess; give another folder")
    (output / MANIFEST).unlink(missing_ok=True)  # of parts that were removed
    write_whole(file, json.dumps(wanted))


@contextmanager
def writing(output: Path) -> Iterator[None]:
    """Say which output could not be written, and why."""
    try:
        yield
    except (OSError, pl.exceptions.ComputeError) as error:
        if is_disk_full(error):
            told = str(error).splitlines()[0]
            raise UserInputError(
                f"--output {output}: the disk is full ({told}); free some space; the same command goes on"
            ) from None
        if not isinstance(error, OSError):
            raise
        if error.filename is not None and output not in [Path(error.filename), *Path(error.filename).parents]:
            raise UserInputError(f"{error.filename}: {error.strerror}; check the file") from None
        raise UserInputError(f"--output {output}: {error}; give another folder") from None


@contextmanager
def _locked(output: Path) -> Iterator[None]:
    """Make the folder, and keep other conversions out of it."""
    if not output.exists():
        output.mkdir(parents=True)
    folder = os.open(output, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserInputError(f"--output {output}: another command is writing it; wait for that one") from None
    except OSError:
        pass  # a file system without locks
    try:
        yield
    finally:
        os.close(folder)


def _reading_tasks(sources: Sequence[Source], options: ConversionOptions, output: Path) -> list[Task]:
    tasks: list[Task] = []
    for source in sources:
        if isinstance(source, TextStream):
            tasks.append(partial(convert_stream, source, options=options, output=output))
        elif isinstance(source, PlainText):
            convert = partial(convert_text, source, options=options, output=output)
            tasks += _part_tasks(convert, num_parts(source, options))
        elif isinstance(source, ArrayTriple):
            convert = partial(convert_arrays, source, options=options, output=output)
            tasks += _part_tasks(convert, num_parts(source, options))
    return tasks


def _part_tasks(convert: Callable[[int], PartReport], count: int) -> list[Task]:
    return [partial(_told, partial(convert, part)) for part in range(count)]


def _told(convert: Callable[[], PartReport], tell: Tell) -> list[PartReport]:
    """Convert one part and tell of it."""
    report = convert()
    tell(report)
    return [report]


def _make_vocabulary(folders: Sequence[Path], column: int, tell: Tell, *, min_count: int, output: Path) -> int:
    return make_vocabulary(folders, column, min_count=min_count, output=output)


def _check_training(sources: Sequence[Source], reports: Sequence[PartReport], splits: Splits) -> None:
    rows = rows_by_source(sources, reports)
    if splits.ranges(rows)["train"][1] == 0:
        num_rows, num_bad = (sum(getattr(report, name) for report in reports) for name in ("num_rows", "num_bad"))
        raise UserInputError(
            f"{', '.join(source.name for source in sources[:3])}: no rows for training, of {num_rows:,} rows and "
            f"{num_bad:,} lines that were left out; give logs with rows, or another --split"
        )
    for source, num_rows in zip(sources, rows, strict=True):
        if num_rows == 0:  # the last one's would be for validation and test
            raise UserInputError(f"{source.name}: there are no rows in it; fetch it again, or leave it out")


def _flat(reports: Iterable[list[PartReport]]) -> list[PartReport]:
    return [report for of_task in reports for report in of_task]
