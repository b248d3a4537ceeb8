"""What training cannot do, whatever the strategy: with embedding updates inside backward, and on this machine."""

import math
import os
import shutil

import lightning.pytorch as pl
import torch
from torch.optim import LBFGS, Optimizer
from torch.optim.lr_scheduler import OneCycleLR

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


def check_optimizer(optimizer: Optimizer) -> None:
    """Refuse a dense optimiser that goes forward and backward several times a step: rows would move in each.

    Raises:
        UserInputError: it is one.
    """
    if isinstance(optimizer, LBFGS):
        raise UserInputError(
            f"dense_optimizer={type(optimizer).__name__}: it runs backward many times a step, and embedding rows are "
            "updated in each; choose another, such as torch.optim.Adam",
            on_every_rank=True,
        )


def check_schedule(scheduler: object, steps: float) -> None:
    """Refuse a schedule that ends before training does, after which it would fail.

    Args:
        scheduler: of the dense optimiser's rate.
        steps: of training, infinite where their number is not known.

    Raises:
        UserInputError: it ends before.
    """
    if isinstance(scheduler, OneCycleLR) and scheduler.total_steps < steps < math.inf:
        raise UserInputError(
            f"lr_scheduler=OneCycleLR total_steps={scheduler.total_steps}: training takes {steps} steps; give "
            f"total_steps={steps}",
            on_every_rank=True,
        )


def check_compiler() -> None:
    """Refuse to compile where torch.compile finds no compiler: it would say so on pages, and after the start.

    Its kernels for the CPU are C++; those for a GPU are started by a little C.

    Raises:
        UserInputError: there is none.
    """
    if torch.cuda.is_available():
        where, language, compilers = "a GPU", "C", (os.environ.get("CC", "gcc"), "gcc", "clang")
    else:
        where, language, compilers = "the CPU", "C++", (os.environ.get("CXX", "g++"), "g++", "clang++")
    if not any(shutil.which(name) for name in compilers):
        raise UserInputError(
            f"compile_layers=True: torch.compile needs a {language} compiler on {where}, and there is neither "
            f"{compilers[1]} nor {compilers[2]}; install one, or leave the option out"
        )
