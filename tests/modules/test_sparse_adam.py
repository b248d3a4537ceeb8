"""Adam inside backward: against torch.optim.SparseAdam, table by table."""

import random

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dmt.modules import FusedEmbeddingBags, sparse_kernel
from tests.modules.embedding_cases import (
    BATCH,
    LOOKUPS,
    TOLERANCE,
    WIDTH,
    Bags,
    draw_bags,
    make,
    plain_lookup,
    train_step,
)

NO_BAGS = Bags(torch.empty(0, dtype=torch.int64), torch.zeros(1, dtype=torch.int64), None)
NO_IDS = Bags(NO_BAGS.ids, torch.zeros(len(LOOKUPS) * BATCH + 1, dtype=torch.int64), None)


class PlainAdam:
    """Tables with torch's sparse gradients and torch's SparseAdam, started from the same weights."""

    def __init__(self, bags: FusedEmbeddingBags) -> None:
        self.options = bags.optimizer
        self.weights = {name: weight.detach().clone().requires_grad_() for name, weight in bags.weights.items()}
        self.adam = torch.optim.SparseAdam(
            list(self.weights.values()), lr=self.options.learning_rate, betas=self.options.betas
        )
        self.step = 0

    def train_step(self, batch: Bags, output_gradient: Tensor) -> Tensor:
        output = plain_lookup(self.weights, batch, sparse=True)
        self.adam.zero_grad()
        output.backward(output_gradient)
        self.step += 1
        # SparseAdam adds eps before it corrects the second moment, FBGEMM and torch.optim.Adam after.
        self.adam.param_groups[0]["eps"] = self.options.eps * (1 - self.options.betas[1] ** self.step) ** 0.5
        self.adam.step()
        return output.detach()

    def assert_equals(self, bags: FusedEmbeddingBags) -> None:
        state = bags.state_dict()
        for name, weight in self.weights.items():
            torch.testing.assert_close(state[f"{name}_weight"], weight.detach(), **TOLERANCE)
            for kind in ("exp_avg", "exp_avg_sq"):
                torch.testing.assert_close(state[f"{name}_{kind}"], self.adam.state[weight][kind], **TOLERANCE)
        assert state["step"].shape == () and state["step"] == self.step


@pytest.mark.parametrize("block_floats", [1, 40, sparse_kernel._BLOCK_FLOATS])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_steps_equal_torchs_sparse_adam(
    seed: int,
    rng: random.Random,
    monkeypatch: pytest.MonkeyPatch,
    dtype: torch.dtype,
    weighted: bool,
    block_floats: int,
) -> None:
    monkeypatch.setattr(sparse_kernel, "_BLOCK_FLOATS", block_floats)
    bags = make(seed, name="adam")
    plain = PlainAdam(bags)
    for _ in range(4):
        batch, gradient = draw_bags(rng, dtype, weighted=weighted), torch.randn(BATCH, WIDTH)
        output = bags(*batch)
        torch.testing.assert_close(output.detach(), plain.train_step(batch, gradient), **TOLERANCE)
        output.backward(gradient)
        plain.assert_equals(bags)


def test_tables_of_one_width_are_stepped_alike(seed: int, rng: random.Random) -> None:
    # One width throughout takes a shorter way than the mixed widths of the other tests.
    shards = [shard for shard in make(seed).shards if shard.width == 8]
    bags = make(seed, name="adam", shards=shards)
    weights = {name: weight.detach().clone().requires_grad_() for name, weight in bags.weights.items()}
    adam = torch.optim.SparseAdam(list(weights.values()), lr=0.5, betas=bags.optimizer.betas)
    for step in range(1, 4):
        few, some = torch.randint(2, (5,)), torch.randint(20, (5,))
        gradient = torch.randn(5, 16)
        bags(torch.cat([few, some]), torch.arange(11)).backward(gradient)
        adam.zero_grad()
        plain = [F.embedding(ids, weights[name], sparse=True) for name, ids in (("few", few), ("some", some))]
        torch.cat(plain, dim=1).backward(gradient)
        adam.param_groups[0]["eps"] = 0.3 * (1 - bags.optimizer.betas[1] ** step) ** 0.5
        adam.step()
        for name, weight in weights.items():
            torch.testing.assert_close(bags.weights[name].data, weight.detach(), **TOLERANCE)


@pytest.mark.parametrize("empty", [NO_IDS, NO_BAGS])
def test_a_batch_without_ids_counts_as_a_step(seed: int, rng: random.Random, empty: Bags) -> None:
    bags = make(seed, name="adam")
    plain = PlainAdam(bags)
    first, second = (draw_bags(rng), torch.randn(BATCH, WIDTH)), (draw_bags(rng), torch.randn(BATCH, WIDTH))
    plain.train_step(*first)
    plain.train_step(NO_IDS, torch.randn(BATCH, WIDTH))
    plain.train_step(*second)
    train_step(bags, *first)
    output = bags(*empty)
    output.backward(torch.randn_like(output))
    train_step(bags, *second)
    plain.assert_equals(bags)


def test_only_backward_passes_count(seed: int, rng: random.Random) -> None:
    bags = make(seed, name="adam")
    batch = draw_bags(rng)
    bags(*batch)
    with torch.no_grad():
        bags(*batch)
    with torch.inference_mode():
        bags(*batch)
    assert bags.state_dict()["step"] == 0
    train_step(bags, batch, torch.randn(BATCH, WIDTH))
    assert bags.state_dict()["step"] == 1


def test_moments_of_rows_not_looked_up_never_move(seed: int, rng: random.Random) -> None:
    bags = make(seed, name="adam")
    train_step(bags, draw_bags(rng), torch.randn(BATCH, WIDTH))
    before = {key: value.clone() for key, value in bags.state_dict().items()}
    batch = draw_bags(rng)
    train_step(bags, batch, torch.randn(BATCH, WIDTH))
    touched = {int(row) for i, (_, table) in enumerate(LOOKUPS) if table.name == "many" for row in batch.of(i).ids}
    for kind in ("weight", "exp_avg", "exp_avg_sq"):
        moved = (bags.state_dict()[f"many_{kind}"] != before[f"many_{kind}"]).any(dim=1).nonzero().flatten().tolist()
        assert moved == sorted(touched), kind


def test_a_gradient_spread_from_one_number_is_read_right(seed: int, rng: random.Random) -> None:
    # sum() hands down one number expanded to (B, WIDTH): a tensor whose memory is not what its shape says.
    bags = make(seed, name="adam")
    plain = PlainAdam(bags)
    batch = draw_bags(rng)
    plain.train_step(batch, torch.ones(BATCH, WIDTH))
    bags(*batch).sum().backward()
    plain.assert_equals(bags)
