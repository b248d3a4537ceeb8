"""What is not text: arrays of other tools and Hugging Face datasets give what the same lines as text give."""

import gzip
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import polars as pl
import pytest

from dmt.preprocess.criteo_text import CATEGORIES, INTEGERS, LABEL
from dmt.preprocess.sources import find_sources
from tests.preprocess.criteo_cases import arrays, convert, draw_lines, expected, write_log

COUNT = 3000
LINES = draw_lines(np.random.default_rng(8), COUNT)
SHARES = (0.5, 0.25, 0.25)


def columns(*, hexadecimal: bool) -> dict[str, list[Any]]:
    """The lines as columns, with ``None`` where a value is missing."""
    table: dict[str, list[Any]] = {}
    for name, values in zip(
        (LABEL, *INTEGERS, *CATEGORIES), zip(*(line.split(b"\t") for line in LINES), strict=True), strict=True
    ):
        if name in CATEGORIES and hexadecimal:
            table[name] = [value.decode() or None for value in values]
        else:
            base = 16 if name in CATEGORIES else 10
            table[name] = [int(value, base) if value else None for value in values]
    return table


def as_dataset(folder: Path, form: str) -> str:
    """An input in one of the forms that ``datasets`` knows."""
    if form == "lines":
        dataset = datasets.Dataset.from_dict({"text": [line.decode() for line in LINES]})
    elif form == "other names":
        named = columns(hexadecimal=True)
        dataset = datasets.Dataset.from_dict({f"x{index}": values for index, values in enumerate(named.values())})
    elif form == "integers":
        table = columns(hexadecimal=False) | {"more": [0] * COUNT}
        dataset = datasets.Dataset.from_dict(dict(reversed(table.items())))
    else:
        table = columns(hexadecimal=True)
        floats = {name: [None if v is None else float(v) for v in table[name]] for name in INTEGERS}
        dataset = datasets.Dataset.from_dict(table | floats)
    if form == "parquet":
        dataset.to_parquet(folder / "log.parquet")
        return str(folder / "log.parquet")
    dataset.save_to_disk(folder / "log", num_shards=3)
    return str(folder / "log")


def assert_same(output: Path, wanted: Path) -> None:
    for split in ("train", "valid", "test"):
        for found, other in zip(arrays(output, split), arrays(wanted, split), strict=True):
            assert np.array_equal(found, other)


@pytest.fixture(scope="module")
def from_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    convert([write_log(folder / "train.txt", LINES)], folder / "out", fractions=SHARES)
    return folder / "out"


@pytest.mark.parametrize("form", ["lines", "other names", "integers", "floats", "parquet"])
def test_a_dataset_is_read_as_its_lines_are(form: str, from_text: Path, tmp_path: Path) -> None:
    log = as_dataset(tmp_path, form)
    done = convert([log], tmp_path / "out", fractions=SHARES)
    assert len(done["parts"]) > 1
    assert_same(tmp_path / "out", from_text)


def test_a_dataset_of_the_hub_is_streamed(from_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local = datasets.load_from_disk(as_dataset(tmp_path, "floats"))
    asked = []

    def load_dataset(name: str, *, split: str, streaming: bool) -> datasets.IterableDataset:
        asked.append((name, split, streaming))
        return local.to_iterable_dataset()

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    convert(["hf://datasets/criteo/clicks"], tmp_path / "out", fractions=SHARES)
    convert(["hf://datasets/criteo/clicks#day_3"], tmp_path / "other", fractions=SHARES)
    assert asked == [("criteo/clicks", "train", True), ("criteo/clicks", "day_3", True)]
    assert_same(tmp_path / "out", from_text)


def test_a_stream_goes_on_where_it_was(from_text: Path, tmp_path: Path) -> None:
    log = as_dataset(tmp_path, "floats")
    output = tmp_path / "out"
    done = convert([log], output, fractions=SHARES)
    (output / "manifest.json").unlink()
    first, *others = (output / part["folder"] for part in done["parts"])
    kept = (first / "part.json").stat().st_mtime_ns
    for part in others:
        part.rename(part.with_name(f".{part.name}"))  # as if a kill had left them unfinished
    convert([log], output, fractions=SHARES)
    assert (first / "part.json").stat().st_mtime_ns == kept
    assert_same(output, from_text)


def write_triple(folder: Path, *, dense: np.ndarray, sparse: np.ndarray, labels: np.ndarray, name: str = "a") -> str:
    for kind, array in (("dense", dense), ("sparse", sparse), ("labels", labels)):
        np.save(folder / f"{name}_{kind}.npy", array)
    return str(folder / f"{name}_dense.npy")


def triple() -> dict[str, np.ndarray]:
    """As TorchRec's ``tsv_to_npys`` writes it: logarithms, the bits of 32-bit values, labels as a column."""
    table = columns(hexadecimal=False)
    values = np.array([[value or 0 for value in table[name]] for name in CATEGORIES], dtype=np.int64).T
    return {
        "dense": expected(LINES)[0],
        "sparse": values.astype(np.uint32).view(np.int32),
        "labels": np.array(table[LABEL], dtype=np.int32)[:, None],
    }


@pytest.mark.parametrize("kind", ["logarithms", "integers"])
def test_arrays_are_read_as_their_lines_are(kind: str, from_text: Path, tmp_path: Path) -> None:
    given = triple()
    if kind == "integers":
        table = columns(hexadecimal=False)
        given["dense"] = np.array([[value or 0 for value in table[name]] for name in INTEGERS], dtype=np.int32).T
        given["sparse"] = given["sparse"].view(np.uint32).astype(np.int64)
        given["labels"] = given["labels"][:, 0].astype(np.float32)
    write_triple(tmp_path, **given)
    done = convert([tmp_path], tmp_path / "out", fractions=SHARES, workers=2)
    assert len(done["parts"]) > 1
    for split in ("train", "valid", "test"):
        found, wanted = arrays(tmp_path / "out", split), arrays(from_text, split)
        # The logarithms are of Python's math in one case, of numpy's in float32 in the other.
        np.testing.assert_allclose(found[0], wanted[0], rtol=2**-22)
        assert np.array_equal(found[1], wanted[1]) and np.array_equal(found[2], wanted[2])


def test_days_of_arrays_are_in_order(tmp_path: Path) -> None:
    for day in (1, 0, 2):
        part = {name: array[day * 1000 : (day + 1) * 1000] for name, array in triple().items()}
        write_triple(tmp_path, **part, name=f"day_{day}")
    done = convert([tmp_path], tmp_path / "out")
    assert [source["file"] for source in done["sources"]] == [f"day_{day}_dense.npy" for day in range(3)]
    labels = np.concatenate([arrays(tmp_path / "out", split)[2] for split in ("train", "valid", "test")])
    assert labels.tolist() == triple()["labels"][:, 0].tolist()


def test_bad_rows_end_the_run_or_are_left_out(tmp_path: Path) -> None:
    given = triple()
    given["labels"] = given["labels"].copy()
    given["labels"][2000] = 2
    given["dense"][17, 4] = np.nan
    given["sparse"] = given["sparse"].astype(np.int64)
    given["sparse"][[17, 2999], 25] = 2**32
    log = write_triple(tmp_path, **given)
    with pytest.raises(ValueError, match=r"a_dense.npy, row 18: column I5 is not a number; mend it, or give"):
        convert([log], tmp_path / "error", fractions=(1, 0, 0))
    done = convert([log], tmp_path / "out", fractions=(1, 0, 0), skip_bad_lines=True)
    assert [told.split(", ")[1] for told in done["first_bad_lines"]] == [
        "row 18: column I5 is not a number",
        "row 2001: column label is not 0 or 1",
        "row 3000: column C26 is not of 32 bits",
    ]
    kept = np.delete(np.arange(COUNT), [17, 2000, 2999])
    assert np.array_equal(arrays(tmp_path / "out", "train")[0], given["dense"][kept])

    table = pl.DataFrame(columns(hexadecimal=True)).with_columns(C3=pl.lit("what"))
    datasets.Dataset(table[:5].to_arrow()).save_to_disk(tmp_path / "log")
    with pytest.raises(ValueError, match=r"log, row 1: column C3 is 'what', not up to 8 hexadecimal digits"):
        convert([tmp_path / "log"], tmp_path / "words", fractions=(1, 0, 0))


def test_single_values_of_a_dataset_do_not_decide_about_others(tmp_path: Path) -> None:
    table = pl.DataFrame(columns(hexadecimal=True))[:20].with_columns(pl.col(INTEGERS).cast(pl.Float64))
    wrong = {7: 1.5, 8: np.inf, 9: 1e300}
    third = [wrong.get(row, value) for row, value in enumerate(table["I3"])]
    text = [None if row != 11 else "a\tb\nc" for row in range(20)]
    table.with_columns(I3=pl.Series(third), C4=pl.Series(text)).write_parquet(tmp_path / "log.parquet")
    done = convert([tmp_path / "log.parquet"], tmp_path / "out", fractions=(1, 0, 0), skip_bad_lines=True)
    assert [told.split(", ", 1)[1].split(", not")[0] for told in done["first_bad_lines"]] == [
        "row 8: column I3 is '1.5'",
        "row 9: column I3 is 'inf'",
        "row 10: column I3 is '1e+300'",
        "row 12: column C4 is 'a b c'",
    ]
    lines = [line.decode() for line in LINES[:4]]
    pl.DataFrame({"line": [lines[0], f"{lines[1]}\n", f"{lines[2]}\n{lines[3]}"]}).write_parquet(tmp_path / "t.parquet")
    done = convert([tmp_path / "t.parquet"], tmp_path / "lines", fractions=(1, 0, 0), skip_bad_lines=True)
    assert done["splits"]["train"] == [0, 2] and "t.parquet, row 3: 79 columns" in done["first_bad_lines"][0]


def test_a_gzip_file_is_about_as_long_as_its_beginning_says(tmp_path: Path) -> None:
    text = b"\n".join(LINES) * 30
    (tmp_path / "log.gz").write_bytes(gzip.compress(text))
    (source,) = find_sources([tmp_path / "log.gz"])
    assert source.num_bytes == pytest.approx(len(text), rel=0.01)


def test_wrong_inputs_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = triple()
    log = write_triple(tmp_path, **{**given, "sparse": given["sparse"][:, 1:]})
    with pytest.raises(ValueError, match=r"a_sparse.npy: int32 of shape \(3000, 25\), not integers of shape \(3000, 2"):
        convert([log], tmp_path / "out")
    (tmp_path / "a_labels.npy").write_bytes(b"what?")
    with pytest.raises(ValueError, match=r"a_labels.npy: .*; give a file that numpy.save has written"):
        convert([log], tmp_path / "out")
    (tmp_path / "a_labels.npy").unlink()
    np.save(tmp_path / "a_sparse.npy", given["sparse"].astype(np.uint64) * 0 + (2**64 - 5))
    np.save(tmp_path / "a_labels.npy", given["labels"])
    with pytest.raises(ValueError, match=r"a_dense.npy, row 1: column C1 is not of 32 bits"):
        convert([log], tmp_path / "out64")
    pl.DataFrame(columns(hexadecimal=True)).with_columns(C3=pl.concat_list("C3")).write_parquet(tmp_path / "l.parquet")
    with pytest.raises(ValueError, match=r"l.parquet: column C3 holds List\(String\); give numbers or text"):
        convert([tmp_path / "l.parquet"], tmp_path / "out_l")
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "l.parquet").read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"cut.parquet: .*; write it again"):
        convert([tmp_path / "cut.parquet"], tmp_path / "out_cut")
    (tmp_path / "a_labels.npy").unlink()
    with pytest.raises(ValueError, match=r"a_labels.npy: no such file"):
        convert([log], tmp_path / "out")
    with pytest.raises(ValueError, match=r"a_sparse.npy: of \*_dense.npy, \*_sparse.npy and \*_labels.npy give the"):
        convert([tmp_path / "a_sparse.npy"], tmp_path / "out")
    saved = datasets.Dataset.from_dict({"x": [1], "y": [2]})
    datasets.DatasetDict({"first": saved}).save_to_disk(tmp_path / "both")
    with pytest.raises(ValueError, match=r"both: it holds splits; give one of them, such as .*both/first"):
        convert([tmp_path / "both"], tmp_path / "out1", fractions=(1, 0, 0))
    with pytest.raises(ValueError, match=r"first: columns x, y, ... \(2\); give label, I1 to I13, C1 to C26, or 40"):
        convert([tmp_path / "both" / "first"], tmp_path / "out2", fractions=(1, 0, 0))

    def unreachable(*words: object, **options: object) -> None:
        raise ConnectionError("no way to the hub\nmore")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(ValueError, match=r"hf://datasets/a/b: ConnectionError: no way to the hub; check the name, or"):
        convert(["hf://datasets/a/b"], tmp_path / "out3", fractions=(1, 0, 0))


@pytest.mark.parametrize("ending", ["", ".parquet", ".tsv", ".txt.gz"])
def test_days_of_any_ending_are_put_in_order(tmp_path: Path, ending: str) -> None:
    for day in range(11):
        (tmp_path / f"day_{day}{ending}").write_bytes(gzip.compress(b"1") if ending.endswith("gz") else b"1")
    given = sorted(map(str, tmp_path.iterdir()))  # as a shell has them: day_0, day_1, day_10, day_2
    found = find_sources(given)
    assert [Path(source.name).name for source in found] == [f"day_{day}{ending}" for day in range(11)]
    with pytest.raises(ValueError, match="day_4 is missing between"):
        find_sources([name for name in given if "day_4" not in name])


def test_other_files_beside_days_are_none(tmp_path: Path) -> None:
    for name in ("day_0", "day_1", "day_0.md5"):
        (tmp_path / name).write_bytes(b"1")
    assert [Path(source.name).name for source in find_sources([tmp_path])] == ["day_0", "day_1"]
