"""Ranks must have been given the same configuration and files, or their collectives would mix different things."""

from collections.abc import Callable
from typing import TypeVar

import torch.distributed as dist

from dmt.errors import UserInputError

Result = TypeVar("Result")


def require_agreement(mine: dict[str, str]) -> None:
    """Compare settings over all ranks; collective.

    Args:
        mine: this rank's settings by name.

    Raises:
        UserInputError: on every rank, naming the first rank that differs from rank 0 and in what.
    """
    everyone: list[dict[str, str]] = [{}] * dist.get_world_size()
    dist.all_gather_object(everyone, mine)
    for rank, other in enumerate(everyone):
        different = [key for key in everyone[0] if other.get(key) != everyone[0][key]]
        if different:
            key = different[0]
            raise UserInputError(
                f"rank {rank} was given another configuration than rank 0: {key} {_brief(other.get(key))} instead "
                f"of {_brief(everyone[0][key])}; start every rank with the same options and files",
                on_every_rank=True,
            )


def least(mine: int) -> int:
    """The smallest of all ranks' numbers; collective."""
    everyone = [mine] * dist.get_world_size()
    dist.all_gather_object(everyone, mine)
    return min(everyone)


def succeed_together(action: Callable[[], Result]) -> Result:
    """Do what needs no other rank; collective, so that what fails on one rank ends all of them with its error.

    Raises:
        UserInputError: on every rank, that of the first rank that had one.
    """
    done: list[Result] = []
    told: str | None = None
    try:
        done = [action()]
    except UserInputError as error:
        told = str(error)
    everyone: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, told)
    for rank, problem in enumerate(everyone):
        if problem is not None:
            where = f"rank {rank}: " if None in everyone else ""
            raise UserInputError(where + problem, on_every_rank=True)
    return done[0]


def _brief(text: str | None) -> str:
    return repr(text) if text is None or len(text) <= 200 else f"{text[:200]!r}..."
