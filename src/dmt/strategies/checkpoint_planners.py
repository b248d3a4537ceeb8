"""Which blocks of which tensors a rank writes to a sharded checkpoint, and which it reads from one.

torch.distributed.checkpoint cuts and joins blocks by itself once a planner has told it where they lie. Its own planners
know blocks only as ShardedTensor or DTensor, which need a process group or a device mesh of just the right shape; a
planner of ours says the same of any list of :class:`~dmt.modules.shards.TensorShard`.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, ReadItem, SavePlan, TensorWriteData, WriteItem, WriteItemType
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list
from typing_extensions import override

from dmt.modules.shards import TensorShard

Shards = Mapping[str, Sequence[TensorShard]]


class ShardSavePlanner(DefaultSavePlanner):
    """Writes blocks of tensors beside what a state dict holds. What several ranks hold is written once.

    Args:
        shards: this rank's blocks, by the name of the whole tensor.
    """

    def __init__(self, shards: Shards) -> None:
        # State dicts here are flat; flattening would take a nested extra state apart.
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self._shards = shards

    @override
    def create_local_plan(self) -> SavePlan:
        plan = super().create_local_plan()
        items = [_write_item(name, shard) for name, shards in self._shards.items() for shard in _filled(shards)]
        return replace(plan, items=plan.items + items)

    @override
    def lookup_object(self, index: MetadataIndex) -> Any:
        if index.fqn not in self._shards:
            return super().lookup_object(index)
        # By offsets: the index's number counts the blocks of all ranks.
        [tensor] = [s.tensor for s in _filled(self._shards[index.fqn]) if torch.Size(s.offsets) == index.offset]
        return tensor


class ShardLoadPlanner(DefaultLoadPlanner):
    """Fills blocks of tensors, and what a state dict holds, from a checkpoint cut in any way.

    Args:
        shards: this rank's blocks, by the name of the whole tensor.
        weights_only: of what is no tensor, as torch.load's.
    """

    def __init__(self, shards: Shards, *, weights_only: bool | None) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self._shards = shards
        self._weights_only = weights_only

    @override
    def create_local_plan(self) -> LoadPlan:
        plan = super().create_local_plan()
        assert self.metadata is not None
        for name, shards in self._shards.items():
            stored = self.metadata.state_dict_metadata.get(name)
            if not isinstance(stored, TensorStorageMetadata):
                raise KeyError(f"the checkpoint has no tensor {name!r}")
            for shard in shards:
                if tuple(stored.size) != tuple(shard.shape):
                    raise ValueError(f"{name!r} has shape {shard.shape}, in the checkpoint {tuple(stored.size)}")
            plan.items += create_read_items_for_chunk_list(name, stored, [_chunk(shard) for shard in shards])
        return plan

    @override
    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        # torch's own planner loads any object, whoever has written it.
        self.state_dict[read_item.dest_index.fqn] = torch.load(value, weights_only=self._weights_only)

    @override
    def lookup_tensor(self, index: MetadataIndex) -> Tensor:
        if index.fqn not in self._shards:
            return super().lookup_tensor(index)
        assert index.index is not None  # create_read_items_for_chunk_list numbers the blocks that it is given
        return self._shards[index.fqn][index.index].tensor


def _filled(shards: Sequence[TensorShard]) -> list[TensorShard]:
    """The shards that hold something. An empty one would be taken for the block that starts where it does."""
    return [shard for shard in shards if shard.tensor.numel()]


def _chunk(shard: TensorShard) -> ChunkStorageMetadata:
    return ChunkStorageMetadata(offsets=torch.Size(shard.offsets), sizes=shard.tensor.shape)


def _write_item(name: str, shard: TensorShard) -> WriteItem:
    return WriteItem(
        index=MetadataIndex(name, shard.offsets),
        type=WriteItemType.SHARD,
        tensor_data=TensorWriteData(
            chunk=_chunk(shard),
            properties=TensorProperties.create_from_tensor(shard.tensor),
            size=torch.Size(shard.shape),
        ),
    )
