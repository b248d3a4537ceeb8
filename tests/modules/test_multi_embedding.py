"""MultiEmbedding and MultiTower against models that read their columns themselves."""

import re
from functools import partial

import pytest
import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dmt.errors import UserInputError
from dmt.modules import (
    DCN,
    DLRM,
    ClickModel,
    DLRMTower,
    EmbeddingOptimizer,
    GatedTower,
    MultiEmbedding,
    MultiTower,
    PassThrough,
)
from dmt.modules.stage import Pending, Ready, Stage
from dmt.modules.top_arch import TopArchFactory
from dmt.modules.towers import TowerFactory, TowerModule
from tests.modules.test_click_model import make_data, make_trainer
from tests.modules.top_arch_cases import make_batch, make_stage

TOPS = [partial(DLRM, bottom_layers=[6], over_layers=[8]), partial(DCN, bottom_layers=[6], low_rank=2, over_layers=[8])]


class Given(Stage):
    """A stage whose output is what it is asked with."""

    def __init__(self, out_features: int, out_dim: int) -> None:
        super().__init__()
        self.out_features, self.out_dim = out_features, out_dim

    def start(self, features: KeyedJaggedTensor | Tensor) -> Pending:
        assert isinstance(features, Tensor)
        return Ready(features)

    def set_learning_rate(self, learning_rate: float) -> None:
        pass


@pytest.mark.parametrize("top", TOPS)
@pytest.mark.parametrize("num_sets", [1, 2, 4])
def test_each_set_reads_a_block_of_columns(seed: int, top: TopArchFactory, num_sets: int) -> None:
    stage = make_stage()
    model = MultiEmbedding(stage, 4, num_sets=num_sets, top=top)
    dense, sparse = make_batch(stage, 5, 4)
    logits = model(dense, sparse)
    width = 8 // num_sets
    alone = top(Given(3, width), 4)
    expected = []
    for of_set, vectors in zip(model.tops, stage(sparse).split(width, dim=2), strict=True):
        alone.load_state_dict(of_set.state_dict())
        expected.append(alone(dense, vectors))
    # The same operations on copies of the same columns.
    torch.testing.assert_close(logits, torch.stack(expected, dim=1), rtol=1e-6, atol=1e-6)


def test_the_stage_runs_once_and_every_set_trains(seed: int) -> None:
    stage = make_stage()
    model = MultiEmbedding(stage, 4, num_sets=2, top=TOPS[0])
    runs = []
    stage.embeddings.register_forward_hook(lambda *_: runs.append(1))
    model(*make_batch(stage, 5, 4)).sum().backward()
    assert len(runs) == 1
    gradients = [parameter.grad for parameter in model.parameters() if parameter.requires_grad]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)
    first, second = model.tops
    assert not torch.equal(first.over.model[1].weight.grad, second.over.model[1].weight.grad)


@pytest.mark.parametrize(
    ("towers", "tower"),
    [(1, PassThrough), (2, partial(DLRMTower, c=1, p=1, out_dim=2)), (2, partial(GatedTower, hidden=3, out_dim=2))],
    ids=["flat", "linear", "gated"],
)
def test_each_set_trains_as_a_model_of_its_own_and_their_mean_predicts(
    seed: int, towers: int, tower: TowerFactory
) -> None:
    data = make_data()
    sets = partial(MultiTower, num_sets=2, tower=tower)
    together = _click_model(partial(MultiEmbedding, num_sets=2, top=TOPS[0]), sets, towers, embedding_dim=8, rate=0.2)
    weights = together.build(data.schema).state_dict()
    alone = []
    for index in range(2):  # at half the rate, since the loss of two is half of each
        alone.append(model := _click_model(TOPS[0], tower, towers, embedding_dim=4, rate=0.1))
        for name, own in model.build(data.schema).state_dict().items():
            of_set = re.sub(r"^(stage\.towers\.\d+\.)", rf"\1towers.{index}.", name)
            if "embeddings" in name:
                own.copy_(weights[name].chunk(2, dim=1)[index])
            else:
                own.copy_(weights[of_set if of_set != name else f"tops.{index}.{name}"])
    losses = []
    for model in (together, *alone):
        trainer = make_trainer(max_steps=8)
        trainer.fit(model, datamodule=data)
        losses.append(trainer.callback_metrics["train/loss"].item())
    # Eight steps of float32 from the same weights; sums over features and samples are taken in another order.
    assert losses[0] == pytest.approx(sum(losses[1:]) / 2, rel=1e-5)
    batch = next(iter(data.train_dataloader()))
    with torch.no_grad():
        expected = torch.stack([model(batch) for model in alone]).mean(dim=0)
        torch.testing.assert_close(together(batch), expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(together.predict_step(batch, 0), expected.sigmoid(), rtol=1e-5, atol=1e-5)


def _click_model(
    top: TopArchFactory, tower: TowerFactory, num_towers: int, *, embedding_dim: int, rate: float
) -> ClickModel:
    return ClickModel(
        embedding_dim=embedding_dim,
        num_towers=num_towers,
        tower=tower,
        top=top,
        dense_optimizer=partial(torch.optim.SGD, lr=rate),
        embedding_optimizer=EmbeddingOptimizer(name="sgd", learning_rate=rate),
    )


@pytest.mark.parametrize(
    ("num_sets", "message"),
    [
        (0, "MultiEmbedding num_sets=0: give"),
        (3, "MultiEmbedding num_sets=3: it does not divide the width 8 of the towers' outputs"),
    ],
)
def test_wrong_numbers_are_named(num_sets: int, message: str) -> None:
    with pytest.raises(UserInputError, match=message):
        MultiEmbedding(make_stage(), 4, num_sets=num_sets)


@pytest.mark.parametrize(
    ("num_sets", "message"),
    [
        (-1, "MultiTower num_sets=-1: give"),
        (3, "MultiTower num_sets=3: it does not divide embedding_dim=8; change one of them"),
    ],
)
def test_wrong_numbers_of_towers_side_by_side_are_named(num_sets: int, message: str) -> None:
    with pytest.raises(UserInputError, match=message):
        MultiTower(3, 8, num_sets=num_sets, tower=PassThrough)


class _InPlace(TowerModule):
    def __init__(self, num_features: int, embedding_dim: int) -> None:
        super().__init__()
        self.out_features, self.out_dim = num_features, embedding_dim

    def forward(self, embeddings: Tensor) -> Tensor:
        return embeddings.mul_(2)


@pytest.mark.parametrize(("batch_size", "num_sets"), [(1, 2), (3, 1), (3, 2)])
def test_towers_side_by_side_may_write_to_their_inputs(batch_size: int, num_sets: int) -> None:
    leaf = torch.ones(batch_size, 1, 4, requires_grad=True)
    output = MultiTower(1, 4, num_sets=num_sets, tower=_InPlace)(leaf - 0)
    assert torch.equal(output, torch.full((batch_size, 1, 4), 2.0))
    output.sum().backward()
    assert torch.equal(leaf.grad, torch.full((batch_size, 1, 4), 2.0))
