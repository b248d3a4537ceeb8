"""Criteo's click logs to the training format.

    OUTPUT/
        options.json            what the parts were made from, and how
        values/                 with vocabularies, until all is done:
            FILE-PART/          as below, with values in place of ids, and counts
            C1_by_row.u4 ...    values of all training rows, most frequent first; in C1_ordered.u4, C1_rows.u4 by value
        vocabulary.parquet      with vocabularies: the values of each column, by row, from row 2 on
        parts/FILE-PART/        rows.npy int32 (n, 40): the bits of 13 float32, 26 ids, the label; part.json
        manifest.json           schema, rows, splits, checksums; there when all is done

A part is some 128 MiB of what is read. It appears under its name when it is complete, so that a run that was killed
goes on with those that are missing.
"""

import json
import shutil
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from dmt.errors import UserInputError
from dmt.preprocess.criteo_text import CATEGORIES, INTEGERS, NUM_COLUMNS, BadLine, Lines, is_told, read_lines
from dmt.preprocess.sources import ArrayTriple, PlainText, Source, TextStream
from dmt.preprocess.text_parts import chunks, count_lines, seek_line, skip
from dmt.preprocess.vocabulary import (
    NUM_SPECIAL,
    ROWS_AT_A_TIME,
    ValueCounts,
    ValueTable,
    VocabularyFiles,
    find_rows,
    merge_counts,
    rows_in_cache,
    save_vocabulary,
    transposed,
)
from dmt.preprocess.workers import Tell
from dmt.whole_files import whole

MANIFEST = "manifest.json"
PARTS = "parts"
ROWS = "rows.npy"
PART = "part.json"
VOCABULARY = "vocabulary.parquet"
FORMAT_VERSION = 1
OPTIONS = "options.json"
_FIRST_ID = len(INTEGERS)
_PIECE_ROWS = 100_000


@dataclass(frozen=True, kw_only=True)
class Hashing:
    """A category becomes the row of its value modulo the table's rows; missing ones are 0.

    Args:
        num_embeddings: rows of each of the 26 tables.
    """

    num_embeddings: tuple[int, ...]

    def ids(self, categories: pl.DataFrame) -> np.ndarray:
        """Rows of the values, int32 (n, 26)."""
        rows = [
            (pl.col(name) % rows).cast(pl.Int32) for name, rows in zip(CATEGORIES, self.num_embeddings, strict=True)
        ]
        return categories.select(rows).to_numpy(order="c")


@dataclass(frozen=True, kw_only=True)
class Vocabularies:
    """A category becomes the row that its value has in its column's vocabulary.

    Args:
        min_count: occurrences in the training rows that give a value a row of its own.
    """

    min_count: int

    def ids(self, categories: pl.DataFrame) -> np.ndarray:
        """The values themselves for now, as the int32 (n, 26) of the same bits."""
        return categories.to_numpy(order="c").view(np.int32)


@dataclass(frozen=True, kw_only=True)
class ConversionOptions:
    """How lines become parts.

    Args:
        categories: how categories become rows. With vocabularies the lines become parts of values first.
        skip_bad_lines: leave lines out that are not Criteo's; otherwise the first one is an error.
        part_bytes: of what is read for a part.
    """

    categories: Hashing | Vocabularies
    skip_bad_lines: bool = False
    part_bytes: int = 128 * 2**20

    @property
    def stage(self) -> str:
        """The folder of what lines become."""
        return "values" if isinstance(self.categories, Vocabularies) else PARTS


@dataclass(frozen=True, kw_only=True)
class PartReport:
    """What there is to tell of a finished part.

    Args:
        source: index of its file.
        part: its place in the file.
        num_bytes: that it was read from.
        num_rows: lines that were kept.
        num_bad: lines that were left out.
        first_bad: index among the part's lines, and what is wrong, of the first ten, and of what stands for the rest of
            a damaged file.
        checksum: CRC-32 of the rows' bytes.
    """

    source: int
    part: int
    num_bytes: int
    num_rows: int
    num_bad: int
    first_bad: list[tuple[int, str]]
    checksum: int


def num_parts(source: PlainText | ArrayTriple, options: ConversionOptions) -> int:
    """Parts of a source that can be read from any place; those of a stream are known when it has been read."""
    return -(-source.num_bytes // options.part_bytes)


def convert_text(source: PlainText, part: int, *, options: ConversionOptions, output: Path) -> PartReport:
    """Convert one part of a plain file, unless that was done before."""
    done = read_report(source.folder(output, options.stage, part))
    if done is not None:
        return done
    with source.path.open("rb") as file:
        start = seek_line(file, part * options.part_bytes, path=source.name)
        texts = chunks(file, path=source.name, num_bytes=(part + 1) * options.part_bytes - start)
        try:
            return _write_part(_read_texts(texts), source=source, part=part, options=options, output=output)
        except _BadLineError as error:
            raise _refusal(source, count_lines(source.path, start), error.line) from None


def convert_stream(source: TextStream, tell: Tell, *, options: ConversionOptions, output: Path) -> list[PartReport]:
    """Convert the parts of a stream, one after the other, and tell of each."""
    reports: list[PartReport] = []
    num_lines = 0
    with source.open() as file:
        while not reports or reports[-1].num_bytes >= options.part_bytes:
            part = len(reports)
            done = read_report(source.folder(output, options.stage, part))
            if done is not None:
                skip(file, done.num_bytes)
            else:
                try:
                    texts = chunks(file, path=source.name, num_bytes=options.part_bytes)
                    done = _write_part(_read_texts(texts), source=source, part=part, options=options, output=output)
                except _BadLineError as error:
                    raise _refusal(source, num_lines, error.line) from None
            num_lines += done.num_rows + done.num_bad
            reports.append(done)
            tell(done)
    return reports


def convert_arrays(source: ArrayTriple, part: int, *, options: ConversionOptions, output: Path) -> PartReport:
    """Convert one part of arrays, unless that was done before."""
    done = read_report(source.folder(output, options.stage, part))
    if done is not None:
        return done
    arrays, parts = source.load(), num_parts(source, options)
    start, end = len(arrays) * part // parts, len(arrays) * (part + 1) // parts
    cuts = [*range(start, end, _PIECE_ROWS), end]
    row_bytes = source.num_bytes // max(len(arrays), 1)
    pieces = ((arrays.read(one, other), (other - one) * row_bytes) for one, other in pairwise(cuts))
    try:
        return _write_part(pieces, source=source, part=part, options=options, output=output)
    except _BadLineError as error:
        raise _refusal(source, start, error.line) from None


class _BadLineError(Exception):
    def __init__(self, line: BadLine) -> None:
        super().__init__(line.reason)
        self.line = line


def _refusal(source: Source, num_before: int, line: BadLine) -> UserInputError:
    where = f"{source.name}, {source.unit} {num_before + line.index + 1}"
    return UserInputError(f"{where}: {line.reason}; mend it, or give --on-bad-lines skip")


def _read_texts(texts: Iterator[bytes]) -> Iterator[tuple[Lines, int]]:
    return ((read_lines(text), len(text)) for text in texts)


def _write_part(
    pieces: Iterator[tuple[Lines, int]], *, source: Source, part: int, options: ConversionOptions, output: Path
) -> PartReport:
    """Write a part of pieces, each with the number of bytes that it was read from."""
    converted, first_bad = [], list[tuple[int, str]]()
    num_bytes, num_lines, num_bad = 0, 0, 0
    for lines, of_piece in _reading(source, pieces):
        if lines.bad and not options.skip_bad_lines:
            raise _BadLineError(BadLine(num_lines + lines.bad[0].index, lines.bad[0].reason))
        for line in lines.bad:
            if is_told(line.reason, num_before=len(first_bad)):
                first_bad.append((num_lines + line.index, line.reason))
        converted.append(_rows(lines, options))
        num_bytes += of_piece
        num_lines += len(lines.labels) + lines.num_bad
        num_bad += lines.num_bad
    rows = np.concatenate(converted or [_rows(read_lines(b""), options)])
    report = PartReport(
        source=source.index,
        part=part,
        num_bytes=num_bytes,
        num_rows=len(rows),
        num_bad=num_bad,
        first_bad=first_bad,
        checksum=zlib.crc32(rows.data),
    )
    with _new_part(source.folder(output, options.stage, part), report) as folder:
        np.save(folder / ROWS, rows)
        if isinstance(options.categories, Vocabularies):
            ValueCounts.of(_values(rows)).save(folder)
    return report


def _reading(source: Source, pieces: Iterator[tuple[Lines, int]]) -> Iterator[tuple[Lines, int]]:
    """The pieces; an error of reading is the source's, where any other one is of the output."""
    try:
        yield from pieces
    except OSError as error:
        raise UserInputError(f"{source.name}: {error}; check the file, and whether it can be read") from None


def _rows(lines: Lines, options: ConversionOptions) -> np.ndarray:
    """int32 (n, 40): what belongs to a line lies together, and is read at once."""
    rows = np.empty((len(lines.labels), NUM_COLUMNS), dtype=np.int32)
    rows[:, :_FIRST_ID] = lines.dense.view(np.int32)
    rows[:, _FIRST_ID:-1] = options.categories.ids(lines.categories)
    rows[:, -1] = lines.labels
    return rows


def _values(rows: np.ndarray) -> np.ndarray:
    """The values that rows have in place of ids, uint32 (n, 26)."""
    return rows[:, _FIRST_ID:-1].view(np.uint32)


@contextmanager
def _new_part(folder: Path, report: PartReport) -> Iterator[Path]:
    """A folder to write a part into, which gets its name when all is written."""
    unfinished = folder.with_name(f".{folder.name}")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    yield unfinished
    (unfinished / PART).write_text(json.dumps(asdict(report)))
    unfinished.rename(folder)


def read_report(folder: Path) -> PartReport | None:
    """The report of a finished part."""
    file = folder / PART
    return PartReport(**json.loads(file.read_text())) if file.exists() else None


def count_training(
    sources: Sequence[Source], reports: Sequence[PartReport], *, num_rows: int, output: Path
) -> list[Path]:
    """The folders that hold the counts of the first ``num_rows`` rows together.

    Args:
        sources: the files.
        reports: of all parts of values, in the order of the rows.
        num_rows: rows of the training split.
        output: the folder of it all.
    """
    folders, left = [], num_rows
    for report in reports:
        folder = sources[report.source].folder(output, "values", report.part)
        if left >= report.num_rows:
            folders.append(folder)
        elif left > 0:  # a part of it is for training
            folders.append(folder / "training")
            folders[-1].mkdir(exist_ok=True)
            ValueCounts.of(_values(np.load(folder / ROWS, mmap_mode="r")[:left])).save(folders[-1])
        left -= report.num_rows
    return folders


def make_vocabulary(folders: Sequence[Path], column: int, *, min_count: int, output: Path) -> int:
    """Write the values of a column, most frequent first, and their rows, unless that was done before.

    Args:
        folders: by :func:`count_training`.
        column: index of the column.
        min_count: occurrences that keep a value.
        output: the folder of it all.

    Returns:
        how many values there are.
    """
    files = _vocabulary(output, CATEGORIES[column])
    if not files.by_row.exists():
        save_vocabulary(merge_counts(folders, column=column, min_count=min_count), files)
    return files.by_row.stat().st_size // 4


def _vocabulary(output: Path, name: str) -> VocabularyFiles:
    return VocabularyFiles.of(output / "values", name)


def write_vocabularies(output: Path) -> None:
    """Write the vocabularies that :func:`make_vocabulary` has made as one file, of the columns one after the other."""
    schema = pa.schema({"feature": pa.dictionary(pa.int32(), pa.string()), "value": pa.uint32()})
    # Hashes compress to what they are.
    compression = {"feature": "zstd", "value": "none"}
    with (
        whole(output / VOCABULARY) as unfinished,
        pq.ParquetWriter(unfinished, schema, use_dictionary=["feature"], compression=compression) as writer,
    ):
        for name in CATEGORIES:
            with _vocabulary(output, name).by_row.open("rb") as file:
                while len(values := np.fromfile(file, dtype=np.uint32, count=ROWS_AT_A_TIME)):
                    names = pa.DictionaryArray.from_arrays(np.zeros(len(values), np.int32), [name])
                    writer.write_table(pa.table([names, values], schema=schema))


def encode_part(source: Source, values: PartReport, *, output: Path) -> PartReport:
    """Make a part of a part of values, unless that was done before."""
    done = read_report(source.folder(output, PARTS, values.part))
    if done is not None:
        return done
    folder = source.folder(output, "values", values.part)
    rows, counts = np.load(folder / ROWS), ValueCounts.load(folder)
    columns = transposed(_values(rows))
    for index, (name, column) in enumerate(zip(CATEGORIES, columns, strict=True)):
        # A table of the part's own values: one of the whole vocabulary may not fit into memory.
        distinct = np.ascontiguousarray(counts.column(index)[:, 0])
        of_distinct = find_rows(_vocabulary(output, name), distinct)
        is_known = of_distinct >= NUM_SPECIAL
        table = ValueTable(distinct[is_known], of_distinct[is_known])
        column[:] = table.rows(column)
    for some in rows_in_cache(len(rows)):
        rows[some, _FIRST_ID:-1] = columns[:, some].T
    report = replace(values, checksum=zlib.crc32(rows.data))
    with _new_part(source.folder(output, PARTS, values.part), report) as folder:
        np.save(folder / ROWS, rows)
    return report
