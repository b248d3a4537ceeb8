"""A factorization machine as a top arch over any tower stage (Rendle 2010).

Shapes: B samples, O outputs of the tower stage, D their width.
"""

import math
from collections.abc import Sequence

from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dmt.modules.stage import Stage
from dmt.modules.top_arch import TopArch, check_layers, make_bottom


class FactorizationMachine(TopArch):
    """Bottom arch on the numeric columns; the logit sums its output's and the towers' outputs' dot products, all pairs.

    It learns pairs and nothing beyond, but takes O * D operations for them where :class:`~dmt.modules.DLRM` takes
    O * O * D: a flat model of hundreds of features, from which their interactions are measured, trains in minutes.

    Pairs count by one over the root of their number, so that the logits of a new model do not depend on it.

    Args:
        stage: the tower stage.
        num_dense: number of numeric columns. With 0 there is no bottom arch.
        bottom_layers: hidden sizes of the bottom arch. A last layer of the stage's D is added.

    Raises:
        UserInputError: a layer size is not positive.
    """

    def __init__(self, stage: Stage, num_dense: int, *, bottom_layers: Sequence[int] = (64,)) -> None:
        super().__init__()
        check_layers("FactorizationMachine", bottom_layers=bottom_layers)
        self.stage = stage
        self.bottom = make_bottom(num_dense, bottom_layers, stage.out_dim)
        num_vectors = stage.out_features + (self.bottom is not None)
        self.pair_weight = 1 / math.sqrt(max(math.comb(num_vectors, 2), 1))
        self.main_effects = nn.Linear(stage.out_dim, 1)
        nn.init.constant_(self.main_effects.weight, 1 / stage.out_dim)

    def forward(self, dense_features: Tensor, sparse_features: KeyedJaggedTensor) -> Tensor:
        pending = self.stage.start(sparse_features)
        # (B, D), while embeddings may be on their way
        dense = None if self.bottom is None else self.bottom(dense_features)
        vectors = pending.wait()  # (B, O, D)
        total, squares = vectors.sum(dim=1), vectors.square().sum(dim=(1, 2))
        if dense is not None:  # added, since vectors with one more would be a copy of all
            total, squares = total + dense, squares + dense.square().sum(dim=1)
        # No sum of dot products is torchrec's FactorizationMachine: it multiplies the columns of a vector, too.
        pairs = (total.square().sum(dim=1) - squares) / 2
        return self.main_effects(total).squeeze(1) + self.pair_weight * pairs
