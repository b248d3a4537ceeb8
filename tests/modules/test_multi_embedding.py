"""MultiEmbedding against top archs that read their columns themselves."""

from functools import partial

import pytest
import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dmt.errors import UserInputError
from dmt.modules import DCN, DLRM, MultiEmbedding
from dmt.modules.stage import Pending, Ready, Stage
from dmt.modules.top_arch import TopArchFactory
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
def test_the_logit_is_the_mean_over_blocks_of_columns(seed: int, top: TopArchFactory, num_sets: int) -> None:
    stage = make_stage()
    model = MultiEmbedding(stage, 4, num_sets=num_sets, top=top)
    dense, sparse = make_batch(stage, 5, 4)
    logits = model(dense, sparse)
    width = 8 // num_sets
    alone = top(Given(3, width), 4)
    expected = torch.zeros(5)
    for of_set, vectors in zip(model.tops, stage(sparse).split(width, dim=2), strict=True):
        alone.load_state_dict(of_set.state_dict())
        expected += alone(dense, vectors) / num_sets
    # The same operations on copies of the same columns; only the mean is summed in another order.
    torch.testing.assert_close(logits, expected, rtol=1e-6, atol=1e-6)


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
    ("num_sets", "message"),
    [
        (0, "MultiEmbedding num_sets=0: give"),
        (3, "MultiEmbedding num_sets=3: it does not divide the width 8 of the towers' outputs"),
    ],
)
def test_wrong_numbers_are_named(num_sets: int, message: str) -> None:
    with pytest.raises(UserInputError, match=message):
        MultiEmbedding(make_stage(), 4, num_sets=num_sets)
