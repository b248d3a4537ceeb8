"""How much pairs of features act together on a trained model's prediction, for the tower partitioner.

Shapes: B samples, F features, N embedding dim.
"""

import lightning.pytorch as pl
import torch
from torch import Tensor
from torchrec.datasets.utils import Batch

from dmt.callbacks.probe import Probe, make_affinity, model_stage, pair_sums, validation_batches
from dmt.modules.click_model import ClickModel
from dmt.modules.stage import given_outputs
from dmt.partition.affinity import Affinity
from dmt.waiting import waiting

# Of a rank's batch: more of them sharpen a root mean square little.
_MAX_SAMPLES = 1024


class InteractionProbe(Probe):
    """Writes ``interaction.npz`` into the run's folder: how much each pair of features acts together on the prediction.

    When ``fit`` has ended, one feature of a sample takes the embedding that another sample has of it, and the logit's
    gradient by the embedding of a second feature is compared with what it was; the change of the gradient, along the
    second feature's own step to the other sample, is how much the two act together on that sample. The root of its mean
    square over samples, here relative to the largest, is the pair's interaction. Where features act apart, however
    strongly, it is 0. (It is the second mixed difference of the logit, the second step to first order; Friedman and
    Popescu 2008 compare partial dependences in the same way.) Any top arch may be in the model.

    It costs F + 1 forward and backward passes of the dense layers, 27 for Criteo's 26 features, over up to 1,024
    samples of a rank's batch.

    Args:
        num_batches: batches of all ranks together to look at. Each rank takes other samples from its own.
        seed: of which other sample is taken.

    Raises:
        UserInputError: the model has tower modules, there are no validation batches, or the number is not positive.
    """

    file = "interaction.npz"

    def __init__(self, num_batches: int = 1, seed: int = 0) -> None:
        super().__init__(num_batches)
        self.seed = seed

    def measure(self, trainer: pl.Trainer, model: ClickModel) -> Affinity:
        """Interactions, relative to the largest one."""
        squares, num_samples = pair_sums(model, model.device), torch.zeros(1, dtype=torch.float64, device=model.device)
        random = torch.Generator().manual_seed(self.seed)
        was_training = model.training
        model.eval()
        for batch in map(_first_samples, validation_batches(trainer, self.num_batches)):
            squares += _squared_differences(model, batch, random, is_shown=trainer.is_global_zero)
            num_samples += len(batch.labels)
        model.train(was_training)
        squares, num_samples = (trainer.strategy.reduce(tensor, reduce_op="sum") for tensor in (squares, num_samples))
        interactions = ((squares + squares.T) / 2 / num_samples).sqrt()
        interactions.fill_diagonal_(0)
        return make_affinity(
            model,
            interactions / interactions.max().clamp(min=1e-12),
            kind="interaction",
            num_samples=int(num_samples.item()),
        )


def _first_samples(batch: Batch) -> Batch:
    """The first samples of a batch; of its ids still those of all."""
    return Batch(batch.dense_features[:_MAX_SAMPLES], batch.sparse_features, batch.labels[:_MAX_SAMPLES])


def _squared_differences(model: ClickModel, batch: Batch, random: torch.Generator, *, is_shown: bool) -> Tensor:
    """Sums (F, F) over samples of the squared second mixed differences of the logit."""
    stage = model_stage(model)
    with torch.no_grad():
        own = stage(batch.sparse_features)[: len(batch.labels)].float()  # (B, F, N)
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
