"""DLRM as a top arch over any tower stage (Naumov et al. 2019; paper section 5).

Shapes: B samples, O outputs of the tower stage, D their width.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torchrec.models.dlrm import DenseArch, OverArch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dmt.errors import UserInputError
from dmt.modules.interactions import DotInteraction
from dmt.modules.stage import Stage


class TopArch(nn.Module, ABC):
    """Base class of the models over a tower stage: (dense features, categorical features) -> logits.

    A subclass takes the stage and the number of numeric columns as its first two arguments.
    """

    @abstractmethod
    def forward(self, dense_features: Tensor, sparse_features: KeyedJaggedTensor) -> Tensor:
        """((B, num_dense), KeyedJaggedTensor of B samples) -> logits (B,)."""


TopArchFactory = Callable[[Stage, int], TopArch]
"""Makes the model over a tower stage from the stage and the number of numeric columns."""


class DLRM(TopArch):
    """Bottom arch on the numeric columns, dot interaction with the towers' outputs, over arch to a logit.

    Args:
        stage: the tower stage.
        num_dense: number of numeric columns. With 0 there is no bottom arch.
        bottom_layers: hidden sizes of the bottom arch. A last layer of the stage's D is added.
        over_layers: hidden sizes of the over arch. A last layer of 1 is added.

    Raises:
        UserInputError: a layer size is not positive, or there is nothing to interact.
    """

    def __init__(
        self,
        stage: Stage,
        num_dense: int,
        *,
        bottom_layers: Sequence[int] = (512, 256),
        over_layers: Sequence[int] = (1024, 1024, 512, 256),
    ) -> None:
        super().__init__()
        for option, sizes in (("bottom_layers", bottom_layers), ("over_layers", over_layers)):
            if any(size < 1 for size in sizes):
                raise UserInputError(f"DLRM {option}={list(sizes)}: give positive layer sizes")
        if not over_layers:
            raise UserInputError("DLRM over_layers=[]: give at least one hidden layer, for example [64]")
        self.stage = stage
        self.bottom = DenseArch(num_dense, [*bottom_layers, stage.out_dim]) if num_dense else None
        num_vectors = stage.out_features + (self.bottom is not None)
        if num_vectors < 2:
            raise UserInputError(
                "DLRM: one tower output and no numeric columns leave nothing to interact; add features or outputs"
            )
        self.interaction = DotInteraction(num_vectors)
        num_dense_out = stage.out_dim if self.bottom is not None else 0
        self.over = OverArch(num_dense_out + self.interaction.out_features, [*over_layers, 1])

    def forward(self, dense_features: Tensor, sparse_features: KeyedJaggedTensor) -> Tensor:
        pending = self.stage.start(sparse_features)
        if self.bottom is None:
            return self.over(self.interaction(pending.wait())).squeeze(1)
        dense = self.bottom(dense_features)  # (B, D), while embeddings may be on their way
        vectors = pending.wait()  # (B, O, D)
        # Under autocast the bottom arch may be narrower than the towers' outputs; interact in one dtype.
        vectors = torch.cat([dense.unsqueeze(1).to(vectors.dtype), vectors], dim=1)
        return self.over(torch.cat([dense, self.interaction(vectors)], dim=1)).squeeze(1)
