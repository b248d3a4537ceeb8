"""The tower stage: the one function of a recommender that crosses hosts, written once and unsharded.

    KeyedJaggedTensor of B samples  ->  (B, O, D)

Strategies replace it by another way to evaluate the same function; nothing else in a model changes.

Shapes: B samples, F features, F_t features of tower t, N embedding dim, W_t columns that tower t reads, O_t
outputs of tower t, O all outputs, D output dim, T towers.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
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
from dmt.modules.failures import made_by
from dmt.modules.shards import TableShard
from dmt.modules.towers import PassThrough, ProjectedTower, TowerFactory, TowerModule, check_tower, plain_tower
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

        What a model computes before it calls ``wait()`` may run while embeddings are on their way. It should be
        ``@torch.compiler.disable``, and so should that ``wait()``: kernels of embedding tables and collectives are
        not for torch.compile, while the layers around the stage are.
        """

    def forward(self, features: KeyedJaggedTensor) -> Tensor:
        """(KeyedJaggedTensor of F keys, B samples) -> (B, O, D), towers in plan order."""
        return self.start(features).wait()

    @abstractmethod
    def set_learning_rate(self, learning_rate: float) -> None:
        """Use this step size for embedding rows from the next backward on."""


@contextmanager
def given_outputs(stage: Stage, outputs: Tensor) -> Iterator[None]:
    """Inside, the model reads these outputs (B, O, D) of its stage in place of the batch's own."""
    stage.start = lambda features: Ready(outputs)  # type: ignore[method-assign]
    try:
        yield
    finally:
        del stage.start  # the class's own again


@dataclass(frozen=True)
class StageFeature:
    """A feature, or a block of its columns, as a tower reads it.

    Args:
        name: column of the data.
        table: where its rows are.
        columns: first column of the table, and the one after the last.
        is_mean: whether a bag's embeddings are averaged rather than summed.
    """

    name: str
    table: EmbeddingBagConfig
    columns: tuple[int, int]
    is_mean: bool

    @property
    def block(self) -> ColumnBlock:
        """Its columns among the feature's."""
        return ColumnBlock(self.name, *self.columns)

    @property
    def is_whole(self) -> bool:
        """Whether it is all of the feature."""
        return self.columns == (0, self.table.embedding_dim)


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
        unwrap_singletons: let towers of one feature pass its embedding on as it is, without a tower module. The
            others' D must then be N.

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
        unwrap_singletons: bool = False,
    ) -> None:
        super().__init__()
        own_dims = {f"table_dims.{table}": dim for table, dim in (table_dims or {}).items()}
        for name, dim in {"embedding_dim": embedding_dim, **own_dims}.items():
            if dim < 1:
                raise UserInputError(f"{name}={dim}: the width of an embedding is positive; give a multiple of 4")
        for name, dim in own_dims.items():
            if dim % 4:
                raise UserInputError(f"{name}={dim}: FBGEMM's kernels need a multiple of 4; choose {-(-dim // 4) * 4}")
        plan.check_features(schema.feature_names)
        self.schema = schema
        self.plan = plan
        self.embedding_dim = embedding_dim
        self.tables = _make_tables(schema, plan, embedding_dim, table_dims or {})
        self.tower_features = _make_features(self.tables, plan, pooling)
        self.embeddings = FusedEmbeddingBags(
            [TableShard.whole(table) for table in self.tables], optimizer=optimizer, seed=torch.initial_seed()
        )
        # Lookups come table by table; towers read theirs feature by feature.
        lookups = [ColumnBlock(name, 0, table.embedding_dim) for table in self.tables for name in table.feature_names]
        names = [block.name for block in lookups]
        self.bag_order = BagOrder(schema, names)
        self._route = ColumnRoute([lookups], [[feature.block for feature in own] for own in self.tower_features])
        self._length_rows = [[names.index(feature.name) for feature in own] for own in self.tower_features]
        self.mean_pooling = nn.ModuleList(tower_mean_pooling(self.tower_features))
        self.tower_shapes = [tower_shape(f, embedding_dim) for f in self.tower_features]
        self.towers = nn.ModuleList(
            _make_tower(PassThrough if unwrap_singletons and len(own) == 1 else tower, own, embedding_dim)
            for own in self.tower_features
        )
        self.out_features = sum(module.out_features for module in self.tower_modules)
        self.out_dim = self._shared_out_dim()

    @property
    def tower_modules(self) -> list[TowerModule]:
        """The tower modules in plan order."""
        return tower_modules(self.towers)

    def _shared_out_dim(self) -> int:
        dims = [module.out_dim for module in self.tower_modules]
        if len(set(dims)) != 1:
            raise UserInputError(
                f"tower: output dims {dims} differ between towers; a stage needs one output dim D, and a tower without "
                "a module (unwrap_singletons) has the embedding dim"
            )
        return dims[0]

    @torch.compiler.disable
    def start(self, features: KeyedJaggedTensor) -> Pending:
        bags = self.bag_order(features)
        pooled = self.embeddings(bags.ids, bags.offsets(), bags.weights)  # (B, sum of table widths)
        columns = self._route(pooled, num_rows=bags.batch_size)
        inputs = tower_inputs(columns, bags.lengths, self._length_rows, self.mean_pooling, self.tower_shapes)
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
) -> list[list[StageFeature]]:
    """What each tower reads, in plan order."""
    tables_by_feature = {name: table for table in tables for name in table.feature_names}
    by_name = dict.fromkeys(tables_by_feature, pooling) if isinstance(pooling, str) else pooling
    for name, value in by_name.items():
        if name not in tables_by_feature:
            raise UserInputError(f"pooling: there is no feature {name!r}; choose of {', '.join(tables_by_feature)}")
        if value not in get_args(Pooling):
            raise UserInputError(f"pooling={value}: choose sum or mean")
    towers = [
        [
            StageFeature(
                name=wanted.feature,
                table=tables_by_feature[wanted.feature],
                columns=wanted.columns or (0, tables_by_feature[wanted.feature].embedding_dim),
                is_mean=by_name.get(wanted.feature) == "mean",
            )
            for wanted in tower
        ]
        for tower in plan.inputs
    ]
    _check_columns([feature for tower in towers for feature in tower])
    return towers


def _check_columns(features: Sequence[StageFeature]) -> None:
    """Raise unless the blocks of each feature are all of its columns; the plan has checked that none is there twice."""
    by_name: dict[str, list[StageFeature]] = {}
    for feature in features:
        by_name.setdefault(feature.name, []).append(feature)
    for name, parts in by_name.items():
        blocks = sorted(part.columns for part in parts)
        dim, stops = parts[0].table.embedding_dim, [0, *(stop for _, stop in blocks)]
        if [start for start, _ in blocks] != stops[:-1] or stops[-1] != dim:
            raise UserInputError(
                f"tower plan: its blocks of {name!r} are columns "
                f"{', '.join(f'{start} to {stop}' for start, stop in blocks)}; the embedding has {dim}, and each must "
                "be in one block"
            )
        for part in parts:
            if not part.is_whole and part.block.width % 4:
                raise UserInputError(
                    f"tower plan: {name}[{part.columns[0]}:{part.columns[1]}] has {part.block.width} columns, and "
                    "FBGEMM's kernels need a multiple of 4; move the cut"
                )


def _make_tower(factory: TowerFactory, features: Sequence[StageFeature], embedding_dim: int) -> TowerModule:
    widths = [feature.block.width for feature in features]
    if _is_projected(features, embedding_dim):
        return ProjectedTower(
            widths, embedding_dim, check_tower(made_by("tower", factory, len(features), embedding_dim))
        )
    if len(set(widths)) > 1:
        raise UserInputError(
            f"tower plan: a tower reads blocks of columns of widths {widths}; give those of one tower the same width"
        )
    return check_tower(made_by("tower", factory, len(features), widths[0]))


def _is_projected(features: Sequence[StageFeature], embedding_dim: int) -> bool:
    """Whether a tower needs a projection to N. One of blocks has their width for N."""
    widths = {feature.block.width for feature in features}
    return all(feature.is_whole for feature in features) and widths != {embedding_dim}


def tower_shape(features: Sequence[StageFeature], embedding_dim: int) -> tuple[int, int]:
    """How a tower's module reads its W_t columns: (F_t, N), or (1, W_t) where it projects mixed widths first."""
    widths = [feature.block.width for feature in features]
    return (1, sum(widths)) if _is_projected(features, embedding_dim) else (len(widths), widths[0])


def tower_mean_pooling(towers: Sequence[Sequence[StageFeature]]) -> list[MeanPooling]:
    """The mean pooling of each tower's features."""
    return [MeanPooling([f.block.width for f in features], [f.is_mean for f in features]) for features in towers]


def tower_modules(towers: Iterable[nn.Module]) -> list[TowerModule]:
    """The modules of a container, typed."""
    return [module for module in towers if isinstance(module, TowerModule)]


def tower_inputs(
    columns: Sequence[Tensor],
    lengths: Tensor | None,
    length_rows: Sequence[list[int] | slice],
    mean_pooling: Iterable[nn.Module],
    shapes: Sequence[tuple[int, int]],
) -> list[Tensor]:
    """Sums of embeddings as tower modules read them: (B, *:func:`tower_shape`) of each tower.

    Args:
        columns: (B, W_t) of each tower.
        lengths: (bags, B), ids of each bag; ``None`` when each holds one.
        length_rows: which of these bags each tower reads.
        mean_pooling: :class:`~dmt.modules.bags.MeanPooling` of each tower.
        shapes: :func:`tower_shape` of each.
    """
    inputs = []
    for flat, rows, mean, shape in zip(columns, length_rows, mean_pooling, shapes, strict=True):
        own = lengths[rows] if lengths is not None and mean.is_needed else None
        inputs.append(mean(flat, own).view(flat.shape[0], *shape))
    return inputs


def run_towers(towers: Sequence[TowerModule], inputs: Sequence[Tensor]) -> Tensor:
    """Run each tower module on its input and put the outputs side by side: (B, sum of O_t, D).

    Args:
        towers: the modules.
        inputs: (B, *:func:`tower_shape`) of each.

    Raises:
        UserInputError: a module's output is not one tensor (B, O_t, D) as it declares.
    """
    outputs = []
    for module, embeddings in zip(towers, inputs, strict=True):
        output = module(embeddings)
        declared = (embeddings.shape[0], module.out_features, module.out_dim)
        if not isinstance(output, Tensor) or output.shape != declared:
            found = f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else f"a {type(output).__name__}"
            raise UserInputError(
                f"tower {type(plain_tower(module)).__name__}: returned {found} for input {tuple(embeddings.shape)}; "
                f"its out_features and out_dim declare {declared}: return one tensor of that shape, or mend these"
            )
        outputs.append(output)
    return torch.cat(outputs, dim=1) if len(outputs) > 1 else outputs[0]
