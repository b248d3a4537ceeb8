"""Logs in files of every type, one or several a split, and what may be wrong with them."""

import os

import polars as pl
import pytest

from dmt.errors import UserInputError
from tests.datamodules.tabular_cases import SIZES, assert_same, draw, make, ready


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


def test_empty_cells_at_the_end_of_lines_are_missing_values(tmp_path):
    (tmp_path / "train.csv").write_text('label,code,color\n1,a,\n0,"b\nc",\n1,b,""\n1,b,red')
    data = ready(tmp_path, categorical=["color"], numeric=[], min_count=1)
    assert data._splits["train"].ids[:, 0].tolist() == [0, 0, 0, 2]


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
