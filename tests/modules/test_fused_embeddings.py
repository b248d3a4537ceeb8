"""FusedEmbeddingBags against torch's embedding_bag and optimiser formulas written out."""

import copy
import pickle
import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torchrec.modules.embedding_configs import EmbeddingBagConfig

from dmt.errors import UserInputError
from dmt.modules import EmbeddingOptimizer, FusedEmbeddingBags, deferred_tables, sparse_kernel
from dmt.modules.embeddings import fbgemm_optimizer
from dmt.modules.shards import TableShard
from tests.modules.embedding_cases import (
    BATCH,
    LOOKUPS,
    OPTIMIZERS,
    TABLES,
    TOLERANCE,
    WIDTH,
    draw_bags,
    make,
    plain_lookup,
    train_step,
)

WITHOUT_ADAM = OPTIMIZERS[:-1]  # its steps have a test of their own, test_sparse_adam.py
STATES = {"sgd": [], "adagrad": ["momentum"], "rowwise_adagrad": ["momentum"], "adam": ["exp_avg", "exp_avg_sq"]}
NUM_BAGS = len(LOOKUPS) * BATCH


def saved_and_loaded(bags: FusedEmbeddingBags) -> FusedEmbeddingBags:
    return pickle.loads(pickle.dumps(bags))


COPIES = pytest.mark.parametrize("copied", [copy.deepcopy, saved_and_loaded])


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


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize(
    ("name", "block_floats"),
    [*((name, sparse_kernel._BLOCK_FLOATS) for name in WITHOUT_ADAM), ("rowwise_adagrad", 40), ("rowwise_adagrad", 1)],
)
def test_lookups_and_steps_equal_plain_torch(
    seed: int,
    rng: random.Random,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    block_floats: int,
    dtype: torch.dtype,
    weighted: bool,
) -> None:
    monkeypatch.setattr(sparse_kernel, "_BLOCK_FLOATS", block_floats)
    bags = make(seed, name=name)
    weights = {table: weight.detach().clone() for table, weight in bags.weights.items()}
    states = {table: torch.zeros_like(w if name == "adagrad" else w[:, :1]) for table, w in weights.items()}
    for _ in range(2):  # the second step finds an accumulator that is not zero
        batch = draw_bags(rng, dtype, weighted=weighted)
        leaves = {table: weight.clone().requires_grad_() for table, weight in weights.items()}
        expected = plain_lookup(leaves, batch)
        output = bags(*batch)
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
        batch = draw_bags(rng)
        touched |= {
            int(i) for index, (_, table) in enumerate(LOOKUPS) if table.name == "many" for i in batch.of(index).ids
        }
        train_step(bags, batch, torch.randn(BATCH, WIDTH))
    moved = (bags.weights["many"] != before).any(dim=1).nonzero().flatten().tolist()
    assert moved == sorted(touched)


def test_an_empty_bag_pools_to_zero(seed: int) -> None:
    bags = make(seed)
    assert not bags(torch.empty(0, dtype=torch.int64), torch.zeros(NUM_BAGS + 1, dtype=torch.int64)).any()


def test_an_empty_batch_goes_forward_and_backward(seed: int) -> None:
    bags = make(seed)
    before = copy.deepcopy(dict(bags.state_dict()))
    output = bags(torch.empty(0, dtype=torch.int64), torch.zeros(1, dtype=torch.int64))
    assert output.shape == (0, WIDTH)
    output.sum().backward()
    assert all(torch.equal(value, before[key]) for key, value in bags.state_dict().items())


@pytest.mark.parametrize("inference", [False, True])
def test_ids_on_another_device_are_refused(seed: int, rng: random.Random, inference: bool) -> None:
    bags, batch = make(seed), draw_bags(rng)
    message = r"^embedding tables on cpu, ids of the batch on meta: .* \(configure_model\), .* torch\.device\('meta'\)$"
    with pytest.raises(UserInputError, match=message), torch.inference_mode(inference):
        bags(batch.ids.to("meta"), batch.offsets.to("meta"))


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("wrong", [-1, 1])
@pytest.mark.parametrize("name", ["rowwise_adagrad", "adam"])
def test_an_id_out_of_range_raises(seed: int, name: str, wrong: int, inference: bool) -> None:
    bags = make(seed, name=name)
    # Table "one" has one row, and rows of "many" follow: a kernel that does not look reads them instead.
    ids, offsets = torch.tensor([0, wrong, 0, 0, 0]), torch.arange(len(LOOKUPS) + 1)
    with pytest.raises(RuntimeError, match=r"idx|out of bounds"), torch.inference_mode(inference):
        bags(ids, offsets)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_evaluation_never_updates(seed: int, rng: random.Random, name: str, weighted: bool) -> None:
    bags = make(seed, name=name)
    before = copy.deepcopy(dict(bags.state_dict()))
    batch = draw_bags(rng, weighted=weighted)
    expected = bags(*batch).detach()
    with torch.no_grad():
        assert torch.equal(bags(*batch), expected)
    with torch.inference_mode():
        output = bags(*batch)
        assert torch.equal(output, expected) and not output.requires_grad
    assert all(torch.equal(value, before[key]) for key, value in bags.state_dict().items())
    train_step(bags, batch, torch.randn(BATCH, WIDTH))  # training goes on after inference mode
    assert not torch.equal(bags.weights["few"], before["few_weight"])


def test_deferred_tables_have_no_storage() -> None:
    with deferred_tables():
        bags = make(0)
    assert not list(bags.parameters()) and not list(bags.buffers()) and not bags.state_dict()
    assert [name for name, _ in bags.lookups] == [name for name, _ in LOOKUPS]
    with pytest.raises(RuntimeError, match=r"no storage.*deferred_tables\(\)"):
        bags(torch.tensor([0]), torch.tensor([0, 1]))


def test_tables_are_deferred_inside_the_context_only() -> None:
    with pytest.raises(KeyError), deferred_tables():
        raise KeyError
    assert make(0).state_dict()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_loaded_state_continues_the_run(seed: int, rng: random.Random, name: str) -> None:
    first, second = make(seed, name=name), make(seed + 1, name=name)
    train_step(first, draw_bags(rng), torch.randn(BATCH, WIDTH))
    train_step(second, draw_bags(rng), torch.randn(BATCH, WIDTH))  # so that it has another accumulator to replace
    expected_keys = [f"{table.name}_weight" for table in TABLES]
    expected_keys += [f"{table.name}_{kind}" for table in TABLES for kind in STATES[name]]
    expected_keys += ["step"] if name == "adam" else []
    saved = {key: value.clone() for key, value in first.state_dict().items()}
    assert list(saved) == expected_keys

    addresses = {key: value.data_ptr() for key, value in second.state_dict().items()}
    second.load_state_dict(saved)
    assert {key: value.data_ptr() for key, value in second.state_dict().items()} == addresses
    # The kernel itself has the loaded rows and accumulators: the next step agrees too. Bit for bit, since both
    # run the same code on the same numbers.
    batch, gradient = draw_bags(rng), torch.randn(BATCH, WIDTH)
    assert torch.equal(first(*batch), second(*batch))
    for bags in (first, second):
        train_step(bags, batch, gradient)
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
    batch = draw_bags(rng)
    train_step(bags, batch, torch.randn(BATCH, WIDTH))
    for key in ("few_weight", "few_momentum"):
        assert not torch.equal(bags.state_dict()[key], before[key]), key
    torch.testing.assert_close(bags(*batch), plain_lookup(dict(bags.weights), batch), **TOLERANCE)


@COPIES
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_copys_state_dict_follows_its_own_steps(
    seed: int, rng: random.Random, name: str, copied: Callable[[FusedEmbeddingBags], FusedEmbeddingBags]
) -> None:
    bags = copied(make(seed, name=name))
    before = {key: value.clone() for key, value in bags.state_dict().items()}
    train_step(bags, draw_bags(rng), torch.randn(BATCH, WIDTH))
    for key in ["few_weight", *(f"few_{kind}" for kind in STATES[name])]:
        assert not torch.equal(bags.state_dict()[key], before[key]), key


def test_a_learning_rate_that_was_set_is_that_of_the_next_step(seed: int, rng: random.Random) -> None:
    bags = make(seed, name="sgd")
    before = {table: weight.detach().clone() for table, weight in bags.weights.items()}
    batch = draw_bags(rng)
    bags.set_learning_rate(0.0)
    train_step(bags, batch, torch.randn(BATCH, WIDTH))
    assert all(torch.equal(weight, before[table]) for table, weight in bags.weights.items())
    bags.set_learning_rate(2.0)
    leaves = {table: weight.clone().requires_grad_() for table, weight in before.items()}
    gradient = torch.randn(BATCH, WIDTH)
    plain_lookup(leaves, batch).backward(gradient)
    train_step(bags, batch, gradient)
    for table, weight in bags.weights.items():
        torch.testing.assert_close(weight.data, before[table] - 2.0 * leaves[table].grad, **TOLERANCE)


@COPIES
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_copy_keeps_the_learning_rate_that_was_set(
    seed: int, rng: random.Random, name: str, copied: Callable[[FusedEmbeddingBags], FusedEmbeddingBags]
) -> None:
    bags = make(seed, name=name)
    bags.set_learning_rate(0.0)
    twin = copied(bags)
    before = twin.weights["few"].detach().clone()
    train_step(twin, draw_bags(rng), torch.randn(BATCH, WIDTH))
    assert torch.equal(twin.weights["few"], before)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_tables_reach_no_dense_optimizer(seed: int, name: str) -> None:
    bags = make(seed, name=name)
    assert [key for key, _ in bags.named_parameters()] == [f"{table.name}_weight" for table in TABLES]
    assert not any(parameter.requires_grad for parameter in bags.parameters())


@pytest.mark.parametrize(("dim", "choice"), [(6, 8), (1, 4)])
def test_a_width_that_the_kernels_lack_is_refused(dim: int, choice: int) -> None:
    table = EmbeddingBagConfig(name="a", feature_names=["a"], num_embeddings=3, embedding_dim=dim)
    with pytest.raises(UserInputError, match=rf"^embedding_dim={dim}: .*multiple of 4; choose {choice}$"):
        FusedEmbeddingBags([TableShard.whole(table)], optimizer=EmbeddingOptimizer(), seed=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "lamb"}, "name='lamb': choose one of sgd, adagrad, rowwise_adagrad, adam"),
        ({"name": "adam", "eps": 0.0}, "eps=0: adam would divide"),
        ({"name": "adam", "betas": (0.9, 1.0)}, r"betas=\(0.9, 1.0\): give two numbers"),
        ({"name": "adam", "betas": (-0.1, 0.9)}, r"betas=\(-0.1, 0.9\): give two numbers"),
        ({"name": "adam", "betas": (0.9,)}, r"betas=\(0.9,\): give two numbers"),
        ({"learning_rate": -0.1}, "learning_rate=-0.1.*give numbers >= 0"),
        ({"eps": -1.0}, "eps=-1.0.*give numbers >= 0"),
    ],
)
def test_wrong_optimizer_options_are_named(options: dict, message: str) -> None:
    with pytest.raises(UserInputError, match=message):
        EmbeddingOptimizer(**options)


def test_fbgemm_has_no_adam_on_the_cpu() -> None:
    with pytest.raises(UserInputError, match=r"^embedding optimizer name='adam': .* sptt .* or choose adagrad$"):
        fbgemm_optimizer(EmbeddingOptimizer(name="adam"))
    options = fbgemm_optimizer(EmbeddingOptimizer(name="adam", betas=(0.7, 0.8)), device=torch.device("cuda"))
    assert (options["beta1"], options["beta2"]) == (0.7, 0.8)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_state_floats_are_those_of_the_kernel(name: str) -> None:
    bags = make(0, name=name)
    for table in TABLES:
        floats = sum(bags.state_dict()[f"{table.name}_{kind}"].numel() for kind in STATES[name])
        assert floats == table.num_embeddings * bags.optimizer.state_floats(table.embedding_dim)


@pytest.mark.parametrize("name", ["adagrad", "rowwise_adagrad", "adam"])
def test_a_gradient_of_zero_cannot_make_a_row_nan(name: str) -> None:
    try:
        optimizer = EmbeddingOptimizer(name=name, eps=0.0)
    except UserInputError:
        return
    table = EmbeddingBagConfig(name="a", feature_names=["a"], num_embeddings=3, embedding_dim=4)
    bags = FusedEmbeddingBags([TableShard.whole(table)], optimizer=optimizer, seed=0)
    bags(torch.tensor([0]), torch.tensor([0, 1])).backward(torch.zeros(1, 4))
    assert bags.weights["a"].isfinite().all()
