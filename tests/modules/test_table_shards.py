"""FusedEmbeddingBags of parts of tables: together they are the whole tables, values, steps and states."""

import copy
import itertools
import random
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torchrec.modules.embedding_configs import EmbeddingBagConfig

from dmt.errors import UserInputError
from dmt.modules import FusedEmbeddingBags, deferred_tables
from dmt.modules.shards import ShardedState, TableShard, copy_into_shards
from tests.modules.embedding_cases import BATCH, LOOKUPS, OPTIMIZERS, TABLES, TOLERANCE, WIDTH, Bags, draw_bags, make

RANKS = 3
FEATURES = [name for name, _ in LOOKUPS]
DIMS = [table.embedding_dim for _, table in LOOKUPS]


def cut(rng: random.Random, size: int, step: int) -> list[tuple[int, int]]:
    """Up to three consecutive blocks of ``range(size)`` that start at multiples of ``step``."""
    inner = range(step, size, step)
    bounds = [0, *sorted(rng.sample(inner, min(len(inner), rng.randint(0, 2)))), size]
    return list(itertools.pairwise(bounds))


def shard_tables(rng: random.Random, *, columns: bool = True) -> list[list[TableShard]]:
    """Random blocks of all tables, dealt out to ranks in random order; a rank may have several of one table."""
    ranks: list[list[TableShard]] = [[] for _ in range(RANKS)]
    for table in TABLES:
        for own in cut(rng, table.embedding_dim, 4) if columns else [(0, table.embedding_dim)]:
            for rows in cut(rng, table.num_embeddings, 1):
                rng.choice(ranks).append(TableShard(table=table, rows=rows, columns=own))
    for shards in ranks:
        rng.shuffle(shards)
    return [shards for shards in ranks if shards]


def make_ranks(rng: random.Random, seed: int, name: str) -> list[FusedEmbeddingBags]:
    return [make(seed, name=name, shards=shards) for shards in shard_tables(rng, columns=name != "rowwise_adagrad")]


def local_bags(batch: Bags, lookups: Sequence[tuple[str, TableShard]]) -> Bags:
    """What a rank looks up: the ids that fall on each shard's rows, counted from the first of them."""
    ids, lengths, factors = [], [], []
    for name, shard in lookups:
        own = batch.of(FEATURES.index(name))
        is_here = (own.ids >= shard.rows[0]) & (own.ids < shard.rows[1])
        ids.append(own.ids[is_here] - shard.rows[0])
        lengths += [int(part.sum()) for part in is_here.tensor_split(own.offsets[1:-1])]
        if own.factors is not None:
            factors.append(own.factors[is_here])
    return Bags(torch.cat(ids), torch.tensor([0, *lengths]).cumsum(0), torch.cat(factors) if factors else None)


def step_ranks(ranks: Sequence[FusedEmbeddingBags], batch: Bags, gradient: Tensor) -> Tensor:
    """One step of all ranks; returns the (B, WIDTH) that a lookup in the whole tables would."""
    output = torch.zeros(BATCH, WIDTH)
    for bags in ranks:
        own = bags(*local_bags(batch, bags.lookups))
        gradients = []
        for (name, shard), part in zip(bags.lookups, own.detach().split(bags.widths, dim=1), strict=True):
            place = slice(sum(DIMS[: FEATURES.index(name)]) + shard.columns[0], None)
            output[:, place][:, : shard.width] += part  # row blocks add up, column blocks lie side by side
            gradients.append(gradient[:, place][:, : shard.width])
        own.backward(torch.cat(gradients, dim=1))
    return output


def assemble(states: Sequence[ShardedState]) -> dict[str, Tensor]:
    """The whole tensors; NaN where no shard lies."""
    whole: dict[str, Tensor] = {}
    for state in states:
        for name, parts in state.items():
            for part in parts:
                is_count = not part.tensor.is_floating_point()
                target = whole.setdefault(
                    name, torch.zeros((), dtype=torch.int64) if is_count else torch.full(part.shape, torch.nan)
                )
                part.of(target).copy_(part.tensor)
    return whole


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_shards_together_are_the_whole_tables(seed: int, rng: random.Random, name: str, weighted: bool) -> None:
    whole, ranks = make(seed, name=name), make_ranks(rng, seed, name)
    states = [bags.sharded_state() for bags in ranks]
    started = assemble(states)
    assert started.keys() == whole.state_dict().keys()
    # Bit for bit: nothing has been computed yet.
    assert all(torch.equal(value, started[key]) for key, value in whole.state_dict().items())
    for _ in range(3):
        batch, gradient = draw_bags(rng, weighted=weighted), torch.randn(BATCH, WIDTH)
        output = whole(*batch)
        output.backward(gradient)
        torch.testing.assert_close(step_ranks(ranks, batch, gradient), output.detach(), **TOLERANCE)
        trained = assemble(states)  # the same live tensors as before the steps
        for key, value in whole.state_dict().items():
            torch.testing.assert_close(trained[key], value, **TOLERANCE)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_whole_state_goes_on_in_shards_and_back(seed: int, rng: random.Random, name: str) -> None:
    whole, ranks = make(seed, name=name), make_ranks(rng, seed + 1, name)
    for bags in (whole, *ranks):  # so that there are other states to replace
        step_ranks([bags], draw_bags(rng), torch.randn(BATCH, WIDTH))
    for bags in ranks:
        copy_into_shards(bags.sharded_state(), whole.state_dict())
    batch, gradient = draw_bags(rng), torch.randn(BATCH, WIDTH)
    whole(*batch).backward(gradient)
    step_ranks(ranks, batch, gradient)
    back = make(seed + 2, name=name)
    back.load_state_dict(assemble([bags.sharded_state() for bags in ranks]))
    for key, value in whole.state_dict().items():
        torch.testing.assert_close(back.state_dict()[key], value, **TOLERANCE)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_shards_keep_their_own_state_dict(seed: int, rng: random.Random, name: str) -> None:
    for bags in make_ranks(rng, seed, name):
        step_ranks([bags], draw_bags(rng), torch.randn(BATCH, WIDTH))
        twin, loaded = copy.deepcopy(bags), make(seed + 1, name=name, shards=bags.shards)
        loaded.load_state_dict(bags.state_dict())
        batch, gradient = draw_bags(rng), torch.randn(BATCH, WIDTH)
        for own in (bags, twin, loaded):
            step_ranks([own], batch, gradient)
        for key, value in bags.state_dict().items():
            # Bit for bit: the same code on the same numbers.
            assert torch.equal(twin.state_dict()[key], value) and torch.equal(loaded.state_dict()[key], value), key


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_whole_shards_have_the_plain_names(seed: int, name: str) -> None:
    bags = make(seed, name=name)
    state = bags.sharded_state()
    assert state.keys() == bags.state_dict().keys()
    for key, value in bags.state_dict().items():
        [part] = state[key]
        assert part.shape == value.shape and part.offsets == (0,) * value.dim()
        assert part.tensor.data_ptr() == value.data_ptr()


def test_lookups_follow_the_shards(seed: int) -> None:
    shards = [
        TableShard(table=TABLES[2], rows=(10, 20), columns=(4, 12)),
        TableShard.whole(TABLES[0]),
        TableShard(table=TABLES[2], rows=(0, 10), columns=(0, 4)),
    ]
    bags = make(seed, name="sgd", shards=shards)
    assert bags.shards == shards
    assert [name for name, _ in bags.lookups] == ["many", "more", "few", "many", "more"]
    assert [shard for _, shard in bags.lookups] == [shards[i] for i in (0, 0, 1, 2, 2)]
    assert bags.widths == [8, 8, 8, 4, 4]


def test_an_id_beyond_the_shards_rows_raises(seed: int) -> None:
    bags = make(seed, shards=[TableShard(table=TABLES[3], rows=(5, 9), columns=(0, 8))])
    with pytest.raises(RuntimeError, match=r"idx|out of bounds"):
        bags(torch.tensor([4]), torch.tensor([0, 1]))


def test_columns_of_rowwise_adagrad_are_refused() -> None:
    shard = TableShard(table=TABLES[3], rows=(0, 20), columns=(0, 4))
    with pytest.raises(UserInputError, match=r"^table some with rowwise_adagrad: .*; shard the table by rows"):
        make(0, shards=[shard])
    assert not make(0).optimizer.can_split_columns and make(0, name="adagrad").optimizer.can_split_columns


def test_a_narrow_block_of_columns_is_refused() -> None:
    table = EmbeddingBagConfig(name="a", feature_names=["a"], num_embeddings=3, embedding_dim=12)
    with pytest.raises(UserInputError, match=r"^embedding_dim=6: .*multiple of 4; choose 8$"):
        make(0, name="sgd", shards=[TableShard(table=table, rows=(0, 3), columns=(0, 6))])


def test_shards_without_storage_have_no_state(rng: random.Random) -> None:
    with deferred_tables():
        assert all(not bags.sharded_state() and not bags.state_dict() for bags in make_ranks(rng, 0, "adam"))
    with pytest.raises(RuntimeError, match="no shards"):
        make(0, shards=[])(torch.empty(0, dtype=torch.int64), torch.zeros(1, dtype=torch.int64))
