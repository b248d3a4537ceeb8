"""Sharded checkpoints: a directory that all ranks write and any layout reads.

    CHECKPOINT.ckpt/
        .metadata, *.distcp    tensors under the plain model's names (torch.distributed.checkpoint)
        rest.pt                everything else of Lightning's checkpoint: loops, callbacks, hyper-parameters

Single-process runs write Lightning's ordinary checkpoint file, with the same names; each reads the other's.
"""

import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from lightning.fabric.plugins import TorchCheckpointIO
from torch import Tensor
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from typing_extensions import override

from dmt.errors import UserInputError

_REST = "rest.pt"
_MODEL = "state_dict."
_OPTIMIZERS = "optimizer_states."


class CheckpointDirectory:
    """One checkpoint as a directory.

    Args:
        path: the directory. On several machines it must lie on storage that all of them share.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def save(self, checkpoint: dict[str, Any]) -> None:
        """Write Lightning's checkpoint dictionary; collective over all ranks.

        Each rank's ``state_dict`` and ``optimizer_states`` may hold only a part of the model. The directory
        appears under its name when it is complete, and not before.
        """
        rest = dict(checkpoint)
        tensors = {f"{_MODEL}{name}": tensor for name, tensor in rest.pop("state_dict").items()}
        rest["optimizer_states"] = _all_groups(rest.get("optimizer_states", []))
        for index, optimizer_state in enumerate(checkpoint.get("optimizer_states", [])):
            tensors |= {f"{_OPTIMIZERS}{index}.{key}": t for key, t in _named_state(optimizer_state).items()}

        partial = self.path.with_name(f"{self.path.name}.partial")
        first = dist.get_rank() == 0
        if first:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        dist.barrier()
        dcp.save(tensors, checkpoint_id=partial)
        if first:
            torch.save(rest, partial / _REST)
            self._replace_by(partial)
        dist.barrier()

    def _replace_by(self, partial: Path) -> None:
        previous = self.path.with_name(f"{self.path.name}.previous")
        shutil.rmtree(previous, ignore_errors=True)  # left by a run that was killed here
        if self.path.is_dir():
            self.path.rename(previous)
        elif self.path.exists():
            self.path.unlink()  # a single-process checkpoint file of the same name
        partial.rename(self.path)
        shutil.rmtree(previous, ignore_errors=True)

    def load_rest(self) -> dict[str, Any]:
        """Everything but the model's tensors. Optimiser states are whole, with names: pick by name.

        Raises:
            UserInputError: the directory is not a complete checkpoint.
        """
        for needed in (_REST, ".metadata"):
            if not (self.path / needed).is_file():
                raise UserInputError(
                    f"checkpoint {self.path}: the directory has no {needed}; give the path of a complete checkpoint"
                )
        # Like Lightning's own checkpoint files it may hold any Python object: load only what you trust.
        rest: dict[str, Any] = torch.load(self.path / _REST, weights_only=False)
        stored = self._read(_OPTIMIZERS)
        rest["optimizer_states"] = [
            _positional_state(groups, stored, prefix=f"{_OPTIMIZERS}{index}.")
            for index, groups in enumerate(rest["optimizer_states"])
        ]
        return rest

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each of the model's tensors, by name."""
        return {
            name.removeprefix(_MODEL): tuple(entry.size)
            for name, entry in self._stored(_MODEL).items()
            if isinstance(entry, TensorStorageMetadata)
        }

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Fill these tensors of the model in place, by name; :meth:`tensor_shapes` must have them."""
        self._fill({f"{_MODEL}{name}": tensor for name, tensor in tensors.items()})

    def load_all(self) -> dict[str, Any]:
        """The whole checkpoint as Lightning's dictionary, in the memory of this one process."""
        rest = self.load_rest()
        model = self._read(_MODEL)
        return rest | {"state_dict": {name.removeprefix(_MODEL): tensor for name, tensor in model.items()}}

    def _read(self, prefix: str) -> dict[str, Any]:
        """All entries whose name starts with ``prefix``, whole."""
        entries: dict[str, Any] = {
            name: torch.empty(entry.size, dtype=entry.properties.dtype)
            if isinstance(entry, TensorStorageMetadata)
            else None
            for name, entry in self._stored(prefix).items()
        }
        if entries:
            self._fill(entries)
        return entries

    def _stored(self, prefix: str) -> dict[str, Any]:
        """What the directory says of its entries whose name starts with ``prefix``."""
        metadata = dcp.FileSystemReader(self.path).read_metadata().state_dict_metadata
        return {name: entry for name, entry in metadata.items() if name.startswith(prefix)}

    def _fill(self, entries: dict[str, Any]) -> None:
        # Each rank reads what it needs by itself: ranks ask for different entries.
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
            dcp.load(entries, checkpoint_id=self.path, no_dist=True)


class TowerCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoint files, and for loading also the directories that sharded runs write."""

    @override
    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Any = lambda storage, loc: storage,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        if Path(path).is_dir():
            return CheckpointDirectory(Path(path)).load_all()
        checkpoint: dict[str, Any] = super().load_checkpoint(path, map_location, weights_only)
        return checkpoint


def _named_state(optimizer_state: dict[str, Any]) -> dict[str, Any]:
    """``{parameter.key: value}`` of an optimiser's state_dict."""
    names = [name for group in optimizer_state["param_groups"] for name in group["param_names"]]
    return {
        f"{names[index]}.{key}": value
        for index, state in optimizer_state["state"].items()
        for key, value in state.items()
    }


def _all_groups(optimizer_states: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Parameter groups of each optimiser, with the parameter names of all ranks."""
    mine = [state["param_groups"] for state in optimizer_states]
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, [[group["param_names"] for group in groups] for groups in mine])
    return [
        [
            group | {"param_names": list(dict.fromkeys(name for rank in everyone for name in rank[i][j]))}
            for j, group in enumerate(groups)
        ]
        for i, groups in enumerate(mine)
    ]


def _positional_state(groups: list[dict[str, Any]], stored: dict[str, Any], *, prefix: str) -> dict[str, Any]:
    """An optimiser's state_dict, from its groups and the stored ``{prefix + parameter.key: value}``."""
    names = [name for group in groups for name in group["param_names"]]
    position = {name: index for index, name in enumerate(names)}
    state: dict[int, dict[str, Any]] = {}
    for key, value in stored.items():
        if key.startswith(prefix):
            name, _, field = key.removeprefix(prefix).rpartition(".")
            state.setdefault(position[name], {})[field] = value
    with_positions = [group | {"params": [position[name] for name in group["param_names"]]} for group in groups]
    return {"state": state, "param_groups": with_positions}
