"""The two Adagrads for embedding tables on the CPU; ``g`` is the sum of a row's gradients.

Shapes: U different rows, R rows of a group's table, W columns.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from dmt.modules.sparse_kernel import SparseKernel


class SparseAdagradKernel(SparseKernel):
    """``m += g^2``, ``w -= rate * g / (sqrt(m) + eps)``.

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
        self._momentum = [torch.zeros_like(group.weights) for group in self.groups]  # (R, W)
        self.states = {"momentum": self.by_table(self._momentum)}

    def step_rows(self, group: int, rows: Tensor, gradient: Tensor) -> None:
        momentum = self._momentum[group].index_select(0, rows).addcmul_(gradient, gradient)
        self._momentum[group].index_copy_(0, rows, momentum)
        # The rate is multiplied in beforehand: with an alpha, index_add_ goes a way that is five times as long.
        steps = gradient.div_(momentum.sqrt_().add_(self._eps)).mul_(-self.learning_rate)
        self.groups[group].weights.index_add_(0, rows, steps)


class SparseRowwiseAdagradKernel(SparseKernel):
    """One accumulator a row: ``m += mean(g^2)``, ``w -= rate * g / (sqrt(m) + eps)``.

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
        self._momentum = [torch.zeros(len(group.weights)) for group in self.groups]  # (R,)
        self.states = {"momentum": self.by_table(self._momentum)}

    def step_rows(self, group: int, rows: Tensor, gradient: Tensor) -> None:
        momentum = torch.linalg.vector_norm(gradient, dim=1).square_() / gradient.shape[1]
        momentum += self._momentum[group].index_select(0, rows)
        self._momentum[group].index_copy_(0, rows, momentum)
        rates = momentum.sqrt_().add_(self._eps).reciprocal_().mul_(-self.learning_rate)
        self.groups[group].weights.index_add_(0, rows, gradient.mul_(rates.unsqueeze(1)))
