"""Files that appear whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A file to write in place of another: a reader, also one after a crash, finds the old content or the new."""
    # Hidden, and with the ending that some writers go by.
    unfinished = path.with_name(f".{path.name}")
    yield unfinished
    unfinished.replace(path)


def write_whole(path: Path, content: str) -> None:
    """Write text as :func:`whole` does, onto the disk."""
    with whole(path) as unfinished, unfinished.open("w") as file:
        file.write(content)
        flush_to_disk(file)


def find_whole(path: Path) -> Path:
    """Where to read what has this name: a folder, a file, or nothing at all.

    A folder cannot take another's name in one go. A run that is killed just between leaves the old one, aside: then it
    is that one.
    """
    return aside(path) if aside(path).exists() and not path.exists() else path


def aside(path: Path) -> Path:
    """Where something goes while a folder takes its name."""
    return path.with_name(f"{path.name}.previous")


def flush_to_disk(file: IO[Any]) -> None:
    """Have what was written survive a crash of the system."""
    file.flush()
    os.fsync(file.fileno())
