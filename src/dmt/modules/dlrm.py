"""DLRM as a top arch over any tower stage (Naumov et al. 2019; paper section 5).

Shapes: B samples, O outputs of the tower stage, D their width.
"""

from collections.abc import Sequence

from torch import Tensor
from torchrec.models.dlrm import OverArch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dmt.errors import UserInputError
from dmt.modules.interactions import DotInteraction
from dmt.modules.stage import Stage
from dmt.modules.top_arch import TopArch, check_layers, make_bottom


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
        check_layers("DLRM", bottom_layers=bottom_layers, over_layers=over_layers)
        self.stage = stage
        self.bottom = make_bottom(num_dense, bottom_layers, stage.out_dim)
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
        # (B, D), while embeddings may be on their way
        dense = None if self.bottom is None else self.bottom(dense_features)
        vectors = pending.wait()  # (B, O, D)
        return self.over(self.interaction(vectors, dense)).squeeze(1)
