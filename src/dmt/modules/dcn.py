"""DCN as a top arch over any tower stage (Wang et al. 2021, "DCN V2"; paper section 5).

Shapes: B samples, O outputs of the tower stage, D their width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchrec.models.dlrm import OverArch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dmt.modules.cross_net import make_cross_net
from dmt.modules.stage import Stage
from dmt.modules.top_arch import TopArch, check_layers, make_bottom


class DCN(TopArch):
    """Low-rank cross layers on the numeric columns' vector and the towers' outputs, over arch to a logit.

    The over arch follows the cross layers, as in TorchRec's DLRM_DCN.

    Args:
        stage: the tower stage.
        num_dense: number of numeric columns. With 0 there is no bottom arch.
        bottom_layers: hidden sizes of the bottom arch. A last layer of the stage's D is added.
        num_layers: cross layers.
        low_rank: rank of their matrices.
        over_layers: hidden sizes of the over arch. A last layer of 1 is added.

    Raises:
        UserInputError: a size is not positive.
    """

    def __init__(
        self,
        stage: Stage,
        num_dense: int,
        *,
        bottom_layers: Sequence[int] = (512, 256),
        num_layers: int = 3,
        low_rank: int = 512,
        over_layers: Sequence[int] = (1024, 1024, 512, 256),
    ) -> None:
        super().__init__()
        check_layers("DCN", bottom_layers=bottom_layers, over_layers=over_layers)
        self.stage = stage
        self.bottom = make_bottom(num_dense, bottom_layers, stage.out_dim)
        in_features = (stage.out_features + (self.bottom is not None)) * stage.out_dim
        self.cross = make_cross_net("DCN", in_features, num_layers=num_layers, low_rank=low_rank)
        self.over = OverArch(in_features, [*over_layers, 1])

    def forward(self, dense_features: Tensor, sparse_features: KeyedJaggedTensor) -> Tensor:
        pending = self.stage.start(sparse_features)
        if self.bottom is None:
            return self.over(self.cross(pending.wait().flatten(1))).squeeze(1)
        dense = self.bottom(dense_features)  # (B, D), while embeddings may be on their way
        vectors = pending.wait().flatten(1)  # (B, O*D)
        return self.over(self.cross(torch.cat([dense.to(vectors.dtype), vectors], dim=1))).squeeze(1)
