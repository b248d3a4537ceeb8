"""Optimiser state that is matched by parameter name, so that it fits another layout of the same model."""

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
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    for group in optimizer.param_groups:
        group["param_names"] = [names[id(parameter)] for parameter in group["params"]]
    optimizer.register_load_state_dict_pre_hook(_select_by_name)


def _select_by_name(optimizer: Optimizer, state_dict: dict[str, Any]) -> dict[str, Any] | None:
    saved_groups = state_dict["param_groups"]
    if not all("param_names" in group for group in saved_groups):
        return None  # not written by this project: positions are all there is
    if len(saved_groups) != len(optimizer.param_groups):
        raise UserInputError(
            f"checkpoint: its optimizer has {len(saved_groups)} parameter groups, this run's has "
            f"{len(optimizer.param_groups)}; resume with the optimizer it was trained with"
        )
    positions = {n: i for g in saved_groups for n, i in zip(g["param_names"], g["params"], strict=True)}
    state: dict[int, Any] = {}
    groups: list[dict[str, Any]] = []
    for own, saved in zip(optimizer.param_groups, saved_groups, strict=True):
        first = sum(len(group["params"]) for group in groups)
        groups.append(
            saved | {"params": list(range(first, first + len(own["params"]))), "param_names": own["param_names"]}
        )
        for index, name in enumerate(own["param_names"], start=first):
            if name not in positions:
                raise UserInputError(f"checkpoint: its optimizer has no state of {name!r}; it belongs to another model")
            if positions[name] in state_dict["state"]:
                state[index] = state_dict["state"][positions[name]]
    return {"state": state, "param_groups": groups}
