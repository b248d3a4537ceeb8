"""What looks rows up and updates them in backward: FBGEMM's kernels, behind the few methods that tables need."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from fbgemm_gpu.split_table_batched_embeddings_ops_common import BoundsCheckMode, EmbeddingLocation, PoolingMode
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    ComputeDevice,
    SplitTableBatchedEmbeddingBagsCodegen,
)
from torch import Tensor


class Kernel(Protocol):
    """Tables in one storage, looked up together and updated by the backward pass.

    Attributes:
        weights: live (rows, width) of each table.
        states: live optimiser state of each table, by its kind.
        step: live count of updates, an integer of shape (); ``None`` where the optimiser needs none.
    """

    weights: list[Tensor]
    states: dict[str, list[Tensor]]
    step: Tensor | None

    def __call__(self, indices: Tensor, offsets: Tensor, factors: Tensor | None) -> Tensor:
        """(V,) ids, (F*B + 1,) offsets, (V,) factors of ids -> (B, sum of the lookups' widths)."""

    def set_learning_rate(self, learning_rate: float) -> None:
        """Use this step size from the next backward on."""

    def get_learning_rate(self) -> float:
        """The step size of the next backward."""


def fbgemm_tables(
    sizes: Sequence[tuple[int, int]],
    table_of_lookup: Sequence[int],
    *,
    options: Mapping[str, object],
    device: torch.device,
) -> SplitTableBatchedEmbeddingBagsCodegen:
    """FBGEMM's kernel for tables of these (rows, width).

    Args:
        sizes: rows and width of each table.
        table_of_lookup: which table each of the F lookups reads.
        options: FBGEMM's name of the optimiser and its numbers.
        device: where the tables are.
    """
    on_gpu = device.type == "cuda"
    location = EmbeddingLocation.DEVICE if on_gpu else EmbeddingLocation.HOST
    compute = ComputeDevice.CUDA if on_gpu else ComputeDevice.CPU
    arguments: dict[str, Any] = dict(options)
    return SplitTableBatchedEmbeddingBagsCodegen(
        [(rows, width, location, compute) for rows, width in sizes],
        feature_table_map=list(table_of_lookup),
        pooling_mode=PoolingMode.SUM,
        # An id out of range is an error, not a warning and row 0.
        bounds_check_mode=BoundsCheckMode.FATAL,
        device=device,
        **arguments,
    )


# FBGEMM's names of optimiser states, and ours: its accumulator of Adagrad is "sum" here, "momentum1" there.
_STATE_NAMES = {"sum": "momentum", "exp_avg": "exp_avg", "exp_avg_sq": "exp_avg_sq"}


class FbgemmKernel:
    """An optimiser that FBGEMM has for the device. Arguments as of :func:`fbgemm_tables`."""

    def __init__(
        self,
        sizes: Sequence[tuple[int, int]],
        table_of_lookup: Sequence[int],
        *,
        options: Mapping[str, object],
        device: torch.device,
    ) -> None:
        self._tables = fbgemm_tables(sizes, table_of_lookup, options=options, device=device)
        # On a GPU FBGEMM's update numbers the rows of all tables together, in the type of the ids.
        self._has_many_rows = sum(rows for rows, _ in sizes) > torch.iinfo(torch.int32).max
        self.weights: list[Tensor] = self._tables.split_embedding_weights()
        by_table = self._tables.get_optimizer_state()  # an empty list for SGD
        kinds = list(by_table[0]) if by_table else []
        self.states = {_STATE_NAMES[kind]: [state[kind] for state in by_table] for kind in kinds}
        self.step: Tensor | None = None
        if "exp_avg" in self.states:
            # On the CPU, so that to read it never waits for the device.
            self._tables.iter = torch.zeros(1, dtype=torch.int64, device="cpu")
            self.step = self._tables.iter.view(())

    def __call__(self, indices: Tensor, offsets: Tensor, factors: Tensor | None) -> Tensor:
        if self._has_many_rows:
            indices, offsets = indices.long(), offsets.long()
        if self.step is None:
            output: Tensor = self._tables(indices, offsets, factors)
            return output
        # FBGEMM counts forward passes, evaluation's too. Ours is the number of updates: FBGEMM's count is put back
        # after the lookup, whose backward has been given the next number, and goes up when that backward comes.
        step = self.step
        before = int(step)
        self._tables.iter_cpu.fill_(before)
        output = self._tables(indices, offsets, factors)
        step.fill_(before)
        if output.requires_grad:
            output.register_hook(self._count)
        return output

    def _count(self, gradient: Tensor) -> None:
        assert self.step is not None
        self.step += 1

    def set_learning_rate(self, learning_rate: float) -> None:
        self._tables.set_learning_rate(learning_rate)

    def get_learning_rate(self) -> float:
        return float(self._tables.get_learning_rate())
