"""Global batches: the same sequence of training steps on any number of ranks.

Shape legend: B samples of this rank's batch, GB samples of one global batch, G ranks.
"""

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from numbers import Integral
from typing import Protocol

import numpy as np
from torch.utils.data import DataLoader, Dataset
from torchrec.datasets.utils import Batch

from dmt.datamodules.order import EpochOrder
from dmt.errors import UserInputError


class ClickDataset(Protocol):
    """What the loaders need from a data set."""

    def __len__(self) -> int:
        """Number of samples."""

    def batch(self, indices: np.ndarray) -> Batch:
        """The samples at ``indices`` (B,), in that order; B may be 0."""


class GlobalBatchSampler:
    """Sample indices of one rank, global batch after global batch.

    Step ``k`` of epoch ``e`` holds the samples ``order_e[k * GB:(k + 1) * GB]``, where ``order_e`` is the
    :class:`~dmt.datamodules.order.EpochOrder` of ``(shuffle_seed, e)``, or the stored order without a seed.
    Rank ``r`` takes the ``r``-th of ``G`` contiguous pieces, whose sizes differ by at most one, sorted. The last global
    batch may be short and leave a rank an *empty* piece; every rank has the same number of steps and each sample
    occurs once.

    Args:
        num_samples: samples of the data set.
        global_batch_size: samples of one step over all ranks, GB.
        rank: this rank.
        world_size: number of ranks, G.
        shuffle_seed: seed of the permutations; ``None`` keeps the stored order, for evaluation.

    Raises:
        UserInputError: ``global_batch_size`` is no whole number of at least 1.

    Example:
        >>> sampler = GlobalBatchSampler(num_samples=5, global_batch_size=4, rank=1, world_size=2)
        >>> [indices.tolist() for indices in sampler]
        [[2, 3], []]
    """

    def __init__(
        self,
        *,
        num_samples: int,
        global_batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        shuffle_seed: int | None = None,
    ) -> None:
        check_minima({"global_batch_size": (global_batch_size, 1)})
        assert 0 <= rank < world_size, (rank, world_size)
        self.num_samples = num_samples
        self.global_batch_size = global_batch_size
        self.rank = rank
        self.world_size = world_size
        self.shuffle_seed = shuffle_seed
        self.epoch = 0

    def __len__(self) -> int:
        """Number of steps of an epoch, the same on every rank."""
        return -(-self.num_samples // self.global_batch_size)

    def __iter__(self) -> Iterator[np.ndarray]:
        """This rank's indices (B,) for every step of the epoch."""
        return self.steps(first=0)

    def set_epoch(self, epoch: int) -> None:
        """Choose the permutation of the iterations that start from now on."""
        self.epoch = epoch

    def steps(self, *, first: int) -> Iterator[np.ndarray]:
        """This rank's indices (B,) from step ``first`` of the epoch on."""
        order = self._order()
        for start in range(first * self.global_batch_size, self.num_samples, self.global_batch_size):
            size = min(self.global_batch_size, self.num_samples - start)
            # The pieces of np.array_split without making all G of them: the first `extra` are one longer.
            base, extra = divmod(size, self.world_size)
            begin = start + self.rank * base + min(self.rank, extra)
            end = begin + base + (self.rank < extra)
            # Sorted, because a step is the same in any order and neighbours are read faster.
            yield np.arange(begin, end) if order is None else np.sort(order.samples(begin, end))

    def _order(self) -> EpochOrder | None:
        return (
            None
            if self.shuffle_seed is None
            else EpochOrder(self.num_samples, seed=self.shuffle_seed, epoch=self.epoch)
        )


class _Batches(Dataset[Batch]):
    """A data set of batches, by the indices of their samples."""

    def __init__(self, dataset: ClickDataset) -> None:
        self._dataset = dataset

    def __getitem__(self, indices: np.ndarray) -> Batch:
        return self._dataset.batch(indices)


def draw_batches(
    dataset: ClickDataset, steps: Iterable[np.ndarray], *, num_workers: int, pin_memory: bool
) -> Iterator[Batch]:
    """Batches in the order of the steps, each drawn by a thread while the one before it is used.

    Args:
        dataset: where batches come from.
        steps: the samples of each of them.
        num_workers: processes that make batches further ahead; with 0 the thread makes them.
        pin_memory: put them where copies to a GPU need not wait.
    """
    batches = iter(
        DataLoader(
            _Batches(dataset),
            sampler=steps,
            batch_size=None,
            num_workers=num_workers,
            collate_fn=_as_it_is,
            pin_memory=pin_memory,
        )
    )
    pool = ThreadPoolExecutor(max_workers=1)
    try:
        coming = pool.submit(next, batches, None)
        while (batch := coming.result()) is not None:
            coming = pool.submit(next, batches, None)
            yield batch
    finally:
        # Without waiting: what is left half-way may be collected in any thread, this one's own included.
        pool.shutdown(wait=False, cancel_futures=True)


def _as_it_is(batch: Batch) -> Batch:
    return batch


class EvaluationLoader:
    """Batches of one rank; every iteration starts with the first.

    Args:
        dataset: where batches come from.
        batch_sampler: which samples form them.
        num_workers: processes that make batches ahead.
        pin_memory: put batches where copies to a GPU need not wait.
    """

    def __init__(
        self,
        dataset: ClickDataset,
        *,
        batch_sampler: GlobalBatchSampler,
        num_workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        # Neither loader has a `dataset` attribute: by it Lightning recognises a torch DataLoader to rebuild.
        self._dataset = dataset
        self.batch_sampler = batch_sampler
        self._num_workers = num_workers
        self._pin_memory = pin_memory

    def __len__(self) -> int:
        """Number of batches, the same on every rank."""
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[Batch]:
        return draw_batches(
            self._dataset, self.batch_sampler, num_workers=self._num_workers, pin_memory=self._pin_memory
        )


class ClickLoader:
    """Training batches of one rank, resumable in the middle of an epoch on any number of ranks.

    The batches form one endless stream: epoch 0, epoch 1, ... An iteration goes on where the last one
    stopped and ends with its epoch. The position in the stream, not Lightning's count of epochs, decides
    what comes next. By that count samples would be skipped: Lightning 2.6 counts one epoch too many in a
    run that ``max_steps`` stopped inside an epoch, and after resuming between two epochs it may leave the
    first one after a single batch.

    It only looks like a ``torch.utils.data.DataLoader``, and uses one: Lightning would replace the sampler of one that
    it knows by its own distributed sampler, which repeats samples and splits them by the number of ranks.

    Args:
        dataset: where batches come from.
        batch_sampler: which samples form them.
        num_steps: steps after which an epoch ends early, for Lightning's ``limit_train_batches``. The length
            of the loader stays that of a whole epoch, since Lightning takes its limit as a fraction of that.
        num_workers: processes that make batches ahead. The position is that of the batches that were taken.
        pin_memory: put batches where copies to a GPU need not wait.

    Example:
        >>> import numpy as np
        >>> class Numbers:
        ...     def __len__(self): return 5
        ...     def batch(self, indices): return indices.tolist()
        >>> def make_loader():
        ...     sampler = GlobalBatchSampler(num_samples=5, global_batch_size=2)
        ...     return ClickLoader(Numbers(), batch_sampler=sampler)
        >>> loader, resumed = make_loader(), make_loader()
        >>> next(iter(loader))
        [0, 1]
        >>> resumed.load_state_dict(loader.state_dict())
        >>> list(resumed)
        [[2, 3], [4]]
    """

    def __init__(
        self,
        dataset: ClickDataset,
        *,
        batch_sampler: GlobalBatchSampler,
        num_steps: int | None = None,
        num_workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        self._dataset = dataset
        self.batch_sampler = batch_sampler
        self._num_steps = len(batch_sampler) if num_steps is None else min(num_steps, len(batch_sampler))
        self._num_workers = num_workers
        self._pin_memory = pin_memory
        self._next_step = 0
        self._is_fresh = True

    def __len__(self) -> int:
        """Number of batches of a whole epoch, the same on every rank."""
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[Batch]:
        # A generator: Lightning calls iter() before it restores the position, so that must be read later.
        self._is_fresh = False
        steps = islice(self.batch_sampler.steps(first=self._next_step), self._num_steps - self._next_step)
        for batch in draw_batches(self._dataset, steps, num_workers=self._num_workers, pin_memory=self._pin_memory):
            # Moved on before the batch is trained on: a checkpoint is taken after its step.
            self._move_to(self.batch_sampler.epoch, self._next_step + 1)
            yield batch

    @property
    def sampler(self) -> "ClickLoader":
        """Itself: Lightning calls ``loader.sampler.set_epoch`` before each epoch."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Start with ``epoch``; ignored once a batch was drawn or a state was loaded."""
        if self._is_fresh:
            self.batch_sampler.set_epoch(epoch)

    def state_dict(self) -> dict[str, int | None]:
        """The position, the same on every rank and for every number of ranks."""
        return {"epoch": self.batch_sampler.epoch, "next_step": self._next_step, **self._order_state()}

    def load_state_dict(self, state: dict[str, int | None]) -> None:
        """Continue from the position of a :meth:`state_dict`.

        Raises:
            UserInputError: the position is inside an epoch that this loader orders or cuts differently.
        """
        epoch, next_step = state["epoch"], state["next_step"]
        assert epoch is not None and next_step is not None
        for option, value in self._order_state().items():
            if next_step > 0 and state[option] != value:
                raise UserInputError(
                    f"{option}={value}: the checkpoint is from inside an epoch with {option}={state[option]}"
                    "; resume with that value, or from a checkpoint between two epochs",
                    on_every_rank=True,
                )
        self._is_fresh = False
        self._move_to(epoch, next_step)

    def _move_to(self, epoch: int, next_step: int) -> None:
        """The end of an epoch is the start of the next one, so that a position has one name."""
        ended = next_step >= self._num_steps
        self.batch_sampler.set_epoch(epoch + ended)
        self._next_step = 0 if ended else next_step

    def _order_state(self) -> dict[str, int | None]:
        """What the meaning of a position inside an epoch depends on."""
        return {
            "num_samples": self.batch_sampler.num_samples,
            "global_batch_size": self.batch_sampler.global_batch_size,
            "seed": self.batch_sampler.shuffle_seed,
        }


def check_minima(minima: Mapping[str, tuple[int, int]]) -> None:
    """Raise :class:`UserInputError` for the first of (value, minimum), by option, that is too small or not whole."""
    for option, (value, minimum) in minima.items():
        # Python itself takes True for 1.
        if not isinstance(value, Integral) or isinstance(value, bool):
            raise UserInputError(f"{option}={value!r}: give a whole number of at least {minimum}")
        if value < minimum:
            raise UserInputError(f"{option}={value}: give at least {minimum}")
