"""Initial values of embedding tables: the same however a table is cut."""

import itertools
import random

import pytest
import torch
from torch import Tensor
from torchrec.modules.embedding_configs import EmbeddingBagConfig

from dmt.modules.embeddings import initialize_rows

BLOCK = 65_536  # rows that the implementation draws together
ROWS = 2 * BLOCK + 1000


def table(name: str = "city", num_embeddings: int = ROWS) -> EmbeddingBagConfig:
    return EmbeddingBagConfig(name=name, feature_names=[name], num_embeddings=num_embeddings, embedding_dim=4)


def rows(start: int, end: int, *, config: EmbeddingBagConfig, seed: int) -> Tensor:
    """Initial values of ``config[start:end]``, over NaNs so that a row left out shows."""
    values = torch.full((end - start, config.embedding_dim), torch.nan)
    initialize_rows(values, table=config, first_row=start, seed=seed)
    return values


def test_any_split_of_the_rows_gives_the_same_values(seed: int, rng: random.Random) -> None:
    whole = rows(0, ROWS, config=table(), seed=seed)
    cuts = sorted([0, ROWS, BLOCK, BLOCK + 1, *rng.sample(range(1, ROWS), 3)])
    pieces = [rows(a, b, config=table(), seed=seed) for a, b in itertools.pairwise(cuts)]
    # Bit for bit: nothing is computed, only drawn.
    assert torch.equal(torch.cat(pieces), whole)
    assert torch.equal(rows(BLOCK - 3, BLOCK + 5, config=table(), seed=seed), whole[BLOCK - 3 : BLOCK + 5])


def test_any_block_has_the_values_of_the_whole(seed: int, rng: random.Random) -> None:
    whole = rows(0, ROWS, config=table(), seed=seed)
    for _ in range(3):
        first_row, end_row = sorted(rng.sample(range(ROWS + 1), 2))
        first_column, end_column = sorted(rng.sample(range(5), 2))
        # A view of wider storage, as the kernel's blocks may be.
        storage = torch.full((end_row - first_row, 6), torch.nan)
        block = storage[:, : end_column - first_column]
        initialize_rows(block, table=table(), first_row=first_row, first_column=first_column, seed=seed)
        assert torch.equal(block, whole[first_row:end_row, first_column:end_column])
        assert storage[:, block.shape[1] :].isnan().all()


def test_no_rows_are_no_work(seed: int) -> None:
    assert rows(BLOCK, BLOCK, config=table(), seed=seed).shape == (0, 4)


def test_tables_seeds_and_blocks_differ(seed: int) -> None:
    whole = rows(0, BLOCK + 8, config=table(), seed=seed)
    drawn = [
        whole[:8],
        whole[BLOCK:],
        rows(0, 8, config=table("town"), seed=seed),
        rows(0, 8, config=table(), seed=seed + 1),
    ]
    for index, values in enumerate(drawn):
        for other in drawn[:index]:
            # 32 values of 24 bits: that two of them agree has a chance of 2e-12.
            assert (values == other).sum() < 2


def test_values_are_uniform_within_the_bound(seed: int) -> None:
    values = rows(0, ROWS, config=table(), seed=seed).double()
    bound = ROWS**-0.5
    assert values.abs().max() <= bound * (1 + 1e-7)  # the bound itself is drawn, rounded to float32
    assert values.abs().max() > 0.999 * bound  # 528,288 values: all below has a chance of e^-528
    # Standard errors of mean and standard deviation: bound / sqrt(3 n) and 0.45 of that; five of the first.
    error = 5 * bound / (3 * values.numel()) ** 0.5
    assert abs(values.mean().item()) < error
    assert abs(values.std().item() - bound / 3**0.5) < error


@pytest.mark.parametrize("num_embeddings", [1, 9])
def test_the_bound_follows_the_tables_rows(seed: int, num_embeddings: int) -> None:
    values = rows(0, num_embeddings, config=table(num_embeddings=num_embeddings), seed=seed)
    assert values.abs().max() <= num_embeddings**-0.5


def test_the_global_generator_is_left_alone(seed: int) -> None:
    before = torch.get_rng_state()
    rows(0, 8, config=table(), seed=seed)
    assert torch.equal(torch.get_rng_state(), before)
