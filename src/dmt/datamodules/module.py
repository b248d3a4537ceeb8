"""The part of a DataModule that all click logs share: loaders of global batches and the data position."""

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import LightningDataModule
from lightning.pytorch.trainer.states import TrainerFn

from dmt.datamodules.loader import (
    ClickDataset,
    ClickLoader,
    EvaluationLoader,
    GlobalBatchSampler,
    check_minima,
)
from dmt.schema import FeatureSchema


class ClickDataModule(LightningDataModule):
    """Base of the click logs.

    A subclass sets ``self._schema`` at the latest in ``prepare_data()``, and both ``self._schema`` and
    ``self._splits`` in ``setup()``, which is all that runs on most ranks.

    Batches are :class:`torchrec.datasets.utils.Batch`: dense_features float32 (B, C), sparse_features a
    KeyedJaggedTensor of all categorical features, labels float32 (B,). ``B`` is this rank's share of
    ``global_batch_size`` and may be 0 in the last step of an epoch.

    Args:
        global_batch_size: samples of one step over all ranks together.
        seed: seed of the order of the training samples.
        num_workers: processes of each rank that make batches ahead; 0 where a core for them is not to spare.

    Raises:
        UserInputError: ``global_batch_size`` is below 1, or another number is negative or not whole.
    """

    def __init__(self, *, global_batch_size: int, seed: int, num_workers: int = 0) -> None:
        super().__init__()
        check_minima({"global_batch_size": (global_batch_size, 1), "seed": (seed, 0), "num_workers": (num_workers, 0)})
        self.num_workers = num_workers
        self.global_batch_size = global_batch_size
        self.seed = seed
        self._schema: FeatureSchema | None = None
        self._splits: Mapping[str, ClickDataset] = {}
        self._train_loader: ClickLoader | None = None
        self._train_position: dict[str, int | None] | None = None

    @property
    def schema(self) -> FeatureSchema:
        """The columns that batches hold, known after ``prepare_data()``.

        Raises:
            RuntimeError: ``prepare_data()`` has not run.
        """
        if self._schema is None:
            raise RuntimeError(f"{type(self).__name__}.schema is known after prepare_data(): call it first")
        return self._schema

    def has_split(self, name: str) -> bool:
        """Whether there is a ``"train"``, ``"valid"`` or ``"test"`` split, without reading it."""
        return True

    def train_dataloader(self) -> ClickLoader:
        """Shuffled global batches; goes on where a loaded checkpoint stopped."""
        dataset = self._split("train")
        # overfit_batches asks for the same few batches in every epoch, so it keeps the stored order.
        # (Lightning sets the attribute where mypy does not see it.)
        is_overfitting = self.trainer is not None and self.trainer.overfit_batches > 0  # type: ignore[attr-defined]
        sampler = self._sampler(dataset, shuffle_seed=None if is_overfitting else self.seed)
        num_steps = self._limit(len(sampler))
        loader = ClickLoader(
            dataset,
            batch_sampler=sampler,
            num_steps=num_steps,
            num_workers=self.num_workers,
            pin_memory=self._trains_on_gpu,
        )
        if self._train_position is not None:
            loader.load_state_dict(self._train_position)
            self._train_position = None
        self._train_loader = loader
        return loader

    def val_dataloader(self) -> EvaluationLoader:
        """Every validation sample once, in stored order."""
        return self._evaluation_loader("valid")

    def test_dataloader(self) -> EvaluationLoader:
        """Every test sample once, in stored order."""
        return self._evaluation_loader("test")

    def predict_dataloader(self) -> EvaluationLoader:
        """The test samples, for lack of any others."""
        return self._evaluation_loader("test")

    def state_dict(self) -> dict[str, Any]:
        """The data position. Lightning saves the loader's too, but restores that in some resumes only."""
        if self._train_loader is None:
            return {}
        # What the Trainer draws from: a strategy may look ahead, and a batch that is ahead is not yet trained on.
        drawn_from = None if self.trainer is None else self.trainer.train_dataloader
        return {"train": (self._train_loader if drawn_from is None else drawn_from).state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the data position for the next :meth:`train_dataloader`."""
        # A checkpoint that is only validated or tested says nothing about where a later fit() begins.
        if self.trainer is not None and self.trainer.state.fn == TrainerFn.FITTING:
            self._train_position = state_dict.get("train")

    def __str__(self) -> str:
        # Lightning's own would draw batches from our loaders, which it does not know.
        sizes = ", ".join(f"{name}: {len(split)}" for name, split in self._splits.items())
        return f"{type(self).__name__}({sizes or 'not set up'})"

    def _split(self, name: str) -> ClickDataset:
        if not self._splits:
            raise RuntimeError(f"{type(self).__name__} has no samples yet: call prepare_data() and setup() first")
        return self._splits[name]

    def _evaluation_loader(self, split: str) -> EvaluationLoader:
        dataset = self._split(split)
        sampler = self._sampler(dataset, shuffle_seed=None)
        return EvaluationLoader(
            dataset, batch_sampler=sampler, num_workers=self.num_workers, pin_memory=self._trains_on_gpu
        )

    @property
    def _trains_on_gpu(self) -> bool:
        return self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"

    def _sampler(self, dataset: ClickDataset, *, shuffle_seed: int | None) -> GlobalBatchSampler:
        return GlobalBatchSampler(
            num_samples=len(dataset),
            global_batch_size=self.global_batch_size,
            rank=0 if self.trainer is None else self.trainer.global_rank,
            world_size=1 if self.trainer is None else self.trainer.world_size,
            shuffle_seed=shuffle_seed,
        )

    def _limit(self, num_steps: int) -> int:
        """Steps of an epoch under ``limit_train_batches``: an int is a count, a float a share."""
        limit = 1.0 if self.trainer is None else self.trainer.limit_train_batches
        return min(limit, num_steps) if isinstance(limit, int) else int(limit * num_steps)
