"""Click logs as arrays, in memory or memory-mapped.

Shape legend: n samples of a split, B of a batch, F categorical features, C numeric columns.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torchrec.datasets.utils import Batch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor


@dataclass(frozen=True, kw_only=True)
class ClickArrays:
    """One split of a single-hot click log.

    Args:
        feature_names: the F categorical features, in the order of the columns of ``ids``.
        dense: float32 (n, C); C may be 0.
        ids: int32 (n, F): embedding rows.
        labels: uint8 (n,): 0 or 1.
    """

    feature_names: Sequence[str]
    dense: np.ndarray
    ids: np.ndarray
    labels: np.ndarray

    def __post_init__(self) -> None:
        num_samples = len(self.labels)
        assert self.dense.dtype == np.float32 and self.dense.shape[:-1] == (num_samples,)
        assert self.ids.dtype == np.int32 and self.ids.shape == (num_samples, len(self.feature_names))
        assert self.labels.dtype == np.uint8 and self.labels.ndim == 1

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: np.ndarray) -> Batch:
        """The samples at ``indices`` (B,), in that order; B may be 0.

        Returns:
            dense_features float32 (B, C), labels float32 (B,), and sparse_features with one int64 id per
            sample and feature: ``values`` (F * B,), feature after feature, ``lengths`` int32 ones (F * B,).
        """
        # numpy alone: np.take is several times faster than indexing, and the threads of a torch operator
        # would wait for each other where ranks share the cores.
        ids = np.take(self.ids, indices, axis=0).T.astype(np.int64, order="C")  # (F, B)
        dense, labels = np.take(self.dense, indices, axis=0), np.take(self.labels, indices).astype(np.float32)
        return single_hot_batch(self.feature_names, dense=dense, ids=ids, labels=labels)

    def save(self, folder: Path) -> None:
        """Write ``dense.npy``, ``ids.npy`` and ``labels.npy`` into ``folder``, which is created."""
        folder.mkdir(parents=True)
        np.save(folder / "dense.npy", self.dense)
        np.save(folder / "ids.npy", self.ids)
        np.save(folder / "labels.npy", self.labels)

    @classmethod
    def load(cls, folder: Path, *, feature_names: Sequence[str]) -> "ClickArrays":
        """Memory-map what :meth:`save` wrote: pages are read when a batch needs them."""
        return cls(
            feature_names=feature_names,
            dense=np.load(folder / "dense.npy", mmap_mode="r"),
            ids=np.load(folder / "ids.npy", mmap_mode="r"),
            labels=np.load(folder / "labels.npy", mmap_mode="r"),
        )


def single_hot_batch(feature_names: Sequence[str], *, dense: np.ndarray, ids: np.ndarray, labels: np.ndarray) -> Batch:
    """A batch of one id per sample and feature; shares the arrays' memory.

    Args:
        feature_names: the F categorical features.
        dense: float32 (B, C).
        ids: int64 (F, B).
        labels: float32 (B,).
    """
    return Batch(
        dense_features=torch.from_numpy(dense),
        sparse_features=KeyedJaggedTensor(
            keys=list(feature_names),
            values=torch.from_numpy(ids.reshape(-1)),
            lengths=torch.from_numpy(np.ones(ids.size, dtype=np.int32)),
            stride=ids.shape[1],  # with B = 0 it could not be told from the lengths
        ),
        labels=torch.from_numpy(labels),
    )
