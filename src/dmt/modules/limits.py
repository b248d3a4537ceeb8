"""What training with embedding updates inside backward cannot do, whatever the strategy."""

import lightning.pytorch as pl

from dmt.errors import UserInputError

_PRECISIONS = ("32-true", "bf16-mixed")


def check_trainer(trainer: pl.Trainer) -> None:
    """Refuse Trainer options that embedding rows would not follow.

    Rows move in every backward, by a gradient that never exists as a tensor: it can be neither accumulated over
    batches, nor clipped, nor unscaled after a scaled loss.

    Raises:
        UserInputError: such an option is set.
    """
    if trainer.accumulate_grad_batches != 1:
        raise UserInputError(
            f"accumulate_grad_batches={trainer.accumulate_grad_batches}: embedding rows are updated in each "
            "backward, so gradients cannot accumulate; raise global_batch_size instead",
            on_every_rank=True,
        )
    if trainer.gradient_clip_val:
        raise UserInputError(
            f"gradient_clip_val={trainer.gradient_clip_val}: embedding gradients never exist as tensors, so no "
            "global norm can be clipped; remove the option",
            on_every_rank=True,
        )
    if trainer.precision not in _PRECISIONS:
        raise UserInputError(
            f"precision={trainer.precision}: embedding tables are float32 and updated in backward; choose one of "
            f"{', '.join(_PRECISIONS)}",
            on_every_rank=True,
        )
