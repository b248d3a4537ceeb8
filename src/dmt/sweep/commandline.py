"""A trial's command: the file's words with W&B's macros filled in, and the files that it names."""

import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from itertools import dropwhile
from pathlib import Path
from typing import Any

import yaml

from dmt.errors import UserInputError
from dmt.sweep.parameters import flatten, text

_ENVIRONMENT = re.compile(r"\$\{envvar:([A-Z0-9_]*)\}")
_OWN_PROGRAMS = ("dmt", "dmt.cli")
_CONFIG_SUFFIXES = (".yaml", ".yml", ".json")


def expand(command: Sequence[str], parameters: Mapping[str, Any], *, folder: Path | None = None) -> list[str]:
    """The words of a trial's command, as ``wandb agent`` would make them.

    Args:
        command: words of the sweep file, ``${args}`` and other macros among them.
        parameters: of the trial.
        folder: where ``${args_json_file}`` names a file; nothing is written.

    Raises:
        UserInputError: a macro that W&B does not know, or an environment variable that is not set.

    Example:
        >>> expand(["${env}", "dmt", "fit", "${args}"], {"model.tower": {"class_path": "A"}, "seed_everything": 1})
        ['/usr/bin/env', 'dmt', 'fit', '--model.tower={"class_path": "A"}', '--seed_everything=1']
    """
    macros = _macros(parameters, folder)
    words: list[str] = []
    for raw in command:
        word = _ENVIRONMENT.sub(_variable, raw)
        if not (word.startswith("${") and word.endswith("}")):
            words.append(word)
        elif word[2:-1] in macros:
            words += macros[word[2:-1]]
        else:
            known = ", ".join(f"${{{name}}}" for name in macros)
            raise UserInputError(f"command: W&B knows no {word}; choose one of {known}")
    return words


def _macros(parameters: Mapping[str, Any], folder: Path | None) -> dict[str, list[str]]:
    pairs = [(name, text(value)) for name, value in parameters.items()]
    switches = [
        f"--{name}" if parameters[name] is True else f"--{name}={value}"
        for name, value in pairs
        if parameters[name] is not False
    ]
    return {
        "env": ["/usr/bin/env"],
        "interpreter": [sys.executable],
        "args": [f"--{name}={value}" for name, value in pairs],
        "args_no_equals": [word for name, value in pairs for word in (f"--{name}", value)],
        "args_no_hyphens": [f"{name}={value}" for name, value in pairs],
        "args_no_boolean_flags": switches,
        "args_json": [json.dumps(dict(parameters))],
        "args_json_file": [str((folder or Path()) / "parameters.json")],
        "args_append_hydra": [f"+{name}={value}" for name, value in pairs],
        "args_override_hydra": [f"++{name}={value}" for name, value in pairs],
    }


def _variable(match: re.Match[str]) -> str:
    value = os.environ.get(match[1])
    if value is None:
        raise UserInputError(f"command: the environment variable {match[1]} is not set; set it")
    return value


def environment_path() -> str:
    """PATH with this interpreter's folder first, as in an activated environment: `dmt` is found there."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])


def check_program(words: Sequence[str]) -> None:
    """Raise :class:`UserInputError` unless a command's program exists, and the script that it is to interpret."""
    rest = _without_env(words)
    if not rest:
        raise UserInputError("command: it names no program; begin it with one, such as [${env}, dmt, fit, ${args}]")
    if shutil.which(rest[0], path=environment_path()) is None:
        raise UserInputError(f"command: there is no program {rest[0]}; give its path")
    script = _script(rest) if Path(rest[0]).name.startswith("python") else None
    if script is not None and not Path(script).is_file():
        raise UserInputError(
            f"command: there is no file {script} for {Path(rest[0]).name} to run; give its path, or leave out "
            "${interpreter} where it is a program"
        )


def check_verb(words: Sequence[str]) -> None:
    """Raise :class:`UserInputError` where a command runs `dmt`, and not `dmt fit`: nothing else leaves a result."""
    for index, word in enumerate(rest := _without_env(words)):
        if Path(word).name in _OWN_PROGRAMS:
            verb = next(iter(rest[index + 1 :]), "")
            if verb != "fit":
                told = verb if verb and not verb.startswith("-") else "without a verb"
                raise UserInputError(f"command: dmt {told}: only dmt fit leaves a trial's result; write dmt fit")
        if index > 0 and not word.startswith("-"):
            return  # the argument of another program


def _without_env(words: Sequence[str]) -> list[str]:
    if not words or Path(words[0]).name != "env":
        return list(words)
    return list(dropwhile(lambda word: "=" in word, words[1:]))


def _script(words: Sequence[str]) -> str | None:
    """The file that Python is told to run; None where it is a module or a line of code."""
    rest = iter(words[1:])
    for word in rest:
        if not word.startswith("-"):
            return word
        if word in ("-W", "-X"):
            next(rest, None)
        elif word[-1] in "cm":
            return None
    return None


def fit_options(words: Sequence[str]) -> list[str] | None:
    """What follows `dmt fit` in a command; None where it runs something else."""
    for index, word in enumerate(words[:-1]):
        if Path(word).name in _OWN_PROGRAMS and words[index + 1] == "fit":
            return list(words[index + 2 :])
    return None


def named_files(command: Sequence[str], parameters: Mapping[str, Any]) -> dict[str, str]:
    """Digests of the configuration files that decide a trial's numbers, by path.

    These are the YAML and JSON files that the command and the parameters name, and those that they name in turn, such
    as a tower plan. What counts is their content as data: a comment may change.
    """
    todo = [*command, *(part for word in command for part in word.split("=", 1)[1:])]
    todo += _strings(list(flatten(parameters).values()))
    found: dict[str, str] = {}
    while todo:
        name = todo.pop()
        if name in found or not name.endswith(_CONFIG_SUFFIXES) or not os.path.isfile(name):
            continue
        content = yaml_content(name)
        found[name] = hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()
        todo += _strings(content)
    return dict(sorted(found.items()))


def yaml_content(name: str) -> Any:
    """A YAML or JSON file's data, or its text where it is neither: `dmt fit` will say what is wrong with it."""
    raw = Path(name).read_text(errors="replace")
    try:
        return yaml.safe_load(raw)
    except yaml.YAMLError:
        return raw


def _strings(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return [name for item in items for name in _strings(item)]
