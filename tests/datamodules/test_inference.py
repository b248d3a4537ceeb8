"""What a log's columns are taken for, and datasets and Arrow files as logs."""

import datetime
from pathlib import Path

import datasets
import numpy as np
import polars as pl
import pytest
import yaml

from dmt.cli import main
from dmt.datamodules import TabularClicks
from dmt.datamodules.inference import guess_columns, infer_config


def draw(size: int = 400) -> pl.DataFrame:
    rng = np.random.default_rng()
    return pl.DataFrame(
        {
            "clicked": rng.integers(0, 2, size),
            "color": [("red", "green", None)[index] for index in rng.integers(0, 3, size)],
            "user_id": rng.permutation(size) + 10**6,
            "hour": rng.integers(0, 24, size),
            "age": rng.permutation(size).astype(float),
            "price": [None if value < 1 else value for value in rng.lognormal(1, 1, size)],
            "is_new": rng.integers(0, 2, size).astype(bool),
            "tags": [rng.choice(["a", "b"], rng.integers(0, 3)).tolist() for _ in range(size)],
            "same": ["x"] * size,
            "at": [datetime.datetime(2026, 1, 1)] * size,
        }
    )


KINDS = {
    "color": "categorical",
    "user_id": "categorical",
    "hour": "categorical",
    "age": "numeric",
    "price": "numeric",
    "is_new": "categorical",
    "tags": "categorical",
    "same": "left out",
    "at": "left out",
}


def write_log(folder: Path) -> Path:
    folder.mkdir()
    for split in ("train", "valid", "test"):
        draw().write_parquet(folder / f"{split}.parquet")
    return folder


def test_columns_are_told_apart() -> None:
    frame = draw()
    guesses = guess_columns(frame, label="clicked")
    assert {guess.name: guess.kind for guess in guesses} == KINDS
    told = {guess.name: guess.told for guess in guesses}
    missing = frame["color"].null_count() / 400
    assert told["color"] == f"text, 2 distinct, {missing:.1%} missing"
    assert told["user_id"] == "whole numbers, 400 distinct, 0.0% missing"
    assert told["tags"].startswith("lists of text, 2 distinct") and told["at"].startswith("Datetime")


def test_text_of_numbers_is_numbers(tmp_path: Path) -> None:
    frame = draw().drop("tags", "at")
    frame.write_csv(tmp_path / "train.csv")
    config = yaml.safe_load(infer_config(tmp_path, label=None))["init_args"]
    assert config["label"] == "clicked"
    for kind in ("categorical", "numeric"):
        assert config[kind] == [name for name in frame.columns if KINDS.get(name) == kind]


def test_the_command_writes_what_training_reads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_log(tmp_path / "log")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = tmp_path / "columns.yaml"
    main(["preprocess", "tabular", str(folder), "--infer-schema", str(file)])
    assert f"wrote {file}: review it" in capsys.readouterr().out
    assert "# left out: same  (text, 1 distinct, 0.0% missing: it tells nothing)" in file.read_text()
    content = yaml.safe_load(file.read_text())
    data = TabularClicks(**content["init_args"])
    data.setup()
    assert data.schema.feature_names == tuple(name for name, kind in KINDS.items() if kind == "categorical")
    main(["preprocess", "tabular", str(file)])
    assert f"encoded in {data.prepared_folder()}" in capsys.readouterr().out
    main(["describe", "--config", "configs/quickstart.yaml", "--data", str(file)])
    with pytest.raises(SystemExit, match="2"):
        main(["preprocess", "tabular", str(folder), "--infer-schema", str(file)])
    assert "it exists; give another name, or remove it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["none"], "none: no such file; give a data configuration"),
        (["bad.yaml"], "bad.yaml: it does not have class_path and init_args alone; give a data configuration"),
        (["none", "--infer-schema", "new.yaml"], "path=none: no such folder"),
        (["log", "--infer-schema", "new.yaml", "--label", "x"], "--label x: log/train.parquet has no such column"),
        (["unlabeled", "--infer-schema", "new.yaml"], "none of its columns is named label, click"),
        (["log", "--infer-schema", "none/new.yaml"], "there is no folder none; make it"),
    ],
)
def test_wrong_input_is_named(
    words: list[str],
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    write_log(Path("log"))
    Path("unlabeled").mkdir()
    draw().drop("clicked").write_parquet("unlabeled/train.parquet")
    Path("bad.yaml").write_text("path: log\n")
    with pytest.raises(SystemExit, match="2"):
        main(["preprocess", "tabular", *words])
    assert told in capsys.readouterr().err


def options(tmp_path: Path) -> dict[str, object]:
    return {"categorical": ["color", "tags"], "numeric": ["price"], "label": "clicked", "cache_dir": tmp_path / "cache"}


def assert_same(one: TabularClicks, other: TabularClicks) -> None:
    assert one.schema == other.schema
    for split in ("train", "valid", "test"):
        found, wanted = (data._split(split).batch(np.arange(400)) for data in (one, other))
        assert found.dense_features.equal(wanted.dense_features) and found.labels.equal(wanted.labels)
        assert found.sparse_features.values().equal(wanted.sparse_features.values())
        assert found.sparse_features.lengths().equal(wanted.sparse_features.lengths())


@pytest.mark.parametrize("form", ["file", "stream", "saved", "hub"])
def test_arrow_files_and_datasets_are_read_as_parquet_is(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_log(tmp_path / "log")
    frames = {split: pl.read_parquet(folder / f"{split}.parquet") for split in ("train", "valid", "test")}
    other = tmp_path / "other"
    path: Path | str = other
    if form in ("file", "stream"):
        other.mkdir()
        for split, frame in frames.items():
            write = frame.write_ipc if form == "file" else frame.write_ipc_stream
            write(other / f"{split}.arrow")
    else:
        names = {"train": "train", "valid": "validation", "test": "test"}
        tables = {names[split]: datasets.Dataset(frame.to_arrow()) for split, frame in frames.items()}
        datasets.DatasetDict(tables).save_to_disk(other)
    if form == "hub":
        saved = datasets.load_from_disk(other)
        monkeypatch.setattr(datasets, "load_dataset", lambda name: {"owner/clicks": saved}[name])
        path = "hf://datasets/owner/clicks"
    data, wanted = (TabularClicks(path=one, **options(tmp_path)) for one in (path, folder))
    data.setup()
    wanted.setup()
    assert_same(data, wanted)
    assert data.prepared_folder() == TabularClicks(path=path, **options(tmp_path)).prepared_folder()


def test_a_damaged_copy_of_a_dataset_is_made_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tables = {split: datasets.Dataset(draw().to_arrow()) for split in ("train", "valid", "test")}
    datasets.DatasetDict(tables).save_to_disk(tmp_path / "saved")
    wanted = TabularClicks(path=tmp_path / "saved", **options(tmp_path))
    wanted.setup()
    copy = wanted.path / "train.parquet"
    copy.write_bytes(copy.read_bytes()[:-20])
    data = TabularClicks(path=tmp_path / "saved", **options(tmp_path))
    assert f"{copy} has another checksum than it had: making {copy.parent} again" in caplog.text
    data.setup()
    assert_same(data, wanted)


def test_wrong_datasets_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = datasets.Dataset.from_dict({"clicked": [0, 1]})
    datasets.DatasetDict({"all": table}).save_to_disk(tmp_path / "other")
    with pytest.raises(ValueError, match=r"path=.*other: its splits are all; give a dataset with a train split"):
        TabularClicks(path=tmp_path / "other", **options(tmp_path))

    def unreachable(name: str) -> None:
        raise ConnectionError("no way to the hub")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(ValueError, match=r"path=hf://datasets/a/b: ConnectionError: no way to the hub; check the name"):
        TabularClicks(path="hf://datasets/a/b", **options(tmp_path))


@pytest.mark.parametrize("form", ["saved", "hub"])
def test_columns_of_datasets_are_guessed(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    saved = datasets.DatasetDict({"train": datasets.Dataset(draw().to_arrow())})
    saved.save_to_disk(tmp_path / "saved")
    loaded = datasets.load_from_disk(tmp_path / "saved")
    monkeypatch.setattr(datasets, "load_dataset", lambda name: {"owner/clicks": loaded}[name])
    path = str(tmp_path / "saved") if form == "saved" else "hf://datasets/owner/clicks"
    main(["preprocess", "tabular", path, "--infer-schema", str(tmp_path / "columns.yaml")])
    found = yaml.safe_load((tmp_path / "columns.yaml").read_text())["init_args"]
    assert found["path"] == path
    assert found["categorical"] == [name for name, kind in KINDS.items() if kind == "categorical"]
    main(["preprocess", "tabular", str(tmp_path / "columns.yaml")])


def test_names_that_no_table_may_have_and_names_of_several_lines(tmp_path: Path) -> None:
    names = {"color": "a.color", "price": "a.price", "hour": "the\nhour", "same": "a\nb: [", "at": "c: d # e"}
    draw().rename(names).drop("tags").write_parquet(tmp_path / "train.parquet")
    text = infer_config(tmp_path, label=None)
    assert "# left out: a.color  (text, 2 distinct, " in text
    assert "missing: a table needs a name without '.'; rename it)" in text
    assert '# left out: "a\\nb: ["  (' in text
    config = yaml.safe_load(text)["init_args"]
    assert config["categorical"] == ["user_id", "the\nhour", "is_new"]
    assert config["numeric"] == ["age", "a.price"]
    data = TabularClicks(**config, cache_dir=tmp_path / "cache")
    data.setup()


def write_config(file: Path, **options: object) -> None:
    init_args = {"path": "log", "categorical": ["color"], "label": "clicked"} | options
    file.write_text(yaml.safe_dump({"class_path": "dmt.datamodules.TabularClicks", "init_args": init_args}))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"weights": ["a"]}, "weights=['a']: give a value of type dict[str, str] | None"),
        ({"global_batch_size": "abc"}, "global_batch_size=abc: give a value of type int"),
        ({"global_batch_size": 1.5}, "global_batch_size=1.5: give a value of type int"),
        ({"global_batch_size": 0}, "global_batch_size=0: give at least 1"),
        ({"categorical": [1, 2]}, "categorical=[1, 2]: give a value of type Sequence[str]"),
        ({"categorical": None}, "the following arguments are required: categorical; the options are path, categorical"),
        ({"categorical": "color"}, "categorical=color: give a value of type Sequence[str]"),
        ({"colors": 1}, "Option 'colors' is not accepted; the options are path, categorical"),
    ],
)
def test_wrong_options_of_a_configuration(
    options: dict[str, object],
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    write_log(Path("log"))
    write_config(Path("columns.yaml"), **options)
    with pytest.raises(SystemExit, match="2"):
        main(["preprocess", "tabular", "columns.yaml"])
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (
            b"class_path: dmt.datamodules.SyntheticClicks\ninit_args: {}\n",
            "class_path=dmt.datamodules.SyntheticClicks: ",
        ),
        (b"class_path: TabularClicks\ninit_args: {path.x: 1}\n", "the options are path, categorical"),
        (b"class_path: TabularClicks\ninit_args: [1]\n", "init_args=[1]: give options by name"),
        (b"class_path: TabularClicks\ninit_args: {path: \xe9}\n", "codec can't decode byte 0xe9"),
        (b"class_path: [\n", "while parsing a flow"),
        (b"- 1\n", "it does not have class_path and init_args alone"),
    ],
)
def test_wrong_configurations(
    content: bytes,
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("columns.yaml").write_bytes(content)
    with pytest.raises(SystemExit, match="2"):
        main(["preprocess", "tabular", "columns.yaml"])
    error = capsys.readouterr().err
    assert error.startswith("dmt: error: columns.yaml: ") and told in error and error.count("\n") == 1
