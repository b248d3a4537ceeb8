"""What Lightning's Trainer offers and sharded models cannot do."""

import lightning.pytorch as pl
from lightning.fabric.plugins import CheckpointIO, TorchCheckpointIO
from lightning.pytorch.callbacks import Callback, OnExceptionCheckpoint, StochasticWeightAveraging, WeightAveraging
from lightning.pytorch.utilities.model_helpers import is_overridden

from dmt.errors import UserInputError
from dmt.modules.limits import check_trainer
from dmt.strategies.checkpoint import TowerCheckpointIO

_AVERAGING = (WeightAveraging, StochasticWeightAveraging)


def check_supported(trainer: pl.Trainer, *, checkpoint_io: CheckpointIO, num_ranks: int) -> None:
    """Check what a strategy that shards is asked for, before ranks are launched where it can be known.

    Args:
        trainer: with its callbacks, and the LightningModule where there is one yet.
        checkpoint_io: the strategy's.
        num_ranks: over which it shards.

    Raises:
        UserInputError: on every rank, for the first option, plugin, callback or method that would not do as it says.
    """
    check_trainer(trainer)
    if type(checkpoint_io) not in (TorchCheckpointIO, TowerCheckpointIO):
        raise UserInputError(
            f"plugin {type(checkpoint_io).__name__}: all ranks write a checkpoint together, and a CheckpointIO would "
            "not be asked; leave it out",
            on_every_rank=True,
        )
    for callback in getattr(trainer, "callbacks", []):
        if isinstance(callback, _AVERAGING):
            raise UserInputError(
                f"callback {type(callback).__name__}: a rank cannot copy a sharded model; average weights in a single "
                "process, or decay the learning rate by model.lr_scheduler",
                on_every_rank=True,
            )
        if num_ranks > 1 and _saves_after_errors(callback):
            raise UserInputError(
                f"callback {type(callback).__name__}: all ranks write a checkpoint together, and one that has failed "
                "would wait for the others; save every so many steps by ModelCheckpoint's every_n_train_steps instead",
                on_every_rank=True,
            )
    module = getattr(trainer, "lightning_module", None)
    if module is not None and not module.automatic_optimization:
        raise UserInputError(
            f"{type(module).__name__}: automatic_optimization=False; tower gradients are reduced once per step, so "
            "manual optimisation is not supported under shards; use automatic optimisation",
            on_every_rank=True,
        )
    if module is not None and is_overridden("configure_gradient_clipping", module):
        raise UserInputError(
            f"{type(module).__name__}: configure_gradient_clipping; a rank has only its own towers' gradients and none "
            "of embeddings, so there is no norm to clip by under shards; remove the method",
            on_every_rank=True,
        )


def _saves_after_errors(callback: Callback) -> bool:
    return isinstance(callback, OnExceptionCheckpoint) or bool(getattr(callback, "save_on_exception", False))
