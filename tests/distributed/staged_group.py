"""A process group for several ranks on one GPU, which NCCL refuses: gloo's collectives over copies in host memory.

Every collective is complete when its call returns. For tests only: it shows that ranks compute the right numbers on a
GPU, nothing of how fast they are.
"""

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.futures import Future

NAME = "staged"


def register() -> None:
    """Make ``init_process_group(NAME)`` known, once in a process."""
    if not hasattr(dist.Backend, NAME.upper()):
        dist.Backend.register_backend(NAME, _create, devices=["cpu", "cuda"])


def _create(store: dist.Store, rank: int, size: int, timeout: timedelta) -> "_StagedGroup":
    return _StagedGroup(rank, size, dist.ProcessGroupGloo(store, rank, size, timeout))


class _StagedGroup(dist.ProcessGroup):
    """Some methods have two names: torch renamed them between 2.11 and 2.13."""

    def __init__(self, rank: int, size: int, gloo: Any) -> None:
        super().__init__(rank, size)
        self._gloo = gloo

    def getBackendName(self) -> str:
        return NAME

    @property
    def _device_types(self) -> list[torch.device]:
        return [torch.device("cpu"), torch.device("cuda")]

    def _get_backend(self, device: torch.device) -> Any:
        return self._gloo

    @property
    def group_name(self) -> str:
        name: str = dist.distributed_c10d._world.pg_names[self]
        return name

    def _run(
        self, collective: Callable[..., Any], outputs: Sequence[Tensor], inputs: Sequence[Tensor], *rest: Any
    ) -> dist.Work:
        """Call ``collective`` on copies in host memory and copy the outputs back; they may be the inputs too."""
        mine = [tensor.detach().cpu().clone() for tensor in outputs]
        theirs = mine if inputs is outputs else [tensor.detach().cpu() for tensor in inputs]
        collective(mine, theirs, *rest).wait()
        for tensor, found in zip(outputs, mine, strict=True):
            tensor.detach().copy_(found)
        future: Future[list[Tensor]] = Future(devices=[t.device for t in outputs if t.is_cuda][:1])
        future.set_result(list(outputs))
        return torch._C._distributed_c10d._create_work_from_future(future)

    def allreduce(self, tensors: list[Tensor], options: Any) -> dist.Work:
        is_mean = options.reduceOp == dist.ReduceOp.AVG  # which gloo does not have
        if is_mean:
            options.reduceOp = dist.ReduceOp.SUM
        work = self._run(lambda mine, _: self._gloo.allreduce(mine, options), tensors, tensors)
        for tensor in tensors if is_mean else []:
            tensor.copy_(tensor / self.size())
        return work

    def broadcast(self, tensors: list[Tensor], options: Any) -> dist.Work:
        return self._run(lambda mine, _: self._gloo.broadcast(mine, options), tensors, tensors)

    def allgather(self, outputs: list[list[Tensor]], inputs: list[Tensor], options: Any = None) -> dist.Work:
        [gathered] = outputs
        return self._run(lambda mine, theirs: self._gloo.allgather([mine], theirs), gathered, inputs)

    def all_gather_single(self, output: Tensor, input: Tensor, options: Any = None) -> dist.Work:
        return self.allgather([list(output.chunk(self.size()))], [input])

    _allgather_base = all_gather_single

    def gather(self, outputs: list[list[Tensor]], inputs: list[Tensor], options: Any) -> dist.Work:
        gathered = outputs[0] if outputs else []
        return self._run(
            lambda mine, theirs: self._gloo.gather([mine] if mine else [], theirs, options), gathered, inputs
        )

    def scatter(self, outputs: list[Tensor], inputs: list[list[Tensor]], options: Any) -> dist.Work:
        scattered = inputs[0] if inputs else []
        return self._run(
            lambda mine, theirs: self._gloo.scatter(mine, [theirs] if theirs else [], options), outputs, scattered
        )

    def reduce_scatter(self, outputs: list[Tensor], inputs: list[list[Tensor]], options: Any) -> dist.Work:
        [parts] = inputs
        return self.reduce_scatter_single(outputs[0], torch.cat([part.flatten() for part in parts]), options)

    def reduce_scatter_single(self, output: Tensor, input: Tensor, options: Any) -> dist.Work:
        def reduce(mine: list[Tensor], theirs: list[Tensor]) -> Any:
            return self._gloo._reduce_scatter_base(mine[0], theirs[0], options)

        return self._run(reduce, [output], [input])

    _reduce_scatter_base = reduce_scatter_single

    def all_to_all_single(
        self, output: Tensor, input: Tensor, output_sizes: list[int], input_sizes: list[int], options: Any = None
    ) -> dist.Work:
        def exchange(mine: list[Tensor], theirs: list[Tensor]) -> Any:
            return self._gloo.alltoall_base(mine[0], theirs[0], output_sizes, input_sizes)

        return self._run(exchange, [output], [input])

    alltoall_base = all_to_all_single

    # Between ranks one by one the strategies send from the CPU only.
    def send(self, tensors: list[Tensor], receiver: int, tag: int) -> dist.Work:
        return self._gloo.send(tensors, receiver, tag)

    def recv(self, tensors: list[Tensor], sender: int, tag: int) -> dist.Work:
        return self._gloo.recv(tensors, sender, tag)

    def barrier(self, opts: Any = None) -> dist.Work:
        return self._run(lambda mine, _: self._gloo.barrier(), [torch.zeros(1, device="cpu")], [])
