"""The meter's wait for dense gradients: from the end of backward's computation to the end of backward."""

import time

import torch
from torch.autograd import Variable

from dmt.strategies.meter import DenseReduction, WireMeter
from dmt.strategies.topology import Topology


class _Slow(torch.autograd.Function):
    """Takes a while in backward, and has one more wait at its end, as DistributedDataParallel does."""

    @staticmethod
    def forward(ctx, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> torch.Tensor:
        Variable._execution_engine.queue_callback(lambda: time.sleep(0.02))
        time.sleep(0.2)
        return gradient


def test_only_the_wait_at_the_end_of_backward_is_timed() -> None:
    meter = WireMeter(Topology(world_size=4, ranks_per_host=2), rank=1)
    reduction = DenseReduction(meter, num_bytes=1000)
    for step in (1, 2):
        loss = _Slow.apply(torch.ones(3, requires_grad=True)).sum()
        reduction.before_backward(loss)
        loss.backward()
        reduction.after_backward()
        waited = meter.waited_s["dense_gradients"]
        assert step * 0.02 <= waited < 0.2, "the 0.2 s of computation must not be in it"
        assert meter.sent_bytes == {("dense_gradients", "cross_host"): step * 1500}  # 2 * 3/4 of 1000, from rank 1 to 2


def test_a_loss_without_gradient_counts_nothing() -> None:
    meter = WireMeter(Topology(world_size=2, ranks_per_host=1), rank=0)
    reduction = DenseReduction(meter, num_bytes=1000)
    reduction.before_backward(torch.zeros(()))
    reduction.after_backward()
    assert not meter.sent_bytes
    assert not meter.waited_s
