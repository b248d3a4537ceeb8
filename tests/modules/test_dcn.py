"""DCN against TorchRec's interaction of the same cross layers."""

import pytest
import torch
from torchrec.models.dlrm import InteractionDCNArch

from dmt.errors import UserInputError
from dmt.modules import DCN
from tests.modules.top_arch_cases import make_batch, make_stage

# Two cross layers and two of an over arch over float32 values of order 1: rounding of some 1e-6; 1e-5 leaves a factor.
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


def test_dcn_equals_torchrecs_interaction_and_over_arch(seed: int) -> None:
    stage = make_stage()
    model = DCN(stage, 4, bottom_layers=[6], num_layers=2, low_rank=3, over_layers=[16, 8])
    dense, sparse = make_batch(stage, 5, 4)
    interacted = InteractionDCNArch(3, model.cross)(model.bottom(dense), stage(sparse))
    torch.testing.assert_close(model(dense, sparse), model.over(interacted).squeeze(1), **TOLERANCE)


def test_dcn_without_numeric_columns_has_no_bottom(seed: int) -> None:
    stage = make_stage(num_features=1)
    model = DCN(stage, 0, num_layers=1, low_rank=3, over_layers=[16])
    dense, sparse = make_batch(stage, 5, 0)
    assert model.bottom is None
    expected = model.over(model.cross(stage(sparse)[:, 0])).squeeze(1)
    torch.testing.assert_close(model(dense, sparse), expected, **TOLERANCE)


@pytest.mark.parametrize(("num_dense", "batch_size"), [(4, 1), (4, 0), (0, 1), (0, 0)])
def test_dcn_trains_on_one_sample_or_none(num_dense: int, batch_size: int) -> None:
    stage = make_stage()
    model = DCN(stage, num_dense, bottom_layers=[], low_rank=2, over_layers=[4])
    logits = model(*make_batch(stage, batch_size, num_dense))
    assert logits.shape == (batch_size,)
    logits.sum().backward()
    gradients = [p.grad for p in model.parameters() if p.requires_grad]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bottom_layers": [8, 0]}, r"DCN bottom_layers=\[8, 0\]: give positive layer sizes"),
        ({"over_layers": []}, r"DCN over_layers=\[\]: give at least one hidden layer, for example \[64\]"),
        ({"num_layers": 0}, r"DCN num_layers=0: give a positive number"),
        ({"low_rank": -1}, r"DCN low_rank=-1: give a positive number"),
    ],
)
def test_wrong_sizes_are_named(options: dict, message: str) -> None:
    with pytest.raises(UserInputError, match=f"^{message}$"):
        DCN(make_stage(), 4, **options)
