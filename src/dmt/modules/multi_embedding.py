"""Several narrow embeddings of each feature in place of a wide one.

Guo et al. 2024, "On the Embedding Collapse when Scaling up Recommendation Models".

Shapes: B samples, F_t features of tower t, N embedding dim, K sets, O outputs of the tower stage (O_t of tower t), D
their width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dmt.errors import UserInputError, check_positive
from dmt.modules.dlrm import DLRM
from dmt.modules.failures import made_by
from dmt.modules.stage import Pending, Stage, run_towers, tower_modules
from dmt.modules.top_arch import TopArch, TopArchFactory, check_logits
from dmt.modules.towers import TowerFactory, TowerModule, check_tower


class MultiEmbedding(TopArch):
    """Top archs side by side, each over D / ``num_sets`` columns of the tower stage's outputs; their mean predicts.

    They start from different weights and so learn different interactions, and their mean varies less than one of them.
    In the paper they share the loss of their mean. Here each is trained by its own, as members of an ensemble are: none
    makes up for another's errors, and their mean deviates less from seed to seed.

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
        self.num_members = num_sets
        width = stage.out_dim // num_sets
        sets = [_Columns(stage.out_features, width, index) for index in range(num_sets)]
        self.tops = nn.ModuleList(made_by("top", top, of_set, num_dense) for of_set in sets)
        if getattr(self.tops[0], "num_members", None) is not None:
            raise UserInputError(
                f"MultiEmbedding top={type(self.tops[0]).__name__}: it has several members itself; give a top of one"
            )

    def forward(self, dense_features: Tensor, sparse_features: KeyedJaggedTensor) -> Tensor:
        started = _Started(self.stage.start(sparse_features), len(self.tops))
        batch_size = dense_features.shape[0]
        logits = [check_logits(top, top(dense_features, started), batch_size=batch_size) for top in self.tops]
        return torch.stack(logits, dim=1)


class _Started:
    """A stage's output on its way to several readers."""

    def __init__(self, pending: Pending, num_sets: int) -> None:
        self._pending, self._num_sets = pending, num_sets
        self._sets: Sequence[Tensor] | None = None

    def wait(self) -> Sequence[Tensor]:
        """(B, O, D / K) for each set."""
        if self._sets is None:
            # Split at once: of slices each would have a gradient as large as the whole.
            self._sets = self._pending.wait().chunk(self._num_sets, dim=2)
        return self._sets


class _Columns(Stage):
    """What one top arch has for a stage: started already, and the columns of its set only."""

    def __init__(self, out_features: int, out_dim: int, index: int) -> None:
        super().__init__()
        self.out_features, self.out_dim = out_features, out_dim
        self._index = index

    def start(self, features: "KeyedJaggedTensor | _Started") -> Pending:
        assert isinstance(features, _Started)
        return _OfSet(features, self._index)

    def set_learning_rate(self, learning_rate: float) -> None:
        """It has no tables of its own."""


class _OfSet(Pending):
    def __init__(self, started: _Started, index: int) -> None:
        self._started, self._index = started, index

    def wait(self) -> Tensor:
        return self._started.wait()[self._index]


class MultiTower(TowerModule):
    """Tower modules side by side, each over N / ``num_sets`` columns of the tower's embeddings.

    Under a :class:`MultiEmbedding` of as many sets, each set is then a model with towers of its own, which shares no
    weights with another.

    Args:
        num_features: F_t.
        embedding_dim: N.
        num_sets: K.
        tower: makes each of them, from F_t and N / K.

    Raises:
        UserInputError: ``num_sets`` is not positive or does not divide N.

    Example:
        >>> from functools import partial
        >>> from dmt.modules import DLRMTower
        >>> MultiTower(5, 16, num_sets=2, tower=partial(DLRMTower, out_dim=4))(torch.zeros(3, 5, 16)).shape
        torch.Size([3, 5, 8])
    """

    def __init__(self, num_features: int, embedding_dim: int, *, num_sets: int = 4, tower: TowerFactory) -> None:
        super().__init__()
        check_positive("MultiTower", num_sets=num_sets)
        if embedding_dim % num_sets:
            raise UserInputError(
                f"MultiTower num_sets={num_sets}: it does not divide embedding_dim={embedding_dim}; change one of them"
            )
        made = [check_tower(made_by("tower", tower, num_features, embedding_dim // num_sets)) for _ in range(num_sets)]
        self.towers = nn.ModuleList(made)
        self.out_features, self.out_dim = made[0].out_features, num_sets * made[0].out_dim

    def forward(self, embeddings: Tensor) -> Tensor:
        sets = embeddings.chunk(len(self.towers), dim=2)
        # Copies: a tower module may write to its input.
        copies = (columns.clone(memory_format=torch.contiguous_format) for columns in sets)
        towers = tower_modules(self.towers)
        return torch.cat([run_towers([tower], [own]) for tower, own in zip(towers, copies, strict=True)], dim=2)
