"""Floating-point operations a sample costs, counted by torch while the real modules run on a few samples.

A multiply-add is two. Forward and backward; no gradient of the numeric columns, as in training. Lookups cost none.

Shapes: B samples, F features, n vectors, D width.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dmt.errors import UserInputError
from dmt.modules import DotInteraction, TopArch, TowerStage
from dmt.modules.failures import check_apart, check_registered, check_trained, named, without_gradient
from dmt.modules.stage import Pending, Ready, Stage, run_towers
from dmt.modules.top_arch import check_logits
from dmt.modules.towers import plain_tower
from dmt.schema import FeatureSchema

_BATCH = 4
_FAILING = f"it fails on {_BATCH} samples"


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


def count_flops(top: TopArch, schema: FeatureSchema) -> SampleFlops:
    """Count a model on the CPU; its tower stage and interactions are replaced by counted ones.

    Args:
        top: the model, built on the CPU; its tables need no storage.
        schema: the data's columns.

    Raises:
        UserInputError: a tower module or the top arch fails, or returns something else than it should.
    """
    _replace(top, TowerStage, _CountedStage)
    executed = _run(top, schema)
    _replace(top, DotInteraction, _FullProducts)
    return SampleFlops(executed=executed, as_reported=_run(top, schema))


def check_for_ranks(top: TopArch, schema: FeatureSchema) -> None:
    """Check what several ranks need, who have other batches than a single process and average all gradients.

    Args:
        top: the model, once its FLOPs are counted.
        schema: the data's columns.

    Raises:
        UserInputError: what a tower module or the top arch returns for a sample depends on others, or no logit depends
            on some of its weights.
    """
    _check_all_used(top)
    dense = torch.rand(_BATCH, len(schema.dense), requires_grad=True)
    logits, runs = _forward(top, schema, dense - 0.5)
    for run in runs:
        check_apart("tower", run.tower, run.output, [run.looked_up])
    check_apart("top", top, logits, [dense, *(run.looked_up for run in runs)])


def _check_all_used(top: TopArch) -> None:
    """Check that counting has left all weights a gradient: ranks average them, and would miss one."""
    if unused := without_gradient(top.named_parameters()):
        unused = unused.replace("stage.stage.", "stage.")  # the counted stage holds the real one
        raise UserInputError(
            f"top {type(top).__name__}: no logit depends on its {unused}, and ranks average the gradients of all dense "
            "layers in every step; freeze it by requires_grad_(False), leave it out of the model, or use one rank"
        )


def _run(top: TopArch, schema: FeatureSchema) -> float:
    with _plain_kernels(), named("top", type(top), _FAILING), FlopCounterMode(display=False) as counter:
        logits, runs = _forward(top, schema, torch.rand(_BATCH, len(schema.dense)))
        check_trained("top", top, logits)
        check_registered("top", top, logits, [run.looked_up for run in runs])
        trained = [run.output for run in runs if run.output.requires_grad]
        for output in trained:
            output.retain_grad()
        logits.sum().backward()
    if trained and all(output.grad is None for output in trained):
        raise UserInputError(
            f"top {type(top).__name__}: no gradient goes back from its logits to the towers, so that neither they nor "
            "the embeddings would be trained; leave torch.no_grad() and detach() out of forward"
        )
    return counter.get_total_flops() / _BATCH


@dataclass(frozen=True)
class _TowerRun:
    tower: nn.Module
    looked_up: Tensor
    output: Tensor


def _forward(top: TopArch, schema: FeatureSchema, dense: Tensor) -> tuple[Tensor, list[_TowerRun]]:
    """Logits of the samples, and what towers made of theirs on the way."""
    stages = [stage for stage in top.modules() if isinstance(stage, _CountedStage)]
    for stage in stages:
        stage.runs.clear()
    logits = check_logits(top, top(dense, _bags(schema)), batch_size=_BATCH)
    return logits, [run for stage in stages for run in stage.runs]


@contextmanager
def _plain_kernels() -> Iterator[None]:
    """Without the CPU's own kernels of attention and recurrent layers, whose costs torch does not know."""
    was_enabled = torch.backends.mkldnn.enabled
    torch.backends.mkldnn.enabled = False  # type: ignore[assignment]
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mkldnn.enabled = was_enabled


def _bags(schema: FeatureSchema) -> KeyedJaggedTensor:
    """B samples with one id of each feature."""
    num_ids = len(schema.categorical) * _BATCH
    return KeyedJaggedTensor(
        keys=list(schema.feature_names),
        values=torch.cat([torch.arange(_BATCH) % feature.num_embeddings for feature in schema.categorical]),
        weights=torch.ones(num_ids) if schema.weighted else None,
        lengths=torch.ones(num_ids, dtype=torch.int32),
        stride=_BATCH,
    )


def _replace(top: TopArch, kind: type[nn.Module], replacement: type[nn.Module]) -> None:
    for parent in list(top.modules()):
        for name, child in parent.named_children():
            if isinstance(child, kind):
                setattr(parent, name, replacement(child))


class _CountedStage(Stage):
    """A tower stage whose lookups, which cost no FLOPs, are replaced by random embeddings."""

    def __init__(self, stage: TowerStage) -> None:
        super().__init__()
        self.stage = stage
        self.out_features, self.out_dim = stage.out_features, stage.out_dim
        self.runs: list[_TowerRun] = []

    def start(self, features: KeyedJaggedTensor) -> Pending:
        outputs = []
        for tower, shape in zip(self.stage.tower_modules, self.stage.tower_shapes, strict=True):
            looked_up = torch.rand(_BATCH, *shape, requires_grad=True)
            plain = plain_tower(tower)
            with named("tower", type(plain), _FAILING):
                # It reads no leaf, as in training: a tower may work in place.
                output = run_towers([tower], [looked_up - 0.5])
            check_trained("tower", plain, output)
            check_registered("tower", plain, output, [looked_up, *tower.parameters()])
            self.runs.append(_TowerRun(plain, looked_up, output))
            outputs.append(output)
        return Ready(torch.cat(outputs, dim=1))

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
