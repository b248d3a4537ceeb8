"""Embedding tables with the optimiser fused into backward, and their layout-independent initial values.

Shapes: B samples, F features, V ids, N embedding dim, R rows of a shard, W columns of a shard.
"""

import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Self

import numpy as np
import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from torch import Tensor, nn
from torchrec.modules.embedding_configs import EmbeddingBagConfig

from dmt.errors import UserInputError
from dmt.modules.kernels import FbgemmKernel, Kernel
from dmt.modules.shards import ShardedState, TableShard, TensorShard
from dmt.modules.sparse_adagrad import SparseAdagradKernel, SparseRowwiseAdagradKernel
from dmt.modules.sparse_adam import SparseAdamKernel

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
        name: ``sgd``, ``adagrad``, ``rowwise_adagrad`` (one accumulator per row: the usual choice) or ``adam``.
        learning_rate: step size.
        eps: added to the root of the accumulated squared gradient; unused by ``sgd``.
        betas: decay of the mean gradient and of the mean squared gradient; used by ``adam`` only.
    """

    name: Literal["sgd", "adagrad", "rowwise_adagrad", "adam"] = "rowwise_adagrad"
    learning_rate: float = 0.02
    eps: float = 1e-8
    betas: tuple[float, float] = (0.9, 0.999)

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
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise UserInputError(
                f"embedding optimizer betas={self.betas}: give two numbers of at least 0 and less than 1, for "
                "example (0.9, 0.999)"
            )

    def state_floats(self, embedding_dim: int) -> int:
        """Floats of optimiser state that a row of ``embedding_dim`` weights has beside them."""
        return {"sgd": 0, "adagrad": embedding_dim, "rowwise_adagrad": 1, "adam": 2 * embedding_dim}[self.name]

    @property
    def can_split_columns(self) -> bool:
        """Whether blocks of a table's columns are updated as the whole table is."""
        return self.name != "rowwise_adagrad"


_FBGEMM_OPTIMIZERS = {
    "sgd": EmbOptimType.EXACT_SGD,
    "adagrad": EmbOptimType.EXACT_ADAGRAD,
    "rowwise_adagrad": EmbOptimType.EXACT_ROWWISE_ADAGRAD,
    "adam": EmbOptimType.ADAM,
}
_CPU = torch.device("cpu")


def fbgemm_optimizer(optimizer: EmbeddingOptimizer, *, device: torch.device = _CPU) -> dict[str, object]:
    """The arguments that select ``optimizer`` in FBGEMM's kernel, as TorchRec's fused params take them too.

    Raises:
        UserInputError: FBGEMM has no such optimiser for the device.
    """
    if optimizer.name == "adam" and device.type != "cuda":
        raise UserInputError(
            "embedding optimizer name='adam': FBGEMM, and so TorchRec, has no Adam on the CPU; train with the sptt "
            "strategy or in a single process, or choose adagrad"
        )
    options: dict[str, object] = {
        "optimizer": _FBGEMM_OPTIMIZERS[optimizer.name],
        "learning_rate": optimizer.learning_rate,
        "eps": optimizer.eps,
    }
    if optimizer.name == "adam":
        options |= {"beta1": optimizer.betas[0], "beta2": optimizer.betas[1]}
    return options


def weight_name(table: str) -> str:
    """State name of a table's weights. The suffix keeps a column named ``type`` from hiding ``Module.type``."""
    return f"{table}_weight"


def state_name(table: str, kind: str) -> str:
    """State name of a table's optimiser state of a kind: ``momentum``, ``exp_avg`` or ``exp_avg_sq``."""
    return f"{table}_{kind}"


def momentum_name(table: str) -> str:
    """State name of a table's Adagrad accumulator."""
    return state_name(table, "momentum")


STEP_NAME = "step"
"""State name of the number of updates that the tables have had; Adam's bias correction needs it."""


def is_row_state(name: str) -> bool:
    """Whether an entry of a model's state is optimiser state of embedding rows rather than a weight."""
    path, _, last = name.rpartition(".")
    kinds = ("momentum", "exp_avg", "exp_avg_sq")
    return path.endswith("embeddings") and (last == STEP_NAME or last.endswith(tuple(f"_{kind}" for kind in kinds)))


def initialize_rows(
    block: Tensor, *, table: EmbeddingBagConfig, first_row: int, first_column: int = 0, seed: int
) -> None:
    """Fill ``block`` with the initial values of the rows and columns of ``table`` that start at the two given.

    Values are uniform in +-1/sqrt(num_embeddings), TorchRec's default, and depend on ``seed``, the table's
    name, the row and the column only: whichever rank holds them, and however tables are sharded, they start the same.

    Args:
        block: (R, W) tensor to fill in place, any device.
        table: configuration of the whole table.
        first_row: index in the whole table of ``block[0]``.
        first_column: index in the whole table of ``block[:, 0]``.
        seed: seed of the run.
    """
    bound = table.num_embeddings**-0.5
    end_row = first_row + block.shape[0]
    name_hash = zlib.crc32(table.name.encode())
    for index in range(first_row // _INIT_BLOCK_ROWS, -(-end_row // _INIT_BLOCK_ROWS)):
        drawn_start = index * _INIT_BLOCK_ROWS
        drawn_end = min(drawn_start + _INIT_BLOCK_ROWS, table.num_embeddings)
        # Drawn on the CPU on every device, so that a GPU run starts from the CPU run's values.
        state = np.random.SeedSequence([seed, name_hash, index]).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(state[0]))
        values = torch.empty(drawn_end - drawn_start, table.embedding_dim, device="cpu")
        values.uniform_(-bound, bound, generator=generator)
        start, end = max(drawn_start, first_row), min(drawn_end, end_row)
        own = values[start - drawn_start : end - drawn_start].narrow(1, first_column, block.shape[1])
        block[start - first_row : end - first_row].copy_(own)


class FusedEmbeddingBags(nn.Module):
    """Sum-pooled lookups in several tables, or in parts of them, by one kernel that also updates them in backward.

    Weights and optimiser states are registered as views of the kernel's storage, so that ``state_dict`` saves and
    loads both. They do not require gradients: no gradient of a table ever exists as a tensor.

    Args:
        shards: what to hold: whole tables, or blocks of rows and columns of them. Every feature of a shard's
            table is looked up in it; see ``lookups``.
        optimizer: how rows are updated.
        seed: seed of the initial values.

    Attributes:
        lookups: feature name and shard of each output, shard by shard.
        widths: columns of each output.

    Raises:
        UserInputError: a width is not a positive multiple of 4, which FBGEMM's kernels need, or the optimiser
            cannot update a block of columns on its own.
    """

    def __init__(self, shards: Sequence[TableShard], *, optimizer: EmbeddingOptimizer, seed: int) -> None:
        super().__init__()
        self.shards = list(shards)
        for shard in self.shards:
            _check_shard(shard, optimizer)
        self.lookups = [(name, shard) for shard in self.shards for name in shard.table.feature_names]
        self.widths = [shard.width for _, shard in self.lookups]
        self.optimizer = optimizer
        self.seed = seed
        # A plain attribute, hidden from the module tree: the kernel's own parameters are flat buffers of all
        # tables, which must reach neither state_dict nor an optimiser nor DistributedDataParallel.
        self._kernel: list[Kernel] = []
        self.device = torch.get_default_device()
        if self.shards and not _defer_tables.get():
            self._allocate(self.device)

    def _allocate(self, device: torch.device) -> None:
        kernel = _make_kernel(self.shards, self.optimizer, device)
        self._kernel.append(kernel)
        for index, (shard, weight) in enumerate(zip(self.shards, kernel.weights, strict=True)):
            with torch.no_grad():
                initialize_rows(
                    weight, table=shard.table, first_row=shard.rows[0], first_column=shard.columns[0], seed=self.seed
                )
            name = _shard_name(shard)
            self.register_parameter(weight_name(name), nn.Parameter(weight.detach(), requires_grad=False))
            for kind, states in kernel.states.items():
                self.register_buffer(state_name(name, kind), states[index])
        if kernel.step is not None:
            self.register_buffer(STEP_NAME, kernel.step)

    @property
    def weights(self) -> dict[str, Tensor]:
        """The live weights (R, W) of each shard, by its name; a table's where it is whole. Empty without storage."""
        names = [_shard_name(shard) for shard in self.shards if self._kernel]
        return {name: self.get_parameter(weight_name(name)) for name in names}

    def sharded_state(self) -> ShardedState:
        """The live weights and optimiser states, under the names that they have where tables are whole.

        Empty under ``deferred_tables()``.
        """
        state: ShardedState = {}
        for kernel in self._kernel:
            tensors = {weight_name: kernel.weights} | {
                partial(state_name, kind=kind): states for kind, states in kernel.states.items()
            }
            for name, live in tensors.items():
                for shard, tensor in zip(self.shards, live, strict=True):
                    state.setdefault(name(shard.table.name), []).append(_tensor_shard(shard, tensor.detach()))
            if kernel.step is not None:
                state[STEP_NAME] = [TensorShard.whole(kernel.step)]
        return state

    def forward(self, indices: Tensor, offsets: Tensor, weights: Tensor | None = None) -> Tensor:
        """Look up and pool.

        Args:
            indices: (V,) rows of the shards, each counted from the shard's first; in the order of ``lookups``:
                all samples' ids of the first, then of the second...
            offsets: (F*B + 1,) start of each bag in ``indices``, same dtype.
            weights: (V,) float32 factor of each id's embedding in its bag's sum; no gradient flows to them.

        Returns:
            (B, sum of widths), outputs side by side in the order of ``lookups``.

        Raises:
            UserInputError: ids are on another device than the tables.
        """
        if not self._kernel:
            raise RuntimeError(
                "these embedding tables have no storage: they were built under deferred_tables(), or of no shards"
            )
        if indices.device != self.device:  # a kernel of one device would read the other's addresses
            raise UserInputError(
                f"embedding tables on {self.device}, ids of the batch on {indices.device}: tables stay where they are "
                "built; leave it to the Trainer (configure_model), or build or load the model under "
                f"torch.device('{indices.device}')",
                on_every_rank=True,
            )
        if not torch.is_inference_mode_enabled():
            return self._kernel[0](indices, offsets, weights)
        # FBGEMM registers its CPU lookup with autograd only, which inference mode bypasses.
        with torch.inference_mode(False), torch.no_grad():
            factors = None if weights is None else weights.clone()
            return self._kernel[0](indices.clone(), offsets.clone(), factors)

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
        make, arguments = self.__reduce__()
        twin = make(*arguments)
        memo[id(self)] = twin
        return twin

    def __reduce__(self) -> tuple[Callable[..., Self], tuple[Any, ...]]:
        # FBGEMM's kernels cannot be pickled: what is loaded has a new one, on the same device.
        rates = [kernel.get_learning_rate() for kernel in self._kernel]
        return type(self)._make, (self.shards, self.optimizer, self.seed, self.device, rates, self.state_dict())

    @classmethod
    def _make(
        cls,
        shards: Sequence[TableShard],
        optimizer: EmbeddingOptimizer,
        seed: int,
        device: torch.device,
        rates: Sequence[float],
        state: dict[str, Tensor],
    ) -> Self:
        """Another one of the same state; ``rates`` are those of its kernels, none where tables are deferred."""
        with device, nullcontext() if rates else deferred_tables():
            made = cls(shards, optimizer=optimizer, seed=seed)
        made.load_state_dict(state)
        for rate in rates:
            made.set_learning_rate(rate)
        return made

    def extra_repr(self) -> str:
        return ", ".join(f"{_shard_name(shard)}: {shard.num_rows}x{shard.width}" for shard in self.shards)


def _check_shard(shard: TableShard, optimizer: EmbeddingOptimizer) -> None:
    if shard.width % 4:
        raise UserInputError(
            f"embedding_dim={shard.width}: FBGEMM's kernels need a positive multiple of 4; "
            f"choose {-(-shard.width // 4) * 4}"
        )
    if not shard.has_all_columns and not optimizer.can_split_columns:
        raise UserInputError(
            f"table {shard.table.name} with {optimizer.name}: one accumulator for a whole row would become another "
            "for each block of columns; shard the table by rows or not at all, or choose adagrad, adam or sgd"
        )


def _make_kernel(shards: Sequence[TableShard], optimizer: EmbeddingOptimizer, device: torch.device) -> Kernel:
    sizes = [(shard.num_rows, shard.width) for shard in shards]
    table_of_lookup = [index for index, shard in enumerate(shards) for _ in shard.table.feature_names]
    rate, eps = optimizer.learning_rate, optimizer.eps
    match optimizer.name if device.type == "cpu" else "":
        case "adagrad":
            return SparseAdagradKernel(sizes, table_of_lookup, learning_rate=rate, eps=eps)
        case "rowwise_adagrad":
            return SparseRowwiseAdagradKernel(sizes, table_of_lookup, learning_rate=rate, eps=eps)
        case "adam":
            return SparseAdamKernel(sizes, table_of_lookup, learning_rate=rate, eps=eps, betas=optimizer.betas)
    return FbgemmKernel(sizes, table_of_lookup, options=fbgemm_optimizer(optimizer, device=device), device=device)


def _tensor_shard(shard: TableShard, tensor: Tensor) -> TensorShard:
    """What a shard's weights or optimiser state are of the whole table's."""
    # One accumulator for a row has no columns.
    return TensorShard(
        tensor=tensor,
        offsets=(shard.rows[0], shard.columns[0])[: tensor.dim()],
        shape=(shard.table.num_embeddings, shard.table.embedding_dim)[: tensor.dim()],
    )


def _shard_name(shard: TableShard) -> str:
    """Name of a shard in ``state_dict``: the table's if it is whole, else one that no other shard of it has."""
    if shard.is_whole:
        return shard.table.name
    return f"{shard.table.name}[{shard.rows[0]}:{shard.rows[1]},{shard.columns[0]}:{shard.columns[1]}]"
