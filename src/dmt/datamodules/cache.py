"""Where prepared logs are kept: folders that appear complete or not at all, and what is said of a full disk."""

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import polars as pl

from dmt.errors import UserInputError, is_disk_full


def default_cache_dir() -> Path:
    """``$XDG_CACHE_HOME/dmt``, or ``~/.cache/dmt``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dmt"


@contextmanager
def new_folder(folder: Path, *, cache_dir: Path) -> Iterator[Path]:
    """A folder to write into, which gets its name when all is written, unless another process was first.

    Raises:
        UserInputError: ``cache_dir``, where it lies, cannot be written, or is full.
    """
    with naming_writes(f"cache_dir={cache_dir}", fix="give a writable folder"):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder.parent, prefix=".preparing-") as temporary:
            unfinished = Path(temporary) / "log"
            unfinished.mkdir()
            yield unfinished
            _publish(unfinished, folder)


def remove_folder(folder: Path, *, cache_dir: Path) -> None:
    """Take a folder away as a whole, unless another process was first: those who look for it never find half of it.

    Raises:
        UserInputError: ``cache_dir``, where it lies, cannot be written.
    """
    with (
        naming_writes(f"cache_dir={cache_dir}", fix="give a writable folder"),
        TemporaryDirectory(dir=folder.parent, prefix=".removing-") as temporary,
        contextlib.suppress(FileNotFoundError),
    ):
        os.replace(folder, Path(temporary) / folder.name)


@contextmanager
def naming_writes(what: str, *, fix: str) -> Iterator[None]:
    """Say what could not be written, and why.

    Args:
        what: the option and its value.
        fix: what to do unless the disk is full.

    Raises:
        UserInputError: it could not be written.
    """
    try:
        yield
    except (OSError, pl.exceptions.PolarsError) as error:
        if is_disk_full(error):
            raise UserInputError(f"{what}: No space left on device; free some space") from error
        # polars has errors of its own for the system's, with their number, and for all else.
        if isinstance(error, pl.exceptions.PolarsError) and "(os error" not in str(error):
            raise
        raise UserInputError(f"{what}: {error}; {fix}") from error


def _publish(temporary: Path, folder: Path) -> None:
    """Move the finished folder to its place, unless another process was first."""
    try:
        os.replace(temporary, folder)
    except OSError:
        if not folder.is_dir():
            raise
