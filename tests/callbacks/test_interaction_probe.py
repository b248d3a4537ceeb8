"""Interactions of models whose interactions are known."""

from functools import partial
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_rand_score
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dmt.callbacks import InteractionProbe
from dmt.datamodules import SyntheticClicks
from dmt.errors import UserInputError
from dmt.modules import ClickModel, EmbeddingOptimizer, TopArch
from dmt.modules.stage import Stage
from dmt.partition import Affinity, TowerPartitioner
from tests.callbacks.probe_cases import Spoil, fit, told_by_probe


class Known(TopArch):
    """Sums of embeddings of each feature, and two products of features: of the first two, and of the last two."""

    def __init__(self, stage: Stage, num_dense: int) -> None:
        super().__init__()
        self.stage = stage
        self.scale = torch.nn.Parameter(torch.ones(1))

    def forward(self, dense_features: Tensor, sparse_features: KeyedJaggedTensor) -> Tensor:
        vectors = self.stage(sparse_features)  # (B, 5, N)
        first, last = (vectors[:, 0] * vectors[:, 1]).sum(1), (vectors[:, 3] * vectors[:, 4]).sum(1)
        return self.scale * (vectors.sum(dim=(1, 2)) + 2 * first + last)


def known_data(num_multi_hot: int) -> SyntheticClicks:
    return SyntheticClicks(
        num_features=5,
        num_groups=1,
        num_multi_hot=num_multi_hot,
        num_embeddings=20,
        num_train=320,
        num_valid=3000,
        num_test=10,
        global_batch_size=1000,
    )


@pytest.mark.parametrize("num_multi_hot", [0, 2])
def test_interactions_are_those_of_the_model(tmp_path: Path, num_multi_hot: int) -> None:
    data = known_data(num_multi_hot)
    fit(tmp_path, data, ClickModel(embedding_dim=4, top=Known), InteractionProbe(num_batches=3))
    affinity = Affinity.load(tmp_path / "interaction.npz")
    assert affinity.kind == "interaction" and affinity.num_samples == 3000
    first, last = affinity.matrix[0, 1], affinity.matrix[3, 4]
    assert max(first, last) == 1 and min(first, last) > 0.05
    others = [affinity.matrix[i, j] for i in range(5) for j in range(i) if (j, i) not in ((0, 1), (3, 4))]
    # What is left of float32 sums of some units.
    assert max(others) < 1e-4
    assert (np.diag(affinity.matrix) == 0).all() and (affinity.matrix == affinity.matrix.T).all()


def test_embeddings_that_are_not_finite_are_named_and_spoil_no_other_feature(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    model = ClickModel(embedding_dim=4, top=Known)
    fit(tmp_path, known_data(0), model, Spoil({"c2": (slice(0, 10), float("nan"))}), InteractionProbe())
    assert "InteractionProbe: feature 'c2' had embeddings that are not finite, so" in told_by_probe(recwarn)
    matrix = Affinity.load(tmp_path / "interaction.npz").matrix
    assert min(matrix[0, 1], matrix[3, 4]) > 0.05 and max(matrix[0, 3], matrix[1, 4]) < 1e-4
    measured = [matrix[i, j] for i in range(5) for j in range(i) if 2 not in (i, j)]
    np.testing.assert_allclose(matrix[2, [0, 1, 3, 4]], np.mean(measured))


class Sum(Known):
    """Embeddings that act each for themselves."""

    def forward(self, dense_features: Tensor, sparse_features: KeyedJaggedTensor) -> Tensor:
        return self.scale * self.stage(sparse_features).sum(dim=(1, 2))


def test_a_model_without_interactions_is_told(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    fit(tmp_path, known_data(0), ClickModel(embedding_dim=4, top=Sum), InteractionProbe())
    assert "InteractionProbe: no two features act together on the logit" in told_by_probe(recwarn)
    assert not Affinity.load(tmp_path / "interaction.npz").matrix.any()


@pytest.mark.filterwarnings("ignore:val/log_loss is nan")
def test_gradients_that_are_not_finite_are_told(tmp_path: Path) -> None:
    model = ClickModel(embedding_dim=4, top=Known)
    fit(tmp_path, known_data(0), model)
    assert isinstance(model.model, Known)
    model.model.scale.data.fill_(float("nan"))
    with pytest.raises(UserInputError, match="InteractionProbe: the logit's gradients are not finite, so training"):
        fit(tmp_path, known_data(0), model, InteractionProbe(), max_steps=0)


def test_planted_groups_are_found(tmp_path: Path) -> None:
    data = SyntheticClicks(
        num_features=8,
        num_groups=2,
        num_dense=4,
        num_embeddings=50,
        num_train=120_000,
        num_valid=2048,
        num_test=1000,
        global_batch_size=2048,
    )
    L.seed_everything(1, verbose=False)
    model = ClickModel(
        embedding_dim=16,
        dense_optimizer=partial(torch.optim.Adam, lr=0.005),
        embedding_optimizer=EmbeddingOptimizer(name="adagrad", learning_rate=0.2),
    )
    fit(tmp_path, data, model, InteractionProbe(num_batches=1))
    affinity = Affinity.load(tmp_path / "interaction.npz")
    plan = TowerPartitioner(2).fit(affinity).plan_
    group_of = {name: g for g, group in enumerate(data.planted_groups) for name in group}
    tower_of = {name: t for t, tower in enumerate(plan.towers) for name in tower}
    names = affinity.features
    assert adjusted_rand_score([group_of[n] for n in names], [tower_of[n] for n in names]) == 1


def test_wrong_numbers_are_named() -> None:
    with pytest.raises(UserInputError, match="InteractionProbe num_batches=0: give"):
        InteractionProbe(num_batches=0)
