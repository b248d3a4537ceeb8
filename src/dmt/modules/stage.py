"""The tower stage: the one function of a recommender that crosses hosts, written once and unsharded.

    KeyedJaggedTensor of B samples  ->  (B, O, D)

Strategies replace it by another way to evaluate the same function; nothing else in a model changes.

Shapes: B samples, F features, F_t features of tower t, N embedding dim, O_t outputs of tower t, O all
outputs, D output dim, T towers, V ids.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dmt.errors import UserInputError
from dmt.modules.embeddings import EmbeddingOptimizer, FusedEmbeddingBags
from dmt.modules.towers import TowerFactory, TowerModule
from dmt.plan import TowerPlan
from dmt.schema import FeatureSchema


class Stage(nn.Module, ABC):
    """A tower stage, however it is evaluated: plain, or sharded by a Strategy."""

    out_features: int
    out_dim: int

    @abstractmethod
    def forward(self, features: KeyedJaggedTensor) -> Tensor:
        """(KeyedJaggedTensor of F keys, B samples) -> (B, O, D), towers in plan order."""

    @abstractmethod
    def set_learning_rate(self, learning_rate: float) -> None:
        """Use this step size for embedding rows from the next backward on."""


class TowerStage(Stage):
    """Look up every feature, run each tower's module on its features, concatenate the towers' outputs.

    Args:
        schema: the data's columns; batches hold the categorical ones in this order.
        plan: which feature belongs to which tower.
        embedding_dim: N, the width of every table.
        tower: makes the module of one tower from (F_t, N).
        optimizer: how embedding rows are updated.

    Raises:
        UserInputError: the plan does not cover the schema's features exactly, or tower modules disagree
            on the output dim D.
    """

    def __init__(
        self,
        *,
        schema: FeatureSchema,
        plan: TowerPlan,
        embedding_dim: int,
        tower: TowerFactory,
        optimizer: EmbeddingOptimizer,
    ) -> None:
        super().__init__()
        plan.check_features(schema.feature_names)
        self.schema = schema
        self.plan = plan
        self.embedding_dim = embedding_dim
        features = {feature.name: feature for feature in schema.categorical}
        self.tables = [
            EmbeddingBagConfig(
                name=name,
                feature_names=[name],
                num_embeddings=features[name].num_embeddings,
                embedding_dim=embedding_dim,
            )
            for name in plan.feature_names
        ]
        self.tower_sizes = [len(names) for names in plan.towers]
        self.bag_order = BagOrder(schema, plan.feature_names)
        self.embeddings = FusedEmbeddingBags(self.tables, optimizer=optimizer, seed=torch.initial_seed())
        self.towers = nn.ModuleList(tower(len(names), embedding_dim) for names in plan.towers)
        self.out_features = sum(module.out_features for module in self.tower_modules)
        self.out_dim = self._shared_out_dim()

    @property
    def tower_modules(self) -> list[TowerModule]:
        """The tower modules in plan order."""
        return tower_modules(self.towers)

    def _shared_out_dim(self) -> int:
        dims = [module.out_dim for module in self.tower_modules]
        if len(dims) != len(self.towers):
            raise UserInputError("tower: the factory must make TowerModule instances; subclass dmt.modules.TowerModule")
        if len(set(dims)) != 1:
            raise UserInputError(f"tower: output dims {dims} differ between towers; a stage needs one output dim D")
        return dims[0]

    def forward(self, features: KeyedJaggedTensor) -> Tensor:
        """(KeyedJaggedTensor of F keys, B samples) -> (B, O, D), towers in plan order."""
        ids, lengths = self.bag_order(features)
        pooled = self.embeddings(ids, bag_offsets(ids, lengths))  # (B, F*N)
        pieces = pooled.view(-1, len(self.tables), self.embedding_dim).split(self.tower_sizes, dim=1)
        return run_towers(self.tower_modules, pieces)

    def set_learning_rate(self, learning_rate: float) -> None:
        self.embeddings.set_learning_rate(learning_rate)


def tower_modules(towers: Iterable[nn.Module]) -> list[TowerModule]:
    """The modules of a container, typed."""
    return [module for module in towers if isinstance(module, TowerModule)]


def run_towers(towers: Sequence[TowerModule], inputs: Sequence[Tensor]) -> Tensor:
    """Run each tower module on its (B, F_t, N) and put the outputs side by side: (B, sum of O_t, D).

    Raises:
        UserInputError: a module's output is not (B, O_t, D) as it declares.
    """
    outputs = []
    for module, embeddings in zip(towers, inputs, strict=True):
        output = module(embeddings)
        declared = (embeddings.shape[0], module.out_features, module.out_dim)
        if output.shape != declared:
            raise UserInputError(
                f"tower {type(module).__name__}: returned shape {tuple(output.shape)} for input "
                f"{tuple(embeddings.shape)}; its out_features and out_dim declare {declared}"
            )
        outputs.append(output)
    return torch.cat(outputs, dim=1) if len(outputs) > 1 else outputs[0]


class BagOrder(nn.Module):
    """Puts the bags of a batch into another feature order.

    Args:
        schema: the data's columns: the keys of every batch, in order.
        names: features in the wanted order.
    """

    def __init__(self, schema: FeatureSchema, names: Sequence[str]) -> None:
        super().__init__()
        self.keys = list(schema.feature_names)
        self.single_hot = schema.single_hot
        self.positions = [self.keys.index(name) for name in names]
        self.is_identity = self.positions == list(range(len(self.keys)))
        # Not a buffer: weight averaging averages buffers, and an average of indices is off by one now and then.
        # int32, as KeyedJaggedTensor.permute wants it.
        self.order = torch.tensor(self.positions, dtype=torch.int32)

    def forward(self, features: KeyedJaggedTensor) -> tuple[Tensor, Tensor | None]:
        """Reorder a batch of B samples.

        Returns:
            ids (V,), feature-major, and lengths (F, B), or ``None`` when every feature is single-hot.

        Raises:
            UserInputError: the batch's keys are not the schema's features, its ids are weighted, or a
                single-hot feature does not hold exactly one id per sample.
        """
        self.check(features)
        self.order = self.order.to(features.device())
        if self.single_hot:
            return self._single_hot(features), None
        if not self.is_identity:
            features = features.permute(self.positions, self.order)
        return features.values(), features.lengths().view(len(self.keys), features.stride())

    def _single_hot(self, features: KeyedJaggedTensor) -> Tensor:
        ids = features.values()
        return ids if self.is_identity else ids.view(len(self.keys), features.stride())[self.order].view(-1)

    def check(self, features: KeyedJaggedTensor) -> None:
        """Raise unless a batch is what the schema says; see :meth:`forward`."""
        if features.keys() != self.keys:
            raise UserInputError(
                f"batch: its features are {features.keys()}, the model's schema has {self.keys}; "
                "train on the data the model was built for"
            )
        if features.weights_or_none() is not None:
            raise UserInputError("batch: its ids have weights, which are not supported yet; leave them out")
        ids, batch_size = features.values(), features.stride()
        # On a GPU a look at the lengths would wait for the device; there only the count is checked.
        if self.single_hot and (
            ids.numel() != len(self.keys) * batch_size or (ids.is_cpu and not bool((features.lengths() == 1).all()))
        ):
            raise UserInputError(
                f"batch: {ids.numel()} ids for {batch_size} samples of {len(self.keys)} single-hot features, or not "
                "one for each; mark features with none or several ids as multi_hot in the schema"
            )


def bag_offsets(ids: Tensor, lengths: Tensor | None) -> Tensor:
    """Start of every bag in ``ids``, and the end of the last: (bags + 1,), same dtype as ``ids``."""
    if lengths is None:
        return torch.arange(ids.numel() + 1, dtype=ids.dtype, device=ids.device)
    return torch.ops.fbgemm.asynchronous_complete_cumsum(lengths.reshape(-1).to(ids.dtype))
