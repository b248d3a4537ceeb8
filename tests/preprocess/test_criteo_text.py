"""Lines of Criteo's logs against a reading value by value, with lines that are not Criteo's among them."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmt.preprocess.criteo_text import NUM_COLUMNS, read_lines, scale_integers
from tests.preprocess.criteo_cases import draw_lines

GOOD = re.compile(rb"0*[01](\t(-?[0-9]+)?){13}(\t([0-9a-fA-F]{1,8})?){26}")
GOOD_LINE = draw_lines(np.random.default_rng(0), 1)[0]
# Bytes that mean something to a reader of text or of numbers.
HOSTILE = st.sampled_from(
    [b"\t", b" ", b"-", b"+", b"0", b"1", b"f", b"g", b"\r", b'"', b"#", b",", b".", b"\xff", b"\0"]
)


@st.composite
def changed_line(draw: st.DrawFn) -> bytes:
    """A good line with some bytes changed, added or cut out."""
    line = bytearray(GOOD_LINE)
    for _ in range(draw(st.integers(0, 2))):
        start = draw(st.integers(0, len(line)))
        line[start : start + draw(st.integers(0, 3))] = draw(HOSTILE) * draw(st.integers(0, 3))
    return bytes(line)


@given(st.lists(changed_line(), min_size=1, max_size=6), st.booleans())
def test_good_lines_are_read_and_bad_ones_told(lines: list[bytes], has_last_end: bool) -> None:
    good = [GOOD.fullmatch(line) is not None for line in lines]
    read = read_lines(b"\n".join(lines) + b"\n" * (has_last_end or not lines[-1]))
    assert [line.index for line in read.bad] == [index for index, is_good in enumerate(good) if not is_good]
    table = [line.split(b"\t") for line, is_good in zip(lines, good, strict=True) if is_good]
    assert read.labels.tolist() == [int(row[0]) for row in table]
    wanted = np.array([[float(int(value or 0)) for value in row[1:14]] for row in table], dtype=np.float32)
    assert np.array_equal(read.dense, scale_integers(wanted.reshape(-1, 13)))
    assert read.categories.rows() == [tuple(int(value or b"0", 16) for value in row[14:]) for row in table]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({0: b"2"}, "column label is '2', not 0 or 1"),
        ({0: b""}, "column label is '', not 0 or 1"),
        ({3: b"1.5"}, "column I3 is '1.5', not an integer of 64 bits or nothing"),
        ({13: b"9" * 19}, f"column I13 is '{'9' * 19}', not an integer of 64 bits or nothing"),
        ({14: b"xyz"}, "column C1 is 'xyz', not up to 8 hexadecimal digits or nothing"),
        ({39: b"0123456789" * 9}, f"column C26 is '{'0123456789' * 4}...', not up to 8 hexadecimal digits or nothing"),
        ({39: b"a\tb"}, "41 columns, not 40 (label, 13 integers, 26 categories, separated by tabs)"),
    ],
)
def test_what_is_wrong_is_told(change: dict[int, bytes], reason: str) -> None:
    values = GOOD_LINE.split(b"\t")
    assert len(values) == NUM_COLUMNS
    for column, value in change.items():
        values[column] = value
    read = read_lines(GOOD_LINE + b"\n" + b"\t".join(values) + b"\n\n" + GOOD_LINE)
    assert [(line.index, line.reason) for line in read.bad] == [(1, reason), (2, "it is empty")]
    assert len(read.labels) == 2


def test_of_many_bad_lines_the_first_are_told() -> None:
    read = read_lines(GOOD_LINE + b"\n" + b"1\n" * 1000)
    assert read.num_bad == 1000 and [line.index for line in read.bad] == list(range(1, 11)) and len(read.labels) == 1


def test_what_editors_and_windows_add_is_told() -> None:
    read = read_lines(b"\xef\xbb\xbf" + GOOD_LINE + b"\n" + GOOD_LINE + b"\r\n")
    reasons = [line.reason for line in read.bad]
    assert reasons[0].startswith("it begins with a byte order mark (sed '1s/^\\xef")
    assert reasons[1] == r"it ends with a carriage return, as on Windows (sed 's/\r$//' removes it)"


def test_integers_become_logarithms() -> None:
    scaled = scale_integers(np.array([[0.0, -2.0, -3.0, -100.0, 1e6]], dtype=np.float32))
    assert scaled.dtype == np.float32
    # One rounding to float32 of the argument and one of the logarithm: 2^-23 relative.
    np.testing.assert_allclose(scaled, np.log([[3.0, 1.0, 1.0, 1.0, 1e6 + 3]]), rtol=2**-23)
