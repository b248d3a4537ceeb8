import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch

from dmt.datamodules import ClickArrays
from dmt.datamodules.arrays import Bags, offsets_of


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    return ClickArrays(
        feature_names=["a", "b", "c"],
        dense=rng.random((6, 2), dtype=np.float32),
        ids=rng.integers(0, 9, (6, 3), dtype=np.int32),
        labels=rng.integers(0, 2, 6, dtype=np.uint8),
    )


def test_batch_holds_the_samples_asked_for_in_that_order(arrays):
    indices = np.array([4, 0, 4, 5])
    batch = arrays.batch(indices)
    sparse = batch.sparse_features
    assert sparse.keys() == ["a", "b", "c"]
    assert sparse.stride() == 4
    assert sparse.values().dtype == torch.int64
    assert sparse.lengths().dtype == torch.int32
    assert sparse.lengths().tolist() == 12 * [1]
    assert sparse.values().view(3, 4).T.tolist() == arrays.ids[indices].tolist()
    assert sparse["b"].values().tolist() == arrays.ids[indices, 1].tolist()
    assert batch.dense_features.dtype == batch.labels.dtype == torch.float32
    assert batch.dense_features.tolist() == arrays.dense[indices].tolist()
    assert batch.labels.tolist() == arrays.labels[indices].tolist()


def test_empty_batch_keeps_its_shape(arrays):
    batch = arrays.batch(np.arange(0))
    assert batch.dense_features.shape == (0, 2)
    assert batch.labels.shape == (0,)
    assert batch.sparse_features.keys() == ["a", "b", "c"]
    assert batch.sparse_features.stride() == 0
    assert batch.sparse_features.values().dtype == torch.int64
    assert batch.sparse_features["c"].lengths().tolist() == []
    assert batch.to(torch.device("cpu")).sparse_features.stride() == 0


def test_saved_arrays_give_the_same_batches(arrays, tmp_path):
    arrays.save(tmp_path / "split")
    loaded = ClickArrays.load(tmp_path / "split", feature_names=arrays.feature_names)
    assert isinstance(loaded.ids, np.memmap)
    assert len(loaded) == 6
    indices = np.array([3, 1])
    expected, found = arrays.batch(indices), loaded.batch(indices)
    assert torch.equal(found.dense_features, expected.dense_features)
    assert torch.equal(found.sparse_features.values(), expected.sparse_features.values())
    assert torch.equal(found.labels, expected.labels)
    found.dense_features.zero_()  # a copy: the file is read-only


def test_mapped_arrays_are_pickled_as_their_places(tmp_path):
    rng = np.random.default_rng(0)
    lengths = rng.integers(0, 4, 10_000)
    values = rng.integers(0, 9, lengths.sum(), dtype=np.int32)
    bags = Bags(values=values, offsets=offsets_of(lengths), weights=rng.random(len(values), dtype=np.float32))
    in_memory = ClickArrays(
        feature_names=["a", "b"],
        dense=rng.random((10_000, 2), dtype=np.float32),
        ids=rng.integers(0, 9, (10_000, 1), dtype=np.int32),
        labels=rng.integers(0, 2, 10_000, dtype=np.uint8),
        bags={"b": bags},
    )
    in_memory.save(tmp_path / "split")
    mapped = ClickArrays.load(tmp_path / "split", feature_names=["a", "b"])
    assert len(pickle.dumps(mapped)) < 3000
    assert len(pickle.dumps(in_memory)) > 200_000
    indices = rng.integers(0, 10_000, 100)
    wanted = in_memory.batch(indices)
    for arrays in (mapped, in_memory, replace(mapped, dense=np.array(mapped.dense))):
        found = pickle.loads(pickle.dumps(arrays)).batch(indices)
        assert torch.equal(found.dense_features, wanted.dense_features) and torch.equal(found.labels, wanted.labels)
        for part in ("values", "lengths", "weights"):
            assert torch.equal(getattr(found.sparse_features, part)(), getattr(wanted.sparse_features, part)())
    # A part of a map is not all of its file.
    part = pickle.loads(pickle.dumps(mapped.first(7)))
    assert np.array_equal(part.dense, in_memory.dense[:7]) and len(part) == 7
    assert isinstance(pickle.loads(pickle.dumps(mapped)).bags["b"].values, np.memmap)
