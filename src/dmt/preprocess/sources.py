"""What Criteo's logs come from: text, gzip, arrays that other tools have written, and Hugging Face datasets."""

import gzip
import json
import os
import re
import zlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

import numpy as np
import polars as pl

from dmt.errors import UserInputError
from dmt.preprocess.criteo_text import CATEGORIES, INTEGERS, NUM_TOLD, BadLine, Lines, scale_integers
from dmt.preprocess.dataset_text import HUB, is_dataset, open_dataset
from dmt.preprocess.text_parts import CHUNK_BYTES, is_gzip, open_gzip

# Of a folder's files those without another ending are taken; of those that are given, days of any kind are ordered.
_DAY_FILE = re.compile(r"day_(\d+)(?:\.gz)?")
_DAY = re.compile(r"day_(\d+)(?:_dense\.npy|(?:\.\w+)*)")
_DENSE = "_dense.npy"


@dataclass(frozen=True, kw_only=True)
class Source:
    """An input.

    Args:
        index: its place among the inputs.
        name: how messages call it: a path or an address.
    """

    index: int
    name: str

    # What a number in a message counts.
    unit = "line"

    @property
    def path(self) -> Path:
        return Path(self.name)

    def folder(self, output: Path, stage: str, part: int) -> Path:
        """Where a part of it goes."""
        return output / stage / f"{self.index:03d}-{part:05d}"

    @property
    def num_bytes(self) -> int | None:
        """Bytes that are read of it, if that is known before."""
        return None

    def identity(self) -> list[Any]:
        """What tells whether it is the same as when a conversion was begun."""
        return _file_identity(self.path)


@dataclass(frozen=True, kw_only=True)
class PlainText(Source):
    """A file of lines."""

    @property
    def num_bytes(self) -> int:
        return self.path.stat().st_size


@dataclass(frozen=True, kw_only=True)
class TextStream(Source, ABC):
    """Text that can only be read from its start."""

    @abstractmethod
    def open(self) -> AbstractContextManager[IO[bytes]]:
        """The text, from its start."""


@dataclass(frozen=True, kw_only=True)
class GzipText(TextStream):
    """A compressed file of lines."""

    @property
    def num_bytes(self) -> int:
        """About: all of it as its beginning."""
        with self.path.open("rb") as file, gzip.open(file) as text:
            try:
                beginning = text.read(CHUNK_BYTES)
            except (EOFError, OSError, zlib.error):
                return self.path.stat().st_size  # damaged, which is told when it is converted
            # (A short file has been read ahead, to its end.)
            return round(len(beginning) * self.path.stat().st_size / file.tell())

    def open(self) -> AbstractContextManager[IO[bytes]]:
        return open_gzip(self.path)


@dataclass(frozen=True, kw_only=True)
class DatasetRows(TextStream):
    """A Hugging Face dataset, whose rows are written as lines and read like them."""

    unit = "row"

    def open(self) -> AbstractContextManager[IO[bytes]]:
        return open_dataset(self.name)

    def identity(self) -> list[Any]:
        if self.name.startswith(HUB):
            return [self.name]
        return _file_identity(self.path / "state.json" if self.path.is_dir() else self.path)


@dataclass(frozen=True, kw_only=True)
class ArrayTriple(Source):
    """``X_dense.npy`` (n, 13), ``X_sparse.npy`` (n, 26) and ``X_labels.npy`` (n) or (n, 1), as TorchRec's tools write.

    ``name`` is the first of them. Dense values of a floating type have had their logarithm taken already and stay as
    they are; integers are treated as those of text are. Sparse values are 32 bits, signed or not.
    """

    unit = "row"

    @property
    def num_bytes(self) -> int:
        return sum(file.stat().st_size for file in self._files())

    def identity(self) -> list[Any]:
        return [_file_identity(file) for file in self._files()]

    def _files(self) -> list[Path]:
        return triple_files(self.path)

    def load(self) -> "Arrays":
        """The three arrays, memory-mapped.

        Raises:
            UserInputError: a file is no array, or the shapes or types do not fit.
        """
        arrays = []
        for file in self._files():
            try:
                arrays.append(np.load(file, mmap_mode="r"))
            except (OSError, ValueError) as error:
                raise UserInputError(f"{file}: {error}; give a file that numpy.save has written") from None
        dense, sparse, labels = arrays
        rows = len(dense) if dense.ndim else 0
        if labels.shape == (rows, 1):
            labels = labels[:, 0]
        wanted = ((rows, len(INTEGERS)), (rows, len(CATEGORIES)), (rows,))
        for file, array, shape, kinds in zip(
            self._files(), (dense, sparse, labels), wanted, ("fiu", "iu", "fiub"), strict=True
        ):
            if array.shape != shape or array.dtype.kind not in kinds:
                told = "integers" if kinds == "iu" else "numbers"
                raise UserInputError(
                    f"{file}: {array.dtype} of shape {array.shape}, not {told} of shape {shape}; write it again"
                )
        return Arrays(dense, sparse, labels)


@dataclass(frozen=True)
class Arrays:
    """The arrays of an :class:`ArrayTriple`: (n, 13), (n, 26) and (n,)."""

    dense: np.ndarray
    sparse: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, start: int, end: int) -> Lines:
        """Some of the rows."""
        dense, sparse, labels = (array[start:end] for array in (self.dense, self.sparse, self.labels))
        # What is too large for an int64 would come out negative.
        values = (np.minimum(sparse, 2**32) if sparse.dtype == np.uint64 else sparse).astype(np.int64)
        is_good = np.isin(labels, (0, 1))
        reasons = {"label": ~is_good}
        with np.errstate(over="ignore"):
            scaled = dense.astype(np.float32) if dense.dtype.kind == "f" else scale_integers(dense.astype(np.float32))
        reasons |= {name: ~np.isfinite(scaled[:, column]) for column, name in enumerate(INTEGERS)}
        reasons |= {
            name: (values[:, column] < -(2**31)) | (values[:, column] >= 2**32)
            for column, name in enumerate(CATEGORIES)
        }
        wanted = {"label": "0 or 1"} | dict.fromkeys(INTEGERS, "a number") | dict.fromkeys(CATEGORIES, "of 32 bits")
        bad: dict[int, str] = {}
        for name, is_bad in reasons.items():
            for index in np.flatnonzero(is_bad).tolist():
                bad.setdefault(index, f"column {name} is not {wanted[name]}")
        kept = np.ones(len(labels), dtype=bool)
        kept[list(bad)] = False
        return Lines(
            labels=labels[kept].astype(np.uint8),
            dense=scaled[kept],
            categories=pl.from_numpy(values[kept].astype(np.uint32), schema=list(CATEGORIES)),
            num_bad=len(bad),
            bad=[BadLine(index, bad[index]) for index in sorted(bad)[:NUM_TOLD]],
        )


def triple_files(dense: Path) -> list[Path]:
    """The files of a triple by the name of its first."""
    stem = dense.name.removesuffix(_DENSE)
    return [dense.with_name(f"{stem}_{kind}.npy") for kind in ("dense", "sparse", "labels")]


def _file_identity(path: Path) -> list[Any]:
    return [str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns]


def find_sources(inputs: Sequence[str | Path]) -> list[Source]:
    """What the inputs stand for, days in order.

    A folder stands for the ``day_*`` files, the ``*_dense.npy`` triples or the ``train.txt`` in it, or is a dataset
    that ``datasets`` has saved.

    Raises:
        UserInputError: a file does not exist or is empty, or a day is missing between two others.
    """
    names: list[str] = []
    for given in map(str, inputs):
        names += [given] if is_dataset(given) or not Path(given).is_dir() else _in_folder(Path(given))
    days = {name: int(match[1]) for name in names if (match := _DAY.fullmatch(Path(name).name))}
    if len(days) == len(names):
        names.sort(key=lambda name: days[name])
    sources = [_source(index, name) for index, name in enumerate(names)]
    _check_days(sorted((name for name in names if name in days), key=lambda name: days[name]), days)
    return sources


def _in_folder(folder: Path) -> list[str]:
    files = sorted(folder.iterdir())
    for found in (
        [file for file in files if _DAY_FILE.fullmatch(file.name)],
        [file for file in files if file.name.endswith(_DENSE)],
        [file for file in files if file.name == "train.txt"],
    ):
        if found:
            return [str(file) for file in found]
    raise UserInputError(
        f"{folder}: no day_0 to day_23, no train.txt, no *{_DENSE} and no saved dataset in it; give the files "
        "themselves"
    )


def _source(index: int, name: str) -> Source:
    if is_dataset(name):
        if not name.startswith(HUB):
            _check_dataset(Path(name))
        return DatasetRows(index=index, name=name)
    path = Path(name)
    if name.endswith(_DENSE):
        for file in triple_files(path):
            _check_file(file)
        triple = ArrayTriple(index=index, name=name)
        triple.load()
        return triple
    _check_file(path)
    if path.suffix == ".npy":
        raise UserInputError(f"{path}: of *_dense.npy, *_sparse.npy and *_labels.npy give the first, or their folder")
    if is_gzip(path):
        return GzipText(index=index, name=name)
    if path.suffix == ".gz":
        raise UserInputError(f"{path}: not a gzip file; rename it if it is plain text")
    return PlainText(index=index, name=name)


def _check_dataset(path: Path) -> None:
    splits = path / "dataset_dict.json"
    if splits.exists():
        first = json.loads(splits.read_text())["splits"][0]
        raise UserInputError(f"{path}: it holds splits; give one of them, such as {path / first}")
    _check_file(path / "state.json" if path.is_dir() else path)


def _check_file(file: Path) -> None:
    if not file.is_file():
        raise UserInputError(f"{file}: no such file; check the path")
    if file.stat().st_size == 0:
        raise UserInputError(f"{file}: it is empty; fetch it again")
    if not os.access(file, os.R_OK):
        raise UserInputError(f"{file}: it may not be read; change its permissions")


def _check_days(names: Sequence[str], days: dict[str, int]) -> None:
    for one, other in pairwise(names):
        if days[other] == days[one]:
            raise UserInputError(f"{other}: day {days[other]} is given twice, also as {one}; give it once")
        if days[other] > days[one] + 1:
            raise UserInputError(
                f"day_{days[one] + 1} is missing between {one} and {other}; add it, or rename the files to leave it out"
            )
