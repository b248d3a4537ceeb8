"""Reading the files of a checkpoint, which may be broken, or a stranger's."""

import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import Metadata
from typing_extensions import override

from dmt.errors import UserInputError

METADATA = ".metadata"
"""Of a directory: which tensor lies where in its other files."""

REST = "rest.pt"
"""Of a directory: everything but tensors."""

_CLASSES = {
    ("pathlib", "PosixPath"),
    ("pathlib._local", "PosixPath"),  # Python 3.13's
    ("torch", "Size"),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch.serialization", "_get_layout"),
    *(
        ("torch.distributed.checkpoint.metadata", name)
        for name in (
            "BytesStorageMetadata",
            "ChunkStorageMetadata",
            "Metadata",
            "MetadataIndex",
            "StorageMeta",
            "TensorProperties",
            "TensorStorageMetadata",
            "_MEM_FORMAT_ENCODING",
        )
    ),
}


class MetadataReader(dcp.FileSystemReader):
    """Reads a directory whose ``.metadata`` may be anybody's: torch's own reader would run what is in it."""

    @override
    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        with (Path(self.path) / METADATA).open("rb") as file:
            metadata: Metadata = _MetadataUnpickler(file).load()
        assert metadata.storage_meta is not None  # as every writer of files leaves it
        metadata.storage_meta.load_id = self.load_id
        return metadata


class _MetadataUnpickler(pickle.Unpickler):
    @override
    def find_class(self, module: str, name: str) -> Any:
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if not is_dtype and (module, name) not in _CLASSES:
            raise pickle.UnpicklingError(f"{module}.{name} has no place in it")
        return super().find_class(module, name)


def incompleteness(checkpoint: Path) -> str | None:
    """What keeps a file or a directory from being a whole checkpoint, as far as this is seen without reading it."""
    if not checkpoint.is_dir():
        if checkpoint.name == REST and (checkpoint.parent / METADATA).is_file():
            return "it is a part of the one that is the folder around it"
        return None if zipfile.is_zipfile(checkpoint) else "its end is missing, or it is something else"
    for needed in (REST, METADATA):
        if not (checkpoint / needed).is_file():
            return f"it has no {needed}"
    if not zipfile.is_zipfile(checkpoint / REST):
        return f"the end of {REST} is missing"
    try:
        metadata = MetadataReader(checkpoint).read_metadata()
        # A file holds many tensors, and on storage that machines share each look at it is a message.
        ends: dict[str, int] = {}
        for info in metadata.storage_data.values():
            ends[info.relative_path] = max(ends.get(info.relative_path, 0), info.offset + info.length)
    except Exception as error:  # what is no pickle fails in any way
        return f"{METADATA} cannot be read ({_brief(error)})"
    for name, end in ends.items():
        if not (checkpoint / name).is_file():
            return f"it has no {name}"
        if (checkpoint / name).stat().st_size < end:
            return f"the end of {name} is missing"
    return None


def load_file(file: Path, *, map_location: Any, weights_only: bool | None) -> dict[str, Any]:
    """What a checkpoint file holds, or ``rest.pt`` of a directory.

    Args:
        file: which.
        map_location: as torch's.
        weights_only: as torch's.

    Raises:
        UserInputError: it cannot be read, or holds objects and must not.
    """
    try:
        content: dict[str, Any] = torch.load(file, map_location=map_location, weights_only=weights_only)
    except Exception as error:  # what is no pickle fails in any way
        raise unreadable(file, error) from None
    return content


def unreadable(path: Path, error: BaseException) -> UserInputError:
    """The error of a checkpoint, or of a file of it, that torch could not load."""
    if stranger := re.search(r"GLOBAL ([\w.]+)", str(error)):
        return UserInputError(
            f"checkpoint {path}: it holds {stranger[1]}, which is neither tensor nor plain value and may run any code; "
            "if you trust it, give weights_only=False, or on several ranks set TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1"
        )
    # What torch tells of anything that is not quite a pickle is the advice to read it unsafely.
    reason = "it is not as torch writes it" if "Weights only load" in str(error) else _brief(error)
    return UserInputError(f"checkpoint {path}: it cannot be read ({reason}); give a whole one")


def _brief(error: BaseException) -> str:
    first = str(error).partition("\n")[0].partition(". ")[0]
    return first[:200] or type(error).__name__
