"""Text files in parts of whole lines, plain or gzip.

Parts are cut by bytes of text, so that they are the same however many of them are read at a time.
"""

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from dmt.errors import UserInputError

CHUNK_BYTES = 16 * 2**20
# The longest line of a click log is some hundred bytes.
MAX_LINE_BYTES = 2**20


def is_gzip(path: Path) -> bool:
    """Whether a file is compressed, by its first bytes."""
    with path.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"


@contextmanager
def open_text(path: Path) -> Iterator[IO[bytes]]:
    """Open a plain or gzip file; a damaged one ends with a line that names it.

    Raises:
        UserInputError: the compressed data is cut short or wrong.
    """
    try:
        opener: Any = gzip.open if is_gzip(path) else open
        with opener(path, "rb") as file:
            yield file
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserInputError(f"{path}: damaged gzip file ({error}); fetch it again") from None


def chunks(file: IO[bytes], *, path: str, num_bytes: int) -> Iterator[bytes]:
    """Whole lines from where the file stands, about 16 MiB at a time.

    Args:
        file: open at the start of a line.
        path: its name, for errors.
        num_bytes: lines that start within so many bytes.

    Raises:
        UserInputError: there is no line end for a mebibyte.
    """
    while num_bytes > 0 and (text := file.read(min(CHUNK_BYTES, num_bytes))):
        if not text.endswith(b"\n"):
            text += _rest_of_line(file, path=path)
        num_bytes -= len(text)
        yield text


def seek_line(file: IO[bytes], start: int, *, path: str) -> int:
    """Go to the first line that starts at byte ``start`` or after it; returns where that is."""
    if start == 0:
        return 0
    file.seek(start - 1)
    return start - 1 + len(_rest_of_line(file, path=path))


def skip(file: IO[bytes], num_bytes: int) -> None:
    """Read over so many bytes."""
    while num_bytes > 0 and (text := file.read(min(CHUNK_BYTES, num_bytes))):
        num_bytes -= len(text)


def count_lines(path: Path, num_bytes: int) -> int:
    """Line ends in the first bytes of a plain file."""
    count = 0
    with path.open("rb") as file:
        while num_bytes > 0 and (text := file.read(min(CHUNK_BYTES, num_bytes))):
            count += text.count(b"\n")
            num_bytes -= len(text)
    return count


def _rest_of_line(file: IO[bytes], *, path: str) -> bytes:
    rest = file.readline(MAX_LINE_BYTES)
    if len(rest) == MAX_LINE_BYTES and not rest.endswith(b"\n"):
        raise UserInputError(f"{path}: no line end in a mebibyte; it is not a text file of click logs")
    return rest
