"""Adam for embedding tables on the CPU, where FBGEMM has none.

Shapes: U different rows, W columns of a table.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim.adam import adam

from dmt.modules.sparse_kernel import SparseKernel


class SparseAdamKernel(SparseKernel):
    """Rows looked up take one step of ``torch.optim.Adam`` in backward; the others, and their moments, never move.

    That is what FBGEMM does on a GPU, and ``torch.optim.SparseAdam`` up to the place of eps (here it is added to
    the root of the *corrected* second moment). The bias correction counts all backward passes, whichever rows they
    reached.

    Args:
        sizes: rows and width of each table.
        table_of_lookup: which table each of the F lookups reads.
        learning_rate: step size.
        betas: decay of the two moments.
        eps: added to the root of the corrected second moment.
    """

    def __init__(
        self,
        sizes: Sequence[tuple[int, int]],
        table_of_lookup: Sequence[int],
        *,
        learning_rate: float,
        betas: tuple[float, float],
        eps: float,
    ) -> None:
        super().__init__(sizes, table_of_lookup, learning_rate=learning_rate, eps=eps)
        self._betas = betas
        self._count = torch.zeros((), dtype=torch.int64)
        self.step = self._count

    def first_state(self, weights: Tensor) -> dict[str, Tensor]:
        return {"exp_avg": torch.zeros_like(weights), "exp_avg_sq": torch.zeros_like(weights)}

    def update(self, gradient: Tensor, indices: Tensor, offsets: Tensor, factors: Tensor | None) -> None:
        self._count += 1
        super().update(gradient, indices, offsets, factors)

    def step_rows(self, group: int, rows: Tensor, gradient: Tensor) -> None:
        stored = (self.groups[group].weights, *self.group_states[group].values())
        weights, exp_avg, exp_avg_sq = (tensor.index_select(0, rows) for tensor in stored)
        adam(
            [weights],
            [gradient],
            [exp_avg],
            [exp_avg_sq],
            [],
            [(self._count - 1).float()],  # torch counts up before it steps
            fused=True,
            amsgrad=False,
            beta1=self._betas[0],
            beta2=self._betas[1],
            lr=self.learning_rate,
            weight_decay=0.0,
            eps=self.eps,
            maximize=False,
        )
        for tensor, values in zip(stored, (weights, exp_avg, exp_avg_sq), strict=True):
            tensor.index_copy_(0, rows, values)
