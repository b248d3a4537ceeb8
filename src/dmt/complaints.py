"""What the parser of a training configuration complains of, which takes it a page, in one line."""

import difflib
import importlib
import inspect
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import yaml

from dmt.errors import UserInputError, nearest

_WANTED = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "dict": "names with values, such as {NAME: VALUE}",
    "list": "a list, such as [{value}]",
    "collections.abc.Sequence": "a list, such as [{value}]",
}
# Where short names of an option's classes are looked for.
_MODULES = {
    "data": ["dmt.datamodules"],
    "model.tower": ["dmt.modules"],
    "model.top": ["dmt.modules"],
    "model.dense_optimizer": ["torch.optim"],
    "model.lr_scheduler": ["torch.optim.lr_scheduler"],
    "trainer.callbacks": ["dmt.callbacks", "lightning.pytorch.callbacks"],
    "trainer.logger": ["lightning.pytorch.loggers"],
}
# What tower modules, top archs, optimisers and schedules are given.
_FROM_THE_MODEL = ("num_features", "embedding_dim", "stage", "num_dense", "params", "optimizer")
_NOISE = ("Does not validate", "- Does not", "Subtypes:", "Errors:", "- Expected a <class 'NoneType'>", "Given value")


def one_line(
    told: str, arguments: Sequence[str], *, names: Callable[[], list[str]], strategies: Mapping[str, str]
) -> UserInputError:
    """The parser's complaint as an error of one line: option, value and fix.

    Args:
        told: by the parser.
        arguments: the verb and its options.
        names: gives the names of all options, which takes a moment.
        strategies: short names of strategies, by the names of their classes.
    """
    lines = [line.strip() for line in told.splitlines()]
    line = " ".join(line for line in lines if line and not line.startswith(_NOISE))
    for known in (
        _strategy(lines, strategies),
        _value(told),
        _no_file(line),
        _config_file(told, arguments),
        _class_path(line),
        _other_class(line),
        _ambiguous(line),
        _absent(line),
        _missing(line),
    ):
        if known is not None:
            return UserInputError(known)
    hint = _nearest_option(line, verb=arguments[0], names=names)
    line = _option_of_class(line) or line
    line = re.sub(r"Type collections\.abc\.Callable.* expects a function or a callable class: ", "", line)
    line = re.sub(r" Got value: Namespace\(.*\)", "", line)
    line = re.sub(r'Parser key "([\w.]+)": ', r"\1: ", line)
    return UserInputError(f"{line.rstrip('.')}{hint}; see dmt {arguments[0]} --help")


def _strategy(lines: Sequence[str], strategies: Mapping[str, str]) -> str | None:
    """An option of a strategy that was given by its short name."""
    for name, strategy in strategies.items():
        if any(line.endswith(f"Expected a dot import path string: {strategy}") for line in lines):
            return (
                f"trainer.strategy={strategy} takes options under the name of its class only; give "
                f"--trainer.strategy {name} before them"
            )
    return None


def _option(line: str) -> str | None:
    """The option a complaint is of; of a class inside another, by the names of both."""
    return ".".join(re.findall(r'Parser key "([\w.]+)"', line)) or None


def _value(told: str) -> str | None:
    """A value of another type than is wanted."""
    expected = r"Expected an? (?:<class '(?P<type>[\w.]+)'>|typing\.Literal\[(?P<choices>.*?)\])"
    # What a class says of its arguments is in the line; where one of several types would do, the value is at the end.
    value = re.search(rf"{expected}\. Got value: (?P<value>.*?)(?:\. Got value: .*)?$", told, re.MULTILINE)
    if value is None and not re.search(r"dot import path|Problem with|not accept", told):
        value = re.search(r"Given value: (?P<value>.*)", told)
    option = _option(told)
    kinds = [
        f"one of {found['choices']}" if found["choices"] else _WANTED.get(found["type"])
        for found in re.finditer(expected, told)
    ]
    wanted = list(dict.fromkeys(kind for kind in kinds if kind is not None))
    if value is None or option is None or not wanted:
        return None
    fix = " or ".join(wanted).replace("{value}", value["value"])
    return f"{option}={value['value']}: give {fix}"


def _no_file(line: str) -> str | None:
    found = re.search(r"Parser key \"config\": File does not exist: '?(?P<name>.*?)'?$", line)
    return f"--config {found['name']}: no such file; give the path of one" if found else None


def _config_file(told: str, arguments: Sequence[str]) -> str | None:
    """A configuration file that is no YAML; the parser does not say which."""
    if not told.startswith("Problems parsing config"):
        return None
    for option, value in zip(arguments, [*arguments[1:], ""], strict=True):
        name = value if option == "--config" else option.removeprefix("--config=")
        try:
            if option.startswith("--config") and Path(name).is_file():
                yaml.safe_load(Path(name).read_text())
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            reason = " ".join(str(error).replace('in "<unicode string>", ', "at ").split())
            return f"--config {name}: it is no YAML ({reason}); mend it"
    return None


def _class_path(line: str) -> str | None:
    """A class that does not exist, by its path or its name alone."""
    option = _option(line)
    by_path = re.search(r"module '([\w.]+)' has no attribute '(\w+)'", line)
    if option and by_path:
        path, name = by_path.groups()
        public = [known for known in dir(sys.modules.get(path)) if not known.startswith("_")]
        near = difflib.get_close_matches(name, public, n=1)
        fix = f"did you mean {path}.{near[0]}?" if near else f"give a class that {path} has"
        return f"{option}={path}.{name}: no such class; {fix}"
    by_name = re.search(r"Expected a dot import path string: (\w+)", line)
    outer = re.search(r'Parser key "([\w.]+)"', line)
    if option and by_name and outer and outer[1] in _MODULES:
        modules = [importlib.import_module(path) for path in _MODULES[outer[1]]]
        homes = {name: module.__name__ for module in modules for name in dir(module) if name[0].isupper()}
        if by_name[1] in homes:
            return (
                f"{option}={by_name[1]}: it is of another kind; give another class, of {homes[by_name[1]]} or your own"
            )
        near = difflib.get_close_matches(by_name[1], homes, n=1)
        if not near:
            fix = f"give one of {_MODULES[outer[1]][0]}, or a class by its path"
        elif homes[near[0]].startswith("torch."):
            fix = f"did you mean {homes[near[0]]}.{near[0]}?"  # TorchRec has classes of these names too
        else:
            fix = f"did you mean {near[0]}?"
        return f"{option}={by_name[1]}: no such class; {fix}"
    return None


def _other_class(line: str) -> str | None:
    """A class of another kind."""
    option = _option(line)
    other = re.search(r"Expected '([\w.]+)' to be a subclass of <class '([\w.]+)'>", line) or re.search(
        r"a path but ([\w.]+) either .* not correspond to a subclass of (\w+)", line
    )
    if option is None or other is None:
        return None
    path, base = other.groups()
    return f"{option}={path}: it is no {base}; derive it from {base}, or give another class"


def _ambiguous(line: str) -> str | None:
    """A name that several classes have."""
    option = _option(line)
    several = re.search(r"Multiple subclasses with name (\w+)\..*?: (\w[\w.]+(?:, \w[\w.]+)*)", line)
    if option is None or several is None:
        return None
    paths = several[2].rstrip(".").replace(", ", " or ")
    return f"{option}={several[1]}: several classes have this name; give {paths}"


def _absent(line: str) -> str | None:
    """A module that is not there."""
    option = _option(line)
    absent = re.search(r"No module named '([\w.]+)'", line)
    if option is None or absent is None:
        return None
    return (
        f"{option}: no module named {absent[1]!r}; install it, or start dmt in its folder, or put that into "
        "PYTHONPATH, or mend the name"
    )


def _missing(line: str) -> str | None:
    """An option that must be given."""
    missing = re.search(r"arguments are required: (?:\w+\.)?(\w+)", line)
    if missing is None:
        return None
    if option := _option(line):
        return f"--{option}.{missing[1]} is not given; its class needs it"
    return f"--{missing[1]} is not given; give --config FILE, such as configs/quickstart.yaml"


def _option_of_class(line: str) -> str | None:
    """An option that a class does not have, without what the parser tells of all other forms a value could have."""
    option = _option(line)
    inside = re.search(r"Option '([\w.]+)' is not accepted", line)
    return f"{option}: option {inside[1]!r} is not accepted" if option and inside else None


def _nearest_option(line: str, *, verb: str, names: Callable[[], list[str]]) -> str:
    """A hint, where the parser tells of an option that does not exist."""
    of_class = re.search(r"class_path(?: |=)'([\w.]+)'", line)
    inside = re.search(r"Option '(\w+)[\w.]*' is not accepted", line)
    if of_class and inside:
        module, _, name = of_class[1].rpartition(".")
        known = list(inspect.signature(getattr(importlib.import_module(module), name)).parameters)
        if 'key "model.' in line:
            if inside[1] in _FROM_THE_MODEL and inside[1] in known:
                return f"; {name} gets its {inside[1]} from the model: leave it out"
            known = [option for option in known if option not in _FROM_THE_MODEL]
        otherwise = f"its options are {', '.join(known)}"
        return "; " + nearest(inside[1], [*known, "class_path", "init_args"], otherwise=otherwise)
    wrong = re.search(r"(?:unrecognized arguments: --|does not accept option '|^Option ')([\w.]+)", line)
    if wrong is None:
        return ""
    if wrong[1] == "dry":  # --dry-run
        return "; did you mean --trainer.fast_dev_run true, one batch through everything?"
    options = ["config", "print_config", "help", "json" if verb == "describe" else "ckpt_path", *names()]
    section, sections = wrong[1].partition(".")[0], {option.partition(".")[0] for option in options}
    near = difflib.get_close_matches(wrong[1], options, n=1) or (
        [] if section in sections else difflib.get_close_matches(section, sections, n=1)
    )
    return f"; did you mean {near[0]}?" if near else ""
