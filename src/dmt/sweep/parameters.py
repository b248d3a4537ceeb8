"""A trial's parameters: one flat view of them, their text on a command line, and the trial's name."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from dmt.errors import UserInputError

# `--config` takes a mapping of options as well as a file, so a parameter of this name sets several at once.
LINKED = "config"


def flatten(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters by dotted name, mappings taken apart; ``config`` is a mapping of options and leaves no name.

    Raises:
        UserInputError: two parameters set the same option, or one replaces a block in which ``config`` sets another.

    Example:
        >>> flatten({"config": {"model.num_towers": 2}, "model.tower": {"init_args": {"p": 1}}})
        {'model.num_towers': 2, 'model.tower.init_args.p': 1}
    """
    flat: dict[str, Any] = {}
    for name, value in parameters.items():
        linked = name == LINKED and isinstance(value, Mapping)
        for leaf, item in _leaves("" if linked else name, value):
            block = next((name for name in parameters if linked and leaf.startswith(f"{name}.")), None)
            # A mapping without a class is merged into what was given before it.
            if block is not None and isinstance(parameters[block], Mapping) and "class_path" in parameters[block]:
                raise UserInputError(f"parameters: {block} would replace {leaf} of {LINKED}; write both into one value")
            if leaf in flat:
                raise UserInputError(f"parameters: {leaf} is set by two of them; give it to one")
            flat[leaf] = item
    return flat


def _leaves(name: str, value: Any) -> list[tuple[str, Any]]:
    if not isinstance(value, Mapping) or not value:
        return [(name, value)]
    return [leaf for key, item in value.items() for leaf in _leaves(f"{name}.{key}" if name else str(key), item)]


def text(value: Any) -> str:
    """A value as an option's text: JSON where it has structure, which YAML parsers such as ``dmt fit``'s read.

    ``wandb agent`` writes Python's ``str`` of it: the same to a YAML parser, except for None.
    """
    return json.dumps(value) if value is None or isinstance(value, Mapping | list) else str(value)


def is_real(value: object) -> bool:
    """Whether a value of a YAML or JSON file is a number, nan included; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def trial_id(*, parameters: Mapping[str, Any], command: Sequence[str]) -> str:
    """The name of a trial: equal for equal parameters and commands, on any machine."""
    identity = json.dumps([list(command), parameters], sort_keys=True)
    return hashlib.sha256(identity.encode()).hexdigest()[:10]
