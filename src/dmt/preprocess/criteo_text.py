"""Lines of Criteo's click logs as arrays.

A line is a label, 13 integers and 26 categories of up to 8 hexadecimal digits, separated by tabs; integers and
categories may be missing. The Kaggle file and the days of the 1 TB logs are alike.

Shape legend: n lines.
"""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from dmt.preprocess.text_parts import DAMAGE

INTEGERS = tuple(f"I{index}" for index in range(1, 14))
CATEGORIES = tuple(f"C{index}" for index in range(1, 27))
LABEL = "label"
NUM_COLUMNS = 1 + len(INTEGERS) + len(CATEGORIES)

_SCHEMA = pl.Schema({LABEL: pl.UInt8} | dict.fromkeys(INTEGERS, pl.Int64) | dict.fromkeys(CATEGORIES, pl.String))
_LABEL = re.compile(rb"0*[01]")
_INTEGER = re.compile(rb"-?[0-9]+|")
_CATEGORY = re.compile(rb"[0-9a-fA-F]{1,8}|")
_DAMAGED = DAMAGE[1:].decode()
# What polars skips or trims in numbers and at the ends of lines, and Criteo does not have.
_FOREIGN = (b" ", b"+", b"\r")
# At its start, polars would skip it too.
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_SHOWN = 40
NUM_TOLD = 10
"""Of a text's bad lines so many are told of, and where a gzip file is damaged."""


@dataclass(frozen=True)
class BadLine:
    """A line that is not Criteo's.

    Args:
        index: lines before it in the text that was read.
        reason: what is wrong with it.
    """

    index: int
    reason: str


@dataclass(frozen=True)
class Lines:
    """Lines as columns.

    Args:
        labels: uint8 (n,).
        dense: float32 (n, 13), of the integers by :func:`scale_integers`.
        categories: uint32 values of (n, 26), 0 where missing.
        num_bad: lines that are left out.
        bad: the first of them.
    """

    labels: np.ndarray
    dense: np.ndarray
    categories: pl.DataFrame
    num_bad: int = 0
    bad: Sequence[BadLine] = ()


def read_lines(text: bytes) -> Lines:
    """Read whole lines; the last one may lack its line end."""
    frame = _read_columns(text)
    if frame is not None:
        return _split(frame)
    kept, num_bad, bad = _tell_apart(text)
    frame = _read_columns(kept)
    assert frame is not None, "lines that match the pattern are read"
    return replace(_split(frame), num_bad=num_bad, bad=bad)


def _read_columns(text: bytes) -> pl.DataFrame | None:
    """All lines, or ``None`` if one of them is bad. As fast as polars reads; it does not say which line it is."""
    if not text:
        return pl.DataFrame(schema=_SCHEMA).with_columns(pl.col(CATEGORIES).cast(pl.UInt32))
    if text.startswith(_BYTE_ORDER_MARK) or any(character in text for character in _FOREIGN):
        return None
    try:
        frame = pl.read_csv(
            text, has_header=False, separator="\t", quote_char=None, schema=_SCHEMA, empty_string_is_null=False
        )
    except pl.exceptions.PolarsError:
        return None
    # Lines that are too long are refused, but too short ones are filled up.
    num_tabs = np.count_nonzero(np.frombuffer(text, dtype=np.uint8) == ord("\t"))  # three times as fast as bytes.count
    if num_tabs != (NUM_COLUMNS - 1) * len(frame):
        return None
    num_digits = pl.col(CATEGORIES).str.len_bytes()
    values = pl.col(CATEGORIES).str.to_integer(base=16, dtype=pl.UInt32, strict=False)
    frame = frame.with_columns(pl.when(num_digits == 0).then(0).when(num_digits <= 8).then(values).name.keep())
    has_nulls = any(frame[name].null_count() for name in (LABEL, *CATEGORIES))
    return None if has_nulls or bool((frame[LABEL] > 1).any()) else frame


def _split(frame: pl.DataFrame) -> Lines:
    return Lines(
        labels=frame[LABEL].to_numpy(),
        dense=scale_integers(frame.select(pl.col(INTEGERS).fill_null(0).cast(pl.Float32)).to_numpy(order="c")),
        categories=frame.select(CATEGORIES),
    )


def _tell_apart(text: bytes) -> tuple[bytes, int, list[BadLine]]:
    """The good lines, how many others there are, and what is wrong with the first of these."""
    kept, num_bad, bad = bytearray(), 0, list[BadLine]()
    for index, line in enumerate(io.BytesIO(text)):
        fault = _fault(line.removesuffix(b"\n"))
        if fault is None:
            kept += line
            continue
        num_bad += 1
        if is_told(fault, num_before=len(bad)):
            bad.append(BadLine(index, fault))
    return bytes(kept), num_bad, bad


def is_told(fault: str, *, num_before: int) -> bool:
    """Whether a bad line is one of the first, or stands for the rest of a file."""
    return num_before < NUM_TOLD or fault.startswith(_DAMAGED)


def _fault(line: bytes) -> str | None:
    """What is wrong with a line."""
    values = line.split(b"\t")
    if DAMAGE in line:
        return line[line.index(DAMAGE) + 1 :].decode(errors="replace")
    if not line:
        return "it is empty"
    if line.endswith(b"\r"):
        return r"it ends with a carriage return, as on Windows (sed 's/\r$//' removes it)"
    if line.startswith(_BYTE_ORDER_MARK):
        return "it begins with a byte order mark (sed '1s/^\\xef\\xbb\\xbf//' removes it)"
    if len(values) != NUM_COLUMNS:
        return f"{len(values)} columns, not {NUM_COLUMNS} (label, 13 integers, 26 categories, separated by tabs)"
    for value, name in zip(values, _SCHEMA, strict=True):
        if name == LABEL:
            is_right, wanted = _LABEL.fullmatch(value) is not None, "0 or 1"
        elif name in INTEGERS:
            is_right, wanted = _is_integer(value), "an integer of 64 bits or nothing"
        else:
            is_right, wanted = _CATEGORY.fullmatch(value) is not None, "up to 8 hexadecimal digits or nothing"
        if not is_right:
            shown = value[:_SHOWN].decode(errors="replace") + ("..." if len(value) > _SHOWN else "")
            return f"column {name} is {shown!r}, not {wanted}"
    return None


def _is_integer(value: bytes) -> bool:
    return _INTEGER.fullmatch(value) is not None and len(value) < 1000 and -(2**63) <= int(value or 0) < 2**63


def scale_integers(integers: np.ndarray) -> np.ndarray:
    """log(x + 3) as float32, missing values as 0; values below -2, which would have none, as -2."""
    scaled = np.maximum(integers, np.float32(-2.0))
    scaled += 3
    return np.log(scaled, out=scaled)
