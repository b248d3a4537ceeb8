"""Several narrow embeddings of each feature in place of a wide one.

Guo et al. 2024, "On the Embedding Collapse when Scaling up Recommendation Models".

Shapes: B samples, O outputs of the tower stage, D their width.
"""

import torch
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dmt.errors import UserInputError, check_positive
from dmt.modules.dlrm import DLRM
from dmt.modules.stage import Pending, Stage
from dmt.modules.top_arch import TopArch, TopArchFactory


class MultiEmbedding(TopArch):
    """Top archs side by side, each over D / ``num_sets`` columns of the tower stage's outputs; the logit is their mean.

    They start from different weights and so learn different interactions, and their mean varies less than one of them.

    Args:
        stage: the tower stage.
        num_dense: number of numeric columns.
        num_sets: number of top archs.
        top: makes each of them.

    Raises:
        UserInputError: ``num_sets`` is not positive or does not divide D.
    """

    def __init__(self, stage: Stage, num_dense: int, *, num_sets: int = 4, top: TopArchFactory = DLRM) -> None:
        super().__init__()
        check_positive("MultiEmbedding", num_sets=num_sets)
        if stage.out_dim % num_sets:
            raise UserInputError(
                f"MultiEmbedding num_sets={num_sets}: it does not divide the width {stage.out_dim} of the towers' "
                "outputs; change one of them"
            )
        self.stage = stage
        width = stage.out_dim // num_sets
        columns = [_Columns(stage.out_features, first, width) for first in range(0, stage.out_dim, width)]
        self.tops = nn.ModuleList(top(of_set, num_dense) for of_set in columns)

    def forward(self, dense_features: Tensor, sparse_features: KeyedJaggedTensor) -> Tensor:
        started = _Started(self.stage.start(sparse_features))
        return torch.stack([top(dense_features, started) for top in self.tops]).mean(dim=0)


class _Started:
    """A stage's output on its way to several readers."""

    def __init__(self, pending: Pending) -> None:
        self._pending = pending
        self._output: Tensor | None = None

    def wait(self) -> Tensor:
        """(B, O, D)."""
        if self._output is None:
            self._output = self._pending.wait()
        return self._output


class _Columns(Stage):
    """What one top arch has for a stage: started already, and some columns of it only."""

    def __init__(self, out_features: int, first: int, out_dim: int) -> None:
        super().__init__()
        self.out_features, self.out_dim = out_features, out_dim
        self._first = first

    def start(self, features: "KeyedJaggedTensor | _Started") -> Pending:
        assert isinstance(features, _Started)
        return _SomeColumns(features, self._first, self.out_dim)

    def set_learning_rate(self, learning_rate: float) -> None:
        """It has no tables of its own."""


class _SomeColumns(Pending):
    def __init__(self, started: _Started, first: int, width: int) -> None:
        self._started, self._first, self._width = started, first, width

    def wait(self) -> Tensor:
        return self._started.wait()[..., self._first : self._first + self._width]
