from itertools import chain
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dmt.datamodules import ClickDataModule
from dmt.errors import UserInputError

from .conftest import NumberedClicks, numbers


def attached(data, **attributes):
    """Attach what a DataModule reads of a Trainer."""
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    defaults = {"overfit_batches": 0, "limit_train_batches": 1.0, "strategy": strategy}
    data.trainer = SimpleNamespace(**(defaults | attributes))
    data.setup()
    return data


def test_says_what_to_call_first():
    with pytest.raises(RuntimeError, match=r"NumberedClicks.schema is known after prepare_data\(\)"):
        _ = NumberedClicks().schema
    with pytest.raises(RuntimeError, match=r"call prepare_data\(\) and setup\(\) first"):
        NumberedClicks().train_dataloader()


def test_works_without_a_trainer():
    data = NumberedClicks()
    data.setup()
    assert [numbers(batch) for batch in data.val_dataloader()] == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9]]
    assert sorted(chain(*map(numbers, data.train_dataloader()))) == list(range(10))
    assert str(data) == "NumberedClicks(train: 10, valid: 10, test: 10)"


@pytest.mark.parametrize("loader", ["val_dataloader", "test_dataloader", "predict_dataloader"])
def test_ranks_share_every_global_batch(loader):
    ranks = [attached(NumberedClicks(), global_rank=rank, world_size=2) for rank in range(2)]
    batches = [[numbers(batch) for batch in getattr(data, loader)()] for data in ranks]
    assert batches == [[[0, 1], [3, 4], [6, 7], [9]], [[2], [5], [8], []]]


@pytest.mark.parametrize(("limit", "steps"), [(1.0, 4), (0.5, 2), (3, 3), (100, 4)])
def test_an_epoch_is_as_long_as_the_trainer_says(limit, steps):
    data = attached(NumberedClicks(), global_rank=0, world_size=1, limit_train_batches=limit)
    assert len(list(data.train_dataloader())) == steps


@pytest.mark.parametrize("option", ["global_batch_size", "seed"])
def test_wrong_options(option):
    with pytest.raises(UserInputError, match=f"{option}=-1: give"):
        NumberedClicks(**{option: -1})


@pytest.mark.parametrize("option", ["global_batch_size", "seed", "num_workers"])
@pytest.mark.parametrize("value", ["a", "2", 1.5, None, True])
def test_options_of_another_type(option, value):
    options = {"global_batch_size": 3, "seed": 0, option: value}
    with pytest.raises(UserInputError, match=f"^{option}={value!r}: give a whole number of at least [01]$"):
        ClickDataModule(**options)
    ClickDataModule(**(options | {option: np.int64(5)}))
