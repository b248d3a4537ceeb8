"""Criteo's click logs, as `dmt preprocess criteo` has written them."""

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from torchrec.datasets.utils import Batch

from dmt.datamodules.arrays import single_hot_batch
from dmt.datamodules.checksums import check_checksums
from dmt.datamodules.module import ClickDataModule
from dmt.errors import UserInputError
from dmt.preprocess.criteo import FORMAT_VERSION, MANIFEST, ROWS
from dmt.schema import FeatureSchema


class CriteoDataModule(ClickDataModule):
    """Click logs in Criteo's format, memory-mapped.

    Args:
        path: the folder that `dmt preprocess criteo`, or :func:`dmt.preprocess.criteo_run.preprocess_criteo`, has
            written.
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

    def has_split(self, name: str) -> bool:
        start, end = self._manifest["splits"][name]
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
        self._schema = FeatureSchema.from_dict(self._manifest["schema"])
        num_columns = len(self.schema.dense) + len(self.schema.feature_names) + 1
        arrays, checksums = {}, {}
        for part in self._manifest["parts"]:
            file = self.path / part["folder"] / ROWS
            arrays[file] = _load_part(file, num_rows=part["rows"], num_columns=num_columns)
            checksums[file] = part["crc32"]
        check_checksums(arrays, checksums)
        parts = list(arrays.values())
        self._splits = {
            name: ClickParts(self.schema, parts, start=start, end=end)
            for name, (start, end) in self._manifest["splits"].items()
        }


class ClickParts:
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


def _read_manifest(path: Path) -> dict[str, Any]:
    file = path / MANIFEST
    if not file.is_file():
        raise UserInputError(
            f"path={path}: no {MANIFEST} in it; run `dmt preprocess criteo INPUT --output {path}` first"
        )
    try:
        manifest: dict[str, Any] = json.loads(file.read_text())
        version = manifest["version"]
    except (ValueError, KeyError, TypeError):
        raise UserInputError(f"path={path}: {MANIFEST} is damaged; convert the logs again") from None
    if version != FORMAT_VERSION:
        raise UserInputError(f"path={path}: it has format {version}, not {FORMAT_VERSION}; convert the logs again")
    return manifest


def _load_part(file: Path, *, num_rows: int, num_columns: int) -> np.ndarray:
    try:
        rows: np.ndarray = np.load(file, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise UserInputError(f"{file}: {error}; convert the logs again") from None
    if rows.shape != (wanted := (num_rows, num_columns)) or rows.dtype != np.int32:
        raise UserInputError(
            f"{file}: {rows.dtype} of shape {rows.shape}, but the manifest tells of int32 {wanted}; convert the logs "
            "again"
        )
    return rows
