"""The factorization machine against its sum, written out pair by pair."""

from itertools import combinations

import pytest
import torch

from dmt.errors import UserInputError
from dmt.modules import FactorizationMachine
from tests.modules.top_arch_cases import make_batch, make_stage

# Sums of products of float32 values of order 1, in another order: rounding of some 1e-6; 1e-5 leaves a factor.
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.mark.parametrize("num_dense", [4, 0])
def test_it_sums_the_dot_products_of_all_pairs(seed: int, num_dense: int) -> None:
    stage = make_stage()
    model = FactorizationMachine(stage, num_dense, bottom_layers=[6])
    dense, sparse = make_batch(stage, 5, num_dense)
    vectors = list(stage(sparse).unbind(dim=1))
    if num_dense:
        vectors.append(model.bottom(dense))
    pairs = [(one * other).sum(dim=1) for one, other in combinations(vectors, 2)]
    expected = torch.stack(pairs).sum(dim=0) / len(pairs) ** 0.5
    expected += torch.stack([model.main_effects(vector) - model.main_effects.bias for vector in vectors]).sum(0)[:, 0]
    torch.testing.assert_close(model(dense, sparse), expected + model.main_effects.bias, **TOLERANCE)


@pytest.mark.parametrize(("num_features", "num_dense", "batch_size"), [(3, 4, 1), (3, 4, 0), (3, 0, 1), (1, 0, 2)])
def test_it_trains_on_one_sample_or_none_and_on_one_feature(num_features: int, num_dense: int, batch_size: int) -> None:
    stage = make_stage(num_features=num_features)
    model = FactorizationMachine(stage, num_dense, bottom_layers=[])
    logits = model(*make_batch(stage, batch_size, num_dense))
    assert logits.shape == (batch_size,)
    logits.sum().backward()
    gradients = [p.grad for p in model.parameters() if p.requires_grad]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)


def test_wrong_sizes_are_named() -> None:
    with pytest.raises(UserInputError, match=r"^FactorizationMachine bottom_layers=\[0\]: give positive layer sizes$"):
        FactorizationMachine(make_stage(), 4, bottom_layers=[0])
