"""Click logs as arrays, in memory or memory-mapped.

Shape legend: n samples of a split, B of a batch, F categorical features, C numeric columns.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torchrec.datasets.utils import Batch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dmt.datamodules.mapped import MappedArrays


@dataclass(frozen=True, kw_only=True)
class Bags(MappedArrays):
    """A multi-hot feature: the ids of all samples, one after the other.

    Args:
        values: int32 (m,), embedding rows.
        offsets: int64 (n + 1,): those of sample ``i`` are ``values[offsets[i]:offsets[i + 1]]``.
        weights: float32 (m,), what each id's embedding is multiplied by, or ``None``.
    """

    values: np.ndarray
    offsets: np.ndarray
    weights: np.ndarray | None = None

    def __post_init__(self) -> None:
        assert self.values.dtype == np.int32 and self.offsets.dtype == np.int64
        assert len(self.offsets) and self.offsets[0] == 0 and self.offsets[-1] == len(self.values)
        if self.weights is not None:
            assert self.weights.dtype == np.float32 and self.weights.shape == self.values.shape

    def first(self, num_samples: int) -> "Bags":
        """Those of the first so many samples."""
        offsets = self.offsets[: num_samples + 1]
        weights = None if self.weights is None else self.weights[: offsets[-1]]
        return Bags(values=self.values[: offsets[-1]], offsets=offsets, weights=weights)

    @classmethod
    def concatenate(cls, parts: Sequence["Bags"]) -> "Bags":
        """The bags of one part's samples after those of another."""
        lengths = np.concatenate([np.diff(part.offsets) for part in parts])
        weights = [part.weights for part in parts if part.weights is not None]
        return cls(
            values=np.concatenate([part.values for part in parts]),
            offsets=offsets_of(lengths),
            weights=np.concatenate(weights) if weights else None,
        )

    def find(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """How many ids, int64 (B,), samples have, and where in ``values`` these are, one after another."""
        starts = np.take(self.offsets, indices)
        lengths = np.take(self.offsets, indices + 1) - starts
        begins = np.cumsum(lengths) - lengths  # of each sample's ids in the result
        return lengths, np.repeat(starts - begins, lengths) + np.arange(lengths.sum())


def offsets_of(lengths: np.ndarray) -> np.ndarray:
    """int64 (n + 1,), where each of n bags begins, and the last one ends."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])


@dataclass(frozen=True, kw_only=True)
class ClickArrays(MappedArrays):
    """One split of a click log.

    Args:
        feature_names: the F categorical features.
        dense: float32 (n, C); C may be 0.
        ids: int32 (n, number of single-hot features): embedding rows, in the order of ``feature_names``.
        labels: uint8 (n,): 0 or 1.
        bags: the multi-hot features, by name. If one has weights, ids without them weigh 1.
    """

    feature_names: Sequence[str]
    dense: np.ndarray
    ids: np.ndarray
    labels: np.ndarray
    bags: Mapping[str, Bags] = field(default_factory=dict)

    def __post_init__(self) -> None:
        num_samples, num_single = len(self.labels), len(self.feature_names) - len(self.bags)
        assert self.dense.dtype == np.float32 and self.dense.shape[:-1] == (num_samples,)
        assert self.ids.dtype == np.int32 and self.ids.shape == (num_samples, num_single)
        assert self.labels.dtype == np.uint8 and self.labels.ndim == 1
        assert all(len(bags.offsets) == num_samples + 1 for bags in self.bags.values())

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: np.ndarray) -> Batch:
        """The samples at ``indices`` (B,), in that order; B may be 0.

        Returns:
            dense_features float32 (B, C), labels float32 (B,), and sparse_features with int64 ``values``, feature
            after feature, and int32 ``lengths`` (F * B,), which are ones where all features are single-hot.
        """
        # numpy alone: np.take is several times faster than indexing, and the threads of a torch operator
        # would wait for each other where ranks share the cores.
        ids = np.take(self.ids, indices, axis=0).T.astype(np.int64, order="C")  # (F, B)
        dense, labels = np.take(self.dense, indices, axis=0), np.take(self.labels, indices).astype(np.float32)
        if self.bags:
            return self._multi_hot_batch(indices, dense=dense, ids=ids, labels=labels)
        return single_hot_batch(self.feature_names, dense=dense, ids=ids, labels=labels)

    def _multi_hot_batch(self, indices: np.ndarray, *, dense: np.ndarray, ids: np.ndarray, labels: np.ndarray) -> Batch:
        single = iter(ids)
        lengths, values, weights = [], [], []
        for name in self.feature_names:
            if name in self.bags:
                bags = self.bags[name]
                of_feature, places = bags.find(indices)
                of_ids = np.ones(len(places), np.float32) if bags.weights is None else np.take(bags.weights, places)
                values.append(np.take(bags.values, places).astype(np.int64))
            else:
                of_feature, of_ids = np.ones(len(indices), np.int64), np.ones(len(indices), np.float32)
                values.append(next(single))
            lengths.append(of_feature)
            weights.append(of_ids)
        is_weighted = any(bags.weights is not None for bags in self.bags.values())
        return ClickBatch(
            dense_features=torch.from_numpy(dense),
            sparse_features=KeyedJaggedTensor(
                keys=list(self.feature_names),
                values=torch.from_numpy(np.concatenate(values)),
                weights=torch.from_numpy(np.concatenate(weights)) if is_weighted else None,
                lengths=torch.from_numpy(np.concatenate(lengths).astype(np.int32)),
                stride=len(indices),
            ),
            labels=torch.from_numpy(labels),
        )

    def first(self, num_samples: int) -> "ClickArrays":
        """The first so many samples."""
        return replace(
            self,
            dense=self.dense[:num_samples],
            ids=self.ids[:num_samples],
            labels=self.labels[:num_samples],
            bags={name: bags.first(num_samples) for name, bags in self.bags.items()},
        )

    @classmethod
    def concatenate(cls, parts: Sequence["ClickArrays"]) -> "ClickArrays":
        """Parts of a split as one, in memory."""
        first = parts[0]
        return cls(
            feature_names=first.feature_names,
            dense=np.concatenate([part.dense for part in parts]),
            ids=np.concatenate([part.ids for part in parts]),
            labels=np.concatenate([part.labels for part in parts]),
            bags={name: Bags.concatenate([part.bags[name] for part in parts]) for name in first.bags},
        )

    @classmethod
    def load(cls, folder: Path, *, feature_names: Sequence[str]) -> "ClickArrays":
        """Memory-map what a ``ClickWriter`` wrote: pages are read when a batch needs them."""

        def read(file: Path) -> np.ndarray:
            array: np.ndarray = np.load(file, mmap_mode="r")
            return array

        bags = {}
        for index, name in enumerate(feature_names):
            if (of_bags := folder / "bags" / str(index)).exists():
                weights = of_bags / "weights.npy"
                bags[name] = Bags(
                    values=read(of_bags / "values.npy"),
                    offsets=read(of_bags / "offsets.npy"),
                    weights=read(weights) if weights.exists() else None,
                )
        return cls(
            feature_names=feature_names,
            dense=read(folder / "dense.npy"),
            ids=read(folder / "ids.npy"),
            labels=read(folder / "labels.npy"),
            bags=bags,
        )


@dataclass
class ClickBatch(Batch):
    """A batch whose copy from pinned memory to a GPU does not wait, which Lightning asks of nothing but tensors."""

    def to(self, device: torch.device | str, non_blocking: bool | None = None) -> "ClickBatch":
        """Default of ``non_blocking``: to a GPU, which keeps what it is given in order."""
        device = torch.device(device)
        return ClickBatch(**vars(super().to(device, device.type == "cuda" if non_blocking is None else non_blocking)))

    def pin_memory(self) -> "ClickBatch":
        return ClickBatch(**vars(super().pin_memory()))


def single_hot_batch(feature_names: Sequence[str], *, dense: np.ndarray, ids: np.ndarray, labels: np.ndarray) -> Batch:
    """A batch of one id per sample and feature; shares the arrays' memory.

    Args:
        feature_names: the F categorical features.
        dense: float32 (B, C).
        ids: int64 (F, B).
        labels: float32 (B,).
    """
    return ClickBatch(
        dense_features=torch.from_numpy(dense),
        sparse_features=KeyedJaggedTensor(
            keys=list(feature_names),
            values=torch.from_numpy(ids.reshape(-1)),
            lengths=torch.from_numpy(np.ones(ids.size, dtype=np.int32)),
            stride=ids.shape[1],  # with B = 0 it could not be told from the lengths
        ),
        labels=torch.from_numpy(labels),
    )
