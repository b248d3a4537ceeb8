import json
import os
import resource
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
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


def folders(cache_home):
    """The prepared logs; beside them is told what was checked."""
    return [path for path in (cache_home / "dmt").iterdir() if path.is_dir()]


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
    (prepared,) = folders(cache_home)
    changed = (prepared / "meta.json").stat().st_mtime_ns
    caplog.clear()
    data = ready(folder, global_batch_size=3, seed=5)
    assert data.prepared_folder() == prepared
    assert (prepared / "meta.json").stat().st_mtime_ns == changed
    assert not caplog.text
    meta = json.loads((prepared / "meta.json").read_text())
    assert meta["num_samples"] == SIZES
    assert [file["file"] for file in meta["sources"]["test"]] == [str(folder / "test.parquet")]


def test_other_options_or_files_are_prepared_anew(folder, cache_home):
    first = ready(folder)
    make(folder, min_count=1).prepare_data()
    make(folder, numeric=[]).prepare_data()
    draw("valid").head(7).write_parquet(folder / "valid.parquet")
    assert str(ready(folder)) == "TabularClicks(train: 60, valid: 7, test: 15)"
    assert len(folders(cache_home)) == 4
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
    assert len(folders(tmp_path / "cache")) == 1


def test_many_threads_prepare_at_once(folder, cache_home):
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: make(folder).prepare_data(), range(4)))
    assert len(folders(cache_home)) == 1


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


def write_cut_csv(folder):
    (folder / "train.parquet").unlink()
    lines = draw("train").with_columns(color=pl.lit("dark\nred"), stock=None).write_csv().splitlines(keepends=True)
    (folder / "train.csv").write_text("".join(lines[:5]) + "1,red\n" + "".join(lines[5:]))  # a row has two lines


def write_csv_with_cut_end(folder):
    (folder / "train.parquet").unlink()
    (folder / "train.csv").write_text(draw("train").write_csv() + "1,red")


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
        (write_cut_csv, "train.csv: line 6 has 2 of 8 cells; complete it, or remove it"),
        (write_csv_with_cut_end, "train.csv: line 62 has 2 of 8 cells; complete it, or remove it"),
        (write_latin_csv, "train.csv: cannot be read as csv"),
        (write_both, "train_file=train: .* holds both train.parquet and train.csv; remove one, or give"),
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


def test_empty_cells_at_the_end_of_lines_are_missing_values(tmp_path):
    (tmp_path / "train.csv").write_text('label,code,color\n1,a,\n0,"b\nc",\n1,b,""\n1,b,red')
    data = ready(tmp_path, categorical=["color"], numeric=[], min_count=1)
    assert data._splits["train"].ids[:, 0].tolist() == [0, 0, 0, 2]


def cut(file):
    file.write_bytes(file.read_bytes()[:-20])


def flip(file):
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def write_foreign_ids(file):
    np.save(file, np.full_like(np.load(file), 10**6))


@pytest.mark.parametrize(
    ("damage", "name"),
    [
        (cut, "train/ids.npy"),
        (cut, "vocabulary.parquet"),
        (cut, "meta.json"),
        (cut, "checksums.json"),
        (Path.unlink, "valid/dense.npy"),
        (Path.unlink, "meta.json"),
        (Path.unlink, "checksums.json"),
        (flip, "test/labels.npy"),
        (write_foreign_ids, "train/ids.npy"),
    ],
)
def test_a_damaged_cache_is_prepared_again(folder, cache_home, caplog, damage, name):
    wanted = ready(folder)
    wanted = {key: np.array(array) for key, array in arrays(wanted).items()}
    (prepared,) = folders(cache_home)
    damage(prepared / name)
    caplog.clear()
    data = make(folder)
    data.prepare_data()
    notice, *others = [record.message for record in caplog.records]
    assert str(prepared / name) in notice and notice.endswith(f": making {prepared} again") and "\n" not in notice
    assert len(others) == 1
    data.setup()
    assert len(caplog.records) == 2
    for key, array in arrays(data).items():
        np.testing.assert_array_equal(array, wanted[key])
    assert folders(cache_home) == [prepared]


def test_a_log_is_checked_by_the_rank_that_prepares_it(folder, monkeypatch):
    make(folder).prepare_data()
    monkeypatch.setattr("dmt.datamodules.checksums._checksum", lambda file: pytest.fail(f"{file} is read again"))
    make(folder).setup()


def test_threads_that_find_the_cache_damaged_together(folder, cache_home):
    wanted = {key: np.array(array) for key, array in arrays(ready(folder)).items()}
    (prepared,) = folders(cache_home)
    flip(prepared / "train" / "labels.npy")
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: make(folder).prepare_data(), range(4)))
    for key, array in arrays(ready(folder)).items():
        np.testing.assert_array_equal(array, wanted[key])
    assert folders(cache_home) == [prepared]


def test_a_damaged_cache_without_its_source_is_told_of(folder, cache_home):
    data = ready(folder)
    cut(data.prepared_folder() / "meta.json")
    (folder / "valid.parquet").unlink()
    with pytest.raises(UserInputError, match=r"valid.parquet: cannot be read as parquet \(.*No such file"):
        data.prepare_data()


def test_a_full_disk(folder, cache_home, monkeypatch):
    def write_parquet(frame, file):
        file.write_bytes(b"half")
        raise pl.exceptions.ComputeError("parquet: underlying IO error: No space left on device (os error 28)")

    with monkeypatch.context() as patch:
        patch.setattr(pl.DataFrame, "write_parquet", write_parquet)
        with pytest.raises(UserInputError, match=r"^cache_dir=.*dmt: No space left on device; free some space$"):
            make(folder).prepare_data()
    assert folders(cache_home) == []
    # Numpy says nothing but that a write was short.
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    draw("train").sample(20_000, with_replacement=True, seed=0).write_parquet(folder / "train.parquet")
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    try:
        with pytest.raises(UserInputError, match=r"^cache_dir=.*dmt: No space left on device; free some space$"):
            make(folder).prepare_data()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert folders(cache_home) == []
    make(folder).prepare_data()


def test_other_errors_of_polars_are_not_taken_for_a_full_disk(folder, monkeypatch):
    def write_parquet(frame, file):
        raise pl.exceptions.ComputeError("a fault of ours")

    monkeypatch.setattr(pl.DataFrame, "write_parquet", write_parquet)
    with pytest.raises(pl.exceptions.ComputeError, match="a fault of ours"):
        make(folder).prepare_data()


FORMS = {
    "numbered": "train-{0:05}-of-00003{1}",
    "folder": "train/part-{0}{1}",
    "folder with ending": "train{1}/part-{0}{1}",
}


def write_parts(folder, form, *, ending=".parquet", frame=None):
    """Write the training split in three parts."""
    frame = draw("train") if frame is None else frame
    (folder / "train.parquet").unlink()
    files = [folder / FORMS[form].format(number, ending) for number in range(3)]
    files[0].parent.mkdir(exist_ok=True)
    for number, file in enumerate(files):
        part = frame[number * 20 : number * 20 + 20]
        {".parquet": part.write_parquet, ".arrow": part.write_ipc, ".csv": part.write_csv}[ending](file)
    return files


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("ending", [".parquet", ".arrow", ".csv"])
def test_a_split_may_be_several_files(folder, form, ending):
    wanted = ready(folder)
    before = wanted.prepared_folder()
    files = write_parts(folder, form, ending=ending)
    if form != "numbered":
        (files[0].parent / "_SUCCESS").touch()
        (files[0].parent / "._part-0.parquet").touch()
    assert_same(ready(folder), wanted)
    names = {"numbered": "train", "folder": "train", "folder with ending": f"train{ending}"}
    assert_same(ready(folder, train_file=names[form]), wanted)
    os.utime(files[1], ns=(1, 1))
    parts = ready(folder)
    os.utime(files[2], ns=(1, 1))
    assert len({before, parts.prepared_folder(), parts._folder}) == 3


def test_a_part_may_have_missing_values_alone(folder):
    frame = draw("train").with_columns(color=pl.Series([None] * 20 + ["red"] * 40))
    frame.write_parquet(folder / "train.parquet")
    wanted = ready(folder)
    files = write_parts(folder, "folder", frame=frame)
    pl.read_parquet(files[0]).with_columns(color=pl.lit(None)).write_parquet(files[0])
    assert_same(ready(folder), wanted)


@pytest.mark.parametrize(
    ("form", "spoil", "message"),
    [
        ("numbered", lambda files: files[1].unlink(), "train_file=train: train-00001-of-00003.parquet is missing in"),
        (
            "numbered",
            lambda files: files[1].rename(files[1].with_name("train-00001-of-00002.parquet")),
            "train_file=train: .* holds parts of 00002 and of 00003; remove those of one kind",
        ),
        (
            "numbered",
            lambda files: draw("train").write_parquet(files[0].with_name("train.parquet")),
            "train_file=train: .* holds both train.parquet and train-00000-of-00003.parquet; remove one",
        ),
        ("folder", lambda files: files[1].rename(files[1].with_suffix(".csv")), "holds both .csv and .parquet files"),
        (
            "folder",
            lambda files: [file.rename(file.with_suffix(".json")) for file in files],
            "train_file=train: the folder .*train holds no parquet, arrow or csv file; add one",
        ),
        (
            "folder",
            lambda files: pl.read_parquet(files[1]).drop("price").write_parquet(files[1]),
            "part-1.parquet: no column 'price'",
        ),
        (
            "folder",
            lambda files: pl.read_parquet(files[2]).with_columns(price=pl.lit("a")).write_parquet(files[2]),
            "part-2.parquet: column 'price' holds String, but Float64 in part-0.parquet; write them alike",
        ),
        (
            "folder",
            lambda files: pl.read_parquet(files[2]).with_columns(label=pl.lit(7, pl.Int64)).write_parquet(files[2]),
            r"part-0.parquet to part-2.parquet: column 'label': the label of row 41 is 7",
        ),
    ],
)
def test_wrong_parts(folder, form, spoil, message):
    spoil(write_parts(folder, form))
    with pytest.raises(UserInputError, match=message) as caught:
        make(folder).prepare_data()
    assert "\n" not in str(caught.value)
