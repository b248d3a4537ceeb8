"""A log that is read some rows at a time is the log that is read at once."""

import datetime
import os
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from dmt.datamodules import TabularClicks, inference, pieces, prepare
from dmt.datamodules.inference import infer_config
from dmt.datamodules.pieces import column_names, read_pieces
from dmt.errors import UserInputError

ROWS = 7


def draw(size: int) -> pl.DataFrame:
    """Rows with columns of every kind that files may have, and a value missing in most of them."""
    rng = np.random.default_rng()
    words = [*"abcde", "5", "5.0", "dark\nred", 'a "b", c', "", None]
    texts = pl.Series([words[index] for index in rng.integers(0, len(words), size)], dtype=pl.String)
    bags = [[words[index] for index in rng.integers(0, len(words), rng.integers(0, 4))] for _ in range(size)]
    shares = [rng.random(len(bag)).tolist() for bag in bags]
    is_missing = rng.random(size) < 0.1
    frame = pl.DataFrame(
        {
            "label": rng.integers(0, 2, size),
            "text": texts,
            "dictionary": texts.cast(pl.Categorical),
            "enum": texts.cast(pl.Enum([word for word in words if word is not None])),
            "whole": rng.integers(0, 9, size).astype(np.int16),
            "float": rng.choice([0.5, 2.0, np.nan], size),
            "decimal": [Decimal(int(value)) / 4 for value in rng.integers(0, 9, size)],
            "flag": rng.integers(0, 2, size).astype(bool),
            "bag": pl.Series([None if is_missing[row] else bags[row] for row in range(size)], dtype=pl.List(pl.String)),
            "share": pl.Series(
                [None if is_missing[row] else shares[row] for row in range(size)], dtype=pl.List(pl.Float64)
            ),
            "pair": pl.Series(rng.integers(0, 9, (size, 2)), dtype=pl.Array(pl.Int64, 2)),
            "none": pl.Series([None] * size),
            "date": [datetime.date(2026, 1, 1)] * size,
            "price": rng.lognormal(1, 1, size),
            "size": rng.normal(3, 1, size),
            "^s.*$": rng.integers(0, 9, size),  # which polars takes for a pattern
        }
    )
    return frame.with_columns(pl.when(~pl.lit(pl.Series(is_missing))).then(pl.col("whole", "price")))


FORMS = {
    "parquet": (".parquet", pl.DataFrame.write_parquet),
    "small row groups": (".parquet", partial(pl.DataFrame.write_parquet, row_group_size=5)),
    "arrow": (".arrow", pl.DataFrame.write_ipc),
    "small batches": (".arrow", partial(pl.DataFrame.write_ipc, record_batch_size=5, compression="zstd")),
    "stream": (".arrow", pl.DataFrame.write_ipc_stream),
    "csv": (".csv", pl.DataFrame.write_csv),
}
LISTS = ["bag", "share", "pair"]


def write(frame: pl.DataFrame, folder: Path, form: str, *, num_files: int = 1) -> list[Path]:
    """The rows in files of random sizes."""
    ending, save = FORMS[form]
    if ending == ".csv":
        frame = frame.drop(LISTS, strict=False)
    folder.mkdir(exist_ok=True)
    limits = np.sort(np.random.default_rng().choice(np.arange(1, len(frame)), num_files - 1, replace=False)).tolist()
    files = [folder / f"part-{number}{ending}" for number in range(num_files)]
    for file, start, end in zip(files, [0, *limits], [*limits, len(frame)], strict=True):
        save(frame[start:end], file)
    return files


@pytest.mark.parametrize("num_files", [1, 3])
@pytest.mark.parametrize("form", FORMS)
def test_pieces_are_the_rows(tmp_path: Path, form: str, num_files: int) -> None:
    frame = draw(100)
    files = write(frame, tmp_path / "with [brackets]", form, num_files=num_files)
    names = [name for name in reversed(frame.columns) if form != "csv" or name not in LISTS]
    assert sorted(column_names(files[0])) == sorted(names)
    wanted = frame[names]
    if form == "csv":
        # Text alone, and no quotes where the value itself has none: a missing and an empty value are the same.
        wanted = pl.read_csv(frame.drop(LISTS).write_csv().encode(), infer_schema=False, null_values=["NaN"])[names]
    for rows_at_a_time in (1, ROWS, 100, 1000):
        *full, last = read_pieces(files, columns=names, rows_at_a_time=rows_at_a_time)
        assert_frame_equal(pl.concat([*full, last]), wanted)
        assert {len(piece) for piece in full} <= {rows_at_a_time} and 0 < len(last) <= rows_at_a_time


def test_a_part_without_a_type_gets_that_of_the_others(tmp_path: Path) -> None:
    frame = draw(20)
    files = write(frame.with_columns(pl.lit(None).alias(name) for name in frame.columns), tmp_path / "log", "parquet")
    files.append(tmp_path / "part.parquet")
    frame.write_parquet(files[1])
    for order in (files, files[::-1]):
        found = list(read_pieces(order, columns=frame.columns, rows_at_a_time=ROWS))
        assert all(piece.schema == frame.schema for piece in found)
        assert sum(map(len, found)) == 40


def test_a_part_of_empty_lists_gets_the_type_of_the_others(tmp_path: Path) -> None:
    parts = [pl.DataFrame({"a": [[], None]}), pl.DataFrame({"a": [["x"], ["y", "z"]]}), pl.DataFrame({"a": [None]})]
    files = [tmp_path / f"{number}.parquet" for number in range(3)]
    for file, part in zip(files, parts, strict=True):
        part.write_parquet(file)
    [piece] = read_pieces(files, columns=["a"])
    assert piece["a"].to_list() == [[], None, ["x"], ["y", "z"], None] and piece["a"].dtype == pl.List(pl.String)
    pl.DataFrame({"a": ["x"]}).write_parquet(files[1])
    with pytest.raises(ValueError, match=r"column 'a' holds List\(Null\), but String in 1.parquet; write them alike"):
        next(read_pieces(files, columns=["a"]))


def prepared(path: Path, **options: Any) -> Path:
    return TabularClicks(path=path, **options).prepared_folder()


def columns_for(form: str) -> dict[str, Any]:
    plain = ["text", "dictionary", "enum", "whole", "float", "decimal", "flag", "none"]
    if form == "csv":
        return {"categorical": plain, "numeric": ["price", "size"]}
    return {"categorical": [*plain, "bag", "pair"], "numeric": ["price", "size"], "weights": {"bag": "share"}}


@pytest.mark.parametrize("form", FORMS)
def test_a_log_is_prepared_in_pieces_as_at_once(tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "log"
    path.mkdir()
    for split, size in {"train": 200, "valid": 30, "test": 20}.items():
        write(draw(size), path / split, form, num_files=3)
    options = columns_for(form)
    whole = prepared(path, cache_dir=tmp_path / "whole", **options)
    monkeypatch.setattr(prepare, "read_pieces", partial(read_pieces, rows_at_a_time=ROWS))
    parts = prepared(path, cache_dir=tmp_path / "parts", **options)
    files = sorted(file.relative_to(whole) for file in whole.rglob("*") if file.is_file())
    assert files == sorted(file.relative_to(parts) for file in parts.rglob("*") if file.is_file())
    for file in files:
        if file.name == "dense.npy":
            # Scales differ by rounding, some 1e-15; a float32 may then be the next one.
            np.testing.assert_allclose(np.load(parts / file), np.load(whole / file), rtol=2e-7, atol=1e-7)
        elif file.suffix == ".npy":
            assert (parts / file).read_bytes() == (whole / file).read_bytes(), file
    assert pl.read_parquet(parts / "vocabulary.parquet").equals(pl.read_parquet(whole / "vocabulary.parquet"))
    mine, other = (prepare.encoder_of(prepare.encoder_state(folder)) for folder in (parts, whole))
    assert mine.equals(other)


def test_how_rows_are_spread_over_files_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "read_pieces", partial(read_pieces, rows_at_a_time=ROWS))
    frame, dense = draw(100), []
    for num_files in (1, 2, 5):
        path = tmp_path / str(num_files)
        path.mkdir()
        write(frame, path / "train", "parquet", num_files=num_files)
        dense.append(np.load(prepared(path, **columns_for("parquet")) / "train" / "dense.npy"))
    assert np.array_equal(dense[0], dense[1]) and np.array_equal(dense[0], dense[2])


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("label", 3, "column 'label': the label of row 42 is 3"),
        ("label", None, "column 'label': the label of row 42 is missing"),
        ("share", [1.0] * 9, "column 'share': row 42 has 9 weights for . ids of 'bag'"),
    ],
)
def test_errors_name_the_row_of_the_split(
    tmp_path: Path, column: str, value: object, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare, "read_pieces", partial(read_pieces, rows_at_a_time=ROWS))
    frame = draw(60).with_columns(bag=pl.lit(["a"]), share=pl.lit([0.5]))
    wrong = pl.Series(column, [value], dtype=frame[column].dtype)
    spoilt = pl.concat([frame[:41], frame[41:42].with_columns(wrong), frame[42:]])
    write(frame, tmp_path / "train", "parquet", num_files=3)
    write(spoilt, tmp_path / "valid", "parquet", num_files=3)
    with pytest.raises(UserInputError, match=rf"^{tmp_path}/valid/part-0.parquet to part-2.parquet: {message}"):
        prepared(tmp_path, **columns_for("parquet"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1,b\n", "line 25 has 2 of 3 cells; complete it, or remove it"),
        ("1,b,c,d\n", "cannot be read as csv"),
        ("1,b,\xe9\n", "cannot be read as csv"),
    ],
)
def test_wrong_lines_of_csv_files(tmp_path: Path, text: str, message: str) -> None:
    right = 'label,"the\ncolor",size\n' + '1,"dark\nred",\n' * 11
    (tmp_path / "train.csv").write_bytes((right + text + "0,blue,3\n" * 20).encode("latin-1"))
    with pytest.raises(UserInputError, match=f"^{tmp_path}/train.csv: {message}"):
        list(read_pieces([tmp_path / "train.csv"], columns=["label"], rows_at_a_time=ROWS))


def test_cells_are_counted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    open_csv = pieces.csv.open_csv  # of the module before it is replaced
    monkeypatch.setattr(pieces.csv, "open_csv", lambda file, *options: opened.append(file) or open_csv(file, *options))
    file = tmp_path / "train.csv"
    file.write_text("label,color\n" + "1,\n" * 20)
    for changed_ns, num_counts in ((10**18, 1), (10**18, 1), (2 * 10**18, 2)):
        os.utime(file, ns=(changed_ns, changed_ns))
        assert sum(map(len, read_pieces([file], columns=["label"], rows_at_a_time=ROWS))) == 20
        assert len(opened) == num_counts


def test_files_are_compared_before_any_row_is_read(tmp_path: Path) -> None:
    files = write(draw(20), tmp_path / "log", "parquet", num_files=3)
    pl.read_parquet(files[2]).with_columns(text=pl.lit(1)).write_parquet(files[2])
    with pytest.raises(
        UserInputError, match=r"part-2.parquet: column 'text' holds Int32, but String in part-0.parquet"
    ):
        read_pieces(files, columns=["label", "text"])
    pl.read_parquet(files[1]).drop("text").write_parquet(files[1])
    with pytest.raises(UserInputError, match=r"part-1.parquet: no column 'text'; the columns are label, "):
        read_pieces(files, columns=["label", "text"])


def test_columns_are_guessed_from_the_first_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "MAX_ROWS", ROWS)
    frame = pl.DataFrame({"label": [0, 1] * 10, "text": [*"aabbaab", *"xyz" * 4, "x"]})
    write(frame, tmp_path / "train", "parquet", num_files=3)
    text = infer_config(tmp_path, label=None)
    assert "makes of the first 7 rows of" in text and "text, 2 distinct" in text
    monkeypatch.setattr(inference, "MAX_ROWS", 21)
    assert "makes of all rows of" in infer_config(tmp_path, label=None)
