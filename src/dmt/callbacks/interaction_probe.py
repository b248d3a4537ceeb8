"""How much pairs of features act together on a trained model's prediction, for the tower partitioner.

Shapes: B samples, F features, N embedding dim.
"""

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torchrec.datasets.utils import Batch

from dmt.callbacks.probe import (
    Probe,
    fill_unmeasured,
    list_features,
    make_affinity,
    model_stage,
    pair_sums,
    validation_batches,
)
from dmt.errors import UserInputError
from dmt.modules.click_model import ClickModel
from dmt.modules.stage import given_outputs
from dmt.partition.affinity import Affinity
from dmt.waiting import waiting

# Of a rank's batch: more of them sharpen a root mean square little.
_MAX_SAMPLES = 1024
_DIVERGED = "so training has diverged; lower its learning rates"


class InteractionProbe(Probe):
    """Writes ``interaction.npz`` into the run's folder: how much each pair of features acts together on the prediction.

    When ``fit`` has ended, one feature of a sample takes the embedding that another sample has of it, and the logit's
    gradient by the embedding of a second feature is compared with what it was; the change of the gradient, along the
    second feature's own step to the other sample, is how much the two act together on that sample. The root of its mean
    square over samples, here relative to the largest, is the pair's interaction. Where features act apart, however
    strongly, it is 0. (It is the second mixed difference of the logit, the second step to first order; Friedman and
    Popescu 2008 compare partial dependences in the same way.) Any top arch may be in the model.

    It costs F + 1 forward and backward passes of the dense layers, 27 for Criteo's 26 features, over up to 1,024
    samples of a rank's batch. The pairs of a feature with embeddings that are not finite take the mean of the others,
    with a warning that names it. A model in which no two features act together gives zeros, with a warning too.

    Args:
        num_batches: batches of all ranks together to look at. Each rank takes other samples from its own.
        seed: of which other sample is taken.

    Raises:
        UserInputError: the model has tower modules, there are no validation batches, the number is not positive, or
            the logit's gradients are not finite.
    """

    file = "interaction.npz"

    def __init__(self, num_batches: int = 1, seed: int = 0) -> None:
        super().__init__(num_batches)
        self.seed = seed

    def measure(self, trainer: pl.Trainer, model: ClickModel) -> Affinity:
        """Interactions, relative to the largest one."""
        squares, num_samples = pair_sums(model, model.device), torch.zeros(1, dtype=torch.float64, device=model.device)
        strays = torch.zeros(len(squares), dtype=torch.float64, device=model.device)
        random = torch.Generator().manual_seed(self.seed)
        was_training = model.training
        model.eval()
        for batch in map(_first_samples, validation_batches(trainer, self.num_batches)):
            own = _embeddings(model, batch)
            is_finite = own.isfinite().all(dim=2, keepdim=True)
            strays += (~is_finite).sum(dim=(0, 2))
            own = own.where(is_finite, 0)  # else they would spoil the logits of their samples, and so all pairs
            squares += _squared_differences(model, batch, own, random, is_shown=trainer.is_global_zero)
            num_samples += len(batch.labels)
        model.train(was_training)
        squares, strays, num_samples = (
            trainer.strategy.reduce(tensor, reduce_op="sum") for tensor in (squares, strays, num_samples)
        )
        reasons = []
        if strays.any():
            told = list_features(model, strays > 0)
            reasons.append(f"InteractionProbe: {told} had embeddings that are not finite, {_DIVERGED}")
        interactions = ((squares + squares.T) / 2 / num_samples).sqrt()
        interactions.fill_diagonal_(0)
        if not interactions.isfinite().all():
            reasons.append(f"InteractionProbe: the logit's gradients are not finite, {_DIVERGED}")
            raise UserInputError("; ".join(reasons), on_every_rank=True)
        if not interactions.any():
            rank_zero_warn(
                "InteractionProbe: no two features act together on the logit of these samples, so that towers made of "
                "this would be arbitrary; look at more batches, or make towers of an AffinityProbe's cosines"
            )
        interactions /= interactions.max().clamp(min=1e-12)
        matrix = fill_unmeasured(interactions, (strays == 0) & (strays == 0)[:, None], reasons)
        matrix.fill_diagonal_(0)
        return make_affinity(model, matrix, kind="interaction", num_samples=int(num_samples.item()))


def _first_samples(batch: Batch) -> Batch:
    """The first samples of a batch; of its ids still those of all."""
    return Batch(batch.dense_features[:_MAX_SAMPLES], batch.sparse_features, batch.labels[:_MAX_SAMPLES])


@torch.no_grad()
def _embeddings(model: ClickModel, batch: Batch) -> Tensor:
    """Of the batch's samples (B, F, N)."""
    embeddings: Tensor = model_stage(model)(batch.sparse_features)[: len(batch.labels)].float()
    return embeddings


def _squared_differences(
    model: ClickModel, batch: Batch, own: Tensor, random: torch.Generator, *, is_shown: bool
) -> Tensor:
    """Sums (F, F) over samples of the squared second mixed differences of the logit, of their embeddings (B, F, N)."""
    stage = model_stage(model)
    order = torch.randperm(len(own), generator=random).to(own.device)
    step = own[order] - own

    def gradients(vectors: Tensor) -> Tensor:
        vectors = vectors.requires_grad_()
        with torch.enable_grad(), given_outputs(stage, vectors):
            return torch.autograd.grad(model(batch).sum(), vectors)[0]

    before = gradients(own.clone())
    sums = []
    for feature in waiting(range(own.shape[1]), "interactions of features", is_shown=is_shown):
        moved = own.clone()
        moved[:, feature] += step[:, feature]
        change = ((gradients(moved) - before) * step).sum(dim=2)  # (B, F)
        sums.append(change.double().square().sum(dim=0))
    return torch.stack(sums)
