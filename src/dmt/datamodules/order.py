"""The order of an epoch's samples, drawn piece by piece, so that it need not fit into memory."""

from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

MAX_PERMUTATION = 2**22
# Sixteen stretches of 10 MB of Criteo's rows, shuffled as a million samples.
BLOCK_SIZE = 2**16
BLOCKS_PER_WINDOW = 16


class EpochOrder:
    """A random order of samples; the same numbers give the same order.

    Up to ``max_permutation`` samples it is one permutation of all. Of more, blocks of neighbours are put in random
    order, and the samples of so many blocks that follow each other there, a window, are shuffled together: reading goes
    to a few places of a log at a time, and no more than two windows are held, of which one is drawn ahead.

    Args:
        num_samples: how many there are.
        seed: of the order.
        epoch: which of the orders of that seed.
        max_permutation: samples that are permuted as a whole.
        block_size: samples that stay in the same window.
        blocks_per_window: blocks that are shuffled together.
    """

    def __init__(
        self,
        num_samples: int,
        *,
        seed: int,
        epoch: int,
        max_permutation: int = MAX_PERMUTATION,
        block_size: int = BLOCK_SIZE,
        blocks_per_window: int = BLOCKS_PER_WINDOW,
    ) -> None:
        self._num_samples = num_samples
        self._seed = (seed, epoch)
        is_whole = num_samples <= max_permutation
        self._block_size = max(num_samples, 1) if is_whole else block_size
        # What is left over at the end of the log goes to the last window, whichever blocks that has.
        num_blocks = num_samples // self._block_size
        self._blocks = np.arange(num_blocks) if is_whole else np.random.default_rng(self._seed).permutation(num_blocks)
        self._blocks_per_window = blocks_per_window
        self._num_windows = max(1, -(-num_blocks // blocks_per_window))
        self._is_whole = is_whole
        self._window: tuple[int, np.ndarray] = (-1, np.empty(0, dtype=np.int64))
        self._pool = ThreadPoolExecutor(max_workers=1)
        self._next: tuple[int, Future[np.ndarray]] | None = None

    def samples(self, begin: int, end: int) -> np.ndarray:
        """The samples at places ``begin`` to ``end`` of the order, int64 (end - begin,)."""
        pieces = []
        while begin < end:
            number = min(begin // self._window_size, self._num_windows - 1)
            first, window = number * self._window_size, self._draw(number)
            until = min(end, first + len(window))
            pieces.append(window[begin - first : until - first])
            begin = until
        return pieces[0] if len(pieces) == 1 else np.concatenate([np.empty(0, dtype=np.int64), *pieces])

    @property
    def _window_size(self) -> int:
        return self._block_size * self._blocks_per_window

    def _draw(self, number: int) -> np.ndarray:
        """The samples of a window in their order; the last one drawn is kept, and the next one begun."""
        if self._window[0] != number:
            ahead = self._next[1] if self._next is not None and self._next[0] == number else None
            self._window = (number, self._shuffled(number) if ahead is None else ahead.result())
            if number + 1 < self._num_windows:
                self._next = (number + 1, self._pool.submit(self._shuffled, number + 1))
        return self._window[1]

    def _shuffled(self, number: int) -> np.ndarray:
        if self._is_whole:
            return np.random.default_rng(self._seed).permutation(self._num_samples)
        blocks = self._blocks[number * self._blocks_per_window : (number + 1) * self._blocks_per_window]
        samples = (blocks[:, None] * self._block_size + np.arange(self._block_size)).ravel()
        if number == self._num_windows - 1:
            left_over = np.arange(self._num_samples // self._block_size * self._block_size, self._num_samples)
            samples = np.concatenate([samples, left_over])
        return np.random.default_rng((*self._seed, 1 + number)).permutation(samples)
