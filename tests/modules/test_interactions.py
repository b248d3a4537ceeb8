"""The dot interaction and its gradient against TorchRec's and an einsum, in one part and in several."""

import random

import pytest
import torch
from torch import Tensor
from torchrec.models.dlrm import InteractionArch

from dmt.errors import UserInputError
from dmt.modules import DotInteraction, interactions

# Dot products of up to 16 float32 values of order 1, and sums of up to 9 of them, in another order: rounding of about
# sqrt(16) * 6e-8 = 2e-7 of values up to 30; 1e-5 leaves a factor ten and more.
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}
# bfloat16 keeps 8 bits: each product is rounded by 2**-9 of values up to 30, and each gradient is a sum of 9 such.
BF16_TOLERANCE = {"rtol": 2**-7, "atol": 0.5}


@pytest.fixture(params=["one part", "parts"])
def batch_size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """A batch that fits the cache, or does not, with a last part of another size."""
    if request.param == "parts":
        monkeypatch.setattr(interactions, "_CACHED_BYTES", 3 * 9 * 16 * 4)
    return 11


def draw(batch_size: int, rng: random.Random) -> tuple[Tensor, Tensor]:
    num_vectors, dim = rng.randint(2, 9), rng.randint(1, 16)
    return torch.randn(batch_size, num_vectors, dim, requires_grad=True), torch.randn(
        batch_size, num_vectors * (num_vectors - 1) // 2
    )


def test_pairs_come_in_torchrecs_order_dense_first(seed: int, rng: random.Random, batch_size: int) -> None:
    vectors, _ = draw(batch_size, rng)
    _, num_vectors, dim = vectors.shape
    pairs = DotInteraction(num_vectors)(vectors)
    # The upper triangle row by row: (0,1), (0,2), ..., (1,2), ...
    expected = [vectors[:, i] @ vectors[:, j].T for i in range(num_vectors) for j in range(i + 1, num_vectors)]
    torch.testing.assert_close(pairs, torch.stack([e.diagonal() for e in expected], dim=1), **TOLERANCE)
    theirs = InteractionArch(num_sparse_features=num_vectors - 1)(vectors[:, 0], vectors[:, 1:])
    beside = DotInteraction(num_vectors)(vectors[:, 1:], vectors[:, 0])
    torch.testing.assert_close(beside, theirs, **TOLERANCE)
    assert torch.equal(beside[:, :dim], vectors[:, 0])


def test_the_gradient_equals_an_einsums(seed: int, rng: random.Random, batch_size: int) -> None:
    vectors, weights = draw(batch_size, rng)
    num_vectors, dim = vectors.shape[1:]
    interaction = DotInteraction(num_vectors)
    [gradient] = torch.autograd.grad((interaction(vectors) * weights).sum(), vectors)
    rows, columns = torch.triu_indices(num_vectors, num_vectors, offset=1)
    products = torch.einsum("bid,bjd->bij", vectors, vectors)[:, rows, columns]
    [expected] = torch.autograd.grad((products * weights).sum(), vectors)
    torch.testing.assert_close(gradient, expected, **TOLERANCE)
    # And with the first vector apart, which comes out itself too.
    own = torch.randn(batch_size, dim)
    output = interaction(vectors[:, 1:], vectors[:, 0])
    [gradient] = torch.autograd.grad((output * torch.cat([own, weights], dim=1)).sum(), vectors)
    expected[:, 0] += own
    torch.testing.assert_close(gradient, expected, **TOLERANCE)


def test_autocast_multiplies_in_its_own_type(seed: int, rng: random.Random, batch_size: int) -> None:
    vectors, weights = draw(batch_size, rng)
    interaction = DotInteraction(vectors.shape[1])
    expected = interaction(vectors)
    [expected_gradient] = torch.autograd.grad((expected * weights).sum(), vectors)
    with torch.autocast("cpu", torch.bfloat16):
        # The bottom arch is narrow already, the embeddings are not.
        narrow = interaction(vectors[:, 1:], vectors[:, 0].bfloat16())[:, vectors.shape[2] :]
    assert narrow.dtype == torch.bfloat16
    [gradient] = torch.autograd.grad((narrow.float() * weights).sum(), vectors)
    assert gradient.dtype == torch.float32
    torch.testing.assert_close(narrow.float(), expected, **BF16_TOLERANCE)
    torch.testing.assert_close(gradient, expected_gradient, **BF16_TOLERANCE)


def test_backward_needs_one_product_of_the_forwards_size() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    vectors = torch.empty(2, 5, 3, device="meta", requires_grad=True)
    with torch.device("meta"):
        interaction = DotInteraction(5)
    with FlopCounterMode(display=False) as forward:
        output = interaction(vectors)
    with FlopCounterMode(display=False) as backward:
        output.sum().backward()
    assert forward.get_total_flops() == backward.get_total_flops() == 2 * (2 * 5 * 5 * 3)


@pytest.mark.parametrize("with_dense", [True, False])
def test_a_batch_may_be_empty(with_dense: bool) -> None:
    vectors, dense = torch.randn(0, 3, 4, requires_grad=True), torch.randn(0, 4, requires_grad=True)
    output = DotInteraction(3 + with_dense)(vectors, dense if with_dense else None)
    assert output.shape == (0, 4 + 6 if with_dense else 3)
    output.sum().backward()
    assert vectors.grad is not None and vectors.grad.shape == vectors.shape


@pytest.mark.parametrize("with_dense", [True, False])
@pytest.mark.parametrize("num_vectors", [5, 7])
def test_another_number_of_vectors_is_refused(num_vectors: int, with_dense: bool) -> None:
    vectors, dense = torch.randn(2, 6 - with_dense, 3), torch.randn(2, 3) if with_dense else None
    with pytest.raises(UserInputError, match=rf"num_vectors={num_vectors}: it was given 6 .* num_vectors=6$"):
        DotInteraction(num_vectors)(vectors, dense)


# torch 2.13's compiler calls what torch 2.13 has deprecated.
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch", "ignore::FutureWarning:torch")
def test_the_number_of_vectors_is_known_to_the_compiler() -> None:
    interaction = DotInteraction(4)
    compiled = torch.compile(interaction, backend="eager", fullgraph=True, dynamic=True)
    vectors = torch.randn(5, 4, 3)
    assert torch.equal(compiled(vectors), interaction(vectors))


def test_training_may_follow_an_evaluation_in_inference_mode() -> None:
    interaction = DotInteraction(4)
    # Another device than where the indices are; on a machine without a GPU there is only this one.
    vectors = torch.empty(2, 4, 3, device="meta", requires_grad=True)
    with torch.inference_mode():
        interaction(vectors.detach())
    assert interaction.pairs.device == vectors.device
    interaction(vectors).sum().backward()
    assert vectors.grad is not None
