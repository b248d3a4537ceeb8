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
from dmt.modules import DotInteraction, FusedEmbeddingBags
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_dot_interaction_and_its_gradient(seed: int, rng: random.Random, dtype: torch.dtype) -> None:
    batch_size, num_vectors, dim = rng.randint(1, 40), rng.randint(2, 30), rng.randint(1, 70)
    dense, vectors = torch.randn(batch_size, dim).to(dtype), torch.randn(batch_size, num_vectors - 1, dim).to(dtype)
    weights = torch.randn(batch_size, dim + num_vectors * (num_vectors - 1) // 2)

    def run(device: str, wide: torch.dtype) -> list[Tensor]:
        inputs = [tensor.to(device, wide).requires_grad_() for tensor in (vectors, dense)]
        output = DotInteraction(num_vectors)(*inputs)
        output.backward(weights.to(output))
        return [tensor.detach().cpu().double() for tensor in (output, *(i.grad for i in inputs))]

    # Sums of up to 70 products, or of 30, of order 1: of size up to 30, each rounded by half a unit of the type, and
    # a few times in sums. Relative to the largest.
    allowed = 8 * torch.finfo(dtype).eps
    for found, wanted in zip(run("cuda", dtype), run("cpu", torch.float64), strict=True):
        assert float((found - wanted).abs().max()) <= allowed * float(wanted.abs().max())


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
