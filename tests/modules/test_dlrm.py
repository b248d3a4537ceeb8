"""DLRM against TorchRec's parts."""

import pytest
import torch
from torchrec.models.dlrm import InteractionArch

from dmt.errors import UserInputError
from dmt.modules import DLRM, DotInteraction
from tests.modules.top_arch_cases import make_batch, make_stage

# Dot products of up to 16 float32 values of order 1 in another order: rounding of about sqrt(16) * 6e-8 =
# 2e-7, times a few for the layers of an over arch; 1e-5 leaves a factor ten and more.
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


def test_dlrm_equals_torchrecs_interaction_and_over_arch(seed: int) -> None:
    stage = make_stage()
    model = DLRM(stage, 4, bottom_layers=[6], over_layers=[16, 8])
    dense, sparse = make_batch(stage, 5, 4)
    logits = model(dense, sparse)
    assert logits.shape == (5,)
    vectors = stage(sparse)
    interacted = InteractionArch(num_sparse_features=3)(model.bottom(dense), vectors)
    torch.testing.assert_close(logits, model.over(interacted).squeeze(1), **TOLERANCE)


def test_dlrm_without_numeric_columns_has_no_bottom(seed: int) -> None:
    stage = make_stage()
    model = DLRM(stage, 0, over_layers=[16])
    dense, sparse = make_batch(stage, 5, 0)
    logits = model(dense, sparse)
    assert model.bottom is None and logits.shape == (5,)
    torch.testing.assert_close(logits, model.over(DotInteraction(3)(stage(sparse))).squeeze(1), **TOLERANCE)


@pytest.mark.parametrize("num_dense", [0, 2])
@pytest.mark.parametrize("batch_size", [0, 1])
def test_dlrm_trains_on_one_sample_or_none(num_dense: int, batch_size: int) -> None:
    stage = make_stage()
    model = DLRM(stage, num_dense, bottom_layers=[], over_layers=[4])
    logits = model(*make_batch(stage, batch_size, num_dense))
    assert logits.shape == (batch_size,)
    logits.sum().backward()
    gradients = [p.grad for p in model.parameters() if p.requires_grad]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)


def test_the_bottom_arch_ends_in_the_stages_width() -> None:
    model = DLRM(make_stage(embedding_dim=12), 4, bottom_layers=[6], over_layers=[16])
    sizes = [tuple(parameter.shape) for parameter in model.bottom.parameters() if parameter.dim() == 2]
    assert sizes == [(6, 4), (12, 6)]
    sizes = [tuple(parameter.shape) for parameter in model.over.parameters() if parameter.dim() == 2]
    assert sizes == [(16, 12 + 4 * 3 // 2), (1, 16)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bottom_layers": [8, 0]}, r"DLRM bottom_layers=\[8, 0\]: give positive layer sizes"),
        ({"over_layers": [-4]}, r"DLRM over_layers=\[-4\]: give positive layer sizes"),
        ({"over_layers": []}, r"DLRM over_layers=\[\]: give at least one hidden layer, for example \[64\]"),
    ],
)
def test_wrong_layer_sizes_are_named(options: dict, message: str) -> None:
    with pytest.raises(UserInputError, match=f"^{message}$"):
        DLRM(make_stage(), 4, **options)


def test_a_single_vector_has_nothing_to_interact_with() -> None:
    with pytest.raises(UserInputError, match=r"one tower output and no numeric columns .* add features or outputs"):
        DLRM(make_stage(num_features=1), 0, over_layers=[4])
    assert DLRM(make_stage(num_features=1), 2, over_layers=[4]).interaction.out_features == 1
