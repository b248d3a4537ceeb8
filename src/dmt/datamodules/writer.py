"""Writing a split of a click log part by part."""

from pathlib import Path

import numpy as np

from dmt.datamodules.arrays import ClickArrays


class ClickWriter:
    """A folder of arrays for :meth:`ClickArrays.load`, which grows part by part and is whole at the end.

    Args:
        folder: is created, with ``dense.npy``, ``ids.npy`` and ``labels.npy``, and the arrays of bags in
            ``bags/POSITION``, of the feature.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self.num_samples = 0
        self._folder = folder
        self._files: dict[str, ArrayWriter] = {}

    def __enter__(self) -> "ClickWriter":
        return self

    def __exit__(self, *error: object) -> None:
        for file in self._files.values():
            file.close()

    def append(self, part: ClickArrays) -> None:
        """Write more samples, of the same features."""
        self._append("dense", part.dense)
        self._append("ids", part.ids)
        self._append("labels", part.labels)
        for name, bags in part.bags.items():
            place = f"bags/{part.feature_names.index(name)}"
            num_before = self._append(f"{place}/values", bags.values)
            # The first offset of a part is the last one of the part before.
            offsets = bags.offsets[1:] if self.num_samples else bags.offsets
            self._append(f"{place}/offsets", offsets + num_before)
            if bags.weights is not None:
                self._append(f"{place}/weights", bags.weights)
        self.num_samples += len(part)

    def _append(self, name: str, array: np.ndarray) -> int:
        """Write more rows of an array; returns how many there were."""
        if name not in self._files:
            file = self._folder / f"{name}.npy"
            file.parent.mkdir(parents=True, exist_ok=True)
            self._files[name] = ArrayWriter(file, like=array)
        return self._files[name].append(array)


class ArrayWriter:
    """What ``numpy.save`` would write of all parts together, of which each is appended when it is there.

    Args:
        file: to write.
        like: an array whose rows have the shape and type of all that will come.
    """

    def __init__(self, file: Path, *, like: np.ndarray) -> None:
        self._file = file.open("wb")
        self._num_rows = 0
        self._dtype, self._row_shape = like.dtype, like.shape[1:]
        self._write_header()

    def append(self, part: np.ndarray) -> int:
        """Write more rows; returns how many there were."""
        assert part.dtype == self._dtype and part.shape[1:] == self._row_shape
        num_before = self._num_rows
        np.ascontiguousarray(part).tofile(self._file)
        self._num_rows += len(part)
        return num_before

    def close(self) -> None:
        """Say in the header how many rows there are: numpy leaves room there for any number."""
        self._file.seek(0)
        self._write_header()
        self._file.close()

    def _write_header(self) -> None:
        header = {
            "descr": np.lib.format.dtype_to_descr(self._dtype),
            "fortran_order": False,
            "shape": (self._num_rows, *self._row_shape),
        }
        np.lib.format.write_array_header_1_0(self._file, header)
