"""Row-wise Adagrad for embedding tables on the CPU: FBGEMM's own is several times slower, and wrong above 4 GiB.

fbgemm-gpu 1.8.0 sorts all ids of a batch table by table, and counts bytes from a table's start in 32 bits.
``benchmarks/step.py`` shows what the difference comes to.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from dmt.modules.sparse_kernel import SparseKernel


class SparseRowwiseAdagradKernel(SparseKernel):
    """One accumulator a row, of the mean squared gradient: ``m += mean(g^2)``, ``w -= rate * g / (sqrt(m) + eps)``.

    ``g`` is the sum of a row's gradients, of which the step is a multiple. So the step of a row is FBGEMM's SGD with
    every occurrence of the row weighted by that multiple; only the accumulators need the sums themselves.

    Args:
        sizes: rows and width of each table.
        table_of_lookup: which table each of the F lookups reads.
        learning_rate: step size.
        eps: added to the root of the accumulator.
    """

    def __init__(
        self, sizes: Sequence[tuple[int, int]], table_of_lookup: Sequence[int], *, learning_rate: float, eps: float
    ) -> None:
        super().__init__(sizes, table_of_lookup, learning_rate=learning_rate)
        self._eps = eps
        self._momentum = [torch.zeros(len(group.weights)) for group in self.groups]
        self.states = {"momentum": self.by_table(self._momentum)}

    def update(self, gradient: Tensor, indices: Tensor, offsets: Tensor, factors: Tensor | None) -> None:
        if not indices.numel():
            return
        rates = torch.empty(len(indices))  # of each occurrence
        found = self.gradients(gradient, indices, offsets, factors)
        for momentum, gradients in zip(self._momentum, found, strict=True):
            own = torch.empty(len(gradients.rows))
            for block in gradients.by_row():
                squares = torch.linalg.vector_norm(block.gradient, dim=1).square_() / block.gradient.shape[1]
                accumulated = momentum[block.rows] + squares
                momentum.index_copy_(0, block.rows, accumulated)
                own[block.occurrences] = (self.learning_rate / (accumulated.sqrt_() + self._eps)).repeat_interleave(
                    block.counts, output_size=len(block.occurrences)
                )
            rates[gradients.ids] = own
        self._descend(gradient, indices, offsets, rates if factors is None else rates * factors)

    def _descend(self, gradient: Tensor, indices: Tensor, offsets: Tensor, rates: Tensor) -> None:
        """Subtract from each row its gradients, each times its rate."""
        tables = self.tables
        # What the kernel's own backward calls. It has no public name: the public way would look all rows up again.
        # tests/modules/test_fused_embeddings.py guards it.
        torch.ops.fbgemm.split_embedding_backward_codegen_sgd_cpu(
            gradient.contiguous(),
            tables.weights_host,
            tables.weights_placements,
            tables.weights_offsets,
            tables.D_offsets,
            tables.max_D,
            tables.hash_size_cumsum,
            tables.total_hash_size_bits,
            indices.long(),
            offsets.long(),
            int(tables.pooling_mode),
            rates,
            False,  # no stochastic rounding
            torch.ones(()),  # the learning rate
        )
