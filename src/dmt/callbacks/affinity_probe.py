"""How alike the embeddings of a trained model's features are, for the tower partitioner (paper section 3.3).

Shapes: B samples, F features, N embedding dim.
"""

from typing import Literal, get_args

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.nn import functional as F

from dmt.callbacks.probe import Probe, make_affinity, model_stage, pair_sums, validation_batches
from dmt.errors import UserInputError
from dmt.modules.click_model import ClickModel
from dmt.partition.affinity import Affinity
from dmt.waiting import waiting

Kind = Literal["cosine", "signed_cosine"]

# Of cosines held at a time.
_MAX_ELEMENTS = 2**24


class AffinityProbe(Probe):
    """Writes ``affinity.npz`` into the run's folder: the mean over samples of |cosine| of each pair of embeddings.

    Like embeddings are not the same as useful interactions: see :class:`~dmt.callbacks.InteractionProbe`.

    When ``fit`` has ended, it looks up validation batches once more, under any strategy; a feature's bag counts as the
    embedding that it is pooled to, and a sample counts for the pairs of which it has both.

    Args:
        num_batches: batches of all ranks together to look up.
        kind: ``cosine`` for |cosine|, as in the paper, or ``signed_cosine``.

    Raises:
        UserInputError: the model has tower modules, there are no validation batches, or a feature has no embedding but
            zeros in them.
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
        num_samples = torch.zeros(1, dtype=torch.float64, device=model.device)
        batches = validation_batches(trainer, self.num_batches)
        for batch in waiting(batches, "cosines of batches", total=self.num_batches, is_shown=trainer.is_global_zero):
            embeddings = stage(batch.sparse_features)
            _add_cosines(embeddings.float(), sums=sums, counts=counts, is_signed=self.kind == "signed_cosine")
            num_samples += len(embeddings)
        sums, counts, num_samples = (
            trainer.strategy.reduce(tensor, reduce_op="sum") for tensor in (sums, counts, num_samples)
        )
        _check_present(model, counts.diagonal())
        return make_affinity(model, sums / counts.clamp(min=1), kind=self.kind, num_samples=int(num_samples.item()))


def _add_cosines(embeddings: Tensor, *, sums: Tensor, counts: Tensor, is_signed: bool) -> None:
    """Add the cosine of each pair, and the number of samples that have both, of embeddings (B, F, N)."""
    directions = F.normalize(embeddings, dim=2)
    present = (embeddings != 0).any(dim=2).to(counts.dtype)  # an empty bag has no direction
    counts += present.T @ present
    for rows in directions.split(max(1, _MAX_ELEMENTS // sums.numel())):
        cosines = rows @ rows.transpose(1, 2)
        sums += (cosines if is_signed else cosines.abs()).sum(dim=0)


def _check_present(model: ClickModel, counts: Tensor) -> None:
    absent = [model.resolved_plan.feature_names[f] for f in torch.nonzero(counts == 0).flatten().tolist()]
    if absent:
        raise UserInputError(
            f"AffinityProbe: feature{'s' * (len(absent) > 1)} {', '.join(map(repr, absent))} had no embedding but "
            "zeros in the samples looked at, so no direction; look at more batches, or leave the feature out",
            on_every_rank=True,
        )
