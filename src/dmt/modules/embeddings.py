"""Embedding tables with the optimiser fused into backward, and their layout-independent initial values.

Shapes: B samples, F features, V ids, N embedding dim.
"""

import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import (
    BoundsCheckMode,
    EmbeddingLocation,
    PoolingMode,
)
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    ComputeDevice,
    SplitTableBatchedEmbeddingBagsCodegen,
)
from torch import Tensor, nn
from torchrec.modules.embedding_configs import EmbeddingBagConfig

from dmt.errors import UserInputError

_INIT_BLOCK_ROWS = 65_536
_defer_tables: ContextVar[bool] = ContextVar("defer_tables", default=False)


@contextmanager
def deferred_tables() -> Iterator[None]:
    """Build models without storage for their embedding tables.

    Strategies use it so that no rank ever allocates the whole model, and ``dmt describe`` so that a 90 GB
    model can be counted on a laptop. Inside the context :class:`FusedEmbeddingBags` keeps its
    configuration only; calling it raises.
    """
    token = _defer_tables.set(True)
    try:
        yield
    finally:
        _defer_tables.reset(token)


@dataclass(frozen=True, kw_only=True)
class EmbeddingOptimizer:
    """The optimiser that updates embedding rows inside the backward pass. Rows not looked up never move.

    Args:
        name: ``sgd``, ``adagrad`` or ``rowwise_adagrad`` (one accumulator per row: the usual choice).
        learning_rate: step size.
        eps: added to the root of the accumulated squared gradient; unused by ``sgd``.
    """

    name: Literal["sgd", "adagrad", "rowwise_adagrad"] = "rowwise_adagrad"
    learning_rate: float = 0.02
    eps: float = 1e-8

    def __post_init__(self) -> None:
        if self.name not in _FBGEMM_OPTIMIZERS:
            raise UserInputError(
                f"embedding optimizer name={self.name!r}: choose one of {', '.join(_FBGEMM_OPTIMIZERS)}"
            )
        if self.learning_rate < 0 or self.eps < 0:
            raise UserInputError(
                f"embedding optimizer learning_rate={self.learning_rate}, eps={self.eps}: give numbers >= 0"
            )
        if self.eps == 0 and self.name != "sgd":
            raise UserInputError(
                f"embedding optimizer eps=0: {self.name} would divide a first gradient of 0 by 0; give a small "
                "number, for example 1e-8"
            )


_FBGEMM_OPTIMIZERS = {
    "sgd": EmbOptimType.EXACT_SGD,
    "adagrad": EmbOptimType.EXACT_ADAGRAD,
    "rowwise_adagrad": EmbOptimType.EXACT_ROWWISE_ADAGRAD,
}


def fbgemm_optimizer(optimizer: EmbeddingOptimizer) -> dict[str, object]:
    """The arguments that select ``optimizer`` in FBGEMM's kernel, as TorchRec's fused params take them too."""
    return {
        "optimizer": _FBGEMM_OPTIMIZERS[optimizer.name],
        "learning_rate": optimizer.learning_rate,
        "eps": optimizer.eps,
    }


def weight_name(table: str) -> str:
    """State name of a table's weights. The suffix keeps a column named ``type`` from hiding ``Module.type``."""
    return f"{table}_weight"


def momentum_name(table: str) -> str:
    """State name of a table's optimiser accumulator."""
    return f"{table}_momentum"


def initialize_rows(rows: Tensor, *, table: EmbeddingBagConfig, first_row: int, seed: int) -> None:
    """Fill ``rows`` with the initial values of ``table[first_row : first_row + len(rows)]``.

    Values are uniform in +-1/sqrt(num_embeddings), TorchRec's default, and depend on ``seed``, the table's
    name and the row only: whichever rank holds a row, and however tables are sharded, it starts the same.

    Args:
        rows: (rows, N) tensor to fill in place, any device.
        table: configuration of the whole table.
        first_row: index in the whole table of ``rows[0]``.
        seed: seed of the run.
    """
    bound = table.num_embeddings**-0.5
    end_row = first_row + rows.shape[0]
    name_hash = zlib.crc32(table.name.encode())
    for block in range(first_row // _INIT_BLOCK_ROWS, -(-end_row // _INIT_BLOCK_ROWS)):
        block_start = block * _INIT_BLOCK_ROWS
        block_end = min(block_start + _INIT_BLOCK_ROWS, table.num_embeddings)
        # Drawn on the CPU on every device, so that a GPU run starts from the CPU run's values.
        state = np.random.SeedSequence([seed, name_hash, block]).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(state[0]))
        values = torch.empty(block_end - block_start, table.embedding_dim, device="cpu")
        values.uniform_(-bound, bound, generator=generator)
        start, end = max(block_start, first_row), min(block_end, end_row)
        rows[start - first_row : end - first_row].copy_(values[start - block_start : end - block_start])


class FusedEmbeddingBags(nn.Module):
    """Sum-pooled lookups in several tables by one FBGEMM kernel that also updates them in backward.

    Weights and accumulators are registered as views of the kernel's storage, so that ``state_dict`` saves and
    loads both. They do not require gradients: no gradient of a table ever exists as a tensor.

    Args:
        tables: table configurations with one feature each; outputs follow their order.
        optimizer: how rows are updated.
        seed: seed of the initial values.

    Raises:
        UserInputError: an embedding dim is not a positive multiple of 4, which FBGEMM's kernels need.
    """

    def __init__(self, tables: Sequence[EmbeddingBagConfig], *, optimizer: EmbeddingOptimizer, seed: int) -> None:
        super().__init__()
        for table in tables:
            if table.embedding_dim < 1 or table.embedding_dim % 4:
                raise UserInputError(
                    f"embedding_dim={table.embedding_dim}: FBGEMM's kernels need a positive multiple of 4; "
                    f"choose {max(4, -(-table.embedding_dim // 4) * 4)}"
                )
        self.tables = list(tables)
        self.optimizer = optimizer
        self.seed = seed
        # A plain attribute, hidden from the module tree: the kernel's own parameters are flat buffers of all
        # tables, which must reach neither state_dict nor an optimiser nor DistributedDataParallel.
        self._kernel: list[SplitTableBatchedEmbeddingBagsCodegen] = []
        self.device = torch.get_default_device()
        if self.tables and not _defer_tables.get():
            self._allocate(self.device)

    def _allocate(self, device: torch.device) -> None:
        on_gpu = device.type == "cuda"
        location = EmbeddingLocation.DEVICE if on_gpu else EmbeddingLocation.HOST
        compute = ComputeDevice.CUDA if on_gpu else ComputeDevice.CPU
        kernel = SplitTableBatchedEmbeddingBagsCodegen(
            [(table.num_embeddings, table.embedding_dim, location, compute) for table in self.tables],
            pooling_mode=PoolingMode.SUM,
            # An id out of range is an error, not a warning and row 0.
            bounds_check_mode=BoundsCheckMode.FATAL,
            device=device,
            **fbgemm_optimizer(self.optimizer),
        )
        self._kernel.append(kernel)
        states = kernel.get_optimizer_state()
        for index, (table, weight) in enumerate(zip(self.tables, kernel.split_embedding_weights(), strict=True)):
            with torch.no_grad():
                initialize_rows(weight, table=table, first_row=0, seed=self.seed)
            self.register_parameter(weight_name(table.name), nn.Parameter(weight.detach(), requires_grad=False))
            if states:
                self.register_buffer(momentum_name(table.name), states[index]["sum"])

    @property
    def weights(self) -> dict[str, Tensor]:
        """The live weights (rows, N) of each table; empty under ``deferred_tables()``."""
        return {t.name: self.get_parameter(weight_name(t.name)) for t in self.tables if self._kernel}

    def forward(self, indices: Tensor, offsets: Tensor) -> Tensor:
        """Look up and pool.

        Args:
            indices: (V,) ids, feature-major: all samples' ids of the first feature, then of the second...
            offsets: (F*B + 1,) start of each bag in ``indices``, same dtype.

        Returns:
            (B, sum of embedding dims), features side by side in the order of ``tables``.
        """
        if not self._kernel:
            raise RuntimeError("these embedding tables were built under deferred_tables(); they have no storage")
        if not torch.is_inference_mode_enabled():
            return self._kernel[0](indices, offsets)
        # FBGEMM registers its CPU lookup with autograd only, which inference mode bypasses.
        with torch.inference_mode(False), torch.no_grad():
            return self._kernel[0](indices.clone(), offsets.clone())

    def set_learning_rate(self, learning_rate: float) -> None:
        """Use this step size from the next backward on."""
        for kernel in self._kernel:
            kernel.set_learning_rate(learning_rate)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # .to(), .cpu(), .half() would replace the registered views by copies that the kernel never sees.
        # Tables are created on their device and stay there, in float32.
        return self

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], *rest: Any
    ) -> None:
        # Always copy: load_state_dict(assign=True) would put tensors here that the kernel never sees.
        super()._load_from_state_dict(state_dict, prefix, local_metadata | {"assign_to_params_buffers": False}, *rest)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        # A field-by-field copy would give views of the old kernel's storage beside a new kernel.
        with self.device, nullcontext() if self._kernel else deferred_tables():
            twin = type(self)(self.tables, optimizer=self.optimizer, seed=self.seed)
        twin.load_state_dict(self.state_dict())
        for kernel in self._kernel:
            twin.set_learning_rate(kernel.get_learning_rate())
        memo[id(self)] = twin
        return twin

    def extra_repr(self) -> str:
        return ", ".join(f"{t.name}: {t.num_embeddings}x{t.embedding_dim}" for t in self.tables)
