"""Floating-point operations a sample costs, counted by torch while the real modules run on the meta device.

A multiply-add is two. Forward and backward; no gradient of the numeric columns, as in training. Lookups cost none.

Shapes: B samples, n vectors, D width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dmt.modules import DotInteraction, TopArch, TowerStage
from dmt.modules.stage import Pending, Ready, Stage, run_towers

_BATCH = 4


@dataclass(frozen=True)
class SampleFlops:
    """FLOPs of one sample.

    Args:
        executed: what the modules' matrix products come to.
        as_reported: the same with dot interactions as n x n x D products and two more for their gradients, which is
            how the paper's table 4 counts.
    """

    executed: float
    as_reported: float


def count_flops(top: TopArch, num_dense: int) -> SampleFlops:
    """Count a model that was built on the meta device; its tower stage and interactions are replaced by counted ones.

    Args:
        top: the model.
        num_dense: numeric columns.
    """
    _replace(top, TowerStage, _CountedStage)
    executed = _run(top, num_dense)
    _replace(top, DotInteraction, _FullProducts)
    return SampleFlops(executed=executed, as_reported=_run(top, num_dense))


def _run(top: TopArch, num_dense: int) -> float:
    with FlopCounterMode(display=False) as counter:
        top(torch.empty(_BATCH, num_dense, device="meta"), None).sum().backward()
    return counter.get_total_flops() / _BATCH


def _replace(top: TopArch, kind: type[nn.Module], replacement: type[nn.Module]) -> None:
    for parent in list(top.modules()):
        for name, child in parent.named_children():
            if isinstance(child, kind):
                setattr(parent, name, replacement(child))


class _CountedStage(Stage):
    """A tower stage whose lookups are replaced by embeddings on the meta device, which cost no FLOPs."""

    def __init__(self, stage: TowerStage) -> None:
        super().__init__()
        self.stage = stage
        self.out_features, self.out_dim = stage.out_features, stage.out_dim

    def start(self, features: KeyedJaggedTensor | None) -> Pending:
        inputs = [torch.empty(_BATCH, *shape, device="meta", requires_grad=True) for shape in self.stage.tower_shapes]
        return Ready(run_towers(self.stage.tower_modules, inputs))

    def set_learning_rate(self, learning_rate: float) -> None:
        raise AssertionError("a stage that is only counted has no rows")


class _FullProducts(nn.Module):
    """The dot interaction as one n x n x D product of which half is thrown away."""

    def __init__(self, interaction: DotInteraction) -> None:
        super().__init__()
        self.out_features = interaction.out_features

    def forward(self, vectors: Tensor, dense: Tensor | None = None) -> Tensor:
        if dense is not None:
            vectors = torch.cat([dense.unsqueeze(1), vectors], dim=1)
        products = torch.bmm(vectors, vectors.transpose(1, 2)).flatten(1)[:, : self.out_features]
        return products if dense is None else torch.cat([dense, products], dim=1)
