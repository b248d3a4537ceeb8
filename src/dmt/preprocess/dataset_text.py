"""Rows of Hugging Face datasets as lines of Criteo's text.

A dataset has one column of such lines, or label, integers and categories as 40 columns: named label, I1 to I13 and C1
to C26 in any order and among others, or under any names in this order. Categories are hexadecimal text, or integers of
32 bits.
"""

import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import polars as pl

from dmt.errors import UserInputError
from dmt.preprocess.criteo_text import CATEGORIES, INTEGERS, LABEL

HUB = "hf://datasets/"
_BATCH_ROWS = 50_000
_BUILDERS = {".parquet": "parquet", ".arrow": "arrow"}


def is_dataset(name: str) -> bool:
    """Whether an input is a dataset of the hub, a folder that ``save_to_disk`` has written, or a file of its format."""
    path = Path(name)
    is_saved = path.is_dir() and any((path / file).exists() for file in ("state.json", "dataset_dict.json"))
    return name.startswith(HUB) or is_saved or path.suffix in _BUILDERS


@contextmanager
def open_dataset(name: str) -> Iterator[IO[bytes]]:
    """A dataset's rows as text.

    Args:
        name: ``hf://datasets/OWNER/NAME`` for a dataset of the hub, of which the ``train`` split is streamed, or
            ``...#SPLIT`` for another; or a path, see :func:`is_dataset`.

    Raises:
        UserInputError: it cannot be loaded, or has other columns.
    """
    yield io.BufferedReader(_TextOf(_texts(name)))


def _load(name: str) -> Any:
    # Here, because it takes a second.
    import datasets

    datasets.disable_progress_bars()
    path = Path(name)
    with reading_dataset(name):
        if name.startswith(HUB):
            repository, _, split = name.removeprefix(HUB).partition("#")
            return datasets.load_dataset(repository, split=split or "train", streaming=True)
        if path.is_dir():
            return datasets.load_from_disk(name)
        return datasets.load_dataset(_BUILDERS[path.suffix], data_files=name, split="train", streaming=True)


@contextmanager
def reading_dataset(told: str) -> Iterator[None]:
    """Whatever the library raises, it is this dataset, called so in messages, that cannot be read."""
    import datasets

    datasets.logging.set_verbosity(logging.CRITICAL)  # it would print what it raises as well
    try:
        yield
    except Exception as error:
        reason = (str(error) or "no reason given").splitlines()[0]
        fix = "check the name, or the network" if HUB in told else "write it again"
        raise UserInputError(f"{told}: {type(error).__name__}: {reason.rstrip('.')}; {fix}") from None


def _texts(name: str) -> Iterator[bytes]:
    tables = iter(_load(name).with_format("arrow").iter(batch_size=_BATCH_ROWS))
    while True:
        with reading_dataset(name):
            table = next(tables, None)
            if table is None:
                return
            frame = pl.from_arrow(table)
        assert isinstance(frame, pl.DataFrame)
        yield _lines(frame, name=name)


def _lines(frame: pl.DataFrame, *, name: str) -> bytes:
    if frame.width == 1 and frame.dtypes[0] == pl.String:
        # A row is a line, and one with several in it is a bad one.
        lines = ((line or "").removesuffix("\n").replace("\n", "\\n") for line in frame.to_series())
        return "".join(f"{line}\n" for line in lines).encode()
    wanted = [LABEL, *INTEGERS, *CATEGORIES]
    if not set(wanted) <= set(frame.columns):
        if frame.width != len(wanted):
            raise UserInputError(
                f"{name}: columns {', '.join(frame.columns[:5])}, ... ({frame.width}); give label, I1 to I13, C1 to "
                "C26, or 40 columns in this order, or one of whole lines"
            )
        frame = frame.rename(dict(zip(frame.columns, wanted, strict=True)))
    for column in wanted:
        dtype = frame[column].dtype
        if not (dtype in (pl.String, pl.Categorical, pl.Enum, pl.Boolean, pl.Null) or dtype.is_numeric()):
            raise UserInputError(f"{name}: column {column} holds {dtype}; give numbers or text")
    columns = [_number(frame[column]) for column in (LABEL, *INTEGERS)] + [_digits(frame[c]) for c in CATEGORIES]
    text = pl.DataFrame(columns).write_csv(include_header=False, separator="\t", quote_style="never")
    return text.encode()


def _number(values: pl.Series) -> pl.Series:
    """Integers that became floats because some are missing are integers again."""
    if values.dtype == pl.Boolean:
        return values.cast(pl.UInt8)
    if not values.dtype.is_float():
        return _within_line(values)
    values = values.fill_nan(None)
    integers = values.cast(pl.Int64, strict=False)
    is_whole = integers.cast(values.dtype).eq_missing(values)
    # What is not whole, or too large, stays as it is, for a reader of lines to refuse.
    return integers if is_whole.all() else integers.cast(pl.String).zip_with(is_whole, values.cast(pl.String))


def _digits(values: pl.Series) -> pl.Series:
    if not values.dtype.is_integer():
        return _within_line(values)
    digits = [None if value is None else f"{value + 2**32 if value < 0 else value:x}" for value in values]
    return pl.Series(values.name, digits, dtype=pl.String)


def _within_line(values: pl.Series) -> pl.Series:
    """Text without what would end a value or a line; a value with these is a bad one anyhow."""
    return values.str.replace_all(r"[\t\n]", " ") if values.dtype == pl.String else values


class _TextOf(io.RawIOBase):
    """A file of texts, one after the other."""

    def __init__(self, texts: Iterator[bytes]) -> None:
        super().__init__()
        self._texts = texts
        self._text = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._text:
            text = next(self._texts, None)
            if text is None:
                return 0
            self._text = memoryview(text)
        size = min(len(buffer), len(self._text))
        buffer[:size] = self._text[:size]
        self._text = self._text[size:]
        return size
