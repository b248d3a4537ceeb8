"""FusedEmbeddingBags against torch's embedding_bag and optimiser formulas written out."""

import copy
import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchrec.modules.embedding_configs import EmbeddingBagConfig

from dmt.errors import UserInputError
from dmt.modules import EmbeddingOptimizer, FusedEmbeddingBags, deferred_tables

OPTIMIZERS = ["sgd", "adagrad", "rowwise_adagrad"]
# Name to (rows, embedding dim): different widths, a table of 1 row, one with rows that no batch reaches.
TABLES = {"few": (2, 8), "one": (1, 4), "many": (300, 12)}
BATCH = 6
# Pooled sums and gradients of up to 24 float32 values of order 1, added in another order: rounding of about
# sqrt(24) * 6e-8 = 3e-7 a sum, some of it carried over two steps; 5e-6 leaves a factor ten.
TOLERANCE = {"rtol": 5e-6, "atol": 5e-6}


def make(seed: int, *, name: str = "rowwise_adagrad") -> FusedEmbeddingBags:
    # eps is large so that its place in the formula shows.
    optimizer = EmbeddingOptimizer(name=name, learning_rate=0.5, eps=0.3)
    tables = [
        EmbeddingBagConfig(name=name, feature_names=[name], num_embeddings=rows, embedding_dim=dim)
        for name, (rows, dim) in TABLES.items()
    ]
    return FusedEmbeddingBags(tables, optimizer=optimizer, seed=seed)


def draw_bags(rng: random.Random, dtype: torch.dtype = torch.int64) -> tuple[Tensor, Tensor]:
    """Ids and offsets of random bags: empty ones, ids repeated inside a bag and across the batch."""
    lengths = [rng.randint(0, 4) for _ in range(len(TABLES) * BATCH)]
    lengths[0], lengths[1], lengths[-1] = 3, 0, 0  # three ids of two rows repeat one; empty at both ends
    ids = [
        rng.randrange(rows)
        for (rows, _), start in zip(TABLES.values(), range(0, len(lengths), BATCH), strict=True)
        for _ in range(sum(lengths[start : start + BATCH]))
    ]
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    return torch.tensor(ids, dtype=dtype), offsets.to(dtype)


def plain_lookup(weights: dict[str, Tensor], ids: Tensor, offsets: Tensor) -> Tensor:
    """The same (B, sum of dims), with one embedding_bag a table."""
    outputs = []
    for index, weight in enumerate(weights.values()):
        bounds = offsets[index * BATCH : (index + 1) * BATCH + 1].long()
        bags = ids[bounds[0] : bounds[-1]].long()
        outputs.append(F.embedding_bag(bags, weight, bounds[:-1] - bounds[0], mode="sum"))
    return torch.cat(outputs, dim=1)


def plain_update(weight: Tensor, gradient: Tensor, state: Tensor, optimizer: EmbeddingOptimizer) -> None:
    """One step in place. ``gradient`` holds the sum over all occurrences of a row, as an exact optimiser sees it.

    eps is added to the root, not under it; rowwise Adagrad accumulates the *mean* square of a row's gradient.
    """
    if optimizer.name == "sgd":
        weight -= optimizer.learning_rate * gradient
        return
    square = gradient.square()
    state += square if optimizer.name == "adagrad" else square.mean(dim=1, keepdim=True)
    weight -= optimizer.learning_rate * gradient / (state.sqrt() + optimizer.eps)


def train_step(bags: FusedEmbeddingBags, ids: Tensor, offsets: Tensor, output_gradient: Tensor) -> None:
    bags(ids, offsets).backward(output_gradient)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_lookups_and_steps_equal_plain_torch(seed: int, rng: random.Random, name: str, dtype: torch.dtype) -> None:
    bags = make(seed, name=name)
    weights = {table: weight.detach().clone() for table, weight in bags.weights.items()}
    states = {table: torch.zeros_like(w if name == "adagrad" else w[:, :1]) for table, w in weights.items()}
    for _ in range(2):  # the second step finds an accumulator that is not zero
        ids, offsets = draw_bags(rng, dtype)
        leaves = {table: weight.clone().requires_grad_() for table, weight in weights.items()}
        expected = plain_lookup(leaves, ids, offsets)
        output = bags(ids, offsets)
        torch.testing.assert_close(output, expected, **TOLERANCE)

        gradient = torch.randn_like(expected)
        expected.backward(gradient)
        output.backward(gradient)
        for table, weight in weights.items():
            plain_update(weight, leaves[table].grad, states[table], bags.optimizer)
            torch.testing.assert_close(bags.weights[table].data, weight, **TOLERANCE)
            if name != "sgd":
                state = bags.get_buffer(f"{table}_momentum").view_as(states[table])
                torch.testing.assert_close(state, states[table], **TOLERANCE)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_rows_not_looked_up_never_move(seed: int, rng: random.Random, name: str) -> None:
    bags = make(seed, name=name)
    before = bags.weights["many"].detach().clone()
    touched: set[int] = set()
    for _ in range(2):
        ids, offsets = draw_bags(rng)
        touched |= set(ids[offsets[2 * BATCH] :].tolist())
        train_step(bags, ids, offsets, torch.randn(BATCH, 24))
    moved = (bags.weights["many"] != before).any(dim=1).nonzero().flatten().tolist()
    assert moved == sorted(touched)


def test_an_empty_bag_pools_to_zero(seed: int) -> None:
    bags = make(seed)
    assert not bags(torch.empty(0, dtype=torch.int64), torch.zeros(3 * BATCH + 1, dtype=torch.int64)).any()


def test_an_empty_batch_goes_forward_and_backward(seed: int) -> None:
    bags = make(seed)
    before = copy.deepcopy(dict(bags.state_dict()))
    output = bags(torch.empty(0, dtype=torch.int64), torch.zeros(1, dtype=torch.int64))
    assert output.shape == (0, 24)
    output.sum().backward()
    assert all(torch.equal(value, before[key]) for key, value in bags.state_dict().items())


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("wrong", [-1, 1])
def test_an_id_out_of_range_raises(seed: int, wrong: int, inference: bool) -> None:
    bags = make(seed)
    # Table "one" has one row, and ids of "many" follow: a kernel that does not look reads them instead.
    ids, offsets = torch.tensor([0, wrong, 0]), torch.arange(4)
    with pytest.raises(RuntimeError, match=r"idx|out of bounds"), torch.inference_mode(inference):
        bags(ids, offsets)


def test_evaluation_never_updates(seed: int, rng: random.Random) -> None:
    bags = make(seed)
    before = copy.deepcopy(dict(bags.state_dict()))
    ids, offsets = draw_bags(rng)
    expected = bags(ids, offsets).detach()
    with torch.no_grad():
        assert torch.equal(bags(ids, offsets), expected)
    with torch.inference_mode():
        output = bags(ids, offsets)
        assert torch.equal(output, expected) and not output.requires_grad
    assert all(torch.equal(value, before[key]) for key, value in bags.state_dict().items())
    train_step(bags, ids, offsets, torch.randn(BATCH, 24))  # training goes on after inference mode
    assert not torch.equal(bags.weights["few"], before["few_weight"])


def test_deferred_tables_have_no_storage() -> None:
    with deferred_tables():
        bags = make(0)
    assert not list(bags.parameters()) and not list(bags.buffers()) and not bags.state_dict()
    assert [table.name for table in bags.tables] == list(TABLES)
    with pytest.raises(RuntimeError, match=r"deferred_tables\(\).*no storage"):
        bags(torch.tensor([0]), torch.tensor([0, 1]))


def test_tables_are_deferred_inside_the_context_only() -> None:
    with pytest.raises(KeyError), deferred_tables():
        raise KeyError
    assert make(0).state_dict()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_loaded_state_continues_the_run(seed: int, rng: random.Random, name: str) -> None:
    first, second = make(seed, name=name), make(seed + 1, name=name)
    train_step(first, *draw_bags(rng), torch.randn(BATCH, 24))
    train_step(second, *draw_bags(rng), torch.randn(BATCH, 24))  # so that it has another accumulator to replace
    expected_keys = [f"{table}_weight" for table in TABLES]
    expected_keys += [f"{table}_momentum" for table in TABLES] if name != "sgd" else []
    saved = {key: value.clone() for key, value in first.state_dict().items()}
    assert list(saved) == expected_keys

    addresses = {key: value.data_ptr() for key, value in second.state_dict().items()}
    second.load_state_dict(saved)
    assert {key: value.data_ptr() for key, value in second.state_dict().items()} == addresses
    # The kernel itself has the loaded rows and accumulators: the next step agrees too. Bit for bit, since both
    # run the same code on the same numbers.
    batch, gradient = draw_bags(rng), torch.randn(BATCH, 24)
    assert torch.equal(first(*batch), second(*batch))
    for bags in (first, second):
        train_step(bags, *batch, gradient)
    for key, value in second.state_dict().items():
        assert torch.equal(value, first.state_dict()[key]), key


@pytest.mark.parametrize(
    "move", [nn.Module.double, nn.Module.half, nn.Module.cpu, lambda model: model.to(torch.float64)]
)
def test_moving_the_model_leaves_tables_where_the_kernel_sees_them(
    seed: int, rng: random.Random, move: Callable[[nn.Module], nn.Module]
) -> None:
    bags = make(seed)
    model = nn.ModuleDict({"bags": bags, "linear": nn.Linear(2, 2)})
    move(model)
    before = {key: value.clone() for key, value in bags.state_dict().items()}
    assert all(value.dtype == torch.float32 for value in before.values())
    ids, offsets = draw_bags(rng)
    train_step(bags, ids, offsets, torch.randn(BATCH, 24))
    for key in ("few_weight", "few_momentum"):
        assert not torch.equal(bags.state_dict()[key], before[key]), key
    torch.testing.assert_close(bags(ids, offsets), plain_lookup(dict(bags.weights), ids, offsets), **TOLERANCE)


def test_a_copys_state_dict_follows_its_own_steps(seed: int, rng: random.Random) -> None:
    bags = copy.deepcopy(make(seed))
    before = {key: value.clone() for key, value in bags.state_dict().items()}
    train_step(bags, *draw_bags(rng), torch.randn(BATCH, 24))
    for key in ("few_weight", "few_momentum"):
        assert not torch.equal(bags.state_dict()[key], before[key]), key


def test_a_learning_rate_that_was_set_is_that_of_the_next_step(seed: int, rng: random.Random) -> None:
    bags = make(seed, name="sgd")
    before = {table: weight.detach().clone() for table, weight in bags.weights.items()}
    ids, offsets = draw_bags(rng)
    bags.set_learning_rate(0.0)
    train_step(bags, ids, offsets, torch.randn(BATCH, 24))
    assert all(torch.equal(weight, before[table]) for table, weight in bags.weights.items())
    bags.set_learning_rate(2.0)
    leaves = {table: weight.clone().requires_grad_() for table, weight in before.items()}
    gradient = torch.randn(BATCH, 24)
    plain_lookup(leaves, ids, offsets).backward(gradient)
    train_step(bags, ids, offsets, gradient)
    for table, weight in bags.weights.items():
        torch.testing.assert_close(weight.data, before[table] - 2.0 * leaves[table].grad, **TOLERANCE)


def test_a_copy_keeps_the_learning_rate_that_was_set(seed: int, rng: random.Random) -> None:
    bags = make(seed)
    bags.set_learning_rate(0.0)
    twin = copy.deepcopy(bags)
    before = twin.weights["few"].detach().clone()
    train_step(twin, *draw_bags(rng), torch.randn(BATCH, 24))
    assert torch.equal(twin.weights["few"], before)


def test_tables_reach_no_dense_optimizer(seed: int) -> None:
    bags = make(seed)
    assert [name for name, _ in bags.named_parameters()] == [f"{table}_weight" for table in TABLES]
    assert not any(parameter.requires_grad for parameter in bags.parameters())


@pytest.mark.parametrize(("dim", "choice"), [(6, 8), (1, 4), (0, 4), (-4, 4)])
def test_a_width_that_the_kernels_lack_is_refused(dim: int, choice: int) -> None:
    table = EmbeddingBagConfig(name="a", feature_names=["a"], num_embeddings=3, embedding_dim=dim)
    with pytest.raises(UserInputError, match=rf"^embedding_dim={dim}: .*multiple of 4; choose {choice}$"):
        FusedEmbeddingBags([table], optimizer=EmbeddingOptimizer(), seed=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "adam"}, "name='adam': choose one of sgd, adagrad, rowwise_adagrad"),
        ({"learning_rate": -0.1}, "learning_rate=-0.1.*give numbers >= 0"),
        ({"eps": -1.0}, "eps=-1.0.*give numbers >= 0"),
    ],
)
def test_wrong_optimizer_options_are_named(options: dict, message: str) -> None:
    with pytest.raises(UserInputError, match=message):
        EmbeddingOptimizer(**options)


@pytest.mark.parametrize("name", ["adagrad", "rowwise_adagrad"])
def test_a_gradient_of_zero_cannot_make_a_row_nan(name: str) -> None:
    try:
        optimizer = EmbeddingOptimizer(name=name, eps=0.0)
    except UserInputError:
        return
    table = EmbeddingBagConfig(name="a", feature_names=["a"], num_embeddings=3, embedding_dim=4)
    bags = FusedEmbeddingBags([table], optimizer=optimizer, seed=0)
    train_step(bags, torch.tensor([0]), torch.tensor([0, 1]), torch.zeros(1, 4))
    assert bags.weights["a"].isfinite().all()
