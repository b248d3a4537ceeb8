"""What probes of a trained model have in common: when they measure, what on, where they write, and what it took.

Shapes: B samples, F features, N embedding dim.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import ClassVar

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torchrec.datasets.utils import Batch

from dmt.callbacks.run_record import run_folder
from dmt.errors import UserInputError, check_positive
from dmt.modules.click_model import ClickModel
from dmt.modules.stage import Stage
from dmt.modules.towers import PassThrough, TowerModule
from dmt.partition.affinity import Affinity
from dmt.strategies.traffic import FLOAT_BYTES


class Probe(Callback, ABC):
    """Measures a number for each pair of features when ``fit`` has ended, and writes it into the run's folder.

    It looks at validation batches, under any strategy, and says how long that took beside training. For flat models,
    whose towers pass embeddings on as they are. `dmt partition` makes towers of the file, and probes a checkpoint where
    there is none.

    Args:
        num_batches: batches of all ranks together to look at.
    """

    file: ClassVar[str]

    def __init__(self, num_batches: int) -> None:
        check_positive(type(self).__name__, num_batches=num_batches)
        self.num_batches = num_batches
        self._seconds_training = 0.0

    @abstractmethod
    def measure(self, trainer: pl.Trainer, model: ClickModel) -> Affinity:
        """Look at the model; every rank calls it and gets the same."""

    def check(self, trainer: pl.Trainer, module: pl.LightningModule) -> ClickModel:
        """The module, if it can be probed.

        Raises:
            UserInputError: it is no flat ClickModel, or there are no validation batches.
        """
        name = type(self).__name__
        if not isinstance(module, ClickModel):
            raise UserInputError(
                f"{name}: a probe reads a ClickModel's features, and not a {type(module).__name__}'s; leave it out",
                on_every_rank=True,
            )
        if not trainer.limit_val_batches:
            raise UserInputError(
                f"{name}: limit_val_batches=0, and a probe looks at validation batches; let it validate, or leave the "
                "probe out",
                on_every_rank=True,
            )
        towers = [child for child in module.modules() if isinstance(child, TowerModule)]
        is_whole = model_stage(module).out_features == len(module.schema.feature_names)
        if not is_whole or not all(isinstance(tower, PassThrough) for tower in towers):
            raise UserInputError(
                f"{name}: the model has tower modules, which change embeddings; train a flat one, "
                "--model.tower PassThrough",
                on_every_rank=True,
            )
        return module

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.check(trainer, pl_module)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._seconds_training = -time.monotonic()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._seconds_training += time.monotonic()

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        started = time.monotonic()
        model, device = self.check(trainer, pl_module), pl_module.device
        model.to(trainer.strategy.root_device)  # Lightning has moved all but the tables to the CPU by now
        affinity = self.measure(trainer, model)
        model.to(device)
        folder = run_folder(trainer)  # a collective: every rank asks
        seconds = time.monotonic() - started
        if trainer.is_global_zero:
            # Nothing was left to train where a run that had ended goes on.
            trained, share = self._seconds_training, ""
            if trained > 0:
                share = f" ({100 * seconds / trained:.1f} % of training's {trained:.0f} s)"
            path = (folder or Path(trainer.default_root_dir)) / self.file
            path.parent.mkdir(parents=True, exist_ok=True)
            affinity.save(path)
            print(
                f"wrote {path}: {affinity.kind} of each pair of features over {affinity.num_samples:,} samples, in "
                f"{seconds:.1f} s{share}"
            )


def validation_batches(trainer: pl.Trainer, num_batches: int) -> Iterator[Batch]:
    """The first validation batches, on the device."""
    for batch in islice(trainer.datamodule.val_dataloader(), num_batches):  # type: ignore[attr-defined]
        yield trainer.strategy.batch_to_device(batch)


def model_stage(module: pl.LightningModule) -> Stage:
    """The model's tower stage."""
    return next(child for child in module.modules() if isinstance(child, Stage))


def pair_sums(model: ClickModel, device: torch.device) -> Tensor:
    """Zeros (F, F) to sum over samples, in double precision."""
    size = len(model.schema.feature_names)
    return torch.zeros(size, size, dtype=torch.float64, device=device)


def list_features(model: ClickModel, are_named: Tensor) -> str:
    """Names in words, of bools (F,) in the order of the towers' outputs."""
    names = [repr(model.resolved_plan.feature_names[f]) for f in torch.nonzero(are_named).flatten().tolist()]
    return f"feature{'s' * (len(names) > 1)} {', '.join(names)}"


def fill_unmeasured(matrix: Tensor, is_measured: Tensor, reasons: Sequence[str]) -> Tensor:
    """The matrix (F, F) with the mean of the measured pairs in place of the others: neither like nor unlike.

    Training took long, and one feature may not cost the measurement of all; so this warns with the reasons.

    Args:
        matrix: what was measured; its diagonal counts for nothing.
        is_measured: bool (F, F), alike on every rank.
        reasons: why some are not measured, and what to do.

    Raises:
        UserInputError: no pair is measured.
    """
    pairs = is_measured & ~torch.eye(len(matrix), dtype=torch.bool, device=matrix.device)
    if reasons and not pairs.any():
        raise UserInputError(f"{'; '.join(reasons)}; no pair of features was measured", on_every_rank=True)
    for reason in reasons:
        rank_zero_warn(f"{reason}; what was not measured is taken as the mean of the other pairs")
    return torch.where(is_measured, matrix, matrix[pairs].mean())


def make_affinity(model: ClickModel, matrix: Tensor, *, kind: str, num_samples: int) -> Affinity:
    """The affinity of a matrix (F, F) whose rows are in the order of the towers' outputs, with what features cost."""
    names = list(model.resolved_plan.feature_names)
    # In the data's order, which baselines go by.
    order = [names.index(name) for name in model.schema.feature_names]
    columns = model.schema.categorical
    widths = [(model.table_dims or {}).get(column.table, model.embedding_dim) for column in columns]
    sharers = [sum(other.table == column.table for other in columns) for column in columns]
    return Affinity(
        features=model.schema.feature_names,
        matrix=matrix[order][:, order].cpu().numpy(),
        kind=kind,
        num_samples=num_samples,
        costs={
            "lookups": [column.mean_length for column in columns],
            "memory": [
                column.num_embeddings * width * FLOAT_BYTES / sharing
                for column, width, sharing in zip(columns, widths, sharers, strict=True)
            ],
            "outputs": [model.embedding_dim * FLOAT_BYTES for _ in columns],
        },
    )
