"""A whole conversion of Criteo's logs: inputs, workers, and the manifest at the end."""

import errno
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from dmt.errors import UserInputError
from dmt.preprocess.criteo import (
    FORMAT_VERSION,
    MANIFEST,
    OPTIONS,
    ConversionOptions,
    PartReport,
    Source,
    convert_gzip,
    convert_part,
    num_parts,
)
from dmt.preprocess.criteo_text import CATEGORIES, INTEGERS
from dmt.preprocess.text_parts import is_gzip
from dmt.schema import CategoricalFeature, FeatureSchema

_DAY = re.compile(r"day_(\d+)(?:\.gz)?")


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


@dataclass(frozen=True, kw_only=True)
class Converted:
    """What a conversion comes to.

    Args:
        manifest: the content of ``manifest.json``.
        bad_lines: file, number and fault of the first ten lines that were left out.
    """

    manifest: Mapping[str, Any]
    bad_lines: list[str]


def preprocess_criteo(
    inputs: Sequence[Path],
    output: Path,
    *,
    options: ConversionOptions,
    splits: Splits,
    workers: int = 1,
    on_part: Callable[[PartReport], None] = lambda report: None,
) -> Converted:
    """Convert logs, or go on with a conversion that was interrupted.

    Args:
        inputs: files or folders, see :func:`find_sources`.
        output: folder to write.
        options: how.
        splits: which rows are for what.
        workers: processes. With more than one, a script that calls this needs ``if __name__ == "__main__"``.
        on_part: told of each part as it is done.

    Raises:
        UserInputError: an input is missing or wrong, or the output is not of this conversion or cannot be written.
    """
    sources = find_sources(inputs)
    start_output(output, sources=sources, options=options, splits=splits)
    reports = []
    for report in convert(sources, options=options, output=output, workers=workers):
        reports.append(report)
        on_part(report)
    manifest = write_manifest(output, sources=sources, reports=reports, options=options, splits=splits)
    return Converted(manifest=manifest, bad_lines=first_bad_lines(sources, reports))


def find_sources(inputs: Sequence[Path]) -> list[Source]:
    """The files of the inputs, days in order; a folder stands for the ``day_*`` files, or the ``train.txt``, in it.

    Raises:
        UserInputError: a file does not exist or is empty, or a day is missing between two others.
    """
    files: list[Path] = []
    for path in inputs:
        if path.is_dir():
            found = [file for file in path.iterdir() if _DAY.fullmatch(file.name)] or [path / "train.txt"]
            if not found[0].exists():
                raise UserInputError(f"{path}: no day_0 to day_23 and no train.txt in it; give the files themselves")
            files += found
        else:
            files.append(path)
    for file in files:
        if not file.is_file():
            raise UserInputError(f"{file}: no such file")
        if file.stat().st_size == 0:
            raise UserInputError(f"{file}: it is empty; fetch it again")
        if file.suffix == ".gz" and not is_gzip(file):
            raise UserInputError(f"{file}: not a gzip file; rename it if it is plain text")
    days = {file: int(match[1]) for file in files if (match := _DAY.fullmatch(file.name))}
    if len(days) == len(files):
        files.sort(key=lambda file: days[file])
        for one, other in pairwise(files):
            if days[other] == days[one]:
                raise UserInputError(f"{other}: day {days[other]} is given twice, also as {one}; give it once")
            if days[other] > days[one] + 1:
                raise UserInputError(
                    f"day_{days[one] + 1} is missing between {one} and {other}; add it, or rename the files to leave "
                    "it out"
                )
    return [Source(index=index, path=file) for index, file in enumerate(files)]


def start_output(output: Path, *, sources: Sequence[Source], options: ConversionOptions, splits: Splits) -> None:
    """Make the output folder, or check that it was begun with the same files and options.

    Raises:
        UserInputError: it holds something else, or cannot be written.
    """
    files = [(str(s.path.resolve()), s.path.stat().st_size, s.path.stat().st_mtime_ns) for s in sources]
    wanted = json.loads(json.dumps({"version": FORMAT_VERSION, "sources": files, **asdict(options), **asdict(splits)}))
    file = output / OPTIONS
    if file.exists():
        found = json.loads(file.read_text())
        differing = [name for name in wanted if found.get(name) != wanted[name]]
        if differing:
            told = " and ".join(differing)
            raise UserInputError(f"--output {output}: it was begun with other {told}; give another folder or remove it")
        return
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserInputError(f"--output {output}: it exists and is not of dmt preprocess; give another folder")
    with writing(output):
        (output / "parts").mkdir(parents=True, exist_ok=True)
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


def convert(
    sources: Sequence[Source], *, options: ConversionOptions, output: Path, workers: int
) -> Iterator[PartReport]:
    """Convert all parts; yields a report of each as it is done, those of an earlier run included."""
    tasks: list[Callable[[], list[PartReport]]] = []
    for source in sources:
        if is_gzip(source.path):
            tasks.append(partial(_convert_gzip, source, options, output))
        else:
            parts = range(num_parts(source.path, options))
            tasks += [partial(_convert_part, source, part, options, output) for part in parts]
    with writing(output):
        if workers == 1:
            for task in tasks:
                yield from task()
            return
        # One thread a worker: polars' own threads would wait for Python between chunks.
        os.environ["POLARS_MAX_THREADS"] = "1"
        with ProcessPoolExecutor(max_workers=workers, mp_context=get_context("spawn")) as pool:
            try:
                for future in as_completed([pool.submit(task) for task in tasks]):
                    yield from future.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise


def _convert_part(source: Source, part: int, options: ConversionOptions, output: Path) -> list[PartReport]:
    return [convert_part(source, part, options=options, output=output)]


def _convert_gzip(source: Source, options: ConversionOptions, output: Path) -> list[PartReport]:
    return list(convert_gzip(source, options=options, output=output))


def write_manifest(
    output: Path,
    *,
    sources: Sequence[Source],
    reports: Sequence[PartReport],
    options: ConversionOptions,
    splits: Splits,
) -> Mapping[str, Any]:
    """Write, and return, what there is to know of the converted logs."""
    ordered = sorted(reports, key=lambda report: (report.source, report.part))
    rows = [sum(report.num_rows for report in ordered if report.source == s.index) for s in sources]
    schema = FeatureSchema(
        categorical=[
            CategoricalFeature(name=name, num_embeddings=size)
            for name, size in zip(CATEGORIES, options.num_embeddings, strict=True)
        ],
        dense=INTEGERS,
    )
    manifest = {
        "version": FORMAT_VERSION,
        "schema": schema.to_dict(),
        "splits": splits.ranges(rows),
        "sources": [{"file": s.path.name, "rows": n} for s, n in zip(sources, rows, strict=True)],
        "options": asdict(options),
        "bad_lines": sum(report.num_bad for report in ordered),
        "parts": [
            {"folder": s.folder(Path(), report.part).as_posix(), "rows": report.num_rows, "crc32": report.checksums}
            for report in ordered
            if (s := sources[report.source])
        ],
    }
    with writing(output):
        unfinished = output / f".{MANIFEST}"
        unfinished.write_text(json.dumps(manifest, indent=1))
        unfinished.rename(output / MANIFEST)
    return manifest


def first_bad_lines(sources: Sequence[Source], reports: Sequence[PartReport]) -> list[str]:
    """The first ten lines that were left out, as text."""
    told, lines_before = [], dict.fromkeys((source.index for source in sources), 0)
    for report in sorted(reports, key=lambda report: (report.source, report.part)):
        for index, reason in report.first_bad:
            told.append(f"{sources[report.source].path}, line {lines_before[report.source] + index + 1}: {reason}")
        lines_before[report.source] += report.num_rows + report.num_bad
    return told[:10]
