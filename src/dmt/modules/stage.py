"""The tower stage: the one function of a recommender that crosses hosts, written once and unsharded.

    KeyedJaggedTensor of B samples  ->  (B, O, D)

Strategies replace it by another way to evaluate the same function; nothing else in a model changes.

Shapes: B samples, F features, F_t features of tower t, N embedding dim, W_t columns that tower t reads, O_t
outputs of tower t, O all outputs, D output dim, T towers.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dmt.errors import UserInputError
from dmt.modules.bags import BagOrder, MeanPooling
from dmt.modules.columns import ColumnBlock, ColumnRoute
from dmt.modules.embeddings import EmbeddingOptimizer, FusedEmbeddingBags
from dmt.modules.shards import TableShard
from dmt.modules.towers import ProjectedTower, TowerFactory, TowerModule
from dmt.plan import TowerPlan
from dmt.schema import FeatureSchema

Pooling = Literal["sum", "mean"]


class Pending(ABC):
    """A stage's output on its way."""

    @abstractmethod
    def wait(self) -> Tensor:
        """(B, O, D), towers in plan order; call it once."""


@dataclass(frozen=True)
class Ready(Pending):
    """An output that is there already."""

    output: Tensor

    def wait(self) -> Tensor:
        return self.output


class Stage(nn.Module, ABC):
    """A tower stage, however it is evaluated: plain, or sharded by a Strategy."""

    out_features: int
    out_dim: int

    @abstractmethod
    def start(self, features: KeyedJaggedTensor) -> Pending:
        """Begin to compute ``forward(features)``.

        What a model computes before it calls ``wait()`` may run while embeddings are on their way.
        """

    def forward(self, features: KeyedJaggedTensor) -> Tensor:
        """(KeyedJaggedTensor of F keys, B samples) -> (B, O, D), towers in plan order."""
        return self.start(features).wait()

    @abstractmethod
    def set_learning_rate(self, learning_rate: float) -> None:
        """Use this step size for embedding rows from the next backward on."""


@dataclass(frozen=True)
class StageFeature:
    """A feature as a stage looks it up.

    Args:
        name: column of the data.
        table: where its rows are.
        is_mean: whether a bag's embeddings are averaged rather than summed.
    """

    name: str
    table: EmbeddingBagConfig
    is_mean: bool


class TowerStage(Stage):
    """Look up every feature, run each tower's module on its features, concatenate the towers' outputs.

    Args:
        schema: the data's columns; batches hold the categorical ones in this order.
        plan: which feature belongs to which tower.
        embedding_dim: N, the width of every feature's embedding as tower modules see it.
        tower: makes the module of one tower from (F_t, N).
        optimizer: how embedding rows are updated.
        pooling: how the embeddings of a bag become one: for all features, or by feature; those not named are summed.
        table_dims: width of single tables where it differs from ``embedding_dim``. A linear layer in the tower
            then brings their features to N (mixed dimension embeddings, Ginart et al. 2019).

    Raises:
        UserInputError: the plan does not cover the schema's features exactly, an option names something that does
            not exist, or tower modules disagree on the output dim D.
    """

    def __init__(
        self,
        *,
        schema: FeatureSchema,
        plan: TowerPlan,
        embedding_dim: int,
        tower: TowerFactory,
        optimizer: EmbeddingOptimizer,
        pooling: Pooling | Mapping[str, Pooling] = "sum",
        table_dims: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__()
        plan.check_features(schema.feature_names)
        self.schema = schema
        self.plan = plan
        self.embedding_dim = embedding_dim
        self.tables = _make_tables(schema, plan, embedding_dim, table_dims or {})
        self.features = _make_features(self.tables, plan, pooling)
        self.embeddings = FusedEmbeddingBags(
            [TableShard.whole(table) for table in self.tables], optimizer=optimizer, seed=torch.initial_seed()
        )
        lookups = [name for table in self.tables for name in table.feature_names]
        self.bag_order = BagOrder(schema, lookups)
        blocks = {f.name: ColumnBlock(f.name, 0, f.table.embedding_dim) for f in self.features}
        # Lookups come table by table; towers read theirs feature by feature.
        self._route = ColumnRoute(
            [[blocks[name] for name in lookups]], [[blocks[name] for name in names] for names in plan.towers]
        )
        self._length_rows = [[lookups.index(name) for name in names] for names in plan.towers]
        self.mean_pooling = nn.ModuleList(tower_mean_pooling(self.tower_features))
        self.tower_shapes = [tower_shape(f, embedding_dim) for f in self.tower_features]
        self.towers = nn.ModuleList(_make_tower(tower, f, embedding_dim) for f in self.tower_features)
        self.out_features = sum(module.out_features for module in self.tower_modules)
        self.out_dim = self._shared_out_dim()

    @property
    def tower_modules(self) -> list[TowerModule]:
        """The tower modules in plan order."""
        return tower_modules(self.towers)

    @property
    def tower_features(self) -> list[list[StageFeature]]:
        """The features of each tower."""
        by_name = {feature.name: feature for feature in self.features}
        return [[by_name[name] for name in names] for names in self.plan.towers]

    def _shared_out_dim(self) -> int:
        dims = [module.out_dim for module in self.tower_modules]
        if len(dims) != len(self.towers):
            raise UserInputError("tower: the factory must make TowerModule instances; subclass dmt.modules.TowerModule")
        if len(set(dims)) != 1:
            raise UserInputError(f"tower: output dims {dims} differ between towers; a stage needs one output dim D")
        return dims[0]

    def start(self, features: KeyedJaggedTensor) -> Pending:
        bags = self.bag_order(features)
        pooled = self.embeddings(bags.ids, bags.offsets(), bags.weights)  # (B, sum of table widths)
        inputs = []
        for flat, rows, mean, shape in zip(
            self._route(pooled, num_rows=bags.batch_size),
            self._length_rows,
            self.mean_pooling,
            self.tower_shapes,
            strict=True,
        ):
            lengths = None if bags.lengths is None or not mean.is_needed else bags.lengths[rows]
            inputs.append(mean(flat, lengths).view(bags.batch_size, *shape))
        return Ready(run_towers(self.tower_modules, inputs))

    def set_learning_rate(self, learning_rate: float) -> None:
        self.embeddings.set_learning_rate(learning_rate)


def _make_tables(
    schema: FeatureSchema, plan: TowerPlan, embedding_dim: int, table_dims: Mapping[str, int]
) -> list[EmbeddingBagConfig]:
    """One table per table of the schema, in the order in which the plan first needs them."""
    columns = {feature.name: feature for feature in schema.categorical}
    tables: dict[str, list[str]] = {}
    for name in plan.feature_names:
        tables.setdefault(columns[name].table, []).append(name)
    for table in table_dims:
        if table not in tables:
            raise UserInputError(f"table_dims: there is no table {table!r}; the tables are {', '.join(tables)}")
    return [
        EmbeddingBagConfig(
            name=table,
            feature_names=names,
            num_embeddings=columns[names[0]].num_embeddings,
            embedding_dim=table_dims.get(table, embedding_dim),
        )
        for table, names in tables.items()
    ]


def _make_features(
    tables: Sequence[EmbeddingBagConfig], plan: TowerPlan, pooling: Pooling | Mapping[str, Pooling]
) -> list[StageFeature]:
    """The features in plan order."""
    tables_by_feature = {name: table for table in tables for name in table.feature_names}
    by_name = dict.fromkeys(tables_by_feature, pooling) if isinstance(pooling, str) else pooling
    for name, value in by_name.items():
        if name not in tables_by_feature:
            raise UserInputError(f"pooling: there is no feature {name!r}; choose of {', '.join(tables_by_feature)}")
        if value not in get_args(Pooling):
            raise UserInputError(f"pooling={value}: choose sum or mean")
    return [
        StageFeature(name=name, table=tables_by_feature[name], is_mean=by_name.get(name) == "mean")
        for name in plan.feature_names
    ]


def _make_tower(factory: TowerFactory, features: Sequence[StageFeature], embedding_dim: int) -> TowerModule:
    module = factory(len(features), embedding_dim)
    widths = [feature.table.embedding_dim for feature in features]
    if set(widths) == {embedding_dim}:
        return module
    return ProjectedTower(widths, embedding_dim, module)


def tower_shape(features: Sequence[StageFeature], embedding_dim: int) -> tuple[int, int]:
    """How a tower's module reads its W_t columns: (F_t, N), or (1, W_t) where it projects mixed widths first."""
    widths = [feature.table.embedding_dim for feature in features]
    return (len(widths), embedding_dim) if set(widths) == {embedding_dim} else (1, sum(widths))


def tower_mean_pooling(towers: Sequence[Sequence[StageFeature]]) -> list[MeanPooling]:
    """The mean pooling of each tower's features."""
    return [
        MeanPooling([f.table.embedding_dim for f in features], [f.is_mean for f in features]) for features in towers
    ]


def tower_modules(towers: Iterable[nn.Module]) -> list[TowerModule]:
    """The modules of a container, typed."""
    return [module for module in towers if isinstance(module, TowerModule)]


def run_towers(towers: Sequence[TowerModule], inputs: Sequence[Tensor]) -> Tensor:
    """Run each tower module on its input and put the outputs side by side: (B, sum of O_t, D).

    Args:
        towers: the modules.
        inputs: (B, *:func:`tower_shape`) of each.

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
