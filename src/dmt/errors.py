"""The one error class whose message is meant for the user rather than for a developer, and common checks."""

import argparse
import difflib
import errno
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

_MOST_COLUMNS = 118  # of prose, on terminals that are wider


class UserInputError(ValueError):
    """A wrong option, file or value.

    The message is one line that names the option, the value found and the fix. The ``dmt`` command
    prints it without a traceback and exits with code 2; in Python it is an ordinary ``ValueError``.

    Args:
        message: that line.
        on_every_rank: every rank of a run raises it alike, so that one of them showing it is enough.
    """

    def __init__(self, message: str, *, on_every_rank: bool = False) -> None:
        super().__init__(message)
        self.on_every_rank = on_every_rank


def nearest(name: str, known: Sequence[str], *, otherwise: str) -> str:
    """The fix for a misspelt name: the known one that is most like it, or other words where none is."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]}?" if near else otherwise


class _Paragraphs(argparse.RawDescriptionHelpFormatter):
    """Prose as wide as the terminal; paragraphs with indented lines, which hold commands, as they are."""

    # The hook by which argparse's own formatters differ; tests/cli/test_help.py guards it.
    def _fill_text(self, text: str, width: int, indent: str) -> str:
        width = min(width, _MOST_COLUMNS)
        paragraphs = text.strip().split("\n\n")
        return "\n\n".join(part if "\n " in part else textwrap.fill(part, width) for part in paragraphs)


class OneLineParser(argparse.ArgumentParser):
    """Command-line options whose errors are :class:`UserInputError`: one line, without the usage.

    A name that is not one is told the nearest, and never taken for the beginning of one.
    """

    def __init__(self, *, prog: str, description: str) -> None:
        super().__init__(prog=prog, description=description, formatter_class=_Paragraphs, allow_abbrev=False)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        # Before argparse, which tells first of what is missing, and that may be what the wrong name was meant for.
        names = [name for action in self._actions for name in action.option_strings]
        for word in args or []:
            name = word.partition("=")[0]
            if name.startswith("--") and len(name) > 2 and name not in names:
                raise UserInputError(
                    f"{name}: no such option; {nearest(name, names, otherwise=f'see {self.prog} --help')}"
                )
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        raise UserInputError(f"{message}; see {self.prog} --help")


def check_positive(owner: str, **sizes: int) -> None:
    """Raise :class:`UserInputError` for the first size below 1, by its name and its owner's."""
    for name, size in sizes.items():
        if size < 1:
            raise UserInputError(f"{owner} {name}={size}: give a positive number")


def check_new_file(option: str, path: Path | None) -> None:
    """Raise :class:`UserInputError` where a file that an option names is there already, or its folder is not."""
    if path is None:
        return
    if path.exists():
        raise UserInputError(f"{option} {path}: it exists; give another name, or remove it")
    if not path.parent.is_dir():
        raise UserInputError(f"{option} {path}: there is no folder {path.parent}; make it, or give another name")


def is_disk_full(error: Exception) -> bool:
    """Whether something could not be written for want of space."""
    # numpy's errors have no number, and polars' are not of the operating system.
    told = ("No space left on device", "Not enough free space", " requested and ")
    return getattr(error, "errno", None) == errno.ENOSPC or any(words in str(error) for words in told)


def write_file(option: str, path: Path, save: Callable[[Path], object]) -> None:
    """``save(path)``; raise :class:`UserInputError` by the option's name where the file cannot be written."""
    try:
        save(path)
    except OSError as error:
        raise UserInputError(f"{option} {path}: {error}; give a file to write") from None
