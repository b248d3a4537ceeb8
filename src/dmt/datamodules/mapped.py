"""Memory-mapped arrays in what is pickled for another process."""

import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


class MappedArrays:
    """Base of data sets of arrays: those that are maps of files, or in a list of such, are pickled as their places.

    A process that makes batches ahead maps the files again. Otherwise, where it is not forked, it would receive all
    that they hold. Arrays in memory are pickled as they are.
    """

    def __getstate__(self) -> dict[str, Any]:
        return {name: _to_place(value) for name, value in vars(self).items()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Not by setattr, which frozen dataclasses refuse.
        vars(self).update({name: _from_place(value) for name, value in state.items()})


@dataclass(frozen=True, kw_only=True)
class _Place:
    """Where a memory-mapped array lies."""

    file: Path
    offset_bytes: int
    dtype: np.dtype
    shape: tuple[int, ...]


def _to_place(value: Any) -> Any:
    if isinstance(value, list):
        return [_to_place(part) for part in value]
    # A slice of a map has the map for its base, and its offset. It is pickled as it is.
    is_map = isinstance(value, np.memmap) and isinstance(value.base, mmap.mmap)
    if not is_map or value.mode != "r" or not value.flags.c_contiguous:
        return value
    return _Place(file=Path(value.filename), offset_bytes=value.offset, dtype=value.dtype, shape=value.shape)


def _from_place(value: Any) -> Any:
    if isinstance(value, list):
        return [_from_place(part) for part in value]
    if not isinstance(value, _Place):
        return value
    return np.memmap(value.file, value.dtype, mode="r", offset=value.offset_bytes, shape=value.shape)
