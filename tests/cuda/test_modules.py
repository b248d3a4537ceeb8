"""Tables, interaction and layers on a GPU against the same on the CPU."""

import copy
import pickle
import random
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from dmt.errors import UserInputError
from dmt.modules import DotInteraction, FusedEmbeddingBags, interactions
from tests.modules.embedding_cases import BATCH, OPTIMIZERS, TOLERANCE, WIDTH, Bags, draw_bags, make, train_step
from tests.modules.test_precision_and_compile import (
    BF16_COSINE,
    BF16_LOSS_TOLERANCE,
    COMPILED_MODELS,
    FUSED_TOLERANCE,
    MODELS,
    first_step,
)


def moved(batch: Bags) -> Bags:
    return Bags(*(part if part is None else part.cuda() for part in batch))


def make_on_gpu(seed: int, name: str) -> FusedEmbeddingBags:
    with torch.device("cuda"):
        return make(seed, name=name)


def assert_same_state(on_gpu: FusedEmbeddingBags, bags: FusedEmbeddingBags) -> None:
    for key, value in bags.state_dict().items():
        torch.testing.assert_close(on_gpu.state_dict()[key].cpu(), value, **TOLERANCE)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_tables_take_the_same_steps(
    seed: int, rng: random.Random, name: str, dtype: torch.dtype, weighted: bool
) -> None:
    bags, on_gpu = make(seed, name=name), make_on_gpu(seed, name)
    assert all(torch.equal(on_gpu.weights[table].cpu(), weight) for table, weight in bags.weights.items())
    for rate in (0.5, 0.2, 0.0):
        batch, gradient = draw_bags(rng, dtype, weighted=weighted), torch.randn(BATCH, WIDTH)
        bags.set_learning_rate(rate)
        on_gpu.set_learning_rate(rate)
        for evaluate in (torch.no_grad, torch.inference_mode):  # neither may count as a step
            with evaluate():
                torch.testing.assert_close(on_gpu(*moved(batch)).cpu(), bags(*batch), **TOLERANCE)
        train_step(bags, batch, gradient)
        train_step(on_gpu, moved(batch), gradient.cuda())
        assert_same_state(on_gpu, bags)
    for copied in (copy.deepcopy(on_gpu), pickle.loads(pickle.dumps(on_gpu))):
        assert copied.device.type == "cuda"
        train_step(copied, moved(batch), gradient.cuda())
        assert_same_state(on_gpu, bags)  # the copy's step is its own


def test_ids_in_host_memory_are_refused(seed: int, rng: random.Random) -> None:
    message = r"^embedding tables on cuda:0, ids of the batch on cpu: "
    with pytest.raises(UserInputError, match=message):
        make_on_gpu(seed, "sgd")(*draw_bags(rng))


def test_an_id_out_of_range_ends_the_run() -> None:
    # In a process of its own, since it leaves the GPU unusable for the process.
    code = (
        "import torch; from tests.modules.embedding_cases import *\n"
        "with torch.device('cuda'):\n"
        "    bags = make(0)\n"
        "    bags(torch.tensor([0, 1, 0, 0, 0]), torch.arange(len(LOOKUPS) + 1))\n"
        "    torch.cuda.synchronize()\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode and "device-side assert" in ended.stderr, ended.stderr


@pytest.mark.parametrize("has_dense", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("most", "dim"), [(16, 16), (32, 70), (64, 130), (80, 20), (5, 600)])
def test_the_dot_interaction_and_its_gradient(
    seed: int, rng: random.Random, most: int, dim: int, dtype: torch.dtype, has_dense: bool
) -> None:
    """In one kernel, except with more vectors or columns than it takes."""
    batch_size, num_vectors = rng.randint(1, 40), rng.randint(max(2, most // 2), most)
    own = num_vectors - has_dense
    every = torch.randn(batch_size, num_vectors + 1, dim + 3).to(dtype)
    weights = torch.randn(batch_size, num_vectors * (num_vectors - 1) // 2 + dim * has_dense).to(dtype)

    def run(device: str, every: Tensor, weights: Tensor) -> list[Tensor]:
        every = every.to(device)
        # Columns and vectors of a wider tensor, as a part of a model gets them.
        inputs = [every[:, 1 : 1 + own, 3:], *([every[:, 0, :dim]] if has_dense else [])]
        inputs = [tensor.detach().requires_grad_() for tensor in inputs]
        output = DotInteraction(num_vectors)(*inputs)
        gradient = weights.to(output).t().contiguous().t()  # samples side by side, which no kernel may expect
        output.backward(gradient)
        return [tensor.detach().cpu().double() for tensor in (output, *(i.grad for i in inputs))]

    wanted = run("cpu", every.double(), weights.double())
    sizes = run("cpu", every.double().abs(), weights.double().abs())  # what the rounding of a sum is relative to
    # Every input, product and sum is rounded by half a unit of the type, and the sum of hundreds a few times.
    allowed = 4 * torch.finfo(dtype).eps
    for found, value, size in zip(run("cuda", every, weights), wanted, sizes, strict=True):
        assert found.shape == value.shape
        assert float((found - value).abs().max()) <= allowed * float(size.max())


def test_the_kernels_round_float32_as_float32_does(seed: int) -> None:
    """Not to TF32's ten bits, whatever the tensor cores take."""
    vectors = torch.randn(64, 27, 128)
    wanted = DotInteraction(27)(vectors.double())
    sizes = DotInteraction(27)(vectors.double().abs())  # what a sum's rounding is relative to
    found = interactions.interaction_kernels.products(vectors.cuda(), None).cpu()
    # The mean of 22,000 sums of 128 products each. TF32 alone errs by about 100 times float32's unit.
    assert float(((found - wanted).abs() / sizes).mean()) < torch.finfo(torch.float32).eps


# torch's compiler calls what torch has deprecated, and looks for gradients where there are none.
compiles = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


@compiles
@pytest.mark.parametrize("name", COMPILED_MODELS)
def test_compiled_layers_compute_the_same(name: str) -> None:
    loss, gradients = first_step(COMPILED_MODELS[name], precision="32-true", accelerator="gpu")
    fused_loss, fused = first_step(COMPILED_MODELS[name], precision="32-true", compile_layers=True, accelerator="gpu")
    assert gradients.is_cuda and fused_loss == pytest.approx(loss, rel=FUSED_TOLERANCE["rtol"])
    torch.testing.assert_close(fused, gradients, **FUSED_TOLERANCE)


@compiles
@pytest.mark.parametrize("compile_layers", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("name", MODELS)
def test_bf16_mixed_agrees_with_float32(name: str, compile_layers: bool) -> None:
    loss, gradients = first_step(MODELS[name], precision="32-true", accelerator="gpu")
    narrow_loss, narrow = first_step(
        MODELS[name], precision="bf16-mixed", compile_layers=compile_layers, accelerator="gpu"
    )
    assert narrow_loss == pytest.approx(loss, rel=BF16_LOSS_TOLERANCE) and narrow_loss != loss
    assert torch.cosine_similarity(narrow, gradients, dim=0) > BF16_COSINE
