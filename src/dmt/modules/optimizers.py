"""Optimiser state that is matched by parameter name, so that it fits another layout of the same model."""

from functools import partial
from typing import Any

from torch import nn
from torch.optim import Optimizer

from dmt.errors import UserInputError


def match_by_name(optimizer: Optimizer, module: nn.Module) -> None:
    """Make ``optimizer`` save its parameters' names and load state by name instead of by position.

    Under SPTT a rank's optimiser holds the dense layers and its own towers only, in another order than a
    single process does; by name each finds its own state in the other's checkpoint.

    Args:
        optimizer: an optimiser of some of the module's parameters.
        module: where the names come from.
    """
    # Not in the optimiser's own groups: torch would then take no group without names any more.
    optimizer.register_state_dict_post_hook(partial(_add_names, module))
    optimizer.register_load_state_dict_pre_hook(partial(_select_by_name, module))


def _names(optimizer: Optimizer, module: nn.Module) -> list[list[str]]:
    """The names of each group's parameters."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    return [[names[id(parameter)] for parameter in group["params"]] for group in optimizer.param_groups]


def _add_names(module: nn.Module, optimizer: Optimizer, state_dict: dict[str, Any]) -> None:
    for group, names in zip(state_dict["param_groups"], _names(optimizer, module), strict=True):
        group["param_names"] = names


def _select_by_name(module: nn.Module, optimizer: Optimizer, state_dict: dict[str, Any]) -> dict[str, Any] | None:
    saved_groups = state_dict["param_groups"]
    if not all("param_names" in group for group in saved_groups):
        return None  # not written by this project: positions are all there is
    if len(saved_groups) != len(optimizer.param_groups):
        raise UserInputError(
            f"checkpoint: its optimizer has {len(saved_groups)} parameter groups, this run's has "
            f"{len(optimizer.param_groups)}; resume with the optimizer it was trained with",
            on_every_rank=True,
        )
    positions = {n: i for g in saved_groups for n, i in zip(g["param_names"], g["params"], strict=True)}
    state: dict[int, Any] = {}
    groups: list[dict[str, Any]] = []
    for own, saved in zip(_names(optimizer, module), saved_groups, strict=True):
        first = sum(len(group["params"]) for group in groups)
        settings = {key: value for key, value in saved.items() if key != "param_names"}
        groups.append(settings | {"params": list(range(first, first + len(own)))})
        for index, name in enumerate(own, start=first):
            if name not in positions:
                raise UserInputError(
                    f"checkpoint: its optimizer has no state of {name!r}; it belongs to another model",
                    on_every_rank=True,
                )
            if positions[name] in state_dict["state"]:
                state[index] = state_dict["state"][positions[name]]
    return {"state": state, "param_groups": groups}
