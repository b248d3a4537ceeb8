"""Averages of the weights over training steps, under any strategy."""

import weakref
from dataclasses import replace
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from dmt.errors import UserInputError
from dmt.modules.embeddings import is_row_state
from dmt.modules.shards import as_shards
from dmt.strategies.checkpoint import CURRENT_WEIGHTS, Entry, load_group


class WeightAverage(Callback):
    """Validates, saves and leaves behind an average of the weights of the steps so far, dense layers and tables.

    The average is the mean of the first updates and then an exponential one: each update moves it towards the
    weights by 1/(number of updates), and by no less than 1 - decay. Every rank averages what it holds, so that
    it costs no communication, and memory of the size of the weights. Validation inside ``fit`` and the
    ``state_dict`` of checkpoints have the averages; after ``fit`` the model has them too. A checkpoint also keeps
    the weights that training goes on with, from which a run with this callback resumes, under any strategy.

    Unlike Lightning's ``EMAWeightAveraging`` it works under ``sptt`` and ``torchrec``. A second ``fit`` of the same
    model goes on with its averages; that of another model begins its own.

    Args:
        decay: how much of the average an update keeps in the long run.
        every_n_steps: training steps between updates.

    Raises:
        UserInputError: a number is out of range.
    """

    def __init__(self, decay: float = 0.9, every_n_steps: int = 10) -> None:
        if not 0 <= decay < 1:
            raise UserInputError(f"WeightAverage decay={decay}: give a number from 0 to below 1")
        if every_n_steps < 1:
            raise UserInputError(f"WeightAverage every_n_steps={every_n_steps}: give at least 1")
        self.decay = decay
        self.every_n_steps = every_n_steps
        self._module: weakref.ref[pl.LightningModule] | None = None  # whose the averages are
        self._clear()

    def _clear(self) -> None:
        self._num_updates = 0
        self._last_step = 0
        # The averages by name, or, while the model has them, the weights of training.
        self._others: dict[str, list[Tensor]] = {}
        self._model_has_averages = False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        # What a checkpoint holds is loaded later.
        if self._module is not None and self._module() is not pl_module:
            self._clear()
        self._module = weakref.ref(pl_module)
        if self._model_has_averages:  # an earlier fit has ended
            self._swap(trainer)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if step % self.every_n_steps or step == self._last_step:
            return
        self._last_step = step
        self._num_updates += 1
        share = max(1 - self.decay, 1 / self._num_updates)
        for name, blocks in _weights(trainer).items():
            if name not in self._others:
                self._others[name] = [block.clone() for block in blocks]
            for average, block in zip(self._others[name], blocks, strict=True):
                average.lerp_(block, share)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            self._swap(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            self._swap(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._swap(trainer)

    def state_dict(self) -> dict[str, Any]:
        return {"num_updates": self._num_updates}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._num_updates = state_dict["num_updates"]

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Make the averages, if there are any yet, the checkpoint's model, with the weights of training beside them."""
        if not self._others:
            return
        state = checkpoint["state_dict"]
        mine = {name: state[name] for name in self._others}
        others = {name: _with_tensors(state[name], tensors) for name, tensors in self._others.items()}
        averages, current = (mine, others) if self._model_has_averages else (others, mine)
        checkpoint["state_dict"] = state | averages
        checkpoint[CURRENT_WEIGHTS] = current

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take the averages from the model, which has just been loaded, and give it the weights of training."""
        if trainer.state.fn != TrainerFn.FITTING:
            return
        self._clear()
        averages = {name: [block.clone() for block in blocks] for name, blocks in _weights(trainer).items()}
        if load_group(checkpoint, CURRENT_WEIGHTS, _entries(trainer)):  # otherwise they begin now
            self._others = averages

    def _swap(self, trainer: pl.Trainer) -> None:
        """Exchange the model's weights with the other ones."""
        if not self._others:
            return
        with torch.no_grad():
            for name, blocks in _weights(trainer).items():
                for index, block in enumerate(blocks):
                    kept = block.clone()
                    block.copy_(self._others[name][index])
                    self._others[name][index] = kept
        self._model_has_averages = not self._model_has_averages


def _entries(trainer: pl.Trainer) -> dict[str, Entry]:
    """What this rank holds of the model's weights, alive. Of weights with several names one is enough."""
    entries: dict[str, Entry] = {}
    seen: set[tuple[int, torch.Size]] = set()
    for name, entry in trainer.strategy.lightning_module_state_dict().items():
        blocks = _tensors(entry)
        places = {(block.data_ptr(), block.shape) for block in blocks if block.numel()}
        if all(block.is_floating_point() for block in blocks) and not is_row_state(name) and not places & seen:
            entries[name] = entry
            seen |= places
    return entries


def _weights(trainer: pl.Trainer) -> dict[str, list[Tensor]]:
    return {name: _tensors(entry) for name, entry in _entries(trainer).items()}


def _tensors(entry: Entry) -> list[Tensor]:
    return [shard.tensor for shard in as_shards(entry)]


def _with_tensors(entry: Entry, tensors: list[Tensor]) -> Entry:
    """An entry of the same place in the whole model, with other values."""
    if isinstance(entry, Tensor):
        return tensors[0]
    return [replace(shard, tensor=tensor) for shard, tensor in zip(entry, tensors, strict=True)]
