"""FeatureSchema and CategoricalFeature: validation and plain data."""

import json

import pytest

from dmt.errors import UserInputError
from dmt.schema import CategoricalFeature, FeatureSchema


def column(name: str) -> CategoricalFeature:
    return CategoricalFeature(name=name, num_embeddings=3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "", "num_embeddings": 3}, "categorical column '': a name must be non-empty.*rename"),
        ({"name": "a.b", "num_embeddings": 3}, r"categorical column 'a\.b': .*without '\.'.*rename"),
        ({"name": "a", "num_embeddings": 0}, "'a': num_embeddings=0; give at least 1"),
        ({"name": "a", "num_embeddings": -2}, "'a': num_embeddings=-2; give at least 1"),
        ({"name": "a", "num_embeddings": 3, "mean_length": 2.0}, "'a': mean_length=2.0 needs multi_hot=true"),
        (
            {"name": "a", "num_embeddings": 3, "multi_hot": True, "mean_length": -0.5},
            "'a': mean_length=-0.5; give a number >= 0",
        ),
    ],
)
def test_a_wrong_column_is_named_with_value_and_fix(options: dict, message: str) -> None:
    with pytest.raises(UserInputError, match=message):
        CategoricalFeature(**options)


def test_a_multi_hot_column_may_be_empty_on_average() -> None:
    assert CategoricalFeature(name="a", num_embeddings=1, multi_hot=True, mean_length=0.0).mean_length == 0


def test_a_schema_needs_a_categorical_column() -> None:
    with pytest.raises(UserInputError, match=r"no categorical columns: .*name them"):
        FeatureSchema(categorical=[], dense=["x"])


@pytest.mark.parametrize(
    ("categorical", "dense"), [(["a", "b", "a"], []), (["b"], ["a", "a"]), (["a", "b"], ["c", "a"])]
)
def test_a_repeated_column_is_named(categorical: list[str], dense: list[str]) -> None:
    with pytest.raises(UserInputError, match="column 'a' is named more than once; name each column once"):
        FeatureSchema(categorical=[column(name) for name in categorical], dense=dense)


def test_columns_may_share_a_table_of_one_size() -> None:
    shared = [CategoricalFeature(name=name, num_embeddings=3, table="items") for name in ("bought", "seen")]
    assert [feature.table for feature in FeatureSchema(categorical=[*shared, column("a")]).categorical] == [
        "items",
        "items",
        "a",
    ]
    larger = CategoricalFeature(name="liked", num_embeddings=4, table="items")
    with pytest.raises(UserInputError, match=r"'liked': num_embeddings=4, but another column of table 'items' has 3"):
        FeatureSchema(categorical=[*shared, larger])
    with pytest.raises(UserInputError, match=r"table 'a\.b' of 'a': .*without '\.'"):
        CategoricalFeature(name="a", num_embeddings=3, table="a.b")


def test_features_keep_their_order() -> None:
    assert FeatureSchema(categorical=[column(name) for name in "cab"]).feature_names == ("c", "a", "b")


def test_a_schema_does_not_follow_the_lists_it_was_made_from() -> None:
    columns, dense = [column("a")], ["x"]
    schema = FeatureSchema(categorical=columns, dense=dense)
    columns.append(column("b"))
    dense.append("y")
    assert schema == FeatureSchema(categorical=[column("a")], dense=["x"])
    assert hash(schema) == hash(FeatureSchema(categorical=(column("a"),), dense=("x",)))


def test_a_schema_survives_plain_data() -> None:
    schema = FeatureSchema(
        categorical=[
            CategoricalFeature(name="tags", num_embeddings=7, multi_hot=True, mean_length=2.5),
            CategoricalFeature(name="city", num_embeddings=3_000_000_000, table="places"),
        ],
        dense=["price", "age"],
        weighted=True,
    )
    assert FeatureSchema.from_dict(schema.to_dict()) == schema
    assert FeatureSchema.from_dict(json.loads(json.dumps(schema.to_dict()))) == schema
