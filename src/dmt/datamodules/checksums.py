"""Checksums of files that do not change, compared once."""

import hashlib
import json
import os
import zlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

from lightning.pytorch.utilities import rank_zero_info

from dmt.datamodules.cache import default_cache_dir, naming_writes, remove_folder
from dmt.waiting import waiting

CHECKSUMS_FILE = "checksums.json"
_READ_BYTES = 2**22


def check_once(wanted: Mapping[Path, object], check: Callable[[Path], None]) -> None:
    """Check files, but those that passed before and are as they were.

    What passed is kept in ``$XDG_CACHE_HOME/dmt``, or ``~/.cache/dmt``.

    Args:
        wanted: by file, what the check wants of it, as JSON holds it: where that is another, the file is checked again.
        check: raises if a file is not as is wanted; called from several threads.

    Raises:
        UserInputError: what passed cannot be kept.
    """
    states = {str(file.resolve()): _state(file, of_file) for file, of_file in wanted.items()}
    name = hashlib.sha256("\n".join(states).encode()).hexdigest()[:16]
    memory = default_cache_dir() / f"checked-{name}.json"
    remembered = _read(memory)
    unknown = [file for file in wanted if remembered.get(key := str(file.resolve())) != states[key]]
    if not unknown:
        return
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        # zlib lets other threads run while it reads.
        for _ in waiting(pool.map(check, unknown), "checking files", total=len(unknown)):
            pass
    with naming_writes(str(memory.parent), fix="set XDG_CACHE_HOME to a folder that can be written"):
        memory.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=memory.parent, prefix=".checked-") as temporary:
            unfinished = Path(temporary) / memory.name
            unfinished.write_text(json.dumps(states))
            unfinished.rename(memory)


def write_checksums(folder: Path) -> None:
    """Write the CRC-32 of each file of a folder beside them, for :func:`find_damage`."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    checksums = {file.relative_to(folder).as_posix(): _checksum(file) for file in files}
    (folder / CHECKSUMS_FILE).write_text(json.dumps(checksums, indent=1))


def find_damage(folder: Path) -> str | None:
    """Which file of a folder is not as :func:`write_checksums` found it, and how; ``None`` if all are.

    Raises:
        UserInputError: what was right cannot be kept, see :func:`check_once`.
    """
    try:
        checksums = json.loads((folder / CHECKSUMS_FILE).read_text())
        wanted = {folder / name: checksum for name, checksum in checksums.items()}
    except (OSError, ValueError, AttributeError):
        return f"{folder / CHECKSUMS_FILE} is missing or damaged"

    def check(file: Path) -> None:
        if _checksum(file) != wanted[file]:
            raise _OtherChecksumError(f"{file} has another checksum than it had")

    try:
        check_once(wanted, check)
    except (OSError, _OtherChecksumError) as error:
        return str(error)
    return None


def discard_if_damaged(folder: Path, *, cache_dir: Path) -> None:
    """Tell of a folder of the cache that is damaged, and take it away, so that it is made again.

    Raises:
        UserInputError: ``cache_dir``, where it lies, cannot be written; or see :func:`find_damage`.
    """
    if folder.is_dir() and (damage := find_damage(folder)) is not None:
        rank_zero_info(f"{damage}: making {folder} again")
        remove_folder(folder, cache_dir=cache_dir)


class _OtherChecksumError(Exception):
    """A file has another checksum than it had."""


def _checksum(file: Path) -> int:
    checksum = 0
    with file.open("rb") as content:
        while part := content.read(_READ_BYTES):
            checksum = zlib.crc32(part, checksum)
    return checksum


def _read(memory: Path) -> dict[str, object]:
    try:
        remembered = json.loads(memory.read_text())
    except (OSError, ValueError):  # there is none, or a damaged one: then nothing is known to be right
        return {}
    return remembered if isinstance(remembered, dict) else {}


def _state(file: Path, wanted: object) -> list[object]:
    """What tells whether a file is as it was, and was checked for the same."""
    status = file.stat()
    return [status.st_size, status.st_mtime_ns, wanted]
