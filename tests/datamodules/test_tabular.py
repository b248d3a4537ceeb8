"""Splits, schema and encoder of users' own click logs, and their options."""

import shutil
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
from jsonargparse import ArgumentParser
from polars.testing import assert_frame_equal

from dmt.datamodules import ClickDataModule, TabularClicks, prepare
from dmt.errors import UserInputError
from tests.datamodules.tabular_cases import CATEGORICAL, draw, make, ready


def test_batches_hold_the_log(folder):
    data = ready(folder, global_batch_size=16)
    assert str(data) == "TabularClicks(train: 60, valid: 20, test: 15)"
    assert data.schema.feature_names == tuple(CATEGORICAL)
    assert data.schema.dense == ("price", "stock", "stock:missing")
    batches = list(data.val_dataloader())
    labels = np.concatenate([batch.labels for batch in batches])
    assert labels.tolist() == draw("valid")["label"].to_list()
    assert [len(batch.labels) for batch in batches] == [16, 4]
    for feature, column in zip(data.schema.categorical, data._splits["valid"].ids.T, strict=True):
        assert 0 <= column.min() <= column.max() < feature.num_embeddings
    colors = draw("valid")["color"].to_list()
    ids = data._splits["valid"].ids[:, 0]
    assert {c: int(i) for c, i in zip(colors, ids, strict=True) if c in (None, "", "unseen")} == {
        None: 0,
        "": 0,
        "unseen": 1,
    }


def test_every_rank_meets_the_error_of_the_rank_that_prepares(folder):
    (folder / "train.parquet").write_bytes(b"")
    data = make(folder)
    data.trainer = SimpleNamespace(world_size=2)
    data.prepare_data()  # the other ranks wait for this one: no error yet
    with pytest.raises(UserInputError, match="0 bytes"):
        data.setup()


def test_the_encoder_is_kept_for_later_rows(folder):
    data = ready(folder)
    assert make(folder).prepared_folder() == data.prepared_folder()
    encoder = prepare.encoder_of(prepare.encoder_state(data.prepared_folder()))
    assert encoder.schema == data.schema
    dense, ids, bags = encoder.encode(draw("test"))
    assert not bags
    np.testing.assert_array_equal(ids, data._splits["test"].ids)
    np.testing.assert_array_equal(dense, data._splits["test"].dense)
    vocabulary = encoder.vocabularies["code"]
    expected = draw("train")["code"].drop_nans().value_counts().sort("count", descending=True)
    assert_frame_equal(vocabulary.select("count"), expected.select("count"), check_dtypes=False)


def test_a_checkpoint_has_the_encoder_of_the_log_that_was_set_up(folder):
    data = ready(folder)
    wanted = data.state_dict()["encoder"]
    shutil.rmtree(data.prepared_folder())  # is made again
    assert data.state_dict()["encoder"]["meta"] == wanted["meta"]
    draw("train").with_columns(color=pl.lit("other")).write_parquet(folder / "train.parquet")
    assert data.state_dict()["encoder"]["meta"] == wanted["meta"]
    (folder / "train.parquet").unlink()
    assert data.state_dict()["encoder"]["meta"] == wanted["meta"]


def test_schema_is_known_after_prepare_data(folder):
    data = make(folder)
    with pytest.raises(RuntimeError, match="schema is known after"):
        _ = data.schema
    data.prepare_data()
    assert data.schema.feature_names == tuple(CATEGORICAL)


def test_valid_and_test_files_may_be_absent(folder):
    (folder / "valid.parquet").unlink()
    (folder / "test.parquet").unlink()
    data = ready(folder)
    assert len(data.train_dataloader()) == 1
    with pytest.raises(UserInputError, match=r"valid_file=valid: no valid.parquet, valid.arrow or .* in .*limit_val_b"):
        data.val_dataloader()
    with pytest.raises(UserInputError, match=r"test_file=test: no test.parquet, test.arrow or .* in .*; add the file"):
        data.test_dataloader()


def test_files_may_have_other_names(folder):
    (folder / "valid.parquet").rename(folder / "late.parquet")
    draw("test").write_csv(folder / "test.csv")
    data = ready(folder, valid_file="late", test_file="test.csv")
    assert str(data) == "TabularClicks(train: 60, valid: 20, test: 15)"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": "/nowhere"}, "path=/nowhere: no such folder; give the folder"),
        (
            {"train_file": "trian"},
            "train_file=trian: no trian.parquet or trian.arrow or trian.csv in .*test.parquet, train.parq",
        ),
        ({"valid_file": "late.csv"}, "valid_file=late.csv: no late.csv in "),
        (
            {"train_file": "train.json"},
            "train_file=train.json: the type .json is not supported; give .parquet, .arrow",
        ),
        ({"categorical": ["colour"]}, "train.parquet: no column 'colour'; did you mean 'color'?"),
        ({"label": "zzz"}, "no column 'zzz'; the columns are label, unused, color"),
        ({"categorical": ["color", "color"]}, "column 'color' is named more than once"),
        ({"categorical": ["label"]}, "label=label: also listed as a feature"),
        (
            {"categorical": ["code"], "numeric": ["color"]},
            "train.parquet: column 'color': '[a-z]+' is not a number",
        ),
        ({"global_batch_size": 0}, "global_batch_size=0: give at least 1"),
        ({"min_count": 0}, "min_count=0: give at least 1"),
        ({"min_count": "2"}, "min_count='2': give a whole number of at least 1"),
        ({"categorical": [1, 2]}, r"categorical=\[1, 2\]: give a list of column names"),
        ({"categorical": None}, "categorical=None: give a list of column names"),
        ({"numeric": 3}, "numeric=3: give a list of column names"),
        ({"weights": ["color"]}, r"weights=\['color'\]: give the column of weights by name of column"),
        ({"cache_dir": "/proc/nowhere"}, "cache_dir=/proc/nowhere: .*; give a writable folder"),
    ],
)
def test_wrong_options(folder, options, message):
    with pytest.raises(UserInputError, match=message) as caught:
        make(**({"path": folder} | options)).prepare_data()
    assert "\n" not in str(caught.value)


def test_a_file_is_not_a_folder(folder):
    with pytest.raises(UserInputError, match=r"path=.*train.parquet: is not a folder; give the folder that"):
        make(folder / "train.parquet")


def test_options_can_be_given_as_yaml(folder):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(ClickDataModule, "data")
    arguments = ["--data=TabularClicks", f"--data.path={folder}", "--data.categorical=[color, code]"]
    data = parser.instantiate(parser.parse_args(arguments)).data
    assert isinstance(data, TabularClicks)
    assert data.columns.categorical == ["color", "code"]
    assert not data.columns.numeric
