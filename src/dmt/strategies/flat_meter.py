"""Counts what TorchRec's own collectives send.

TorchRec calls ``torch.distributed`` from two modules. While counting, both look at a stand-in for it. They are no
public interface; ``tests/distributed/test_flat.py`` guards them by comparing what is counted with what is predicted.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from typing import Any
from unittest.mock import patch

import torch.distributed as dist
from torch import Tensor
from torchrec.distributed import comm_ops, dist_data
from typing_extensions import override

from dmt.strategies.meter import WireMeter


@contextmanager
def count_torchrec(meter: WireMeter) -> Iterator[None]:
    """Count the exchanges of all of this process's TorchRec modules while open.

    ``ids`` are ids with their lengths and weights, ``embeddings`` pooled embeddings with their gradients. The sizes
    of messages that ranks tell each other beforehand are left out, but not the wait for them. A ReduceScatter, and
    the AllGather of its gradients, count as one message to each of the other ranks.
    """
    with ExitStack() as stack:
        for module, purpose in ((dist_data, "ids"), (comm_ops, "embeddings")):
            stack.enter_context(patch.object(module, "dist", _CountedDist(meter, purpose)))
        yield


class _CountedDist:
    """``torch.distributed``, whose collectives are counted; only those that TorchRec's two modules call."""

    def __init__(self, meter: WireMeter, purpose: str) -> None:
        self.meter, self.purpose = meter, purpose

    def __getattr__(self, name: str) -> Any:
        return getattr(dist, name)

    def all_to_all_single(
        self,
        output: Tensor,
        input: Tensor,
        output_split_sizes: Sequence[int] | None = None,
        input_split_sizes: Sequence[int] | None = None,
        group: dist.ProcessGroup | None = None,
        async_op: bool = False,
    ) -> dist.Work | None:
        if input_split_sizes is not None:  # else these are sizes
            row_bytes = input[:1].nbytes
            self._count([rows * row_bytes for rows in input_split_sizes], group)
        splits = output_split_sizes, input_split_sizes
        return self._timed(lambda: dist.all_to_all_single(output, input, *splits, group, async_op))

    def reduce_scatter(
        self, output: Tensor, input_list: list[Tensor], group: dist.ProcessGroup | None = None, async_op: bool = False
    ) -> dist.Work | None:
        self._count([piece.nbytes for piece in input_list], group)
        return self._timed(lambda: dist.reduce_scatter(output, input_list, group=group, async_op=async_op))

    def reduce_scatter_tensor(
        self, output: Tensor, input: Tensor, group: dist.ProcessGroup | None = None, async_op: bool = False
    ) -> dist.Work | None:
        self._count([output.nbytes] * dist.get_world_size(group), group)
        return self._timed(lambda: dist.reduce_scatter_tensor(output, input, group=group, async_op=async_op))

    def all_gather(
        self, tensor_list: list[Tensor], tensor: Tensor, group: dist.ProcessGroup | None = None, async_op: bool = False
    ) -> dist.Work | None:
        self._count([tensor.nbytes] * dist.get_world_size(group), group)
        return self._timed(lambda: dist.all_gather(tensor_list, tensor, group=group, async_op=async_op))

    def all_gather_into_tensor(
        self, output: Tensor, input: Tensor, group: dist.ProcessGroup | None = None, async_op: bool = False
    ) -> dist.Work | None:
        self._count([input.nbytes] * dist.get_world_size(group), group)
        return self._timed(lambda: dist.all_gather_into_tensor(output, input, group=group, async_op=async_op))

    def _count(self, num_bytes: Sequence[int], group: dist.ProcessGroup | None) -> None:
        self.meter.add(self.purpose, dist.get_process_group_ranks(group), num_bytes)

    def _timed(self, start: Callable[[], dist.Work | None]) -> dist.Work | None:
        work = start()
        return None if work is None else _TimedWork(work, self.meter, self.purpose)


class _TimedWork(dist.Work):
    """A collective under way, of which the wait is timed."""

    def __init__(self, work: dist.Work, meter: WireMeter, purpose: str) -> None:
        super().__init__()
        self.work, self.meter, self.purpose = work, meter, purpose

    @override
    def wait(self, timeout: timedelta = timedelta(0)) -> bool:
        with self.meter.waiting(self.purpose):
            return self.work.wait(timeout)
