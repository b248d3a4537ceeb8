"""Sharded checkpoints: a directory that all ranks write and any layout reads.

    CHECKPOINT.ckpt/
        .metadata, *.distcp    tensors under the plain model's names (torch.distributed.checkpoint)
        rest.pt                everything else of Lightning's checkpoint: loops, callbacks, hyper-parameters

Single-process runs write Lightning's ordinary checkpoint file, with the same names; each reads the other's.
"""

import shutil
import warnings
from collections.abc import Mapping, Sequence
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
from dmt.modules.shards import TensorShard, as_shards, copy_into_shards
from dmt.strategies.agreement import succeed_together
from dmt.strategies.checkpoint_files import REST, MetadataReader, incompleteness, load_file, unreadable
from dmt.strategies.checkpoint_planners import ShardLoadPlanner, ShardSavePlanner
from dmt.whole_files import aside, find_whole

Entry = Tensor | Sequence[TensorShard]
"""What a rank holds of a tensor: all of it, or blocks."""

CURRENT_WEIGHTS = "current_model_state"
"""Key of a checkpoint with the weights of training, where the model's are averages; named as Lightning names it."""

_MODEL = "state_dict"
_OPTIMIZERS = "optimizer_states"


class CheckpointDirectory:
    """One checkpoint as a directory.

    Every tensor in it is one whole, however many ranks have written it, so any layout reads what any other wrote.

    Args:
        path: the directory. On several machines it must lie on storage that all of them share.
        weights_only: for reading, as Lightning's: False lets it hold any Python object beside tensors, and such an
            object may do anything when it is loaded. Default: torch's, which is True.
    """

    def __init__(self, path: Path, *, weights_only: bool | None = None) -> None:
        self.path = path
        self.weights_only = weights_only

    def save(self, checkpoint: dict[str, Any]) -> None:
        """Write Lightning's checkpoint dictionary; collective over all ranks.

        Each rank's ``state_dict`` and ``optimizer_states`` may hold only a part of the model: some of its tensors, or
        blocks of them as lists of :class:`~dmt.modules.shards.TensorShard`. Blocks may lie on several ranks, but not
        overlap otherwise. The directory appears under its name when it is complete, and not before.
        """
        rest = dict(checkpoint)
        entries = {
            f"{group}.{name}": entry
            for group in (_MODEL, CURRENT_WEIGHTS)
            for name, entry in rest.pop(group, {}).items()
        }
        if _OPTIMIZERS in rest:  # it has none with weights alone, which cannot be resumed
            rest[_OPTIMIZERS] = _all_groups(rest[_OPTIMIZERS])
        for index, optimizer_state in enumerate(checkpoint.get(_OPTIMIZERS, [])):
            entries |= {f"{_OPTIMIZERS}.{index}.{key}": t for key, t in _named_state(optimizer_state).items()}

        partial = self.path.with_name(f"{self.path.name}.partial")
        first = dist.get_rank() == 0
        if first:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        dist.barrier()
        plain, shards = _divide(entries)
        dcp.save(plain, checkpoint_id=partial, planner=ShardSavePlanner(shards))
        if first:
            torch.save(rest, partial / REST)
            self._replace_by(partial)
        dist.barrier()

    def _replace_by(self, partial: Path) -> None:
        previous = aside(self.path)
        if self.path.exists():  # a directory, or a single-process checkpoint file of the same name
            _remove(previous)  # left by a run that was killed at the end of this function
            self.path.rename(previous)  # a run that is killed now leaves what find_whole() knows
        partial.rename(self.path)
        _remove(previous)

    def load_rest(self) -> dict[str, Any]:
        """Everything but the model's tensors. Optimiser states are whole, with names: pick by name.

        Raises:
            UserInputError: the directory is not a whole checkpoint, or holds objects and must not.
        """
        if problem := incompleteness(self.path):
            raise UserInputError(f"checkpoint {self.path}: {problem}; give the path of a whole checkpoint")
        rest = load_file(self.path / REST, map_location="cpu", weights_only=self.weights_only)
        if _OPTIMIZERS in rest:
            stored = self._read(_OPTIMIZERS)
            rest[_OPTIMIZERS] = [
                _positional_state(groups, stored, prefix=f"{_OPTIMIZERS}.{index}.")
                for index, groups in enumerate(rest[_OPTIMIZERS])
            ]
        return rest

    def tensor_shapes(self, group: str = _MODEL) -> dict[str, tuple[int, ...]]:
        """Shape of each of the model's tensors, by name; or of :data:`CURRENT_WEIGHTS`."""
        return {
            name.removeprefix(f"{group}."): tuple(entry.size)
            for name, entry in self._stored(group).items()
            if isinstance(entry, TensorStorageMetadata)
        }

    def load_tensors(self, entries: Mapping[str, Entry], group: str = _MODEL) -> None:
        """Fill these tensors of the model, or blocks of them, in place.

        Args:
            entries: by name; :meth:`tensor_shapes` must have it with the shape of the whole.
            group: which values: the model's, or :data:`CURRENT_WEIGHTS`.

        Raises:
            UserInputError: a file of the directory cannot be read.
        """
        self._fill({f"{group}.{name}": entry for name, entry in entries.items()})

    def load_all(self) -> dict[str, Any]:
        """The whole checkpoint as Lightning's dictionary, in the memory of this one process.

        Raises:
            UserInputError: as :meth:`load_rest`.
        """
        rest = self.load_rest()
        groups = {group: self._read(group) for group in (_MODEL, CURRENT_WEIGHTS)}
        tensors = {
            group: {name.removeprefix(f"{group}."): tensor for name, tensor in entries.items()}
            for group, entries in groups.items()
            if entries or group == _MODEL
        }
        return rest | tensors

    def _read(self, group: str) -> dict[str, Any]:
        """All entries of a group, whole."""
        entries: dict[str, Any] = {
            name: torch.empty(entry.size, dtype=entry.properties.dtype)
            if isinstance(entry, TensorStorageMetadata)
            else None
            for name, entry in self._stored(group).items()
        }
        if entries:
            self._fill(entries)
        return entries

    def _stored(self, group: str) -> dict[str, Any]:
        """What the directory says of the entries of a group."""
        metadata = MetadataReader(self.path).read_metadata().state_dict_metadata
        return {name: entry for name, entry in metadata.items() if name.startswith(f"{group}.")}

    def _fill(self, entries: dict[str, Any]) -> None:
        # Each rank reads what it needs by itself: ranks ask for different entries.
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
            plain, shards = _divide(entries)
            planner = ShardLoadPlanner(shards, weights_only=self.weights_only)
            try:
                dcp.load(plain, storage_reader=MetadataReader(self.path), planner=planner, no_dist=True)
            except dcp.CheckpointException as error:
                [(cause, _), *_] = error.failures.values()
                if isinstance(cause, KeyError | ValueError):
                    raise  # the planner's: a program has asked for what is not there
                raise unreadable(self.path, cause) from None
            entries |= plain  # what is no tensor is not filled in place


def load_group(checkpoint: Mapping[str, Any], group: str, entries: Mapping[str, Entry]) -> bool:
    """Fill what a rank holds of the model from a group of a loaded checkpoint of either kind.

    Collective where that is a directory.

    Returns:
        whether the checkpoint has the group.

    Raises:
        UserInputError: on every rank, a file cannot be read on one.
    """
    directory = checkpoint.get("directory")
    if directory is None:
        copy_into_shards({name: as_shards(entry) for name, entry in entries.items()}, checkpoint.get(group, {}))
        return bool(checkpoint.get(group))
    stored = directory.tensor_shapes(group)
    wanted = {name: entry for name, entry in entries.items() if name in stored}
    succeed_together(lambda: directory.load_tensors(wanted, group))
    return bool(stored)


class TowerCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoint files, and for loading also the directories that sharded runs write.

    It makes a file of a directory as well, such as ``ClickModel.load_from_checkpoint`` needs::

        io = TowerCheckpointIO()
        io.save_checkpoint(io.load_checkpoint("runs/mine/version_0/checkpoints/last.ckpt"), "model.ckpt")
    """

    @override
    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Any = lambda storage, loc: storage,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """As Lightning's.

        Raises:
            UserInputError: there is no whole checkpoint, or it holds objects and must not.
        """
        found = find_whole(Path(path))
        if found.is_dir():
            return CheckpointDirectory(found, weights_only=weights_only).load_all()
        if not found.exists():
            raise UserInputError(f"checkpoint {path}: no such checkpoint; give the path of one")
        return load_file(found, map_location=map_location, weights_only=weights_only)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _divide(entries: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, list[TensorShard]]]:
    """Entries that are whole, and those that are blocks."""
    shards = {name: entry for name, entry in entries.items() if _is_blocks(entry)}
    return {name: entry for name, entry in entries.items() if name not in shards}, shards


def _is_blocks(entry: Any) -> bool:
    return isinstance(entry, list) and all(isinstance(block, TensorShard) for block in entry)


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
