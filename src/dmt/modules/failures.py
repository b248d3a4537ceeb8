"""What is wrong with a module that may be the user's own, told in one line."""

import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
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


def check_trained(kind: str, module: nn.Module, output: Tensor) -> None:
    """Check that a module with weights to train returns what a gradient can go back through.

    Args:
        kind: ``tower`` or ``top``.
        module: the module.
        output: what it returned.

    Raises:
        UserInputError: it does not.
    """
    if not output.requires_grad and any(parameter.requires_grad for parameter in module.parameters()):
        raise UserInputError(
            f"{kind} {type(module).__name__}: no gradient goes back through what it returns, so that neither its "
            "weights nor the embeddings it reads would be trained; leave torch.no_grad() and detach() out of forward"
        )


def without_gradient(parameters: Iterable[tuple[str, nn.Parameter]]) -> str:
    """Which trained parameters no backward has reached: the first one's name and how many more; "" if there is none."""
    names = [name for name, parameter in parameters if parameter.requires_grad and parameter.grad is None]
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "") if names else ""


def check_registered(kind: str, module: nn.Module, output: Tensor, inputs: Iterable[Tensor]) -> None:
    """Check that an output is made of no weights but those that torch knows as the module's.

    Layers in a list of Python's are such: they would be neither trained nor saved, and differ from rank to rank.

    Args:
        kind: ``tower`` or ``top``.
        module: the module.
        output: what it returned.
        inputs: leaves that are its inputs', or else known.

    Raises:
        UserInputError: it is.
    """
    known = {id(leaf) for leaf in [*module.parameters(), *inputs]}
    nodes, seen = [output.grad_fn], set[object]()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        nodes += [before for before, _ in node.next_functions]
        leaf = getattr(node, "variable", None)  # of the nodes in which gradients end
        if leaf is not None and id(leaf) not in known:
            name = type(module).__name__
            raise UserInputError(
                f"{kind} {name}: it uses weights of shape {tuple(leaf.shape)} that are in none of its submodules, and "
                "would be neither trained nor saved; keep layers in nn.ModuleList or nn.ModuleDict rather than in a "
                "list or dict, and other weights as nn.Parameter"
            )


def check_apart(kind: str, module: nn.Module, output: Tensor, inputs: Sequence[Tensor]) -> None:
    """Check that what a module returns for the first sample depends on no other.

    Args:
        kind: ``tower`` or ``top``.
        module: the module.
        output: what it returned, (B, ...).
        inputs: leaves that it is made of, (B, ...) each.

    Raises:
        UserInputError: it does.
    """
    first = output[0].sum()
    # The graph is kept, since what a tower returned is a part of that of the logits.
    gradients = torch.autograd.grad(first, inputs, allow_unused=True, retain_graph=True) if first.requires_grad else []
    if any(gradient is not None and bool((gradient[1:].abs() > 0).any()) for gradient in gradients):
        raise UserInputError(
            f"{kind} {type(module).__name__}: what it returns for a sample depends on the others in the batch, and "
            "ranks have other batches than a single process; normalise each sample by itself, by nn.LayerNorm in "
            "place of nn.BatchNorm1d, or use one rank"
        )


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
