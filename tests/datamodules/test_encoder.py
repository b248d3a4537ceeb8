from decimal import Decimal

import numpy as np
import polars as pl
import pytest

from dmt.datamodules.columns import ColumnNames, count_categories, to_label, to_number
from dmt.datamodules.encoder import NumericScale, TabularEncoder
from dmt.errors import UserInputError


def categories(values, dtype=None):
    """Category of every distinct value, by value."""
    counts = count_categories(pl.Series("column", values, dtype=dtype))
    return dict(zip(counts["value"], counts["category"], strict=True))


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        (pl.Int8, 3),
        (pl.UInt64, 3),
        (pl.Float32, 3.0),
        (pl.Float64, 3.0),
        (pl.Decimal(10, 2), Decimal("3.00")),
        (pl.String, "3"),
        (pl.String, "3.0"),
        (pl.Categorical, "3"),
        (pl.Enum(["3"]), "3"),
    ],
)
def test_a_whole_number_is_one_category_in_every_type(dtype, value):
    assert categories([value], dtype) == {value: "3"}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.5, -0.0, -2.0, 1e20], {0.5: "0.5", -0.0: "0", -2.0: "-2", 1e20: "1e+20"}),
        ([True, False], {True: "true", False: "false"}),
        (["True", "FALSE", "true"], {"True": "true", "FALSE": "false", "true": "true"}),
        (["007", "1.50", "a.0", " x"], {"007": "007", "1.50": "1.50", "a.0": "a.0", " x": " x"}),
        (["", None, "a"], {"": None, None: None, "a": "a"}),
        ([2**53 + 1, None], {2**53 + 1: "9007199254740993", None: None}),
        ([None, None], {None: None}),
        ([], {}),
    ],
)
def test_categories(values, expected):
    assert categories(values) == expected


def test_not_a_number_is_missing():
    counts = count_categories(pl.Series("column", [float("nan"), None, 1.0]))
    assert sorted(counts["category"].to_list(), key=str) == ["1", None, None]


@pytest.mark.parametrize("convert", [count_categories, to_number])
def test_other_types_are_named(convert):
    with pytest.raises(UserInputError, match=r"'column': holds Date, needs .*; convert the column"):
        convert(pl.Series("column", [0], dtype=pl.Date))


def test_numbers_of_every_type():
    for values in ([1, 0, None], [True, False, None], [1.0, 0.0, float("nan")], [1.0, 0.0, float("-inf")]):
        assert to_number(pl.Series("column", values)).to_list() == [1.0, 0.0, None]
    texts = pl.Series("column", ["1e3", " -2 ", "true", "", "inf", None])
    assert to_number(texts).to_list() == [1000.0, -2.0, 1.0, None, None, None]
    with pytest.raises(UserInputError, match="'column': 'n/a' is not a number"):
        to_number(pl.Series("column", ["1", "n/a", "b"]))


@pytest.mark.parametrize("values", [[1, 0], [1.0, 0.0], [True, False], ["1", "0"], ["1.0", "0"]])
def test_labels(values):
    labels = to_label(pl.Series("click", values))
    assert labels.dtype == pl.UInt8
    assert labels.to_list() == [1, 0]


@pytest.mark.parametrize(
    ("values", "found"),
    [([0, 1, 2, 3], "row 3 is 2"), ([0.5], "row 1 is 0.5"), ([1, None], "row 2 is missing"), ([-1], "is -1")],
)
def test_wrong_labels(values, found):
    with pytest.raises(UserInputError, match=f"column 'click': the label of .*{found}; labels must be 0 or 1"):
        to_label(pl.Series("click", values))


def fit(frame, *, min_count=1, numeric=()):
    categorical = [name for name in frame.columns if name not in numeric]
    columns = ColumnNames(categorical=categorical, numeric=numeric, label="label")
    return TabularEncoder.fit(frame, columns=columns, min_count=min_count)


def test_ids_are_by_frequency_then_text_after_missing_and_unseen():
    train = pl.DataFrame({"color": ["red", "blue", "green", "red", None, "", "once", "blue", "green"]})
    encoder = fit(train, min_count=2)
    assert encoder.vocabularies["color"]["value"].to_list() == ["blue", "green", "red"]
    assert encoder.schema.categorical[0].num_embeddings == 5
    later = pl.DataFrame({"color": ["blue", "green", "red", None, "", "once", "never"]})
    assert encoder.encode(later)[1][:, 0].tolist() == [2, 3, 4, 0, 0, 1, 1]


def test_types_may_differ_between_training_and_later_files():
    encoder = fit(pl.DataFrame({"code": [3, 3, 7]}))
    for values in ([7.0, 3.0, float("nan")], ["7", "3.0", None], [7, 3, None]):
        assert encoder.encode(pl.DataFrame({"code": values}))[1][:, 0].tolist() == [3, 2, 0]


def test_spellings_of_one_category_are_counted_together():
    encoder = fit(pl.DataFrame({"code": ["5", "5.0", "6"]}), min_count=2)
    assert encoder.vocabularies["code"].rows() == [("5", 2, 2)]


def test_numbers_are_normalised_by_training():
    train = pl.DataFrame({"c": ["a"] * 4, "x": [1.0, 2.0, 3.0, None], "y": [1, 2, 3, 4]})
    encoder = fit(train, numeric=["x", "y"])
    assert encoder.schema.dense == ("x", "x:missing", "y")
    dense, _, _ = encoder.encode(train)
    assert dense.dtype == np.float32
    present = dense[:3, 0]
    assert present.mean() == pytest.approx(0, abs=1e-6)
    assert present.std() == pytest.approx(1, abs=1e-6)
    assert dense[:, 1].tolist() == [0, 0, 0, 1]
    assert dense[3, 0] == 0
    later = pl.DataFrame({"c": ["a"] * 3, "x": [float("inf"), 1e9, -1e9], "y": [2.5, None, 4]})
    assert encoder.encode(later)[0][:, :2].tolist() == [[0, 1], [10, 0], [-10, 0]]
    assert encoder.encode(later)[0][:2, 2].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("values", "is_log"),
    [
        ([1, 2, 3, 4, 5], False),
        ([0, 0, 1, 1, 2, 5000], True),
        ([-5000, 0, 0, 1, 1, 2], False),
        ([1e300, 1e-300, 1.0], True),
        ([7, 7, 7], True),
    ],
)
def test_a_tail_of_large_values_is_logged(values, is_log):
    column = pl.Series("x", values, dtype=pl.Float64)
    scale = NumericScale.fit(column)
    assert scale.is_log == is_log
    (encoded,) = scale.encode(column)
    assert np.isfinite(encoded).all()


def test_a_numeric_column_needs_a_value():
    with pytest.raises(UserInputError, match="'x': every value is missing; leave it out of numeric"):
        NumericScale.fit(pl.Series("x", [None, float("nan"), float("inf")]))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"categorical": ["a", "b", "a"]}, "column 'a' is named more than once"),
        ({"categorical": ["a"], "numeric": ["a"]}, "column 'a' is named more than once"),
        ({"categorical": ["a", "click"]}, "label=click: also listed as a feature"),
        ({"categorical": ["a"], "numeric": ["click"]}, "label=click: also listed as a feature"),
        ({"categorical": []}, "no categorical columns"),
        ({"categorical": ["a.b"]}, "without '.'"),
        ({"categorical": "abc"}, r"categorical=abc: give a list of column names, for example \[abc\]"),
    ],
)
def test_wrong_names(names, message):
    with pytest.raises(UserInputError, match=message):
        ColumnNames(**({"numeric": [], "label": "click"} | names))
