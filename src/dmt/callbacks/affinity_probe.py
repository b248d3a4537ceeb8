"""How alike the embeddings of a trained model's features are, for the tower partitioner (paper section 3.3).

Shapes: B samples, F features, N embedding dim.
"""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Literal, get_args

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.nn import functional as F
from torchrec.datasets.utils import Batch

from dmt.errors import UserInputError, check_positive
from dmt.modules.click_model import ClickModel
from dmt.modules.stage import Stage
from dmt.modules.towers import PassThrough, TowerModule
from dmt.partition.affinity import Affinity

Kind = Literal["cosine", "signed_cosine"]

FILE = "affinity.npz"
# Of cosines held at a time.
_MAX_ELEMENTS = 2**24


class AffinityProbe(Callback):
    """Writes ``affinity.npz`` into the run's folder: the mean over samples of |cosine| of each pair of embeddings.

    Like embeddings are not the same as useful interactions: see :class:`~dmt.callbacks.InteractionProbe`.

    When ``fit`` has ended, it looks up validation batches once more, under any strategy; a feature's bag counts as the
    embedding that it is pooled to, and a sample counts for the pairs of which it has both. For flat models, whose
    towers pass embeddings on as they are. `dmt partition` makes towers of the file.

    Args:
        num_batches: batches of all ranks together to look up.
        kind: ``cosine`` for |cosine|, as in the paper, or ``signed_cosine``.

    Raises:
        UserInputError: the model has tower modules, or there are no validation batches.
    """

    def __init__(self, num_batches: int = 50, kind: Kind = "cosine") -> None:
        check_positive("AffinityProbe", num_batches=num_batches)
        if kind not in get_args(Kind):
            raise UserInputError(f"AffinityProbe kind={kind}: give {' or '.join(get_args(Kind))}")
        self.num_batches = num_batches
        self.kind = kind

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        stage, names = _stage(pl_module), click_model(pl_module).schema.feature_names
        towers = [module for module in pl_module.modules() if isinstance(module, TowerModule)]
        if stage.out_features != len(names) or not all(isinstance(tower, PassThrough) for tower in towers):
            raise UserInputError(
                "AffinityProbe: the model has tower modules, which change embeddings; train a flat one, "
                "--model.tower PassThrough",
                on_every_rank=True,
            )
        check_validates(trainer)

    @torch.no_grad()
    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        stage, model = _stage(pl_module), click_model(pl_module)
        names = list(model.resolved_plan.feature_names)
        sums = torch.zeros(len(names), len(names), dtype=torch.float64, device=pl_module.device)
        counts, num_samples = torch.zeros_like(sums), torch.zeros(1, dtype=torch.float64, device=pl_module.device)
        for batch in validation_batches(trainer, self.num_batches):
            embeddings = stage(batch.sparse_features)
            _add_cosines(embeddings.float(), sums=sums, counts=counts, is_signed=self.kind == "signed_cosine")
            num_samples += len(embeddings)
        sums, counts, num_samples = (
            trainer.strategy.reduce(tensor, reduce_op="sum") for tensor in (sums, counts, num_samples)
        )
        # In the data's order, which baselines go by.
        order = [names.index(name) for name in model.schema.feature_names]
        matrix = (sums / counts.clamp(min=1))[order][:, order].cpu().numpy()
        affinity = Affinity(
            features=model.schema.feature_names, matrix=matrix, kind=self.kind, num_samples=int(num_samples.item())
        )
        save_affinity(affinity, trainer, file=FILE)


def check_validates(trainer: pl.Trainer) -> None:
    """Raise :class:`UserInputError` if there are no validation batches, which probes look at."""
    if not trainer.limit_val_batches:
        raise UserInputError(
            "limit_val_batches=0: a probe looks at validation batches; let it validate, or leave the probe out",
            on_every_rank=True,
        )


def validation_batches(trainer: pl.Trainer, num_batches: int) -> Iterator[Batch]:
    """The first validation batches, on the device."""
    for batch in islice(trainer.datamodule.val_dataloader(), num_batches):  # type: ignore[attr-defined]
        yield trainer.strategy.batch_to_device(batch)


def save_affinity(affinity: Affinity, trainer: pl.Trainer, *, file: str) -> None:
    """Write it into the run's folder; every rank calls it."""
    folder = trainer.log_dir  # a collective: every rank asks
    if trainer.is_global_zero:
        path = Path(folder or trainer.default_root_dir) / file
        path.parent.mkdir(parents=True, exist_ok=True)
        affinity.save(path)
        print(f"wrote {path}: {affinity.kind} of each pair of features over {affinity.num_samples:,} samples")


def click_model(module: pl.LightningModule) -> ClickModel:
    """The module, which must be a :class:`ClickModel`: others do not say what their features are.

    Raises:
        UserInputError: it is another.
    """
    if not isinstance(module, ClickModel):
        raise UserInputError(
            f"a probe reads a ClickModel's features, and not a {type(module).__name__}'s; leave the probe out",
            on_every_rank=True,
        )
    return module


def _stage(module: pl.LightningModule) -> Stage:
    return next(child for child in module.modules() if isinstance(child, Stage))


def _add_cosines(embeddings: Tensor, *, sums: Tensor, counts: Tensor, is_signed: bool) -> None:
    """Add the cosine of each pair, and the number of samples that have both, of embeddings (B, F, N)."""
    directions = F.normalize(embeddings, dim=2)
    present = (embeddings != 0).any(dim=2).to(counts.dtype)  # an empty bag has no direction
    counts += present.T @ present
    for rows in directions.split(max(1, _MAX_ELEMENTS // sums.numel())):
        cosines = rows @ rows.transpose(1, 2)
        sums += (cosines if is_signed else cosines.abs()).sum(dim=0)
