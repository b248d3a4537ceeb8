"""The process group of the tests on a GPU does what gloo does, here in host memory."""

from datetime import timedelta

import torch
import torch.distributed as dist

from tests.distributed import staged_group
from tests.distributed.harness import run_ranks


def collect() -> list[list[float]]:
    """What every collective gives this rank, of both groups in turn."""
    staged_group.register()
    dist.init_process_group(staged_group.NAME, timeout=timedelta(seconds=60))
    found = [_collectives(dist.new_group([0, 1], backend=name)) for name in (staged_group.NAME, "gloo")]
    return [[float(value) for tensor in tensors for value in tensor] for tensors in found]


def _collectives(group: dist.ProcessGroup) -> list[torch.Tensor]:
    rank, size = dist.get_rank(), 2
    own = torch.arange(4.0) + 10 * rank
    total, sent, exchanged, scattered = own.clone(), own.clone(), torch.empty(3 + rank), torch.empty(2)
    dist.all_reduce(total, group=group)
    dist.broadcast(sent, src=1, group=group)
    gathered = [torch.empty(4) for _ in range(size)]
    dist.all_gather(gathered, own, group=group)
    # Rank 0 keeps 1 and sends 3, rank 1 sends 2 and keeps 1.
    dist.all_to_all_single(exchanged, own[: 4 - rank], [[1, 2], [3, 1]][rank], [[1, 3], [2, 1]][rank], group=group)
    dist.reduce_scatter_tensor(scattered, own, group=group)
    objects: list[int | None] = [None] * size
    dist.all_gather_object(objects, rank, group=group)
    assert objects == [0, 1]
    dist.barrier(group)
    return [total, sent, *gathered, exchanged, scattered]


def test_it_does_what_gloo_does() -> None:
    for staged, gloo in run_ranks(collect, world_size=2):
        assert staged == gloo and len(gloo) > 20
