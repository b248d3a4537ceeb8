"""Text files in parts of whole lines, plain or gzip.

Parts are cut by bytes of text, so that they are the same however many of them are read at a time.
"""

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from dmt.errors import UserInputError

CHUNK_BYTES = 16 * 2**20
# The longest line of a click log is some hundred bytes.
MAX_LINE_BYTES = 2**20
# Begins what stands in place of the rest of a gzip file. No line of numbers has it, so that the line is a bad one.
DAMAGE = b"\0damaged gzip file"


def is_gzip(path: Path) -> bool:
    """Whether a file is compressed, by its first bytes."""
    with path.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"


@contextmanager
def open_gzip(path: Path) -> Iterator[IO[bytes]]:
    """Open the text of a gzip file; where that is cut short or wrong, the text ends with ``DAMAGE`` and the reason."""
    with gzip.open(path) as text, io.BufferedReader(_UntilDamage(text), buffer_size=2**20) as file:
        yield file


class _UntilDamage(io.RawIOBase):
    """What can be read of a gzip file."""

    def __init__(self, text: gzip.GzipFile) -> None:
        self._text = text
        self._last: bytes | None = None  # what is left to tell once the file has proved damaged

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self._last is None:
            try:
                read = self._text.read1(len(buffer))  # one piece, since an error loses all that a call has read
            except (EOFError, gzip.BadGzipFile, zlib.error) as error:
                self._last = DAMAGE + f" ({error}), fetch it again".encode()
        if self._last is not None:
            read, self._last = self._last[: len(buffer)], self._last[len(buffer) :]
        buffer[: len(read)] = read
        return len(read)


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
