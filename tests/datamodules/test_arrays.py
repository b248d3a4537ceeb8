import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch

from dmt.datamodules import ClickArrays
from dmt.datamodules.arrays import Bags, offsets_of
from dmt.datamodules.writer import ClickWriter


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


def save(arrays, folder, *, num_parts=1):
    with ClickWriter(folder) as writer:
        for part in np.array_split(np.arange(len(arrays)), num_parts):
            writer.append(take(arrays, slice(part[0], part[-1] + 1)))
    assert writer.num_samples == len(arrays)


def take(arrays, samples):
    """Some of the samples, which lie one after the other."""
    first = arrays.first(samples.stop)
    bags = {}
    for name, of_feature in first.bags.items():
        offsets = of_feature.offsets[samples.start :]
        bags[name] = Bags(
            values=of_feature.values[offsets[0] :],
            offsets=offsets - offsets[0],
            weights=None if of_feature.weights is None else of_feature.weights[offsets[0] :],
        )
    kept = {name: getattr(first, name)[samples] for name in ("dense", "ids", "labels")}
    return replace(first, bags=bags, **kept)


def test_saved_arrays_give_the_same_batches(arrays, tmp_path):
    save(arrays, tmp_path / "split")
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
    save(in_memory, tmp_path / "split")
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


@pytest.mark.parametrize("num_numeric", [0, 3])
@pytest.mark.parametrize("num_parts", [1, 4, 500])
def test_files_are_what_numpy_saves(tmp_path, num_parts, num_numeric):
    rng = np.random.default_rng()
    lengths = rng.integers(0, 4, (2, 500))
    bags = {
        name: Bags(
            values=rng.integers(0, 9, of_feature.sum(), dtype=np.int32),
            offsets=offsets_of(of_feature),
            weights=rng.random(of_feature.sum(), dtype=np.float32) if name == "b" else None,
        )
        for name, of_feature in zip("bc", lengths, strict=True)
    }
    arrays = ClickArrays(
        feature_names=["a", "b", "c"],
        dense=rng.random((500, num_numeric), dtype=np.float32),
        ids=np.asfortranarray(rng.integers(0, 9, (500, 1), dtype=np.int32)),
        labels=rng.integers(0, 2, 500, dtype=np.uint8),
        bags=bags,
    )
    save(arrays, folder := tmp_path / "split", num_parts=num_parts)
    wanted = {name: getattr(arrays, name) for name in ("dense", "ids", "labels")}
    wanted |= {f"bags/1/{name}": getattr(bags["b"], name) for name in ("values", "offsets", "weights")}
    wanted |= {f"bags/2/{name}": getattr(bags["c"], name) for name in ("values", "offsets")}
    assert sorted(str(file.relative_to(folder)) for file in folder.rglob("*.npy")) == sorted(f"{n}.npy" for n in wanted)
    for name, array in wanted.items():
        np.save(tmp_path / "whole.npy", np.ascontiguousarray(array))
        assert (folder / f"{name}.npy").read_bytes() == (tmp_path / "whole.npy").read_bytes()
    loaded = ClickArrays.load(folder, feature_names=["a", "b", "c"])
    assert np.array_equal(loaded.bags["c"].offsets, bags["c"].offsets)
