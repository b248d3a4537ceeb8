"""Criteo's click logs to the training format.

    OUTPUT/
        options.json            what the parts were made from, and how
        parts/FILE-PART/        dense.npy float32 (n, 13), ids.npy int32 (n, 26), labels.npy uint8 (n,), part.json
        manifest.json           schema, rows, splits, checksums; there when all is done

A part is some 128 MiB of text. It appears under its name when it is complete, so that a run that was killed goes on
with those that are missing.
"""

import json
import os
import shutil
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import polars as pl

from dmt.errors import UserInputError
from dmt.preprocess.criteo_text import CATEGORIES, BadLine, Lines, read_lines, scale_integers
from dmt.preprocess.text_parts import chunks, count_lines, open_text, seek_line

NUM_SHOWN = 10
MANIFEST = "manifest.json"
FORMAT_VERSION = 1
OPTIONS = "options.json"


@dataclass(frozen=True, kw_only=True)
class ConversionOptions:
    """How lines become parts.

    Args:
        num_embeddings: rows of each of the 26 tables; a category's row is its value modulo that.
        skip_bad_lines: leave lines out that are not Criteo's; otherwise the first one is an error.
        part_bytes: of the text of a part.
    """

    num_embeddings: tuple[int, ...]
    skip_bad_lines: bool = False
    part_bytes: int = 128 * 2**20

    def encode(self, lines: Lines) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Dense float32 (n, 13), ids int32 (n, 26), labels uint8 (n,)."""
        rows = [
            (pl.col(name) % rows).cast(pl.Int32) for name, rows in zip(CATEGORIES, self.num_embeddings, strict=True)
        ]
        ids = lines.categories.select(rows).to_numpy(order="c")
        return scale_integers(lines.integers), ids, lines.labels


@dataclass(frozen=True, kw_only=True)
class Source:
    """An input file.

    Args:
        index: its place among the inputs.
        path: the file.
    """

    index: int
    path: Path

    def folder(self, output: Path, part: int) -> Path:
        """Where a part of it goes."""
        return output / "parts" / f"{self.index:03d}-{part:05d}"


@dataclass(frozen=True, kw_only=True)
class PartReport:
    """What there is to tell of a finished part.

    Args:
        source: index of its file.
        part: its place in the file.
        num_bytes: of text.
        num_rows: lines that were kept.
        num_bad: lines that were left out.
        first_bad: index among the part's lines, and what is wrong, of the first ten.
        checksums: CRC-32 of each array's bytes.
    """

    source: int
    part: int
    num_bytes: int
    num_rows: int
    num_bad: int
    first_bad: list[tuple[int, str]]
    checksums: dict[str, int]


def num_parts(path: Path, options: ConversionOptions) -> int:
    """Parts of a plain file; those of a gzip file are known when it has been read."""
    return -(-path.stat().st_size // options.part_bytes)


def convert_part(source: Source, part: int, *, options: ConversionOptions, output: Path) -> PartReport:
    """Convert one part of a plain file, unless that was done before."""
    done = read_report(source.folder(output, part))
    if done is not None:
        return done
    with open_text(source.path) as file:
        start = seek_line(file, part * options.part_bytes, path=source.path)
        texts = chunks(file, path=source.path, num_bytes=(part + 1) * options.part_bytes - start)
        try:
            return _write_part(texts, source=source, part=part, options=options, output=output)
        except _BadLineError as error:
            number = count_lines(source.path, start) + error.line.index + 1
            raise _refusal(source.path, number, error.line.reason) from None


def convert_gzip(source: Source, *, options: ConversionOptions, output: Path) -> Iterator[PartReport]:
    """Convert the parts of a gzip file, which can only be read from its start."""
    num_lines = 0
    with open_text(source.path) as file:
        for part in range(2**31):
            done = read_report(source.folder(output, part))
            if done is not None:
                file.seek(done.num_bytes, os.SEEK_CUR)
            else:
                try:
                    texts = chunks(file, path=source.path, num_bytes=options.part_bytes)
                    done = _write_part(texts, source=source, part=part, options=options, output=output)
                except _BadLineError as error:
                    raise _refusal(source.path, num_lines + error.line.index + 1, error.line.reason) from None
            num_lines += done.num_rows + done.num_bad
            yield done
            if done.num_bytes < options.part_bytes:
                return


class _BadLineError(Exception):
    def __init__(self, line: BadLine) -> None:
        super().__init__(line.reason)
        self.line = line


def _refusal(path: Path, number: int, reason: str) -> UserInputError:
    return UserInputError(f"{path}, line {number}: {reason}; mend it, or give --on-bad-lines skip")


def _write_part(
    texts: Iterator[bytes], *, source: Source, part: int, options: ConversionOptions, output: Path
) -> PartReport:
    arrays, bad = [], []
    num_bytes, num_lines = 0, 0
    for text in texts:
        lines = read_lines(text)
        if lines.bad and not options.skip_bad_lines:
            raise _BadLineError(BadLine(num_lines + lines.bad[0].index, lines.bad[0].reason))
        bad += [(num_lines + line.index, line.reason) for line in lines.bad]
        arrays.append(options.encode(lines))
        num_bytes += len(text)
        num_lines += len(lines.labels) + len(lines.bad)
    arrays = arrays or [options.encode(read_lines(b""))]
    dense, ids, labels = (np.concatenate(parts) for parts in zip(*arrays, strict=True))
    named = {"dense": dense, "ids": ids, "labels": labels}
    report = PartReport(
        source=source.index,
        part=part,
        num_bytes=num_bytes,
        num_rows=len(labels),
        num_bad=len(bad),
        first_bad=bad[:NUM_SHOWN],
        checksums={name: zlib.crc32(array.data) for name, array in named.items()},
    )
    _save(source.folder(output, part), named, report)
    return report


def _save(folder: Path, arrays: Mapping[str, np.ndarray], report: PartReport) -> None:
    unfinished = folder.with_name(f".{folder.name}")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    for name, array in arrays.items():
        np.save(unfinished / f"{name}.npy", array)
    (unfinished / "part.json").write_text(json.dumps(asdict(report)))
    unfinished.rename(folder)


def read_report(folder: Path) -> PartReport | None:
    """The report of a finished part."""
    file = folder / "part.json"
    return PartReport(**json.loads(file.read_text())) if file.exists() else None
