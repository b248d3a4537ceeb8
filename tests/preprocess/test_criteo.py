"""Whole conversions of Criteo's logs: values, splits, vocabularies, parts, and training on them."""

import gzip
import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from dmt.datamodules import CriteoDataModule
from dmt.preprocess.criteo import Hashing, Vocabularies
from tests.preprocess.criteo_cases import (
    ROWS,
    Lines,
    arrays,
    assert_split,
    contents,
    convert,
    draw_lines,
    expected,
    write_log,
)

ROOT = Path(__file__).parents[2]


def test_days_are_split_as_is_the_custom(days: tuple[Path, list[Lines]], tmp_path: Path) -> None:
    folder, (first, last) = days
    done = convert([folder], tmp_path / "out")
    assert len(done["parts"]) > 10
    assert_split(tmp_path / "out", "train", first)
    assert_split(tmp_path / "out", "valid", last[:5000])
    assert_split(tmp_path / "out", "test", last[5000:])
    size = sum(path.stat().st_size for path in (tmp_path / "out").rglob("*.npy"))
    assert size - 128 * len(done["parts"]) == 160 * 20_000  # bytes a row, beside a header for each part


@pytest.mark.parametrize("categories", [Hashing(num_embeddings=ROWS), Vocabularies(min_count=2)])
def test_any_number_of_workers_and_gzip_give_the_same_bytes(
    days: tuple[Path, list[Lines]], tmp_path: Path, categories: Hashing | Vocabularies
) -> None:
    folder, _ = days
    convert([folder], tmp_path / "one")
    convert([folder], tmp_path / "two", workers=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    for day in range(2):
        with gzip.open(tmp_path / f"day_{day}.gz", "wb", compresslevel=1) as file:
            file.write((folder / f"day_{day}").read_bytes())
    done = convert([tmp_path / "day_1.gz", tmp_path / "day_0.gz"], tmp_path / "zipped")
    assert [source["file"] for source in done["sources"]] == ["day_0.gz", "day_1.gz"]
    for split in ("train", "valid", "test"):
        for found, wanted in zip(arrays(tmp_path / "zipped", split), arrays(tmp_path / "one", split), strict=True):
            assert np.array_equal(found, wanted)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("is_zipped", [False, True])
def test_each_part_is_told_of(days: tuple[Path, list[Lines]], tmp_path: Path, workers: int, is_zipped: bool) -> None:
    text = (days[0] / "day_0").read_bytes()
    log = tmp_path / "day_0.gz"
    log.write_bytes(gzip.compress(text, compresslevel=1))
    told = []
    done = convert(
        [log if is_zipped else days[0] / "day_0"],
        tmp_path / "out",
        fractions=(1, 0, 0),
        categories=Vocabularies(min_count=2),
        workers=workers,
        on_part=lambda stage, report: told.append((stage, report.part, report.num_bytes)),
    )
    parts = range(len(done["parts"]))
    for stage in ("values", "parts"):
        of_stage = sorted(one for one in told if one[0] == stage)
        assert [part for _, part, _ in of_stage] == list(parts)
        assert sum(size for _, _, size in of_stage) == len(text)


def test_one_file_is_split_by_shares(days: tuple[Path, list[Lines]], tmp_path: Path) -> None:
    folder, (lines, _) = days
    convert([folder / "day_0"], tmp_path / "out", fractions=(0.7, 0.2, 0.1), part_bytes=2**30)
    assert_split(tmp_path / "out", "train", lines[:7000])
    assert_split(tmp_path / "out", "valid", lines[7000:9000])
    assert_split(tmp_path / "out", "test", lines[9000:])


@pytest.mark.parametrize("fractions", [None, (0.6, 0.2, 0.2)])
def test_vocabularies_are_of_the_training_rows(
    days: tuple[Path, list[Lines]], tmp_path: Path, fractions: tuple[float, float, float] | None
) -> None:
    # Only 8 bits of a value differ, so that values recur.
    lines = [re.sub(rb"[0-9a-f]{6}([0-9a-f]{2})(?=\t|$)", rb"0000ff\1", line) for of_day in days[1] for line in of_day]
    folder = tmp_path / "logs"
    folder.mkdir()
    for day in range(2):
        write_log(folder / f"day_{day}", lines[day * 10_000 : (day + 1) * 10_000])
    convert([folder], tmp_path / "out", categories=Vocabularies(min_count=30), fractions=fractions, workers=2)
    num_train = 10_000 if fractions is None else 12_000
    values = [[int(value or b"0", 16) for value in line.split(b"\t")[14:]] for line in lines]
    wanted = np.zeros((20_000, 26), np.int32)
    for column in range(26):
        of_column = [row[column] for row in values]
        counts = Counter(value for value in of_column[:num_train] if value)
        frequent = sorted((v for v, count in counts.items() if count >= 30), key=lambda v: (-counts[v], v))
        assert 20 < len(frequent) < 256
        rows = {value: row for row, value in enumerate(frequent, start=2)} | {0: 0}
        wanted[:, column] = [rows.get(value, 1) for value in of_column]
        schema = json.loads((tmp_path / "out" / "manifest.json").read_text())["schema"]
        assert schema["categorical"][column]["num_embeddings"] == 2 + len(frequent)
    found = [arrays(tmp_path / "out", split) for split in ("train", "valid", "test")]
    assert np.array_equal(np.concatenate([ids for _, ids, _ in found]), wanted)
    dense, _, labels = expected(lines)
    np.testing.assert_allclose(np.concatenate([part for part, _, _ in found]), dense, rtol=2**-22)
    assert np.array_equal(np.concatenate([part for _, _, part in found]), labels)
    assert not (tmp_path / "out" / "values").exists()


def test_more_parts_than_files_may_be_open(tmp_path: Path) -> None:
    log = write_log(tmp_path / "log", draw_lines(np.random.default_rng(7), 3000))
    code = (
        "import resource; from pathlib import Path; from dmt.preprocess.criteo import Vocabularies;"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (128, resource.getrlimit(resource.RLIMIT_NOFILE)[1]));"
        "from tests.preprocess.criteo_cases import arrays, convert;"
        f"done = convert([Path({str(log)!r})], Path({str(tmp_path / 'out')!r}), part_bytes=5000,"
        "fractions=(1, 0, 0), categories=Vocabularies(min_count=2)); assert len(done['parts']) > 128;"
        f"assert len(arrays(Path({str(tmp_path / 'out')!r}), 'train')[2]) == 3000"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.parametrize("ranks", [["--trainer.devices=1"], ["--trainer.devices=2", "--trainer.strategy=sptt"]])
def test_models_train_on_it(days: tuple[Path, list[Lines]], tmp_path: Path, ranks: list[str]) -> None:
    convert([days[0]], tmp_path / "out")
    words = ["--config=configs/criteo.yaml", f"--data.path={tmp_path / 'out'}", "--data.global_batch_size=512"]
    words += ["--trainer.accelerator=cpu", "--ranks_per_host=1", *ranks]
    done = subprocess.run(
        [sys.executable, "-m", "dmt.cli", "fit", *words],
        cwd=ROOT,
        env=os.environ | {"DMT_SAVE_DIR": str(tmp_path / "run")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "test/auroc" in done.stdout


def test_training_refuses_what_the_manifest_does_not_tell_of(days: tuple[Path, list[Lines]], tmp_path: Path) -> None:
    output = tmp_path / "out"
    with pytest.raises(ValueError, match=r"no manifest.json in it; run `dmt preprocess criteo"):
        CriteoDataModule(path=output)
    convert([days[0]], output)
    rows = output / "parts" / "000-00001" / "rows.npy"
    right = np.load(rows)
    wrong = right.copy()
    wrong[5, 20] += 1
    np.save(rows, wrong)
    with pytest.raises(ValueError, match=r"000-00001/rows.npy: its checksum is not the manifest's; copy it again, or"):
        CriteoDataModule(path=output).setup()
    np.save(rows, right)
    CriteoDataModule(path=output).setup()
    np.save(rows, right[1:])
    with pytest.raises(
        ValueError,
        match=r"000-00001/rows.npy: int32 of shape .* tells of int32 .*; copy it again, or remove .*000-00001 and",
    ):
        CriteoDataModule(path=output).setup()
    rows.unlink()
    with pytest.raises(ValueError, match="No such file"):
        CriteoDataModule(path=output).setup()
    (output / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match=r"manifest.json is damaged"):
        CriteoDataModule(path=output)
