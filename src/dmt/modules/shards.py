"""Parts of tables and of tensors: what a rank holds of something that has one name in the plain model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchrec.modules.embedding_configs import EmbeddingBagConfig


@dataclass(frozen=True, kw_only=True)
class TableShard:
    """A block of rows and columns of an embedding table.

    Args:
        table: the whole table and the features that look it up.
        rows: first row, and the one after the last.
        columns: first column, and the one after the last.
    """

    table: EmbeddingBagConfig
    rows: tuple[int, int]
    columns: tuple[int, int]

    def __post_init__(self) -> None:
        assert 0 <= self.rows[0] < self.rows[1] <= self.table.num_embeddings, self
        assert 0 <= self.columns[0] < self.columns[1] <= self.table.embedding_dim, self

    @classmethod
    def whole(cls, table: EmbeddingBagConfig) -> "TableShard":
        """All of a table."""
        return cls(table=table, rows=(0, table.num_embeddings), columns=(0, table.embedding_dim))

    @property
    def num_rows(self) -> int:
        """Rows of the block."""
        return self.rows[1] - self.rows[0]

    @property
    def width(self) -> int:
        """Columns of the block."""
        return self.columns[1] - self.columns[0]

    @property
    def has_all_rows(self) -> bool:
        """Whether no other shard has rows of its columns."""
        return self.num_rows == self.table.num_embeddings

    @property
    def has_all_columns(self) -> bool:
        """Whether no other shard has columns of its rows."""
        return self.width == self.table.embedding_dim

    @property
    def is_whole(self) -> bool:
        """Whether it is all of the table."""
        return self.has_all_rows and self.has_all_columns


@dataclass(frozen=True, kw_only=True)
class TensorShard:
    """A live block of a tensor of the plain model.

    Args:
        tensor: the block; writing into it changes the model.
        offsets: where the block starts in the whole tensor, by dimension.
        shape: shape of the whole tensor.
    """

    tensor: Tensor
    offsets: tuple[int, ...]
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        assert len(self.offsets) == len(self.shape) == self.tensor.dim(), self

    @classmethod
    def whole(cls, tensor: Tensor) -> "TensorShard":
        """All of a tensor."""
        return cls(tensor=tensor, offsets=(0,) * tensor.dim(), shape=tuple(tensor.shape))

    def of(self, whole: Tensor) -> Tensor:
        """The same block of another tensor of the whole shape."""
        for dim, (start, size) in enumerate(zip(self.offsets, self.tensor.shape, strict=True)):
            whole = whole.narrow(dim, start, size)
        return whole


ShardedState = dict[str, list[TensorShard]]
"""What a rank holds of a model, under the names that the plain model's ``state_dict`` has."""


def as_shards(entry: Tensor | Sequence[TensorShard]) -> Sequence[TensorShard]:
    """What a rank holds of a tensor as blocks, also where it holds all of it."""
    return [TensorShard.whole(entry)] if isinstance(entry, Tensor) else entry


def copy_into_shards(shards: Mapping[str, Sequence[TensorShard]], tensors: Mapping[str, Tensor]) -> None:
    """Fill the shards from whole tensors of the same names; names that only one side has are left alone."""
    with torch.no_grad():
        for name, parts in shards.items():
            for part in parts:
                if name in tensors:
                    part.tensor.copy_(part.of(tensors[name]))
