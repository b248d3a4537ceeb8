"""What is asked of a model over the tower stage, and how one that does something else is told."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dmt.errors import UserInputError
from dmt.modules import TopArch
from dmt.modules.stage import Stage
from tests.modules.test_click_model import make_data, make_model


class Own(TopArch):
    """A linear layer whose output goes through a function."""

    def __init__(self, stage: Stage, num_dense: int, returns: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.stage, self.returns = stage, returns
        self.layer = nn.Linear(stage.out_features * stage.out_dim, 1)

    def forward(self, dense_features: Tensor, sparse_features: KeyedJaggedTensor) -> Tensor:
        return self.returns(self.layer(self.stage(sparse_features).flatten(1)))


@pytest.mark.parametrize(
    ("returns", "found"),
    [
        (lambda logits: logits, r"shape \(64, 1\)"),
        (lambda logits: logits.squeeze(1)[:3], r"shape \(3,\)"),
        (lambda logits: logits.mean(), r"shape \(\)"),
        (lambda logits: (logits, logits), "a tuple"),
        (lambda logits: None, "a NoneType"),
    ],
)
def test_a_top_that_returns_something_else_is_named(returns: Callable[[Tensor], Tensor], found: str) -> None:
    data = make_data()
    batch = next(iter(data.train_dataloader()))
    model = make_model(top=lambda stage, num_dense: Own(stage, num_dense, returns))
    model.build(data.schema)
    with pytest.raises(UserInputError, match=rf"^top Own: it returned {found} for 64 samples; return a tensor \(64,\)"):
        model(batch)


def test_one_logit_a_sample_is_right() -> None:
    data = make_data()
    model = make_model(top=lambda stage, num_dense: Own(stage, num_dense, lambda logits: logits.squeeze(1)))
    model.build(data.schema)
    assert model(next(iter(data.train_dataloader()))).shape == (64,)


def test_members_are_as_many_as_the_top_says() -> None:
    data = make_data()
    batch = next(iter(data.train_dataloader()))
    model = make_model(top=lambda stage, num_dense: Own(stage, num_dense, lambda logits: logits.expand(-1, 2)))
    model.build(data.schema).num_members = 2
    assert model(batch).shape == (64,)
    model.model.num_members = 3
    told = r"^top Own: it returned shape \(64, 2\) for 64 samples; return a tensor \(64, 3\), a logit of each member"
    with pytest.raises(UserInputError, match=told):
        model(batch)


class Detached(Own):
    """Keeps the stage where torch does not see it."""

    def __init__(self, stage: Stage, num_dense: int) -> None:
        super().__init__(stage, num_dense, torch.squeeze)
        del self.stage
        self.stages = [stage]


@pytest.mark.parametrize("top", [Detached, lambda stage, num_dense: nn.Identity(), lambda stage, num_dense: None])
def test_a_top_without_the_stage_is_refused(top: Callable[[Stage, int], TopArch]) -> None:
    with pytest.raises(UserInputError, match=r"^top \w+: it does not keep the tower stage .* set self.stage = stage"):
        make_model(top=top).build(make_data().schema)


class Unmade(Own):
    def __init__(self, stage: Stage, num_dense: int) -> None:
        super().__init__(stage, num_dense, torch.squeeze)
        self.layer = nn.Linear(stage.out_dim, -1)


def test_a_top_that_cannot_be_made_is_named_with_the_reason_and_the_line() -> None:
    told = r"^top Unmade: it cannot be made \(.*test_top_arch.py, line \d+\): RuntimeError: .* -1.*; mend Unmade, or"
    with pytest.raises(UserInputError, match=told):
        make_model(top=Unmade).build(make_data().schema)
