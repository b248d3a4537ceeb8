"""What a model over a tower stage is, and the parts that all of them share.

Shapes: B samples, D width of the tower stage's outputs.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

from torch import Tensor, nn
from torchrec.models.dlrm import DenseArch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dmt.errors import UserInputError
from dmt.modules.stage import Stage


class TopArch(nn.Module, ABC):
    """Base class of the models over a tower stage: (dense features, categorical features) -> logits.

    A subclass takes the stage and the number of numeric columns as its first two arguments, keeps the stage as a
    submodule, and implements ``forward``. It runs the stage by ``stage(sparse_features)``, or by
    ``stage.start(sparse_features)`` and later ``wait()``, between which embeddings may be on their way.

    It runs on the CPU too, forward and backward: a few samples go through it before training, to check it and to count
    what it costs.

    Attributes:
        num_members: K, where it is K models in one, each trained by its own loss; the mean of their logits predicts.

    Example:
        >>> class Linear(TopArch):
        ...     def __init__(self, stage: Stage, num_dense: int) -> None:
        ...         super().__init__()
        ...         self.stage = stage
        ...         self.layer = nn.Linear(stage.out_features * stage.out_dim, 1)
        ...     def forward(self, dense_features: Tensor, sparse_features: KeyedJaggedTensor) -> Tensor:
        ...         return self.layer(self.stage(sparse_features).flatten(1)).squeeze(1)
        >>> from dmt import CategoricalFeature, ClickModel, FeatureSchema
        >>> schema = FeatureSchema(categorical=[CategoricalFeature(name="ad", num_embeddings=10)])
        >>> ClickModel(top=Linear).build(schema).layer
        Linear(in_features=16, out_features=1, bias=True)
    """

    num_members: int | None = None

    @abstractmethod
    def forward(self, dense_features: Tensor, sparse_features: KeyedJaggedTensor) -> Tensor:
        """((B, num_dense), KeyedJaggedTensor of B samples) -> logits (B,), or (B, K) of K members."""


TopArchFactory = Callable[[Stage, int], TopArch]
"""Makes the model over a tower stage from the stage and the number of numeric columns."""


def check_logits(top: nn.Module, logits: object, *, batch_size: int) -> Tensor:
    """What a model over a tower stage returned, if it is a logit for each sample, or one of each of its members.

    Raises:
        UserInputError: it is not.
    """
    num_members = getattr(top, "num_members", None)  # any module that keeps the stage may be a top
    expected = (batch_size,) if num_members is None else (batch_size, num_members)
    if isinstance(logits, Tensor) and logits.shape == expected:
        return logits
    found = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
    fix = "one logit for each, as .squeeze(1) makes of (B, 1)" if num_members is None else "a logit of each member"
    raise UserInputError(
        f"top {type(top).__name__}: it returned {found} for {batch_size} samples; return a tensor {expected}, {fix}"
    )


def make_bottom(num_dense: int, hidden_layers: Sequence[int], out_dim: int) -> DenseArch | None:
    """The bottom arch that brings the numeric columns to the width D of embeddings; ``None`` without columns."""
    return DenseArch(num_dense, [*hidden_layers, out_dim]) if num_dense else None


def check_layers(owner: str, *, bottom_layers: Sequence[int], over_layers: Sequence[int] | None = None) -> None:
    """Check the hidden sizes of a top arch.

    Args:
        owner: its name, for messages.
        bottom_layers: of the bottom arch.
        over_layers: of the over arch, where there is one.

    Raises:
        UserInputError: a size is not positive, or the over arch has none.
    """
    for option, sizes in (("bottom_layers", bottom_layers), ("over_layers", over_layers)):
        if any(size < 1 for size in sizes or []):
            raise UserInputError(f"{owner} {option}={list(sizes or [])}: give positive layer sizes")
    if over_layers is not None and not over_layers:
        raise UserInputError(f"{owner} over_layers=[]: give at least one hidden layer, for example [64]")
