"""``dmt preprocess tabular``: what a log's columns may be, or its encoding ahead of training."""

import re
from inspect import formatannotation, signature
from pathlib import Path

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from dmt.datamodules.inference import infer_config
from dmt.datamodules.tabular import TabularClicks
from dmt.errors import OneLineParser, UserInputError, check_new_file, write_file

_DESCRIPTION = """\
For click logs of your own, parquet, Arrow or CSV. With --infer-schema it looks at the training file in the folder PATH,
or the training split of a Hugging Face dataset, hf://datasets/OWNER/NAME, and writes what its columns may be, as a data
configuration to review:

  dmt preprocess tabular PATH --infer-schema columns.yaml
  dmt fit --config CONFIG --data columns.yaml

Without, PATH is such a configuration, and its log is encoded into the cache, as the first training would.
"""

# In a configuration a class has its full name or a short one.
_CLASS_PATHS = ("dmt.datamodules.TabularClicks", "dmt.TabularClicks", "TabularClicks")


def run_tabular_command(arguments: list[str]) -> None:
    """``dmt preprocess tabular PATH [--infer-schema FILE]``."""
    parser = OneLineParser(prog="dmt preprocess tabular", description=_DESCRIPTION)
    # No Path, which would make one slash of the two in hf://.
    parser.add_argument("path", metavar="PATH", help="folder or dataset of the log, or a data configuration")
    parser.add_argument("--infer-schema", type=Path, metavar="FILE", help="YAML file to write")
    parser.add_argument("--label", metavar="COLUMN", help="column of labels (default: label, click, target or alike)")
    options = parser.parse_args(arguments[2:])
    if options.infer_schema is None:
        folder = _load(Path(options.path)).prepared_folder()
        print(f"{options.path}: its log is encoded in {folder}")
        return
    check_new_file("--infer-schema", options.infer_schema)
    text = infer_config(options.path, label=options.label)
    write_file("--infer-schema", options.infer_schema, lambda path: path.write_text(text))
    print(text, end="")
    print(f"wrote {options.infer_schema}: review it")


def _load(file: Path) -> TabularClicks:
    """The log that a data configuration names, by the rules that ``dmt fit`` has for it."""
    wanted = "a data configuration, as --infer-schema writes it"
    if not file.is_file():
        raise UserInputError(f"{file}: no such file; give {wanted}, or a folder with --infer-schema FILE")
    try:
        content = yaml.safe_load(file.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserInputError(f"{file}: {str(error).splitlines()[0]}; give {wanted}") from None
    if not isinstance(content, dict) or content.keys() != {"class_path", "init_args"}:
        raise UserInputError(f"{file}: it does not have class_path and init_args alone; give {wanted}")
    if not isinstance(content["init_args"], dict):
        raise UserInputError(f"{file}: init_args={content['init_args']}: give options by name")
    if content["class_path"] not in _CLASS_PATHS:
        raise UserInputError(f"{file}: class_path={content['class_path']}: give {_CLASS_PATHS[0]}")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(TabularClicks)
    try:
        options = parser.parse_object(content["init_args"])
    except ArgumentError as error:
        raise UserInputError(f"{file}: {_complaint(str(error), content['init_args'])}") from None
    return TabularClicks(**options.as_dict())


def _complaint(told: str, given: dict[str, object]) -> str:
    """The parser's many lines as one that names option, value and fix."""
    options = signature(TabularClicks).parameters
    key = re.match(r'Parser key "(\w+)"', told)
    if key and key[1] in given:  # not where a name with dots is an option of an option
        wanted = re.sub(r"\b\w+\.", "", formatannotation(options[key[1]].annotation))
        return f"{key[1]}={given[key[1]]}: give a value of type {wanted}"
    return f"{told.splitlines()[0]}; the options are {', '.join(options)}"
