import json
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
from jsonargparse import ArgumentParser
from polars.testing import assert_frame_equal

from dmt.datamodules import ClickDataModule, TabularClicks, prepare
from dmt.errors import UserInputError

SIZES = {"train": 60, "valid": 20, "test": 15}
CATEGORICAL = ["color", "code", "flag", "ratio"]
NUMERIC = ["price", "stock"]


def draw(split):
    """A small log with every kind of column, with missing and, outside of training, unseen values."""
    size = SIZES[split]
    rng = np.random.default_rng(list(SIZES).index(split))
    colors = ["red", "green", "blue", None, ""] + (["unseen"] if split != "train" else [])
    return pl.DataFrame(
        {
            "label": rng.integers(0, 2, size),
            "unused": pl.Series([[0]] * size) if split == "nested" else pl.Series(range(size)),
            "color": rng.choice(np.array(colors, dtype=object), size),
            "code": pl.Series(rng.choice([1.0, 2.0, 30.0, np.nan], size)),
            "flag": rng.integers(0, 2, size).astype(bool),
            "ratio": rng.choice([0.25, 1e-7, 3.0], size),
            "price": rng.lognormal(3, 2, size),
            "stock": pl.Series(rng.choice([1.5, 2.5, np.nan, np.inf], size)),
        }
    )


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "log"
    path.mkdir()
    for split in SIZES:
        draw(split).write_parquet(path / f"{split}.parquet")
    return path


def make(path, **options):
    return TabularClicks(**({"path": path, "categorical": CATEGORICAL, "numeric": NUMERIC} | options))


def ready(path, **options):
    data = make(path, **options)
    data.prepare_data()
    data.setup()
    return data


def arrays(data):
    return {(split, name): getattr(a, name) for split, a in data._splits.items() for name in ("dense", "ids", "labels")}


def assert_same(one, other):
    one, other = arrays(one), arrays(other)
    assert one.keys() == other.keys()
    for key, array in one.items():
        np.testing.assert_array_equal(array, other[key])


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


def test_csv_gives_the_same_arrays_as_parquet(folder, tmp_path):
    csv = tmp_path / "csv"
    csv.mkdir()
    for split in SIZES:
        draw(split).write_csv(csv / f"{split}.csv")
    assert_same(ready(csv), ready(folder))


def test_text_columns_may_be_dictionary_encoded(folder):
    plain = ready(folder)
    file = folder / "train.parquet"
    pl.read_parquet(file).with_columns(pl.col("color").cast(pl.Categorical)).write_parquet(file)
    assert_same(ready(folder), plain)


def test_the_log_is_prepared_once(folder, cache_home, caplog):
    make(folder).prepare_data()
    assert "Prepared 60 train, 20 valid, 15 test samples of 4 categorical and 2 numeric" in caplog.text
    (prepared,) = (cache_home / "dmt").iterdir()
    changed = (prepared / "meta.json").stat().st_mtime_ns
    caplog.clear()
    data = ready(folder, global_batch_size=3, seed=5)
    assert data.prepared_folder() == prepared
    assert (prepared / "meta.json").stat().st_mtime_ns == changed
    assert not caplog.text
    meta = json.loads((prepared / "meta.json").read_text())
    assert meta["num_samples"] == SIZES
    assert meta["sources"]["test"]["file"] == str(folder / "test.parquet")


def test_other_options_or_files_are_prepared_anew(folder, cache_home):
    first = ready(folder)
    make(folder, min_count=1).prepare_data()
    make(folder, numeric=[]).prepare_data()
    draw("valid").head(7).write_parquet(folder / "valid.parquet")
    assert str(ready(folder)) == "TabularClicks(train: 60, valid: 7, test: 15)"
    assert len(list((cache_home / "dmt").iterdir())) == 4
    assert len(first._splits["valid"]) == 20


def test_two_processes_may_prepare_at_once(folder, tmp_path, monkeypatch):
    alone = ready(folder, cache_dir=tmp_path / "alone")
    encode = prepare._encode

    def overtaken(*args, **options):
        monkeypatch.setattr(prepare, "_encode", encode)
        make(folder).prepare_data()  # another process starts later and is ready first
        return encode(*args, **options)

    monkeypatch.setattr(prepare, "_encode", overtaken)
    assert_same(ready(folder), alone)
    assert len(list((tmp_path / "cache" / "dmt").iterdir())) == 1


def test_many_threads_prepare_at_once(folder, cache_home):
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: make(folder).prepare_data(), range(4)))
    assert len(list((cache_home / "dmt").iterdir())) == 1


def test_a_failure_leaves_nothing_behind(folder, cache_home):
    draw("test").with_columns(label=7).write_parquet(folder / "test.parquet")
    with pytest.raises(UserInputError, match=r"test.parquet: column 'label': the label of row 1 is 7"):
        make(folder).prepare_data()
    assert list((cache_home / "dmt").iterdir()) == []


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
    assert_frame_equal(vocabulary.select("count"), expected.select("count"))


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
        ({"cache_dir": "/proc/nowhere"}, "cache_dir=/proc/nowhere: .*; give a writable folder"),
    ],
)
def test_wrong_options(folder, options, message):
    with pytest.raises(UserInputError, match=message) as caught:
        make(**({"path": folder} | options)).prepare_data()
    assert "\n" not in str(caught.value)


def write_garbage(folder):
    (folder / "train.parquet").write_bytes(b"PAR1 garbage PAR1")


def write_half(folder):
    file = folder / "train.parquet"
    file.write_bytes(file.read_bytes()[:-40])


def write_lists(folder):
    draw("valid").with_columns(color=pl.Series([["red"]] * 20)).write_parquet(folder / "valid.parquet")


def write_nested_lists(folder):
    draw("train").with_columns(color=pl.Series([[[1]]] * 60)).write_parquet(folder / "train.parquet")


def write_missing_label(folder):
    draw("valid").with_columns(label=None).write_parquet(folder / "valid.parquet")


def write_missing_numbers(folder):
    draw("train").with_columns(price=pl.lit(None, pl.Float64)).write_parquet(folder / "train.parquet")


def write_no_rows(folder):
    draw("test").head(0).write_parquet(folder / "test.parquet")


def write_header_only(folder):
    (folder / "train.parquet").unlink()
    draw("train").head(0).write_csv(folder / "train.csv")


def write_zero_bytes(folder):
    (folder / "train.parquet").unlink()
    (folder / "train.csv").write_bytes(b"")


def write_ragged_csv(folder):
    (folder / "train.parquet").unlink()
    text = draw("train").write_csv()
    (folder / "train.csv").write_text(text + "1,2,3,4,5,6,7,8,9,10\n")


def write_latin_csv(folder):
    (folder / "train.parquet").unlink()
    (folder / "train.csv").write_bytes(draw("train").write_csv().replace("red", "r\xe9d").encode("latin-1"))


def write_both(folder):
    draw("train").write_csv(folder / "train.csv")


def write_schema_change(folder):
    draw("valid").drop("price").write_parquet(folder / "valid.parquet")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (write_garbage, "train.parquet: cannot be read as parquet"),
        (write_half, "train.parquet: cannot be read as parquet"),
        (write_lists, "valid.parquet: column 'color': holds lists, but none in training; convert the column"),
        (write_nested_lists, r"train.parquet: column 'color': holds List\(Int64\), needs text, integer"),
        (write_missing_label, "valid.parquet: column 'label': the label of row 1 is missing; labels must be"),
        (write_missing_numbers, "train.parquet: column 'price': every value is missing"),
        (write_no_rows, "test.parquet: the file has no rows"),
        (write_header_only, "train.csv: the file has no rows"),
        (write_zero_bytes, r"train.csv: the file is empty \(0 bytes\)"),
        (write_ragged_csv, "train.csv: cannot be read as csv"),
        (write_latin_csv, "train.csv: cannot be read as csv"),
        (write_both, "train_file=train: .* holds both train.parquet and train.csv; give the name with"),
        (write_schema_change, "valid.parquet: no column 'price'"),
    ],
)
def test_wrong_files(folder, spoil, message):
    spoil(folder)
    with pytest.raises(UserInputError, match=message) as caught:
        make(folder).prepare_data()
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
