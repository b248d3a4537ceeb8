"""The two Adagrads for embedding tables on the CPU; ``g`` is the sum of a row's gradients.

Shapes: U different rows, R rows of a group's table, W columns.
"""

import torch
from torch import Tensor

from dmt.modules.sparse_kernel import SparseKernel


class SparseAdagradKernel(SparseKernel):
    """``m += g^2``, ``w -= rate * g / (sqrt(m) + eps)``."""

    def first_state(self, weights: Tensor) -> dict[str, Tensor]:
        return {"momentum": torch.zeros_like(weights)}  # (R, W)

    def step_rows(self, group: int, rows: Tensor, gradient: Tensor) -> None:
        stored = self.group_states[group]["momentum"]
        momentum = stored.index_select(0, rows).addcmul_(gradient, gradient)
        stored.index_copy_(0, rows, momentum)
        # The rate is multiplied in beforehand: with an alpha, index_add_ goes a way that is five times as long.
        steps = gradient.div_(momentum.sqrt_().add_(self.eps)).mul_(-self.learning_rate)
        self.groups[group].weights.index_add_(0, rows, steps)


class SparseRowwiseAdagradKernel(SparseKernel):
    """One accumulator a row: ``m += mean(g^2)``, ``w -= rate * g / (sqrt(m) + eps)``."""

    def first_state(self, weights: Tensor) -> dict[str, Tensor]:
        return {"momentum": torch.zeros(len(weights))}  # (R,)

    def step_rows(self, group: int, rows: Tensor, gradient: Tensor) -> None:
        stored = self.group_states[group]["momentum"]
        momentum = torch.linalg.vector_norm(gradient, dim=1).square_() / gradient.shape[1]
        momentum += stored.index_select(0, rows)
        stored.index_copy_(0, rows, momentum)
        rates = momentum.sqrt_().add_(self.eps).reciprocal_().mul_(-self.learning_rate)
        self.groups[group].weights.index_add_(0, rows, gradient.mul_(rates.unsqueeze(1)))
