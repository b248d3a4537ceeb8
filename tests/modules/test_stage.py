"""The plain tower stage: what it computes, in which order, and which batches and towers it refuses."""

import random
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dmt.errors import UserInputError
from dmt.modules import DLRMTower, EmbeddingOptimizer, PassThrough, TowerModule, TowerStage
from dmt.modules.towers import TowerFactory
from dmt.plan import TowerPlan
from dmt.schema import CategoricalFeature, FeatureSchema
from tests.distributed.stage_cases import LEARNING_RATE, Reference, draw_batch, draw_case

# Pooled sums of up to 4 values, then dot products of up to 5 * 8 = 40: rounding of about sqrt(40) * 6e-8 =
# 4e-7 of values of order 1; 5e-6 leaves a factor ten.
TOLERANCE = {"rtol": 5e-6, "atol": 5e-6}
NAMES = ["a", "b", "c", "d", "e"]
PLAN = [["d", "a"], ["c"], ["e", "b"]]


def make_stage(
    *,
    multi_hot: bool = False,
    tower: TowerFactory = PassThrough,
    plan: list[list[str]] | None = None,
    unwrap_singletons: bool = False,
) -> TowerStage:
    plan = plan or PLAN
    features = [
        CategoricalFeature(name=name, num_embeddings=3 + index, multi_hot=multi_hot and index % 2 == 0)
        for index, name in enumerate(n for n in NAMES if n in TowerPlan(towers=plan).feature_names)
    ]
    return TowerStage(
        schema=FeatureSchema(categorical=features),
        plan=TowerPlan(towers=plan),
        embedding_dim=8,
        tower=tower,
        optimizer=EmbeddingOptimizer(),
        unwrap_singletons=unwrap_singletons,
    )


def make_batch(stage: TowerStage, size: int, rng: random.Random) -> KeyedJaggedTensor:
    lengths, ids = [], []
    for feature in stage.schema.categorical:
        own = [rng.randint(0, 4) if feature.multi_hot else 1 for _ in range(size)]
        ids += [rng.randrange(feature.num_embeddings) for _ in range(sum(own))]
        lengths += own
    return KeyedJaggedTensor(
        list(stage.schema.feature_names),
        torch.tensor(ids, dtype=torch.int64),
        lengths=torch.tensor(lengths, dtype=torch.int32),
    )


def by_tower(stage: TowerStage, batch: KeyedJaggedTensor) -> Tensor:
    """One embedding_bag a feature, one call a tower, put side by side in plan order."""
    outputs = []
    for names, tower in zip(stage.plan.towers, stage.towers, strict=True):
        pooled = [
            F.embedding_bag(batch[n].values(), stage.embeddings.weights[n], batch[n].offsets()[:-1].long(), mode="sum")
            for n in names
        ]
        outputs.append(tower(torch.stack(pooled, dim=1)))
    return torch.cat(outputs, dim=1)


@pytest.mark.parametrize("tower", [PassThrough, partial(DLRMTower, c=1, p=2, out_dim=3)], ids=["pass", "dlrm"])
@pytest.mark.parametrize("multi_hot", [False, True])
def test_output_is_every_towers_in_plan_order(
    seed: int, rng: random.Random, multi_hot: bool, tower: TowerFactory
) -> None:
    stage = make_stage(multi_hot=multi_hot, tower=tower)
    batch = make_batch(stage, 7, rng)
    output = stage(batch)
    assert output.shape == (7, stage.out_features, stage.out_dim)
    torch.testing.assert_close(output, by_tower(stage, batch), **TOLERANCE)


def test_a_plan_in_data_order_gives_the_same_as_any_other(seed: int, rng: random.Random) -> None:
    """The order of features is a matter of the plan alone, so only the rows of the output move."""
    torch.manual_seed(seed)
    stage = make_stage()
    torch.manual_seed(seed)
    in_order = make_stage(plan=[NAMES])
    batch = make_batch(stage, 4, rng)
    columns = [NAMES.index(name) for tower in PLAN for name in tower]
    # Bit for bit: single ids without tower modules are only moved.
    assert torch.equal(stage(batch), in_order(batch)[:, columns])


def test_towers_may_read_blocks_of_columns(seed: int, rng: random.Random) -> None:
    """More towers than features, of the same tables: without tower modules only columns move."""
    names = NAMES[:2]
    torch.manual_seed(seed)
    whole = make_stage(plan=[names])
    torch.manual_seed(seed)
    divided = make_stage(plan=[["b[4:8]"], ["a[0:4]"], ["b[0:4]", "a[4:8]"]])
    assert divided.state_dict().keys() == whole.state_dict().keys()
    batch = make_batch(whole, 4, rng)
    output = divided(batch)
    a, b = whole(batch).unbind(dim=1)
    assert (divided.out_features, divided.out_dim) == (4, 4)
    assert torch.equal(output, torch.stack([b[:, 4:], a[:, :4], b[:, :4], a[:, 4:]], dim=1))


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ([["a[0:4]"], ["b"]], r"its blocks of 'a' are columns 0 to 4; the embedding has 8"),
        ([["a[4:8]"], ["b"]], r"its blocks of 'a' are columns 4 to 8; the embedding has 8"),
        ([["a[0:8]", "a[8:12]"], ["b"]], r"its blocks of 'a' are columns 0 to 8, 8 to 12; the embedding has 8"),
        ([["a[0:3]"], ["a[3:8]"], ["b"]], r"a\[0:3\] has 3 columns, and FBGEMM's kernels need a multiple of 4"),
        ([["a[0:4]", "b"], ["a[4:8]"]], r"a tower reads blocks of columns of widths \[4, 8\]"),
        ([["a[0:4]"], ["a[4:8]"], ["b"]], r"tower: output dims \[4, 4, 8\] differ between towers"),
    ],
)
def test_blocks_that_no_stage_can_have_are_refused(plan: list[list[str]], message: str) -> None:
    with pytest.raises(UserInputError, match=message):
        make_stage(plan=plan)


def test_each_seed_gives_its_own_values(seed: int) -> None:
    weights = []
    for value in (seed, seed + 1):
        torch.manual_seed(value)
        weights.append(make_stage().embeddings.weights["a"])
    assert not torch.equal(*weights)


@pytest.mark.parametrize("multi_hot", [False, True])
def test_an_empty_batch_goes_forward_and_backward(rng: random.Random, multi_hot: bool) -> None:
    stage = make_stage(multi_hot=multi_hot, tower=partial(DLRMTower, c=1, p=1, out_dim=4))
    before = {key: value.clone() for key, value in stage.state_dict().items()}
    output = stage(make_batch(stage, 0, rng))
    assert output.shape == (0, stage.out_features, 4)
    output.sum().backward()
    assert all(torch.equal(value, before[key]) for key, value in stage.state_dict().items())
    # Zero, not None or NaN: under DistributedDataParallel a rank without samples joins every all-reduce.
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in stage.towers.parameters())


@pytest.mark.parametrize("keys", [["a", "b", "c", "e", "d"], ["a", "b", "c", "d", "x"], ["a", "b", "c", "d"]])
def test_a_batch_of_other_features_is_refused(keys: list[str]) -> None:
    stage = make_stage()
    batch = KeyedJaggedTensor(keys, torch.zeros(len(keys), dtype=torch.int64), lengths=torch.ones(len(keys)).int())
    with pytest.raises(UserInputError) as caught:
        stage(batch)
    message = str(caught.value)
    assert str(keys) in message and str(NAMES) in message and "train on the data the model was built for" in message


def test_a_single_hot_batch_with_another_number_of_ids_is_refused() -> None:
    lengths = torch.tensor([1, 1, 1, 2, 1, 1, 1, 1, 1, 1], dtype=torch.int32)
    batch = KeyedJaggedTensor(NAMES, torch.zeros(11, dtype=torch.int64), lengths=lengths)
    with pytest.raises(UserInputError, match=r"11 ids for 2 samples of 5 features, .*; mark .* as multi_hot"):
        make_stage()(batch)


def test_a_single_hot_batch_with_none_and_two_ids_is_refused() -> None:
    lengths = torch.tensor([2, 0, 1, 1, 1, 1, 1, 1, 1, 1], dtype=torch.int32)
    batch = KeyedJaggedTensor(NAMES, torch.zeros(10, dtype=torch.int64), lengths=lengths)
    with pytest.raises(UserInputError, match="multi_hot"):
        make_stage()(batch)


def test_everything_a_stage_can_do_equals_plain_torch(rng: random.Random) -> None:
    """Means, weights, shared tables, tables of other widths, single- and multi-hot features side by side."""
    for _ in range(10):
        case = draw_case(rng, multi_hot=rng.random() < 0.7, varied=True)
        stage, reference = case.build(), Reference(case.build())
        optimizer = torch.optim.SGD(reference.parameters(), lr=LEARNING_RATE)
        for _ in range(3):
            batch = draw_batch(case.schema, rng.randint(0, 6), rng)
            expected, output = reference(batch), stage(batch)
            torch.testing.assert_close(output, expected, msg=lambda m, c=case: f"{c}: {m}", **TOLERANCE)
            factors = torch.randn(expected.shape)
            stage.zero_grad()
            optimizer.zero_grad()
            (output * factors).sum().backward()
            (expected * factors).sum().backward()
            for mine, wanted in zip(stage.towers.parameters(), reference.towers.parameters(), strict=True):
                torch.testing.assert_close(mine.grad, wanted.grad, **TOLERANCE)
                with torch.no_grad():
                    mine -= LEARNING_RATE * mine.grad
            optimizer.step()
        for name, table in reference.tables.items():
            # Rounding of three steps, each step's passed on by the next: a factor of ten more.
            torch.testing.assert_close(stage.embeddings.weights[name], table.data, rtol=5e-5, atol=5e-5)


def test_weights_must_be_what_the_schema_says(rng: random.Random) -> None:
    stage = make_stage(multi_hot=True)
    plain = make_batch(stage, 8, rng)
    weighted = KeyedJaggedTensor(
        plain.keys(), plain.values(), weights=torch.ones(plain.values().numel()), lengths=plain.lengths()
    )
    with pytest.raises(UserInputError, match="its ids have weights, the model's schema says weighted=false"):
        stage(weighted)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pooling": {"x": "mean"}}, "pooling: there is no feature 'x'"),
        ({"pooling": "max"}, "pooling=max: choose sum or mean"),
        ({"table_dims": {"x": 8}}, "table_dims: there is no table 'x'"),
        ({"table_dims": {"a": 6}}, "^table_dims.a=6: .* multiple of 4; choose 8$"),
    ],
)
def test_options_that_name_what_does_not_exist_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserInputError, match=message):
        TowerStage(
            schema=FeatureSchema(categorical=[CategoricalFeature(name=name, num_embeddings=2) for name in "ab"]),
            plan=TowerPlan(towers=[["a", "b"]]),
            embedding_dim=4,
            tower=PassThrough,
            optimizer=EmbeddingOptimizer(),
            **options,
        )


class Wrong(TowerModule):
    """Declares one output more than it returns."""

    def __init__(self, num_features: int, embedding_dim: int) -> None:
        super().__init__()
        self.out_features, self.out_dim = num_features + 1, embedding_dim

    def forward(self, embeddings: Tensor) -> Tensor:
        return embeddings


def test_a_tower_that_returns_another_shape_is_named(rng: random.Random) -> None:
    stage = make_stage(tower=Wrong)
    with pytest.raises(UserInputError, match=r"tower Wrong: returned shape \(3, 2, 8\) .* declare \(3, 3, 8\)"):
        stage(make_batch(stage, 3, rng))


class Several(PassThrough):
    """Returns a list of what it should return side by side."""

    def forward(self, embeddings: Tensor) -> Tensor:
        return list(embeddings.unbind(dim=1))  # type: ignore[return-value]


def test_a_tower_that_returns_no_tensor_is_named(rng: random.Random) -> None:
    stage = make_stage(tower=Several)
    with pytest.raises(
        UserInputError, match=r"tower Several: returned a list .* declare \(3, 2, 8\): return one tensor"
    ):
        stage(make_batch(stage, 3, rng))
    mixed = TowerStage(
        schema=FeatureSchema(categorical=[CategoricalFeature(name="a", num_embeddings=2)]),
        plan=TowerPlan(towers=[["a"]]),
        embedding_dim=8,
        tower=Several,
        optimizer=EmbeddingOptimizer(),
        table_dims={"a": 4},
    )
    with pytest.raises(UserInputError, match="tower Several: "):  # not the projection around it
        mixed(make_batch(mixed, 3, rng))


class Undeclared(PassThrough):
    def __init__(self, num_features: int, embedding_dim: int, **sizes: Any) -> None:
        super().__init__(num_features, embedding_dim)
        del self.out_features, self.out_dim
        for name, size in sizes.items():
            setattr(self, name, size)


@pytest.mark.parametrize(
    ("sizes", "told"),
    [
        ({}, "there is no out_features; set self.out_features"),
        ({"out_features": 2}, "there is no out_dim; set self.out_dim"),
        ({"out_features": 2, "out_dim": None}, "out_dim=None; set self.out_dim"),
        ({"out_features": 0, "out_dim": 8}, "out_features=0; set self.out_features"),
    ],
)
def test_a_tower_that_does_not_say_its_outputs_is_named(sizes: dict[str, Any], told: str) -> None:
    with pytest.raises(UserInputError, match=f"^tower Undeclared: {told}.* in __init__$"):
        make_stage(tower=partial(Undeclared, **sizes))


class Unmade(PassThrough):
    """Forgets that torch wants to be first."""

    def __init__(self, num_features: int, embedding_dim: int, layer: type[nn.Module] = nn.Linear) -> None:
        self.layer = layer(embedding_dim, 2)
        super().__init__(num_features, embedding_dim)


class OfFeatures(PassThrough):
    def __init__(self, num_features: int) -> None:
        super().__init__(num_features, 8)


class Lazy(PassThrough):
    def __init__(self, num_features: int, embedding_dim: int) -> None:
        super().__init__(num_features, embedding_dim)
        self.layer = nn.LazyLinear(embedding_dim)


@pytest.mark.parametrize(
    ("tower", "told"),
    [
        (Unmade, r"tower Unmade: it cannot be made \(.*test_stage.py, line \d+\): AttributeError: .*; mend Unmade, or"),
        # As the parser makes factories of classes.
        (partial(lambda kind, *sizes, **options: kind(*sizes, **options), Unmade, layer=nn.Identity), "tower Unmade: "),
        (OfFeatures, r"tower OfFeatures: it cannot be made: TypeError: .* 2 positional arguments but 3 were given"),
        (TowerModule, "tower TowerModule: it cannot be made: TypeError: .* abstract method"),
        ("PassThrough", "tower: a str makes none; give a class, "),
        (PassThrough(2, 8), "tower: a PassThrough makes none; give a class, "),
        (Lazy, "tower Lazy: it has lazy layers, .* nn.Linear in place of nn.LazyLinear$"),
    ],
)
# torch warns of each lazy layer.
@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
def test_a_tower_that_cannot_be_made_is_named_with_the_reason_and_the_line(tower: TowerFactory, told: str) -> None:
    with pytest.raises(UserInputError, match=f"^{told}"):
        make_stage(tower=tower)


class InPlace(TowerModule):
    """Writes to its input first, unless told not to."""

    def __init__(self, num_features: int, embedding_dim: int, *, inplace: bool) -> None:
        super().__init__()
        self.out_features, self.out_dim = 2, 3
        self.layers = nn.Sequential(
            nn.LeakyReLU(inplace=inplace), nn.Flatten(), nn.Linear(num_features * embedding_dim, 6)
        )

    def forward(self, embeddings: Tensor) -> Tensor:
        output: Tensor = self.layers(embeddings)
        return output.view(-1, 2, 3)


def test_a_tower_may_work_in_place(seed: int, rng: random.Random) -> None:
    batch = make_batch(make_stage(), 6, rng)
    outputs, gradients, weights = [], [], []
    for inplace in (False, True):
        torch.manual_seed(seed)
        stage = make_stage(tower=partial(InPlace, inplace=inplace))
        outputs.append(stage(batch))
        outputs[-1].square().sum().backward()
        gradients.append([p.grad for p in stage.towers.parameters()])
        weights.append(list(stage.embeddings.weights.values()))
    assert torch.equal(*outputs)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=0)
    torch.testing.assert_close(weights[0], weights[1], rtol=0, atol=0)


def test_towers_of_different_output_dims_are_refused() -> None:
    with pytest.raises(UserInputError, match=r"tower: output dims \[2, 1, 2\] differ .* one output dim D"):
        make_stage(tower=lambda features, dim: DLRMTower(features, dim, out_dim=features))


def test_towers_of_one_feature_may_go_without_a_module(seed: int, rng: random.Random) -> None:
    tower = partial(DLRMTower, c=0, p=2, out_dim=8)
    stage, wrapped = (make_stage(tower=tower, unwrap_singletons=unwrap) for unwrap in (True, False))
    assert [type(module).__name__ for module in stage.tower_modules] == ["DLRMTower", "PassThrough", "DLRMTower"]
    assert {type(module).__name__ for module in wrapped.tower_modules} == {"DLRMTower"}
    assert (stage.out_features, wrapped.out_features) == (5, 6)
    batch = make_batch(stage, 3, rng)
    torch.testing.assert_close(stage(batch), by_tower(stage, batch), **TOLERANCE)
    with pytest.raises(UserInputError, match=r"output dims \[5, 8, 5\] .* \(unwrap_singletons\) has the embedding dim"):
        make_stage(tower=partial(DLRMTower, c=0, p=2, out_dim=5), unwrap_singletons=True)


@pytest.mark.parametrize("factory", [lambda features, dim: nn.Identity(), nn.Linear])
def test_a_factory_of_other_modules_is_refused(factory: Callable[..., nn.Module]) -> None:
    with pytest.raises(UserInputError, match=r"tower: the factory must make TowerModule instances; subclass dmt\."):
        make_stage(tower=factory)


def test_a_plan_of_other_features_is_refused() -> None:
    schema = FeatureSchema(categorical=[CategoricalFeature(name=name, num_embeddings=2) for name in "ab"])
    for towers in ([["a"]], [["a"], ["b", "c"]]):
        with pytest.raises(UserInputError, match=r"^tower plan: "):
            TowerStage(
                schema=schema,
                plan=TowerPlan(towers=towers),
                embedding_dim=4,
                tower=PassThrough,
                optimizer=EmbeddingOptimizer(),
            )


# Names of attributes of nn.Module and nn.ParameterDict, which registered parameters must not hide.
@pytest.mark.parametrize("name", ["type", "items", "train", "keys"])
def test_a_column_may_have_any_name_or_is_refused_clearly(name: str) -> None:
    try:
        schema = FeatureSchema(categorical=[CategoricalFeature(name=name, num_embeddings=2)])
        TowerStage(
            schema=schema,
            plan=TowerPlan(towers=[[name]]),
            embedding_dim=4,
            tower=PassThrough,
            optimizer=EmbeddingOptimizer(),
        )
    except UserInputError as error:
        assert name in str(error)
