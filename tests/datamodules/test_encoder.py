import os
from decimal import Decimal
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from dmt.datamodules.arrays import Bags
from dmt.datamodules.columns import ColumnNames, categories_of, count_values, to_label, to_number
from dmt.datamodules.encoder import TabularLearner
from dmt.datamodules.vocabulary import VocabularyLearner
from dmt.errors import UserInputError


def categories(values, dtype=None):
    """Category of every distinct value, by value."""
    counts = categories_of(count_values(pl.Series("column", values, dtype=dtype)))
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


def test_short_floats_are_told_apart():
    assert categories([0.25, 0.75, 1.5, 2.0], pl.Float16) == {0.25: "0.25", 0.75: "0.75", 1.5: "1.5", 2.0: "2"}


def test_not_a_number_is_missing():
    counts = categories_of(count_values(pl.Series("column", [float("nan"), None, 1.0])))
    assert sorted(counts["category"].to_list(), key=str) == ["1", None, None]


@pytest.mark.parametrize("convert", [count_values, to_number])
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


def fit(*frames, min_count=1, numeric=(), weights=None):
    categorical = [name for name in frames[0].columns if name not in [*numeric, *(weights or {}).values()]]
    columns = ColumnNames(categorical=categorical, numeric=numeric, label="label", weights=weights or {})
    learner = TabularLearner(columns)
    for frame in frames:
        learner.add(frame)
    return learner.encoder(min_count=min_count)


def cut(frame):
    """The rows in parts of random sizes, some of which have none."""
    limits = np.sort(np.random.default_rng().integers(0, len(frame) + 1, 5))
    return [frame[start:end] for start, end in pairwise([0, *limits.tolist(), len(frame)])]


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


def test_columns_in_order_may_have_missing_values():
    values = pl.Series("code", [2.0, float("nan"), 0.5, None, 2.0])
    encoder = fit(values.to_frame())
    for nulls_last in (True, False):
        ordered = values.sort(nulls_last=nulls_last)
        wanted = [{2.0: 2, 0.5: 3}.get(value, 0) for value in ordered]
        assert encoder.encode(ordered.to_frame())[1][:, 0].tolist() == wanted


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


def draw_rows(size):
    """Rows with every type of column, and with missing values."""
    rng = np.random.default_rng()
    words = [*"abcdefgh", "5", "5.0", "", None]
    lists = [[words[i] for i in rng.integers(0, len(words), rng.integers(0, 4))] for _ in range(size)]
    texts = pl.Series([words[i] for i in rng.integers(0, len(words), size)])
    return pl.DataFrame(
        {
            "text": texts,
            "dictionary": texts.cast(pl.Categorical),
            "enum": texts.cast(pl.Enum([word for word in words if word is not None])),
            "whole": rng.integers(-9, 9, size),
            "float": rng.choice([0.5, 2.0, -0.0, 0.0, np.nan, 1e20], size),
            "decimal": pl.Series(rng.integers(0, 300, size)).cast(pl.Decimal(10, 2)) / 100,
            "flag": rng.choice([True, False, None], size).tolist(),
            "none": pl.Series([None] * size),
            "list": pl.Series([None if rng.random() < 0.1 else bag for bag in lists], dtype=pl.List(pl.String)),
            "pair": pl.Series(rng.integers(0, 9, (size, 2)), dtype=pl.Array(pl.Int64, 2)),
            "number": pl.Series([None if value < 0.5 else value for value in rng.lognormal(1, 1, size)]),
        }
    )


@pytest.mark.parametrize("max_waiting", [1, 10**6])
@pytest.mark.parametrize("min_count", [1, 3])
def test_parts_of_the_rows_teach_what_all_of_them_do(min_count, max_waiting, monkeypatch):
    # Counts are merged after each part, or at the end alone.
    monkeypatch.setattr("dmt.datamodules.vocabulary._MAX_WAITING", max_waiting)
    frame = draw_rows(300)
    wanted, found = (fit(*parts, min_count=min_count, numeric=["number"]) for parts in ([frame], cut(frame)))
    assert found.mean_lengths == wanted.mean_lengths
    for name, vocabulary in wanted.vocabularies.items():
        assert found.vocabularies[name].equals(vocabulary)
    assert found.equals(wanted) and wanted.equals(found)
    assert not found.equals(fit(frame[1:], frame[:1].with_columns(number=1e3), numeric=["number"]))
    dense, ids, bags = wanted.encode(frame)
    parts = [found.encode(part) for part in cut(frame)]
    # Scales differ by rounding, some 1e-15; a float32 may then be the next one.
    np.testing.assert_allclose(np.concatenate([part[0] for part in parts]), dense, rtol=2e-7, atol=1e-7)
    assert np.array_equal(np.concatenate([part[1] for part in parts]), ids)
    for name, bag in bags.items():
        joined = Bags.concatenate([part[2][name] for part in parts])
        assert np.array_equal(joined.values, bag.values) and np.array_equal(joined.offsets, bag.offsets)


def test_counts_may_be_larger_than_32_bits(monkeypatch):
    learner = VocabularyLearner()
    monkeypatch.setattr(
        "dmt.datamodules.vocabulary.count_values",
        lambda column: count_values(column).with_columns(pl.col("count") * 2**31),
    )
    for _ in range(3):
        learner.add(pl.Series(["5", "5.0"]))
    assert learner.vocabulary(min_count=2).rows() == [("5", 6 * 2**31, 2)]


def test_counts_do_not_keep_the_text_of_all_rows():
    def memory_bytes():
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")

    words = pl.Series([str(index) * 500 for index in range(1, 9)])
    before, learner = memory_bytes(), VocabularyLearner()
    for _ in range(40):
        rows = words.gather(np.random.default_rng().integers(0, 8, 20_000))
        learner.add(rows + "")  # text of its own, 10 MB, as a reader makes it
    # Rather than 400 MB; a few parts' memory may not have been given back yet.
    assert memory_bytes() - before < 150e6
    assert learner.vocabulary(min_count=1)["count"].sum() == 800_000


@pytest.mark.parametrize(
    ("share", "message"),
    [([0.5], "row 8 has 1 weights for 2 ids of 'list'"), ([0.5, None], "'share': a weight of row 8 is missing")],
)
def test_rows_before_count_in_messages(share, message):
    frame = pl.DataFrame({"list": [["a"], ["a", "b"]], "share": [[1.0], [0.5, 0.5]]})
    encoder = fit(frame, weights={"list": "share"})
    assert encoder.encode(frame)[2]["list"].weights.tolist() == [1.0, 0.5, 0.5]
    with pytest.raises(UserInputError, match=message):
        encoder.encode(frame.with_columns(share=pl.Series([[1.0], share])), rows_before=6)
    with pytest.raises(UserInputError, match="the label of row 8 is 3"):
        to_label(pl.Series("label", [1, 3]), rows_before=6)


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
