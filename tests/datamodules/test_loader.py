import threading
from itertools import chain, islice
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.fabric.utilities import move_data_to_device
from torchrec.datasets.utils import Batch

from dmt.datamodules import ClickLoader, EvaluationLoader, GlobalBatchSampler, RandomClicks, SyntheticClicks, loader
from dmt.errors import UserInputError


class Numbers:
    """A data set whose samples are their own indices."""

    def __init__(self, num_samples):
        self.num_samples = num_samples

    def __len__(self):
        return self.num_samples

    def batch(self, indices):
        return indices.tolist()


def make_loader(num_samples=10, *, global_batch_size=3, rank=0, world_size=1, seed=1, num_steps=None):
    sampler = GlobalBatchSampler(
        num_samples=num_samples,
        global_batch_size=global_batch_size,
        rank=rank,
        world_size=world_size,
        shuffle_seed=seed,
    )
    return ClickLoader(Numbers(num_samples), batch_sampler=sampler, num_steps=num_steps)


def global_batches(make, world_size):
    """Step by step, the batches of all ranks."""
    return list(zip(*(list(make(rank)) for rank in range(world_size)), strict=True))


sizes = st.fixed_dictionaries(
    {
        "num_samples": st.integers(0, 40),
        "global_batch_size": st.integers(1, 15),
        "shuffle_seed": st.none() | st.integers(0, 3),
    }
)


@settings(max_examples=60, deadline=None)
@given(sizes=sizes, world_size=st.integers(1, 9), epoch=st.integers(0, 2))
def test_any_number_of_ranks_sees_the_same_global_batches(sizes, world_size, epoch):
    def make(rank, world_size=world_size):
        sampler = GlobalBatchSampler(**sizes, rank=rank, world_size=world_size)
        sampler.set_epoch(epoch)
        return sampler

    steps = global_batches(make, world_size)
    alone = [indices.tolist() for indices in make(0, world_size=1)]
    assert [np.sort(np.concatenate(pieces)).tolist() for pieces in steps] == alone
    assert len(make(0)) == len(steps)
    assert sorted(chain(*alone)) == list(range(sizes["num_samples"]))
    for pieces, whole in zip(steps, alone, strict=True):
        # The rule of np.array_split, written independently of it in the sampler.
        assert [len(piece) for piece in pieces] == [len(piece) for piece in np.array_split(np.array(whole), world_size)]
        assert all(piece.tolist() == sorted(piece.tolist()) for piece in pieces)


def test_order_of_training_depends_on_seed_and_epoch_only():
    def order(seed, epoch):
        sampler = GlobalBatchSampler(num_samples=50, global_batch_size=5, shuffle_seed=seed)
        sampler.set_epoch(epoch)
        return np.concatenate(list(sampler)).tolist()

    assert order(1, 0) == order(1, 0)
    assert len({tuple(order(seed, epoch)) for seed in (1, 2) for epoch in (0, 1)}) == 4


def test_evaluation_starts_again_with_every_iteration():
    sampler = GlobalBatchSampler(num_samples=5, global_batch_size=2)
    loader = EvaluationLoader(Numbers(5), batch_sampler=sampler)
    assert next(iter(loader)) == [0, 1]
    assert list(loader) == list(loader) == [[0, 1], [2, 3], [4]]
    assert len(loader) == 3


def test_training_is_a_stream_of_epochs():
    loader = make_loader()
    first = list(loader)
    second = list(loader)
    assert sorted(chain(*first)) == sorted(chain(*second)) == list(range(10))
    assert first != second
    interrupted = make_loader()
    head = list(islice(interrupted, 2))
    assert head + list(interrupted) + list(interrupted) == first + second


@settings(max_examples=40, deadline=None)
@given(
    num_samples=st.integers(1, 30),
    global_batch_size=st.integers(1, 12),
    num_before=st.integers(0, 12),
    old_world=st.integers(1, 5),
    new_world=st.integers(1, 5),
)
def test_resumes_with_the_next_batch_on_any_number_of_ranks(
    num_samples, global_batch_size, num_before, old_world, new_world
):
    def make(rank, world_size):
        return make_loader(num_samples, global_batch_size=global_batch_size, rank=rank, world_size=world_size)

    def stream(loader, steps):
        batches = []
        while len(batches) < steps:
            for batch in loader:
                batches.append(batch)
                if len(batches) == steps:
                    break
        return batches

    everything = stream(make(0, 1), num_before + 5)
    states = []
    for rank in range(old_world):
        loader = make(rank, old_world)
        stream(loader, num_before)
        states.append(loader.state_dict())
    assert all(state == states[0] for state in states)

    resumed = []
    for rank in range(new_world):
        loader = make(rank, new_world)
        loader.load_state_dict(states[0])
        assert loader.state_dict() == states[0]
        resumed.append(stream(loader, 5))
    assert [sorted(chain(*pieces)) for pieces in zip(*resumed, strict=True)] == everything[num_before:]


def test_a_limit_ends_epochs_early_and_keeps_the_length():
    loader = make_loader(num_steps=2)
    whole = make_loader()
    assert list(loader) == list(whole)[:2]
    assert list(loader) == list(whole)[:2]
    assert len(loader) == 4


def test_set_epoch_chooses_where_to_start_but_does_not_move_a_position():
    reference = make_loader()
    list(reference)
    fresh = make_loader()
    fresh.sampler.set_epoch(1)
    resumed = make_loader()
    resumed.load_state_dict(reference.state_dict())
    resumed.sampler.set_epoch(7)
    assert list(fresh) == list(resumed) == list(reference)


@pytest.mark.parametrize("option", ["num_samples", "global_batch_size", "seed"])
def test_a_position_inside_an_epoch_needs_the_same_order(option):
    loader = make_loader()
    next(iter(loader))
    state = loader.state_dict()
    with pytest.raises(UserInputError, match=rf"{option}=\d+: the checkpoint is from inside an epoch"):
        make_loader().load_state_dict(state | {option: 77})
    between_epochs = state | {option: 77, "next_step": 0}
    make_loader().load_state_dict(between_epochs)


def test_a_batch_is_made_while_the_one_before_it_is_used():
    made = threading.Semaphore(0)

    class Watched(Numbers):
        def batch(self, indices):
            made.release()
            return super().batch(indices)

    sampler = GlobalBatchSampler(num_samples=9, global_batch_size=2)
    batches = iter(ClickLoader(Watched(9), batch_sampler=sampler))
    assert next(batches) == [0, 1]
    # Far longer than a batch takes: it is waited out only where none is made ahead.
    assert made.acquire(timeout=60) and made.acquire(timeout=60)
    assert not made.acquire(timeout=0.2)  # and no more than one
    assert list(batches) == [[2, 3], [4, 5], [6, 7], [8]]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_workers_make_the_same_batches_ahead(num_workers):
    data = SyntheticClicks(
        num_features=3,
        num_groups=1,
        num_multi_hot=1,
        num_train=50,
        num_valid=20,
        num_test=10,
        global_batch_size=8,
        num_workers=num_workers,
    )
    data.setup()

    def alone(split, sampler):
        return [data._split(split).batch(indices) for indices in sampler]

    loader = data.train_dataloader()
    wanted = alone("train", GlobalBatchSampler(num_samples=50, global_batch_size=8, shuffle_seed=0))
    batches = iter(loader)
    first = [next(batches) for _ in range(3)]
    assert loader.state_dict()["next_step"] == 3  # of what was taken, not of what is made ahead
    found = [*first, *batches]
    assert_same(found, wanted)
    sampler = GlobalBatchSampler(num_samples=20, global_batch_size=8)
    assert_same(list(data.val_dataloader()), alone("valid", sampler))


def assert_same(found, wanted):
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert torch.equal(one.dense_features, other.dense_features) and torch.equal(one.labels, other.labels)
        for part in ("values", "lengths"):
            assert torch.equal(getattr(one.sparse_features, part)(), getattr(other.sparse_features, part)())
        assert one.sparse_features.keys() == other.sparse_features.keys()


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_error_of_a_batch_is_told(num_workers):
    class Broken(Numbers):
        def batch(self, indices):
            raise UserInputError("rows.npy: it is gone")

    sampler = GlobalBatchSampler(num_samples=5, global_batch_size=2)
    with pytest.raises(UserInputError, match="it is gone"):
        list(EvaluationLoader(Broken(5), batch_sampler=sampler, num_workers=num_workers))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_pinned_memory_is_asked_for_where_a_gpu_trains(monkeypatch, device):
    asked = []
    monkeypatch.setattr(loader, "DataLoader", lambda *words, pin_memory, **options: asked.append(pin_memory) or [])
    data = RandomClicks(num_embeddings=[3], num_dense=1, num_train=4, global_batch_size=2)
    data.setup()
    data.trainer = SimpleNamespace(
        strategy=SimpleNamespace(root_device=torch.device(device)),
        global_rank=0,
        world_size=1,
        overfit_batches=0,
        limit_train_batches=1.0,
    )
    for batches in (data.train_dataloader(), data.val_dataloader()):
        list(batches)
    assert asked == [device == "cuda"] * 2


def test_a_batch_is_copied_to_a_gpu_without_waiting(monkeypatch):
    data, asked = RandomClicks(num_embeddings=[3], num_dense=1, num_train=4, global_batch_size=2), []
    data.setup()
    batch = next(iter(data.train_dataloader()))
    monkeypatch.setattr(Batch, "to", lambda self, device, wait_free: asked.append((str(device), wait_free)) or self)
    for device in ("cuda", "cpu"):
        move_data_to_device(batch, torch.device(device))
    assert asked == [("cuda", True), ("cpu", False)]


def test_global_batch_size_is_positive():
    with pytest.raises(UserInputError, match="global_batch_size=0: give at least 1"):
        GlobalBatchSampler(num_samples=3, global_batch_size=0)
