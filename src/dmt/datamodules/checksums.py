"""Checksums of files that do not change, computed once."""

import hashlib
import json
import os
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from dmt.datamodules.prepare import default_cache_dir
from dmt.errors import UserInputError
from dmt.waiting import waiting


def check_checksums(arrays: Mapping[Path, np.ndarray], checksums: Mapping[Path, int]) -> None:
    """Compare arrays with the CRC-32 of their bytes; files that were right before, and are as they were, are not read.

    What was right is kept in ``$XDG_CACHE_HOME/dmt``, or ``~/.cache/dmt``.

    Args:
        arrays: by the file that they are mapped from.
        checksums: what they should be, by file.

    Raises:
        UserInputError: one of them is another, or what was right cannot be kept.
    """
    states = {str(file.resolve()): _state(file, checksums[file]) for file in arrays}
    name = hashlib.sha256("\n".join(states).encode()).hexdigest()[:16]
    memory = default_cache_dir() / f"checked-{name}.json"
    remembered = _read(memory)
    unknown = [file for file in arrays if remembered.get(key := str(file.resolve())) != states[key]]
    if not unknown:
        return
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        # zlib lets other threads run while it reads.
        found = pool.map(lambda file: zlib.crc32(arrays[file].data), unknown)
        for file, checksum in zip(unknown, waiting(found, "checking files", total=len(unknown)), strict=True):
            if checksum != checksums[file]:
                raise UserInputError(
                    f"{file}: its checksum is not the manifest's; copy it again, or convert the logs again"
                )
    try:
        memory.parent.mkdir(parents=True, exist_ok=True)
        unfinished = memory.with_name(f".{memory.name}-{os.getpid()}")
        unfinished.write_text(json.dumps(states))
        unfinished.rename(memory)
    except OSError as error:
        raise UserInputError(f"{memory.parent}: {error}; set XDG_CACHE_HOME to a folder that can be written") from None


def _read(memory: Path) -> dict[str, list[int]]:
    try:
        remembered: dict[str, list[int]] = json.loads(memory.read_text())
    except (OSError, ValueError):  # there is none, or a damaged one: then nothing is known to be right
        return {}
    return remembered


def _state(file: Path, checksum: int) -> list[int]:
    """What tells whether a file is as it was."""
    status = file.stat()
    return [status.st_size, status.st_mtime_ns, checksum]
