"""Tower modules (TM, paper section 3.2): small dense modules between a tower's lookups and the cross-host hop.

Shapes: B samples, F_t features of tower t, N embedding dim, O_t output vectors of tower t, D output dim.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from numbers import Integral

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dmt.errors import UserInputError, check_positive
from dmt.modules.cross_net import make_cross_net
from dmt.modules.interactions import DotInteraction


class TowerModule(nn.Module, ABC):
    """Base class of tower modules: maps (B, F_t, N) to (B, O_t, D).

    A subclass takes ``num_features`` (F_t) and ``embedding_dim`` (N) as its first two arguments, sets
    ``out_features`` (O_t) and ``out_dim`` (D), and implements ``forward``, which returns one tensor. It treats samples
    independently: under SPTT it sees the samples of several ranks in one call. Its state is parameters and buffers. It
    may write to its input.

    It runs on the CPU too, forward and backward: a few samples go through it before training, to check it and to count
    what it costs.

    Example:
        >>> class Mean(TowerModule):
        ...     def __init__(self, num_features: int, embedding_dim: int) -> None:
        ...         super().__init__()
        ...         self.out_features, self.out_dim = 1, embedding_dim
        ...     def forward(self, embeddings: Tensor) -> Tensor:
        ...         return embeddings.mean(dim=1, keepdim=True)
        >>> Mean(3, 4)(torch.zeros(2, 3, 4)).shape
        torch.Size([2, 1, 4])
    """

    out_features: int
    out_dim: int

    @abstractmethod
    def forward(self, embeddings: Tensor) -> Tensor:
        """(B, F_t, N) -> (B, O_t, D)."""


TowerFactory = Callable[[int, int], TowerModule]
"""Makes the module of one tower from its number of features F_t and the embedding dim N."""


def check_tower(module: object) -> TowerModule:
    """The module that a factory made, if it is a tower module that says what it puts out.

    Raises:
        UserInputError: it is none, or does not, or keeps state that is no tensor.
    """
    if not isinstance(module, TowerModule):
        raise UserInputError("tower: the factory must make TowerModule instances; subclass dmt.modules.TowerModule")
    for name, meaning in (("out_features", "the number O_t"), ("out_dim", "the width D")):
        size = getattr(module, name, None)
        if not isinstance(size, Integral) or size < 1:
            found = f"{name}={size!r}" if hasattr(module, name) else f"there is no {name}"
            raise UserInputError(
                f"tower {type(module).__name__}: {found}; set self.{name}, {meaning} of its output vectors, to a "
                "positive number in __init__"
            )
    for part in module.modules():
        if type(part).get_extra_state is not nn.Module.get_extra_state:
            raise UserInputError(
                f"tower {type(module).__name__}: {type(part).__name__} defines get_extra_state, but towers are shared "
                "between ranks and saved tensor by tensor; keep that state in buffers"
            )
    return module


class PassThrough(TowerModule):
    """No tower module: every embedding leaves the tower as it is (O_t = F_t, D = N).

    Args:
        num_features: F_t.
        embedding_dim: N.
    """

    def __init__(self, num_features: int, embedding_dim: int) -> None:
        super().__init__()
        self.out_features = num_features
        self.out_dim = embedding_dim

    def forward(self, embeddings: Tensor) -> Tensor:
        return embeddings


def orthogonal_linear(in_features: int, out_features: int, *, bias: bool = True) -> nn.Linear:
    """A linear layer whose rows are orthonormal at first, or its columns where it is wider than what it reads.

    Wider or as wide, it keeps all lengths and angles, and a model with such towers starts much as the flat one does.
    Narrower, it projects: 64 to 8 leaves an eighth of a squared length in the mean. By torch's default it would be a
    third of either.
    """
    layer = nn.Linear(in_features, out_features, bias=bias)
    nn.init.orthogonal_(layer.weight)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


class DLRMTower(TowerModule):
    """The DLRM tower (paper listing 1): ``p`` mixes of all features and ``c`` projections of each.

    ``o1 = Linear(F_t*N -> p*D)`` of the flattened embeddings and ``o2 = Linear(N -> c*D)`` of each feature,
    concatenated to ``c*F_t + p`` vectors of width D. The compression ratio is F_t*N / ((c*F_t + p)*D).

    Args:
        num_features: F_t.
        embedding_dim: N.
        c: output vectors per feature.
        p: output vectors for the tower as a whole.
        out_dim: D.

    Raises:
        UserInputError: a size is negative, or the tower would have no output.

    Example:
        >>> tower = DLRMTower(5, 16, c=1, p=2, out_dim=8)
        >>> tower(torch.zeros(3, 5, 16)).shape
        torch.Size([3, 7, 8])
    """

    def __init__(self, num_features: int, embedding_dim: int, *, c: int = 1, p: int = 0, out_dim: int) -> None:
        super().__init__()
        if c < 0 or p < 0 or c + p == 0:
            raise UserInputError(f"DLRMTower c={c}, p={p}: give numbers >= 0, not both 0")
        check_positive("DLRMTower", out_dim=out_dim)
        self.c, self.p = c, p
        self.out_features = c * num_features + p
        self.out_dim = out_dim
        self.mix = orthogonal_linear(num_features * embedding_dim, p * out_dim) if p else None
        self.project = orthogonal_linear(embedding_dim, c * out_dim) if c else None

    def forward(self, embeddings: Tensor) -> Tensor:
        batch_size = embeddings.shape[0]
        outputs = []
        if self.mix is not None:
            outputs.append(self.mix(embeddings.flatten(1)).view(batch_size, self.p, self.out_dim))
        if self.project is not None:
            # (B, F_t, c*D) holds feature f's c vectors side by side, so the view is (B, F_t*c, D).
            projected = F.linear(embeddings, self.project.weight).flatten(1)
            # The bias apart: its gradient is a sum over rows, which takes ten times as long over B*F_t narrow ones. And
            # not in place: autograd would copy the gradient of a view three times.
            projected = projected + self.project.bias.to(projected.dtype).repeat(embeddings.shape[1])
            outputs.append(projected.view(batch_size, self.out_features - self.p, self.out_dim))
        return torch.cat(outputs, dim=1) if len(outputs) > 1 else outputs[0]


class DCNTower(TowerModule):
    """The DCN tower (paper listing 2): cross layers over the tower's flattened features, then a projection.

    ``CrossNet(F_t*N)``, here of low rank, then ``Linear(F_t*N -> O_t*D)``. The compression ratio is
    F_t*N / (O_t*D).

    Args:
        num_features: F_t.
        embedding_dim: N.
        out_dim: D.
        num_outputs: O_t. Default: F_t, as in listing 2. The paper's reported FLOPs are those of 1.
        num_layers: cross layers.
        low_rank: rank of their matrices.
        project_singletons: whether a tower of one feature has the projection too. Without it D must be N.

    Raises:
        UserInputError: a size is not positive, or a tower without projection has another width than D.

    Example:
        >>> DCNTower(5, 16, out_dim=8, num_outputs=2, low_rank=4)(torch.zeros(3, 5, 16)).shape
        torch.Size([3, 2, 8])
    """

    def __init__(
        self,
        num_features: int,
        embedding_dim: int,
        *,
        out_dim: int,
        num_outputs: int | None = None,
        num_layers: int = 1,
        low_rank: int = 512,
        project_singletons: bool = True,
    ) -> None:
        super().__init__()
        num_outputs = num_features if num_outputs is None else num_outputs
        check_positive("DCNTower", out_dim=out_dim, num_outputs=num_outputs)
        in_features = num_features * embedding_dim
        is_projected = num_features > 1 or project_singletons
        if not is_projected and out_dim != embedding_dim:
            raise UserInputError(
                f"DCNTower out_dim={out_dim}: with project_singletons=False a tower of one feature keeps its width "
                f"{embedding_dim}; give out_dim={embedding_dim}, or project_singletons=True"
            )
        self.out_features = num_outputs if is_projected else 1
        self.out_dim = out_dim
        self.cross = make_cross_net("DCNTower", in_features, num_layers=num_layers, low_rank=low_rank)
        self.project = orthogonal_linear(in_features, self.out_features * out_dim) if is_projected else None

    def forward(self, embeddings: Tensor) -> Tensor:
        crossed = self.cross(embeddings.flatten(1))
        outputs = crossed if self.project is None else self.project(crossed)
        return outputs.view(embeddings.shape[0], self.out_features, self.out_dim)


class GatedTower(TowerModule):
    """Mixes of all features, and products of two mixes: ``skip(x) + project(left(x) * right(x))``.

    x is the tower's flattened embeddings. Like the cross layers of :class:`DCNTower` it gives the outputs the
    interactions inside the tower, but through ``hidden`` products in place of F_t*N. Low-rank bilinear pooling
    (Kim et al. 2017) with a shortcut; not from the DMT paper. The compression ratio is F_t*N / (O_t*D).

    Args:
        num_features: F_t.
        embedding_dim: N.
        out_dim: D.
        num_outputs: O_t. Default: F_t.
        hidden: number of products.

    Raises:
        UserInputError: a size is not positive.

    Example:
        >>> GatedTower(5, 16, out_dim=8, num_outputs=2, hidden=4)(torch.zeros(3, 5, 16)).shape
        torch.Size([3, 2, 8])
    """

    def __init__(
        self,
        num_features: int,
        embedding_dim: int,
        *,
        out_dim: int,
        num_outputs: int | None = None,
        hidden: int = 32,
    ) -> None:
        super().__init__()
        self.out_features = num_features if num_outputs is None else num_outputs
        check_positive("GatedTower", out_dim=out_dim, num_outputs=self.out_features, hidden=hidden)
        in_features = num_features * embedding_dim
        self.out_dim = out_dim
        self.factors = nn.Linear(in_features, 2 * hidden)
        self.skip = orthogonal_linear(in_features, self.out_features * out_dim)
        self.project = nn.Linear(hidden, self.out_features * out_dim, bias=False)

    def forward(self, embeddings: Tensor) -> Tensor:
        flat = embeddings.flatten(1)
        left, right = self.factors(flat).chunk(2, dim=1)
        outputs = self.skip(flat) + self.project(left * right)
        return outputs.view(embeddings.shape[0], self.out_features, self.out_dim)


class DotTower(TowerModule):
    """A projection of each feature, with the dot products of all pairs of the tower's features mixed in.

    ``Linear(N -> D)`` of each feature plus its part of ``Linear(F_t*(F_t-1)/2 -> F_t*D)`` of the products. Products of
    features in one tower are so taken at width N, before a projection loses some of it, and those of features in
    different towers by the top arch at width D. Not from the DMT paper. The compression ratio is N / D.

    Args:
        num_features: F_t.
        embedding_dim: N.
        out_dim: D.

    Raises:
        UserInputError: the width is not positive.

    Example:
        >>> DotTower(5, 16, out_dim=8)(torch.zeros(3, 5, 16)).shape
        torch.Size([3, 5, 8])
    """

    def __init__(self, num_features: int, embedding_dim: int, *, out_dim: int) -> None:
        super().__init__()
        check_positive("DotTower", out_dim=out_dim)
        self.out_features, self.out_dim = num_features, out_dim
        self.project = DLRMTower(num_features, embedding_dim, c=1, p=0, out_dim=out_dim)
        self.products = DotInteraction(num_features)
        num_products = self.products.out_features
        self.mix = nn.Linear(num_products, num_features * out_dim, bias=False) if num_products else None

    def forward(self, embeddings: Tensor) -> Tensor:
        projected: Tensor = self.project(embeddings)
        return projected if self.mix is None else projected + self.mix(self.products(embeddings)).view_as(projected)


class ProjectedTower(TowerModule):
    """Brings features of different widths to one width before a tower module reads them.

    The stage puts it around the module of a tower in which some table's width is not N (mixed dimension
    embeddings, Ginart et al. 2019): a linear layer without bias for each such feature.

    Args:
        widths: columns of each of the F_t features.
        embedding_dim: N.
        module: reads (B, F_t, N).

    Example:
        >>> tower = ProjectedTower([4, 8], 8, PassThrough(2, 8))
        >>> tower(torch.zeros(3, 1, 12)).shape
        torch.Size([3, 2, 8])
    """

    module: TowerModule

    def __init__(self, widths: Sequence[int], embedding_dim: int, module: TowerModule) -> None:
        super().__init__()
        self.widths = list(widths)
        self.out_features, self.out_dim = module.out_features, module.out_dim
        self.projections = nn.ModuleDict(
            {
                str(index): orthogonal_linear(width, embedding_dim, bias=False)
                for index, width in enumerate(self.widths)
                if width != embedding_dim
            }
        )
        self.module = module

    def forward(self, embeddings: Tensor) -> Tensor:
        """(B, 1, sum of widths) -> (B, O_t, D)."""
        features = []
        for index, columns in enumerate(embeddings.squeeze(1).split(self.widths, dim=1)):
            name = str(index)
            projected = self.projections[name](columns) if name in self.projections else columns
            features.append(projected)
        # Under autocast only the projected ones are narrow; a module reads one dtype.
        return self.module(torch.stack([feature.to(features[0].dtype) for feature in features], dim=1))


def plain_tower(module: TowerModule) -> TowerModule:
    """The module that a factory made, without the projection that the stage may have put around it."""
    return module.module if isinstance(module, ProjectedTower) else module
