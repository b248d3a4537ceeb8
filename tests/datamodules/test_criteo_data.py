"""A converted log is read only if its manifest fits it."""

import json
import pickle
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dmt.datamodules import CriteoDataModule
from dmt.preprocess.criteo import FORMAT_VERSION

SIZES = (30, 0, 20)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """50 rows of one numeric and two categorical columns, in three parts."""
    rng = np.random.default_rng(0)
    parts = []
    for number, size in enumerate(SIZES):
        folder = tmp_path / "log" / "parts" / f"{number}"
        folder.mkdir(parents=True)
        rows = rng.integers(0, 5, (size, 4)).astype(np.int32)
        rows[:, -1] %= 2
        np.save(folder / "rows.npy", rows)
        parts.append({"folder": f"parts/{number}", "rows": size, "crc32": zlib.crc32(rows.data)})
    features = [{"name": name, "num_embeddings": 5} for name in ("C1", "C2")]
    manifest = {
        "version": FORMAT_VERSION,
        "schema": {"categorical": features, "dense": ["I1"]},
        "splits": {"train": [0, 35], "valid": [35, 40], "test": [40, 50]},
        "parts": parts,
    }
    (tmp_path / "log" / "manifest.json").write_text(json.dumps(manifest))
    return tmp_path / "log"


def ready(log: Path) -> CriteoDataModule:
    data = CriteoDataModule(path=log)
    data.prepare_data()
    data.setup()
    return data


def edit(log: Path, change: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads((log / "manifest.json").read_text())
    change(manifest)
    (log / "manifest.json").write_text(json.dumps(manifest))


def test_a_right_manifest_is_taken(log: Path) -> None:
    assert str(ready(log)) == "CriteoDataModule(train: 35, valid: 5, test: 10)"


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest: manifest["splits"].update(train=[0, 100_000]),
        lambda manifest: manifest["splits"].update(test=[40, 100_000]),
        lambda manifest: manifest["splits"].update(train=[0, 40]),
        lambda manifest: manifest["splits"].update(train=[5, 35]),
        lambda manifest: manifest["splits"].update(train=[0, 45], valid=[45, 40]),
        lambda manifest: manifest["splits"].update(train=[0, 35.0], valid=[35.0, 40]),
        lambda manifest: manifest["splits"].update(train=35),
        lambda manifest: manifest["splits"].update(train=["a", "b"]),
        lambda manifest: manifest["splits"].pop("test"),
        lambda manifest: manifest["parts"].pop(),
        lambda manifest: manifest["parts"].clear(),
        lambda manifest: manifest["parts"][0].pop("crc32"),
        lambda manifest: manifest["parts"][0].update(rows="30"),
        lambda manifest: manifest["parts"][0].update(folder=7),
        lambda manifest: manifest.update(parts=7),
        lambda manifest: manifest.update(schema=[]),
        lambda manifest: manifest["schema"].pop("dense"),
        lambda manifest: manifest["schema"].update(weighted=True),
        lambda manifest: manifest["schema"]["categorical"][0].update(num_embeddings="5"),
        lambda manifest: manifest["schema"]["categorical"][0].update(num_embeddings=5.5),
        lambda manifest: manifest["schema"]["categorical"][0].update(num_embeddings=0),
        lambda manifest: manifest["schema"]["categorical"][0].update(multi_hot=True),
        lambda manifest: manifest["schema"]["categorical"][0].update(color="red"),
        lambda manifest: manifest.pop("version"),
        *(lambda manifest, key=key: manifest.pop(key) for key in ("splits", "schema", "parts")),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(log: Path, change: Callable[[dict[str, Any]], object]) -> None:
    edit(log, change)
    with pytest.raises(
        ValueError, match=rf"^path={log}: manifest.json is damaged; remove it, and convert the logs again$"
    ):
        CriteoDataModule(path=log)


def test_ids_beyond_their_table_are_refused_although_the_files_are_known(
    log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready(log)
    edit(log, lambda manifest: manifest["schema"]["categorical"][1].update(num_embeddings=4))
    for _ in range(2):
        with pytest.raises(ValueError, match=r"rows.npy: column 'C2' has row 4 of a table, .*=4 by the manifest; copy"):
            ready(log)
    # A larger table is no fault, and what was checked is not read again.
    edit(log, lambda manifest: manifest["schema"]["categorical"][1].update(num_embeddings=6))
    ready(log)
    monkeypatch.setattr("dmt.datamodules.criteo._check_part", lambda *_, **__: pytest.fail("read again"))
    ready(log)


def test_negative_ids_are_refused(log: Path) -> None:
    rows = np.load(file := log / "parts" / "2" / "rows.npy")
    rows[3, 1] = -7
    np.save(file, rows)
    edit(log, lambda manifest: manifest["parts"][2].update(crc32=zlib.crc32(rows.data)))
    with pytest.raises(ValueError, match=r"2/rows.npy: column 'C1' has row -7 of a table"):
        ready(log)


def test_what_a_process_that_is_not_forked_receives_is_small_and_gives_the_same_batches(log: Path) -> None:
    for part, size in ((0, 50_000), (1, 0), (2, 20)):
        rows = np.zeros((size, 4), np.int32)
        np.save(log / "parts" / str(part) / "rows.npy", rows)
        edit(log, lambda m, p=part, n=size, r=rows: m["parts"][p].update(rows=n, crc32=zlib.crc32(r.data)))
    edit(log, lambda m: m.update(splits={"train": [0, 50_010], "valid": [50_010, 50_015], "test": [50_015, 50_020]}))
    dataset = ready(log)._split("train")
    pickled = pickle.dumps(dataset)
    assert len(pickled) < 2000  # of 800,000 bytes
    indices = np.array([3, 50_009, 49_999, 0])
    found, wanted = pickle.loads(pickled).batch(indices), dataset.batch(indices)
    assert torch.equal(found.dense_features, wanted.dense_features) and torch.equal(found.labels, wanted.labels)
    assert torch.equal(found.sparse_features.values(), wanted.sparse_features.values())
