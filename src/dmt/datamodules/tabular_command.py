"""``dmt preprocess tabular``: what a log's columns may be, or its encoding ahead of training."""

from pathlib import Path

import yaml

from dmt.datamodules.inference import infer_config
from dmt.datamodules.tabular import TabularClicks
from dmt.errors import OneLineParser, UserInputError, check_new_file, write_file

_DESCRIPTION = """\
For click logs of your own, parquet, Arrow or CSV. With --infer-schema it looks at the training file in the folder PATH
and writes what its columns may be, as a data configuration to review:

  dmt preprocess tabular PATH --infer-schema columns.yaml
  dmt fit --config CONFIG --data columns.yaml

Without, PATH is such a configuration, and its log is encoded into the cache, as the first training would.
"""


def run_tabular_command(arguments: list[str]) -> None:
    """``dmt preprocess tabular PATH [--infer-schema FILE]``."""
    parser = OneLineParser(prog="dmt preprocess tabular", description=_DESCRIPTION)
    parser.add_argument("path", type=Path, metavar="PATH", help="folder of the log, or a data configuration")
    parser.add_argument("--infer-schema", type=Path, metavar="FILE", help="YAML file to write")
    parser.add_argument("--label", metavar="COLUMN", help="column of labels (default: label, click, target or alike)")
    options = parser.parse_args(arguments[2:])
    if options.infer_schema is None:
        folder = _load(options.path).prepared_folder()
        print(f"{options.path}: its log is encoded in {folder}")
        return
    check_new_file("--infer-schema", options.infer_schema)
    text = infer_config(options.path, label=options.label)
    write_file("--infer-schema", options.infer_schema, lambda path: path.write_text(text))
    print(text, end="")
    print(f"wrote {options.infer_schema}: review it")


def _load(file: Path) -> TabularClicks:
    wanted = "a data configuration, as --infer-schema writes it"
    if not file.is_file():
        raise UserInputError(f"{file}: no such file; give {wanted}, or a folder with --infer-schema FILE")
    try:
        content = yaml.safe_load(file.read_text())
        return TabularClicks(**content["init_args"])
    except (yaml.YAMLError, KeyError, TypeError) as error:
        raise UserInputError(f"{file}: {str(error).splitlines()[0]}; give {wanted}") from None
