"""A whole conversion of Criteo's logs: inputs, workers, and the manifest at the end."""

import errno
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dmt.errors import UserInputError
from dmt.preprocess.criteo import (
    FORMAT_VERSION,
    MANIFEST,
    NUM_SHOWN,
    OPTIONS,
    PARTS,
    VOCABULARY,
    ConversionOptions,
    PartReport,
    Vocabularies,
    convert_arrays,
    convert_stream,
    convert_text,
    count_rows,
    count_training,
    encode_part,
    num_parts,
    write_vocabularies,
)
from dmt.preprocess.criteo_text import CATEGORIES, INTEGERS
from dmt.preprocess.sources import ArrayTriple, PlainText, Source, TextStream
from dmt.preprocess.vocabulary import merge_counts
from dmt.preprocess.workers import Tell, Workers
from dmt.schema import CategoricalFeature, FeatureSchema

Task = Callable[[Tell], list[PartReport]]


@dataclass(frozen=True, kw_only=True)
class Splits:
    """Which rows are for training, validation and test, in the order of the inputs.

    Args:
        fractions: shares of all rows; ``None`` for the customary split by days: all files but the last are for
            training, of the last one the first half for validation and the second for test.
    """

    fractions: tuple[float, float, float] | None

    def ranges(self, rows_by_source: Sequence[int]) -> dict[str, tuple[int, int]]:
        """First row, and the one after the last, of each split."""
        total = sum(rows_by_source)
        if self.fractions is None:
            cuts = (total - rows_by_source[-1], total - rows_by_source[-1] + rows_by_source[-1] // 2)
        else:
            cuts = (round(total * self.fractions[0]), round(total * (self.fractions[0] + self.fractions[1])))
        return {"train": (0, cuts[0]), "valid": (cuts[0], cuts[1]), "test": (cuts[1], total)}


def preprocess_criteo(
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
        UserInputError: an input is wrong, or the output is not of this conversion or cannot be written.
    """
    start_output(output, sources=sources, options=options, splits=splits)
    if (output / MANIFEST).exists():
        shutil.rmtree(output / "values", ignore_errors=True)
        manifest: Mapping[str, Any] = json.loads((output / MANIFEST).read_text())
        return manifest
    with writing(output), Workers(workers) as pool:
        reports = _flat(pool.run(_reading_tasks(sources, options, output), partial(on_part, options.stage)))
        if isinstance(options.categories, Vocabularies):
            if not (output / VOCABULARY).exists():
                num_train = splits.ranges(_rows_by_source(sources, reports))["train"][1]
                folders = count_training(sources, reports, num_rows=num_train, output=output)
                merging = [
                    partial(_merge, folders, column, options.categories.min_count) for column in range(len(CATEGORIES))
                ]
                write_vocabularies(pool.run(merging), output)
            encoding = [
                partial(_told, partial(encode_part, sources[report.source], report, output=output))
                for report in reports
            ]
            reports = _flat(pool.run(encoding, partial(on_part, PARTS)))
            num_embeddings = count_rows(output)
        else:
            num_embeddings = options.categories.num_embeddings
        manifest = describe(sources, reports, num_embeddings=num_embeddings, options=options, splits=splits)
        unfinished = output / f".{MANIFEST}"
        unfinished.write_text(json.dumps(manifest, indent=1))
        unfinished.rename(output / MANIFEST)
        shutil.rmtree(output / "values", ignore_errors=True)
    return manifest


_SAID_BY = {
    "version": "version of dmt",
    "sources": "input files",
    "categories": "--num-embeddings or --min-count",
    "skip_bad_lines": "--on-bad-lines",
    "part_bytes": "part_bytes",
    "fractions": "--split",
}


def start_output(output: Path, *, sources: Sequence[Source], options: ConversionOptions, splits: Splits) -> None:
    """Make the output folder, or check that it was begun with the same files and options.

    Raises:
        UserInputError: it holds something else, or cannot be written.
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
        if differing != ["skip_bad_lines"] or not options.skip_bad_lines:
            told = " and ".join(_SAID_BY[name] for name in differing)
            raise UserInputError(f"--output {output}: it was begun with other {told}; give another folder or remove it")
    elif output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserInputError(f"--output {output}: it exists and is not of dmt preprocess; give another folder")
    with writing(output):
        output.mkdir(parents=True, exist_ok=True)
        unfinished = output / f".{OPTIONS}"
        unfinished.write_text(json.dumps(wanted))
        unfinished.rename(file)


@contextmanager
def writing(output: Path) -> Iterator[None]:
    """Say which output could not be written, and why."""
    try:
        yield
    except OSError as error:
        fix = "free some space; the same command goes on" if error.errno == errno.ENOSPC else "give another folder"
        raise UserInputError(f"--output {output}: {error}; {fix}") from None


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


def _merge(folders: Sequence[Path], column: int, min_count: int, tell: Tell) -> np.ndarray:
    return merge_counts(folders, column=column, min_count=min_count)


def describe(
    sources: Sequence[Source],
    reports: Sequence[PartReport],
    *,
    num_embeddings: Sequence[int],
    options: ConversionOptions,
    splits: Splits,
) -> dict[str, Any]:
    """The manifest: what there is to know of the converted logs."""
    rows = _rows_by_source(sources, reports)
    schema = FeatureSchema(
        categorical=[
            CategoricalFeature(name=name, num_embeddings=size)
            for name, size in zip(CATEGORIES, num_embeddings, strict=True)
        ],
        dense=INTEGERS,
    )
    return {
        "version": FORMAT_VERSION,
        "schema": schema.to_dict(),
        "splits": splits.ranges(rows),
        "sources": [{"file": s.path.name, "rows": n} for s, n in zip(sources, rows, strict=True)],
        "options": asdict(options),
        "bad_lines": sum(report.num_bad for report in reports),
        "first_bad_lines": _first_bad_lines(sources, reports),
        "parts": [
            {
                "folder": sources[report.source].folder(Path(), PARTS, report.part).as_posix(),
                "rows": report.num_rows,
                "crc32": report.checksum,
            }
            for report in reports
        ],
    }


def _flat(reports: Iterable[list[PartReport]]) -> list[PartReport]:
    return [report for of_task in reports for report in of_task]


def _rows_by_source(sources: Sequence[Source], reports: Sequence[PartReport]) -> list[int]:
    counts = Counter[int]()
    for report in reports:
        counts[report.source] += report.num_rows
    return [counts[source.index] for source in sources]


def _first_bad_lines(sources: Sequence[Source], reports: Sequence[PartReport]) -> list[str]:
    """File, number and fault of the first ten lines that were left out."""
    told, lines_before = [], Counter[int]()
    for report in reports:
        source = sources[report.source]
        for index, reason in report.first_bad:
            told.append(f"{source.name}, {source.unit} {lines_before[report.source] + index + 1}: {reason}")
        lines_before[report.source] += report.num_rows + report.num_bad
    return told[:NUM_SHOWN]
