"""How alike the embeddings of a trained model's features are, for the tower partitioner (paper section 3.3).

Shapes: B samples, F features, N embedding dim.
"""

from typing import Literal, get_args

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.nn import functional as F

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
from dmt.partition.affinity import Affinity
from dmt.waiting import waiting

Kind = Literal["cosine", "signed_cosine"]

# Of cosines held at a time.
_MAX_ELEMENTS = 2**24
# Variance of a feature's directions, between 0 and 1, that is no more than the rounding of float32 sums.
_NO_VARIANCE = 1e-5
_MAX_PAIRS = 5  # that a warning names


class AffinityProbe(Probe):
    """Writes ``affinity.npz`` into the run's folder: the mean over samples of |cosine| of each pair of embeddings.

    Like embeddings are not the same as useful interactions: see :class:`~dmt.callbacks.InteractionProbe`.

    When ``fit`` has ended, it looks up validation batches once more, under any strategy; a feature's bag counts as the
    embedding that it is pooled to, and a sample counts for the pairs of which it has both. Pairs that no sample has,
    and those of a feature whose embeddings are all zeros, all the same or not finite, take the mean of the others, with
    a warning that names them.

    Args:
        num_batches: batches of all ranks together to look up.
        kind: ``cosine`` for |cosine|, as in the paper, or ``signed_cosine``.

    Raises:
        UserInputError: the model has tower modules, there are no validation batches, or no pair can be measured.
    """

    file = "affinity.npz"

    def __init__(self, num_batches: int = 10, kind: Kind = "cosine") -> None:
        super().__init__(num_batches)
        if kind not in get_args(Kind):
            raise UserInputError(f"AffinityProbe kind={kind}: give {' or '.join(get_args(Kind))}")
        self.kind = kind

    @torch.no_grad()
    def measure(self, trainer: pl.Trainer, model: ClickModel) -> Affinity:
        """Mean cosines."""
        stage = model_stage(model)
        sums, counts = pair_sums(model, model.device), pair_sums(model, model.device)
        totals = torch.zeros(len(sums), stage.out_dim, dtype=torch.float64, device=model.device)
        num_samples = torch.zeros(1, dtype=torch.float64, device=model.device)
        batches = validation_batches(trainer, self.num_batches)
        for batch in waiting(batches, "cosines of batches", total=self.num_batches, is_shown=trainer.is_global_zero):
            embeddings = stage(batch.sparse_features)
            directions = _add_cosines(
                embeddings.float(), sums=sums, counts=counts, is_signed=self.kind == "signed_cosine"
            )
            totals += directions.sum(dim=0)
            num_samples += len(embeddings)
        sums, counts, totals, num_samples = (
            trainer.strategy.reduce(tensor, reduce_op="sum") for tensor in (sums, counts, totals, num_samples)
        )
        is_measured, reasons = _measured(model, sums=sums, counts=counts, totals=totals)
        matrix = fill_unmeasured(sums / counts.clamp(min=1), is_measured, reasons)
        return make_affinity(model, matrix, kind=self.kind, num_samples=int(num_samples.item()))


def _add_cosines(embeddings: Tensor, *, sums: Tensor, counts: Tensor, is_signed: bool) -> Tensor:
    """Add the cosine of each pair, and the number of samples that have both; the directions of embeddings (B, F, N)."""
    directions = F.normalize(embeddings, dim=2)
    present = (embeddings != 0).any(dim=2).to(counts.dtype)  # an empty bag has no direction
    counts += present.T @ present
    for rows in directions.split(max(1, _MAX_ELEMENTS // sums.numel())):
        cosines = rows @ rows.transpose(1, 2)
        sums += (cosines if is_signed else cosines.abs()).sum(dim=0)
    return directions


def _measured(model: ClickModel, *, sums: Tensor, counts: Tensor, totals: Tensor) -> tuple[Tensor, list[str]]:
    """Which cosines tell something, bool (F, F), and why the others do not.

    Args:
        model: whose features they are.
        sums: of cosines (F, F).
        counts: of samples that have both (F, F).
        totals: sums of directions (F, N).
    """
    numbers = counts.diagonal()
    is_finite, is_present = sums.diagonal().isfinite(), numbers > 0
    variances = 1 - (totals / numbers.clamp(min=1)[:, None]).square().sum(dim=1)  # of unit vectors
    is_constant = is_finite & is_present & (variances < _NO_VARIANCE)
    problems = {
        "had embeddings that are not finite, so training has diverged; lower its learning rates": ~is_finite,
        "had no embedding but zeros in the samples looked at, so no direction; look at more batches, or leave the "
        "feature out": is_finite & ~is_present,
        "had the same direction in every sample that has one, so cosines tell nothing of it; look at more batches, or "
        "leave the feature out": is_constant,
    }
    reasons = [
        f"AffinityProbe: {list_features(model, which)} {what}" for what, which in problems.items() if which.any()
    ]
    is_usable = is_finite & is_present & ~is_constant
    pairs = is_usable & is_usable[:, None]
    unmet = torch.nonzero(torch.triu(pairs & (counts == 0))).tolist()
    if unmet:
        names = model.resolved_plan.feature_names
        told = ", ".join(f"{names[i]!r} and {names[j]!r}" for i, j in unmet[:_MAX_PAIRS])
        more = f" and {len(unmet) - _MAX_PAIRS} more pairs" if len(unmet) > _MAX_PAIRS else ""
        reasons.append(f"AffinityProbe: {told}{more} were never in one sample; look at more batches")
    return pairs & (counts > 0), reasons
