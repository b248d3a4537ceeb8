"""Criteo's click logs, as `dmt preprocess criteo` has written them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torchrec.datasets.utils import Batch

from dmt.datamodules.arrays import ClickArrays, single_hot_batch
from dmt.datamodules.module import ClickDataModule
from dmt.errors import UserInputError
from dmt.preprocess.criteo import FORMAT_VERSION, MANIFEST
from dmt.schema import FeatureSchema


class CriteoDataModule(ClickDataModule):
    """Click logs in Criteo's format, memory-mapped.

    Args:
        path: the folder that `dmt preprocess criteo`, or :func:`dmt.preprocess.criteo_run.preprocess_criteo`, has
            written.
        global_batch_size: samples of one step over all ranks together.
        seed: seed of the order of the training samples.

    Raises:
        UserInputError: the folder is not complete, or its files are not those that its manifest tells of.
    """

    def __init__(self, *, path: Path, global_batch_size: int = 4096, seed: int = 0) -> None:
        super().__init__(global_batch_size=global_batch_size, seed=seed)
        self.path = Path(path).expanduser()
        self._manifest = _read_manifest(self.path)

    def has_split(self, name: str) -> bool:
        start, end = self._manifest["splits"][name]
        return bool(end > start)

    def prepare_data(self) -> None:
        """Nothing to do but to know the schema."""
        self._schema = FeatureSchema.from_dict(self._manifest["schema"])

    def setup(self, stage: str | None = None) -> None:
        """Map all parts into memory."""
        self.prepare_data()
        names = self.schema.feature_names
        parts = [_load_part(self.path / part["folder"], part["rows"], names) for part in self._manifest["parts"]]
        self._splits = {
            name: ClickParts(parts, start=start, end=end) for name, (start, end) in self._manifest["splits"].items()
        }


class ClickParts:
    """Some of the samples of a log that lies in several arrays, one after the other.

    Args:
        parts: the arrays.
        start: first sample.
        end: the one after the last.
    """

    def __init__(self, parts: Sequence[ClickArrays], *, start: int, end: int) -> None:
        self._parts = list(parts)
        self._firsts = np.cumsum([0, *(len(part) for part in parts[:-1])])
        self._start, self._end = start, end

    def __len__(self) -> int:
        return self._end - self._start

    def batch(self, indices: np.ndarray) -> Batch:
        """The samples at ``indices`` (B,), in that order; see :meth:`ClickArrays.batch`."""
        rows = indices + self._start
        part_of = np.searchsorted(self._firsts, rows, side="right") - 1
        first = self._parts[0]
        dense = np.empty((len(rows), first.dense.shape[1]), dtype=np.float32)
        ids = np.empty((len(first.feature_names), len(rows)), dtype=np.int64)
        labels = np.empty(len(rows), dtype=np.float32)
        for number in np.unique(part_of):
            part, places = self._parts[number], np.flatnonzero(part_of == number)
            local = rows[places] - self._firsts[number]
            dense[places] = np.take(part.dense, local, axis=0)
            ids[:, places] = np.take(part.ids, local, axis=0).T
            labels[places] = np.take(part.labels, local)
        return single_hot_batch(first.feature_names, dense=dense, ids=ids, labels=labels)


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


def _load_part(folder: Path, num_rows: int, feature_names: Sequence[str]) -> ClickArrays:
    try:
        arrays = ClickArrays.load(folder, feature_names=feature_names)
    except (OSError, ValueError, AssertionError) as error:
        raise UserInputError(f"{folder}: {str(error) or 'wrong shapes'}; convert the logs again") from None
    if len(arrays) != num_rows:
        raise UserInputError(
            f"{folder}: {len(arrays)} rows, but the manifest tells of {num_rows}; convert the logs again"
        )
    return arrays
