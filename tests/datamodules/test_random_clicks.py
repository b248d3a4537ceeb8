"""RandomClicks: even ids, and samples that depend on seed, split and index alone."""

import numpy as np
import pytest
import torch

from dmt.datamodules import RandomClicks
from dmt.errors import UserInputError


def make(**options) -> RandomClicks:
    data = RandomClicks(**({"num_embeddings": [1000, 1, 7], "num_dense": 2, "num_train": 40_000} | options))
    data.setup()
    return data


def draw(data: RandomClicks, indices: np.ndarray, split: str = "train") -> list[torch.Tensor]:
    batch = data._splits[split].batch(indices)
    return [batch.dense_features, batch.sparse_features.values().view(-1, len(indices)), batch.labels]


def test_ids_are_even_over_their_tables_and_a_quarter_are_clicks() -> None:
    data = make()
    dense, ids, labels = draw(data, np.arange(40_000))
    assert [rows.min().item() for rows in ids] == [0, 0, 0]
    assert [rows.max().item() for rows in ids] == [999, 0, 6]
    # Of 40,000 even draws a cell of 7 holds 5,714 with a deviation of 70, and 1 in 4 is 10,000 with one of 87.
    assert np.bincount(ids[2]) == pytest.approx(40_000 / 7, abs=6 * 70)
    assert labels.sum().item() == pytest.approx(10_000, abs=6 * 87)
    assert dense.shape == (40_000, 2) and dense.min() >= 0 and dense.max() < 1
    assert dense.mean().item() == pytest.approx(0.5, abs=0.01)
    # Columns are independent: correlations of 40,000 samples have a deviation of 0.005.
    columns = torch.stack([ids[0].float(), ids[2].float(), dense[:, 0], dense[:, 1], labels])
    assert (torch.corrcoef(columns) - torch.eye(5)).abs().max() < 6 * 0.005


def test_a_sample_depends_on_seed_split_and_index_alone() -> None:
    data, few = make(), np.array([3, 39_999, 0])
    expected = [t[..., few] if t.dim() == 1 or t.shape[0] == 3 else t[few] for t in draw(data, np.arange(40_000))]
    again = draw(make(num_train=50_000, global_batch_size=7), few)
    assert all(torch.equal(one, other) for one, other in zip(expected, again, strict=True))
    for other in (draw(make(seed=1), few), draw(data, few, "valid"), draw(data, few, "test")):
        assert not torch.equal(expected[0], other[0])


def test_a_batch_may_be_empty() -> None:
    batch = make()._splits["train"].batch(np.arange(0))
    assert batch.sparse_features.stride() == 0 and batch.dense_features.shape == (0, 2)


@pytest.mark.parametrize("option", ["num_dense", "num_train", "num_valid", "num_test"])
def test_numbers_out_of_range_are_refused(option: str) -> None:
    with pytest.raises(UserInputError, match=f"{option}=-1"):
        make(**{option: -1})
    with pytest.raises(UserInputError, match="no categorical columns"):
        make(num_embeddings=[])
    with pytest.raises(UserInputError, match="num_embeddings=0"):
        make(num_embeddings=[5, 0])
