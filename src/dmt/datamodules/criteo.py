"""Criteo's click logs, as `dmt preprocess criteo` has written them."""

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from torchrec.datasets.utils import Batch

from dmt.datamodules.arrays import single_hot_batch
from dmt.datamodules.checksums import check_once
from dmt.datamodules.mapped import MappedArrays
from dmt.datamodules.module import ClickDataModule
from dmt.errors import UserInputError
from dmt.open_files import allow_open_files
from dmt.preprocess.criteo import FORMAT_VERSION, MANIFEST, ROWS
from dmt.schema import FeatureSchema

SPLITS = ("train", "valid", "test")


class CriteoDataModule(ClickDataModule):
    """Click logs in Criteo's format, memory-mapped.

    Args:
        path: the folder that `dmt preprocess criteo`, or :func:`dmt.preprocess_criteo`, has written.
        global_batch_size: samples of one step over all ranks together.
        seed: seed of the order of the training samples.
        num_workers: processes of each rank that make batches ahead; 0 where a core for them is not to spare.

    Raises:
        UserInputError: the folder is not complete, or its files are not those that its manifest tells of.
    """

    def __init__(self, *, path: Path, global_batch_size: int = 4096, seed: int = 0, num_workers: int = 0) -> None:
        super().__init__(global_batch_size=global_batch_size, seed=seed, num_workers=num_workers)
        self.path = Path(path).expanduser()
        self._manifest = _read_manifest(self.path)
        self._schema = self._manifest.schema

    def has_split(self, name: str) -> bool:
        start, end = self._manifest.splits[name]
        return bool(end > start)

    def prepare_data(self) -> None:
        """Check the files, those of them that were not checked before."""
        try:
            self.setup()
        except UserInputError:
            # Lightning runs this on one rank, and an error here would leave the others waiting for it.
            # setup(), which every rank runs, meets the same error on all of them.
            if self.trainer is None or self.trainer.world_size == 1:
                raise

    def setup(self, stage: str | None = None) -> None:
        """Map all parts into memory."""
        if self._splits:
            return
        manifest = self._manifest
        schema = manifest.schema
        num_columns = len(schema.dense) + len(schema.feature_names) + 1
        allow_open_files(len(manifest.parts))
        rows = {part.file: _load_part(part, num_columns=num_columns) for part in manifest.parts}
        checksums = {part.file: part.checksum for part in manifest.parts}
        check_once(
            {file: [checksum, *manifest.num_embeddings] for file, checksum in checksums.items()},
            lambda file: _check_part(file, rows[file], checksum=checksums[file], schema=schema),
        )
        parts = list(rows.values())
        self._splits = {
            name: ClickParts(schema, parts, start=start, end=end) for name, (start, end) in manifest.splits.items()
        }


class ClickParts(MappedArrays):
    """Some of the samples of a log that lies in several arrays, one after the other.

    Args:
        schema: C numeric and F categorical columns, single-hot.
        parts: int32 (n, C + F + 1) each: the bits of C float32, F ids, the label.
        start: first sample.
        end: the one after the last.
    """

    def __init__(self, schema: FeatureSchema, parts: Sequence[np.ndarray], *, start: int, end: int) -> None:
        self._names, self._num_dense = schema.feature_names, len(schema.dense)
        self._num_columns = self._num_dense + len(self._names) + 1
        self._parts = [part for part in parts if len(part)]
        self._firsts = np.cumsum([0, *(len(part) for part in self._parts[:-1])])
        self._start, self._end = start, end

    def __len__(self) -> int:
        return self._end - self._start

    def batch(self, indices: np.ndarray) -> Batch:
        """The samples at ``indices`` (B,), in that order; see :meth:`ClickArrays.batch`."""
        rows = self._gather(indices + self._start)
        return single_hot_batch(
            self._names,
            dense=np.ascontiguousarray(rows[:, : self._num_dense]).view(np.float32),
            ids=rows[:, self._num_dense : -1].T.astype(np.int64, order="C"),
            labels=rows[:, -1].astype(np.float32),
        )

    def _gather(self, samples: np.ndarray) -> np.ndarray:
        """Rows of samples of the whole log, int32 (B, C + F + 1)."""
        if np.any(samples[1:] < samples[:-1]):
            order = np.argsort(samples)
            rows = np.empty((len(samples), self._num_columns), dtype=np.int32)
            rows[order] = self._gather(samples[order])
            return rows
        # Samples of a part lie together, and one call reads them to where they belong.
        cuts = [*np.searchsorted(samples, self._firsts).tolist(), len(samples)]
        rows = np.empty((len(samples), self._num_columns), dtype=np.int32)
        for number, (start, end) in enumerate(pairwise(cuts)):
            if end > start:
                places = samples[start:end] - self._firsts[number]
                # With mode="raise" numpy would read into a buffer first.
                np.take(self._parts[number], places, axis=0, out=rows[start:end], mode="clip")
        return rows


@dataclass(frozen=True, kw_only=True)
class _Part:
    """A part of a converted log, as the manifest tells of it.

    Args:
        file: of its rows.
        num_rows: how many there are.
        checksum: CRC-32 of their bytes.
    """

    file: Path
    num_rows: int
    checksum: int


@dataclass(frozen=True, kw_only=True)
class _Manifest:
    """What training needs of a manifest.

    Args:
        schema: single-hot columns.
        parts: one after the other they hold all rows.
        splits: first row, and the one after the last, of train, valid and test, which follow each other.

    Raises:
        ValueError: they do not fit each other, or are of other types.
    """

    schema: FeatureSchema
    parts: Sequence[_Part]
    splits: Mapping[str, tuple[int, int]]

    def __post_init__(self) -> None:
        cuts = [0, *(end for _, end in self.splits.values())]
        counts = [*cuts, *self.num_embeddings]
        counts += [count for part in self.parts for count in (part.num_rows, part.checksum)]
        is_right = (
            all(type(count) is int and count >= 0 for count in counts)
            and [*self.splits.values()] == [*pairwise(sorted(cuts))]
            and cuts[-1] == sum(part.num_rows for part in self.parts)
            and self.schema.single_hot
            and not self.schema.weighted
        )
        if not is_right or not self.parts:
            raise ValueError("the manifest's numbers do not fit each other")

    @property
    def num_embeddings(self) -> list[int]:
        """Rows of the table of each categorical column."""
        return [feature.num_embeddings for feature in self.schema.categorical]


def _read_manifest(path: Path) -> _Manifest:
    file = path / MANIFEST
    if not file.is_file():
        raise UserInputError(
            f"path={path}: no {MANIFEST} in it; run `dmt preprocess criteo INPUT --output {path}` first"
        )
    damaged = UserInputError(f"path={path}: {MANIFEST} is damaged; remove it, and convert the logs again")
    try:
        content = json.loads(file.read_text())
        version = content["version"]
    except (ValueError, KeyError, TypeError):
        raise damaged from None
    if version != FORMAT_VERSION:
        raise UserInputError(
            f"path={path}: it has format {version}, not {FORMAT_VERSION}; remove it, and convert the logs again"
        )
    try:
        return _Manifest(
            schema=FeatureSchema.from_dict(content["schema"]),
            parts=[
                _Part(file=path / part["folder"] / ROWS, num_rows=part["rows"], checksum=part["crc32"])
                for part in content["parts"]
            ],
            splits={name: tuple(content["splits"][name]) for name in SPLITS},
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        raise damaged from None


def _load_part(part: _Part, *, num_columns: int) -> np.ndarray:
    try:
        rows: np.ndarray = np.load(part.file, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise UserInputError(f"{part.file}: {error}; {_again(part.file)}") from None
    if rows.shape != (wanted := (part.num_rows, num_columns)) or rows.dtype != np.int32:
        raise UserInputError(
            f"{part.file}: {rows.dtype} of shape {rows.shape}, but the manifest tells of int32 {wanted}; "
            f"{_again(part.file)}"
        )
    return rows


def _again(file: Path) -> str:
    """What to do about a part: `dmt preprocess` makes those anew that are not there."""
    return f"copy it again, or remove {file.parent} and convert the logs again"


def _check_part(file: Path, rows: np.ndarray, *, checksum: int, schema: FeatureSchema) -> None:
    """Compare a part with what the manifest tells of all rows: int32 (n, C + F + 1)."""
    if zlib.crc32(rows.data) != checksum:
        raise UserInputError(f"{file}: its checksum is not the manifest's; {_again(file)}")
    if not len(rows):
        return
    # Of the same bytes, which are in memory now: the manifest itself has no checksum.
    ids = rows[:, len(schema.dense) : -1]
    for feature, lowest, highest in zip(schema.categorical, ids.min(axis=0), ids.max(axis=0), strict=True):
        if lowest < 0 or highest >= feature.num_embeddings:
            raise UserInputError(
                f"{file}: column {feature.name!r} has row {lowest if lowest < 0 else highest} of a table, which has "
                f"num_embeddings={feature.num_embeddings} by the manifest; {_again(file)}"
            )
