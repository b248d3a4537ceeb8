"""A module that fails may be the user's own: told in one line, with the reason and the place."""

import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy

from dmt.errors import UserInputError


@contextmanager
def named(kind: str, owner: Any, failing: str) -> Iterator[None]:
    """Inside, whatever is raised becomes a :class:`UserInputError` that names the module and the line of its file.

    Args:
        kind: ``tower`` or ``top``.
        owner: its class, or the function that makes it.
        failing: what does not work.
    """
    try:
        yield
    except UserInputError:
        raise
    except Exception as error:
        name = getattr(owner, "__name__", type(owner).__name__)
        place = _place(error, getattr(owner, "__module__", ""))
        raise UserInputError(
            f"{kind} {name}: {failing}{place}: {type(error).__name__}: {error}; mend {name}, or its options"
        ) from error


def made_by(kind: str, factory: Callable[..., Any], *arguments: Any) -> Any:
    """What a factory makes of these arguments.

    Raises:
        UserInputError: it fails, or is none, or the layers it makes are of unknown size.
    """
    if not callable(factory) or isinstance(factory, nn.Module):
        raise UserInputError(
            f"{kind}: a {type(factory).__name__} makes none; give a class, a partial of one, or another function"
        )
    with named(kind, _maker(factory), "it cannot be made"):
        made = factory(*arguments)
    if isinstance(made, nn.Module) and any(map(is_lazy, made.parameters())):
        raise UserInputError(
            f"{kind} {type(made).__name__}: it has lazy layers, and optimisers, checkpoints and ranks need the sizes "
            "of all; make them with what __init__ is given, nn.Linear in place of nn.LazyLinear"
        )
    return made


def _maker(factory: Any) -> Any:
    """The class or function behind a factory; options make it a partial, of the parser's own function at times."""
    while isinstance(factory, partial):
        factory = next((argument for argument in factory.args if isinstance(argument, type)), factory.func)
    return factory


def _place(error: Exception, module: str) -> str:
    """The line of the module's file that an error passed last."""
    file = getattr(sys.modules.get(module), "__file__", None)
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return f" ({file}, line {lines[-1]})" if lines else ""
