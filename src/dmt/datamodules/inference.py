"""What the columns of a click log may be, written as a data configuration to review."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import yaml

from dmt.datamodules.cache import default_cache_dir
from dmt.datamodules.columns import TEXT_TYPES, flatten, is_list
from dmt.datamodules.hub import is_hub_or_saved, write_splits
from dmt.datamodules.pieces import column_names, read_pieces
from dmt.datamodules.sources import find_files, names_of
from dmt.errors import UserInputError

MAX_ROWS = 1_000_000
# Numbers with more distinct values are amounts rather than categories, unless a name says that they are identifiers.
MAX_CATEGORIES = 100
_LABELS = ("label", "click", "clicked", "is_click", "target", "y")
_IDENTIFIER = re.compile(r"(?i)(^|.*[^a-z])ids?$|.*[a-z]I[dD]s?$")


@dataclass(frozen=True, kw_only=True)
class Guess:
    """What a column may be.

    Args:
        name: the column.
        kind: ``categorical``, ``numeric``, or ``left out``.
        told: what was seen of it.
    """

    name: str
    kind: str
    told: str


def guess_columns(frame: pl.DataFrame, *, label: str) -> list[Guess]:
    """Tell what each column but the label may be.

    Text, booleans and lists are categories; so are numbers of up to 100 distinct values, and whole ones whose name
    ends in "id". Other numbers are numeric. A column of one value, of a type that is neither, or of categories under a
    name that no table may have, is left out.
    """
    return [_guess(frame[name]) for name in frame.columns if name != label]


def _guess(column: pl.Series) -> Guess:
    values, _ = flatten(column)
    what = "lists of " if is_list(column) else ""
    missing = values.null_count() / max(len(values), 1)
    if values.dtype in TEXT_TYPES and not is_list(column):
        number = values.cast(pl.String).replace(["", "NaN", "nan"], [None] * 3).cast(pl.Float64, strict=False)
        # A CSV file has text alone.
        if number.null_count() == values.replace("", None).null_count() and number.null_count() < len(number):
            values = number
    is_number = values.dtype.is_numeric()
    if not (values.dtype in TEXT_TYPES or is_number or values.dtype == pl.Boolean):
        return Guess(name=column.name, kind="left out", told=f"{what}{values.dtype}: convert it to a number or text")
    distinct = values.drop_nulls().n_unique()
    is_whole = is_number and bool((values.drop_nulls().cast(pl.Float64) % 1 == 0).all())
    if is_number:
        noun = "whole numbers" if is_whole else "numbers"
    else:
        noun = "booleans" if values.dtype == pl.Boolean else "text"
    told = f"{what}{noun}, {distinct:,} distinct, {missing:.1%} missing"
    if distinct <= 1 and not (missing and distinct):
        return Guess(name=column.name, kind="left out", told=f"{told}: it tells nothing")
    is_amount = is_number and distinct > MAX_CATEGORIES and not (is_whole and _IDENTIFIER.fullmatch(column.name))
    if is_amount and not is_list(column):
        return Guess(name=column.name, kind="numeric", told=told)
    if "." in column.name or not column.name:
        told = f"{told}: a table needs a name without '.'; rename it"
        return Guess(name=column.name, kind="left out", told=told)
    return Guess(name=column.name, kind="categorical", told=told)


def infer_config(path: str | Path, *, label: str | None, train_file: str = "train") -> str:
    """A data configuration for the log in a folder, as YAML with a comment beside each column.

    Args:
        path: folder of the log, or a Hugging Face dataset, as :class:`~dmt.datamodules.tabular.TabularClicks` has it.
        label: its column of labels. Default: the one named label, click, clicked, is_click, target or y.
        train_file: file of the training samples.

    Raises:
        UserInputError: there is no such log, or no column of labels.
    """
    folder = write_splits(path, cache_dir=default_cache_dir()) if is_hub_or_saved(path) else Path(path)
    files = find_files(folder, names={"train": train_file})["train"]
    file = files[0]
    frame = next(read_pieces(files, columns=column_names(file), rows_at_a_time=MAX_ROWS))
    label = label or _find_label(frame.columns, file)
    if label not in frame.columns:
        raise UserInputError(f"--label {label}: {file} has no such column; it has {', '.join(frame.columns)}")
    guesses = guess_columns(frame, label=label)
    seen = f"the first {MAX_ROWS:,} rows" if len(frame) == MAX_ROWS else "all rows"
    lines = [
        f"# What `dmt preprocess tabular --infer-schema` makes of {seen} of {Path(names_of(files)).name}.",
        "# Review it: move columns between the lists, and remove what was not known at the time of the click. Then:",
        "#   dmt fit --config CONFIG --data FILE",
        "class_path: dmt.datamodules.TabularClicks",
        "init_args:",
        f"  path: {_scalar(str(path))}",
        f"  label: {_scalar(label)}",
        *_list("categorical", [guess for guess in guesses if guess.kind == "categorical"]),
        *_list("numeric", [guess for guess in guesses if guess.kind == "numeric"]),
    ]
    left_out = [guess for guess in guesses if guess.kind == "left out"]
    lines += [f"  # left out: {_scalar(guess.name)}  ({guess.told})" for guess in left_out]
    return "\n".join(lines) + "\n"


def _find_label(names: Sequence[str], file: Path) -> str:
    found = [name for name in names if name.lower() in _LABELS]
    if len(found) != 1:
        told = (
            f"{' and '.join(found)} may be the labels"
            if found
            else f"none of its columns is named {', '.join(_LABELS)}"
        )
        raise UserInputError(f"{file}: {told}; name the column of labels by --label")
    return found[0]


def _list(name: str, guesses: Sequence[Guess]) -> list[str]:
    if not guesses:
        return [f"  {name}: []"]
    words = [f"    - {_scalar(guess.name)}" for guess in guesses]
    width = max(map(len, words))
    return [f"  {name}:"] + [f"{word:<{width}}  # {g.told}" for word, g in zip(words, guesses, strict=True)]


def _scalar(text: str) -> str:
    """A string as YAML of one line, quoted where it would be something else."""
    style = None if text.isprintable() else '"'  # with a line end as \n
    return yaml.safe_dump(text, default_style=style, width=float("inf")).removesuffix("\n").removesuffix("\n...")
