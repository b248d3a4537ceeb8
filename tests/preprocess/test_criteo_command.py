"""dmt preprocess criteo: what it tells, shows and refuses."""

import gzip
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dmt
from dmt.cli import main
from dmt.schema import FeatureSchema
from tests.preprocess.criteo_cases import ROWS, Lines, contents, write_log


def test_the_command_tells_what_it_did(
    days: tuple[Path, list[Lines]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, lines = days
    bad = write_log(tmp_path / "train.txt", [b"what?", *lines[0][:99]])
    options = ["--output", str(tmp_path / "out"), "--on-bad-lines", "skip", "--workers", "1"]
    main(["preprocess", "criteo", str(bad), *options])
    told = capsys.readouterr().out
    assert "train.txt, line 1: 1 columns" in told and "lines left out: 1;" in told
    assert "99 rows (79 train, 10 valid, 10 test)" in told
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["schema"]["categorical"][0] == {
        "name": "C1", "num_embeddings": 1_000_000, "multi_hot": False, "mean_length": 1.0, "table": "C1"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("words", "options"),
    [
        ([], {}),
        (["--num-embeddings", "500", "--split", "0.5,0.25,0.25"], {"num_embeddings": 500, "split": (0.5, 0.25, 0.25)}),
        (["--num-embeddings", ",".join(map(str, ROWS))], {"num_embeddings": ROWS}),
        (["--min-count", "2", "--on-bad-lines", "skip"], {"min_count": 2, "skip_bad_lines": True}),
    ],
)
def test_python_does_what_the_command_does(
    days: tuple[Path, list[Lines]], tmp_path: Path, words: list[str], options: dict[str, Any]
) -> None:
    log = days[0] / "day_0"
    main(["preprocess", "criteo", str(log), "--output", str(tmp_path / "command"), "--workers", "1", *words])
    manifest = dmt.preprocess_criteo(log, str(tmp_path / "python"), **options)
    assert contents(tmp_path / "python") == contents(tmp_path / "command")
    assert dmt.CriteoDataModule(path=tmp_path / "python").schema == FeatureSchema.from_dict(manifest["schema"])


@pytest.mark.parametrize("is_zipped", [False, True])
def test_a_terminal_shows_rows_bytes_and_time_left(
    days: tuple[Path, list[Lines]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    is_zipped: bool,
) -> None:
    text = (days[0] / "day_0").read_bytes()
    log = tmp_path / "day_0.gz"
    log.write_bytes(gzip.compress(text) if is_zipped else text)
    if not is_zipped:
        log = log.rename(tmp_path / "day_0")
    monkeypatch.setenv("FORCE_COLOR", "1")  # for rich, a terminal
    main(["preprocess", "criteo", str(log), "--output", str(tmp_path / "out"), "--workers", "1"])
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", capsys.readouterr().err)
    megabytes = f"{len(text) / 1e6:.1f}"
    assert f"{megabytes}/{megabytes} MB parts: 10,000 rows 0:00:00" in " ".join(shown.split())


def test_the_command_starts_without_torch() -> None:
    code = "import sys; from dmt.cli import main; main(['preprocess', 'criteo', '--help'])\n"
    subprocess.run(
        [sys.executable, "-c", f"try:\n    {code}except SystemExit:\n    assert 'torch' not in sys.modules"], check=True
    )


@pytest.mark.parametrize(
    ("names", "options", "told"),
    [
        (["day_9"], [], "day_9: no such file"),
        (["empty"], [], "empty: it is empty; fetch it again"),
        (["plain.gz"], [], "plain.gz: not a gzip file; rename it if it is plain text"),
        (["cut.gz"], [], ": damaged gzip file (Compressed file ended before"),
        (["one_line"], [], "one_line: no line end in a mebibyte"),
        (["day_0", "day_2"], [], "day_1 is missing between"),
        (["day_0", "log", "day_2"], [], "day_1 is missing between"),
        (
            ["blank"],
            ["--on-bad-lines", "skip"],
            "blank: no rows for training, of 0 rows and 3 lines that",
        ),
        (["day_0", "more/day_0"], [], "day 0 is given twice"),
        (["more/none"], [], "none: no day_0 to day_23, no train.txt, no *_dense.npy and no saved dataset"),
        (["day_0"], ["--num-embeddings", "0"], "--num-embeddings 0: give a number from 1"),
        (["day_0"], ["--num-embeddings", "1,2"], "--num-embeddings 1,2: give a number from 1"),
        (["day_0"], ["--min-count", "0"], "--min-count 0: give at least 1"),
        (["day_0"], ["--min-count", "2", "--num-embeddings", "9"], "--num-embeddings 9: with --min-count the"),
        (["day_0"], ["--split", "0.5,0.1,0.1"], "--split 0.5,0.1,0.1: give three numbers that sum to 1"),
        (["day_0"], ["--split", "nan,0.5,0.5"], "--split nan,0.5,0.5: give three numbers that sum to 1"),
        (["day_0"], ["--workers", "0"], "--workers 0: give at least 1"),
        (["day_0"], ["--output", "day_0"], "it exists and is not of dmt preprocess; give another folder"),
        (["day_0"], ["--output", "day_0/x"], "Not a directory"),
    ],
)
def test_wrong_input_is_named(
    names: list[str],
    options: list[str],
    told: str,
    days: tuple[Path, list[Lines]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "more" / "none").mkdir(parents=True)
    text = (days[0] / "day_0").read_bytes()[:100_000].rpartition(b"\n")[0] + b"\n"
    for name in ("day_0", "day_2", "more/day_0", "plain.gz", "log"):
        Path(name).write_bytes(text)
    Path("blank").write_bytes(b"\n" * 3)
    Path("empty").touch()
    Path("cut.gz").write_bytes(gzip.compress(text)[:-2000])
    Path("one_line").write_bytes(b"0" * 18 * 2**20)
    output = [] if "--output" in options else ["--output", "out"]
    workers = [] if "--workers" in options else ["--workers", "1"]
    with pytest.raises(SystemExit, match="2"):
        main(["preprocess", "criteo", *names, *options, *output, *workers])
    assert told in capsys.readouterr().err
    assert not Path("out/manifest.json").exists()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"num_embeddings": [5.5] * 26}, "--num-embeddings 5.5,5.5,"),
        ({"num_embeddings": 1e6}, "--num-embeddings 1000000.0: give a number from 1"),
        ({"num_embeddings": [9] * 25}, "--num-embeddings 9,9,"),
        ({"split": (0.5, 0.5)}, "--split 0.5,0.5: give three numbers"),
        ({"workers": 0}, "--workers 0: give at least 1"),
        ({"inputs": []}, "inputs: there are none; give files"),
    ],
)
def test_wrong_arguments_are_named(
    days: tuple[Path, list[Lines]], tmp_path: Path, options: dict[str, Any], told: str
) -> None:
    arguments = {"inputs": days[0] / "day_0", "output": tmp_path / "out"} | options
    with pytest.raises(dmt.UserInputError, match=f"^{told}"):
        dmt.preprocess_criteo(**arguments)
    assert not (tmp_path / "out").exists()


def test_python_takes_paths_of_the_home_folder_and_numbers_of_numpy(
    days: tuple[Path, list[Lines]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write_log(tmp_path / "train.txt", days[1][0][:100])
    sizes = np.array(ROWS)
    manifest = dmt.preprocess_criteo("~/train.txt", "~/out", num_embeddings=list(sizes))
    assert manifest["schema"]["categorical"][0]["num_embeddings"] == ROWS[0]
    assert (tmp_path / "out" / "manifest.json").exists()
