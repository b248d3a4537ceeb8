"""Rows that come later are encoded as the checkpoint's training log was."""

import gc
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import polars as pl
import pytest
import torch

from dmt.cli import main
from dmt.datamodules import SyntheticClicks, TabularClicks, TabularRows
from dmt.modules import DLRM, ClickModel, DLRMTower


def draw(size: int, *, words: str) -> pl.DataFrame:
    rng = np.random.default_rng()
    tags = [rng.choice(list(words), rng.integers(0, 4)).tolist() for _ in range(size)]
    return pl.DataFrame(
        {
            "clicked": rng.integers(0, 2, size),
            "word": rng.choice(list(words), size),
            "tags": tags,
            "share": [rng.random(len(bag)).tolist() for bag in tags],
            "price": rng.lognormal(1, 2, size),
        }
    )


COLUMNS: dict[str, Any] = {
    "categorical": ["word", "tags"],
    "numeric": ["price"],
    "label": "clicked",
}


def make_model() -> ClickModel:
    return ClickModel(
        embedding_dim=8,
        num_towers=2,
        tower=partial(DLRMTower, c=1, p=0, out_dim=4),
        top=partial(DLRM, bottom_layers=[8], over_layers=[8]),
    )


def make_trainer() -> L.Trainer:
    return L.Trainer(
        accelerator="cpu", devices=1, max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False
    )


@pytest.fixture
def trained(tmp_path: Path) -> tuple[Path, Path, list[torch.Tensor]]:
    """A folder with a log, a checkpoint, and what it predicts of the test split."""
    folder = tmp_path / "log"
    folder.mkdir()
    for split, size in {"train": 200, "valid": 30, "test": 40}.items():
        draw(size, words="abcdef" if split == "train" else "abcdefz").write_parquet(folder / f"{split}.parquet")
    data = TabularClicks(path=folder, cache_dir=tmp_path / "cache", **COLUMNS)
    trainer = make_trainer()
    trainer.fit(make_model(), datamodule=data)
    trainer.save_checkpoint(checkpoint := tmp_path / "model.ckpt")
    predictions = trainer.predict(datamodule=data, ckpt_path=checkpoint, weights_only=False)
    assert predictions is not None
    return folder, checkpoint, predictions


def predict(rows: Path, checkpoint: Path) -> torch.Tensor:
    data = TabularRows(path=rows, checkpoint=checkpoint, global_batch_size=7)
    found = make_trainer().predict(make_model(), datamodule=data, ckpt_path=checkpoint, weights_only=False)
    assert found is not None
    return torch.cat(found)


@pytest.mark.parametrize("has_labels", [True, False])
def test_rows_are_predicted_without_the_training_log(
    trained: tuple[Path, Path, list[torch.Tensor]], tmp_path: Path, has_labels: bool
) -> None:
    folder, checkpoint, predictions = trained
    rows = pl.read_parquet(folder / "test.parquet")
    (rows if has_labels else rows.drop("clicked")).write_parquet(later := tmp_path / "later.parquet")
    (folder / "train.parquet").unlink()
    torch.testing.assert_close(predict(later, checkpoint), torch.cat(predictions))
    data = TabularRows(path=later, checkpoint=checkpoint)
    if has_labels:
        [metrics] = make_trainer().test(make_model(), datamodule=data, ckpt_path=checkpoint, weights_only=False)
        assert 0 < metrics["test/auroc"] < 1
    else:
        with pytest.raises(ValueError, match=r"later.parquet: no column 'clicked' to test against; add it, or predict"):
            make_trainer().test(make_model(), datamodule=data, ckpt_path=checkpoint, weights_only=False)


def test_weights_and_sharded_checkpoints(
    trained: tuple[Path, Path, list[torch.Tensor]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _, _ = trained
    data = TabularClicks(path=folder, cache_dir=tmp_path / "cache", weights={"tags": "share"}, **COLUMNS)
    data.setup()
    (tmp_path / "sharded.ckpt").mkdir()
    torch.save({"TabularClicks": data.state_dict()}, tmp_path / "sharded.ckpt" / "rest.pt")
    rows = TabularRows(path=folder / "test.parquet", checkpoint=tmp_path / "sharded.ckpt")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    rows.setup()
    # However many they are: mapped, and gone with what they are read by.
    [folder_of_rows] = tmp_path.glob("dmt-rows-*")
    assert isinstance(rows._splits["test"].ids, np.memmap)
    assert rows.schema == data.schema and rows.schema.weighted
    indices = np.arange(40)
    found, wanted = (part._split("test").batch(indices) for part in (rows, data))
    assert torch.equal(found.dense_features, wanted.dense_features) and torch.equal(found.labels, wanted.labels)
    for part in ("values", "lengths", "weights"):
        assert torch.equal(getattr(found.sparse_features, part)(), getattr(wanted.sparse_features, part)())
    del rows, part, found
    gc.collect()
    assert not folder_of_rows.exists()
    # As a run leaves it that is killed while it replaces it.
    (tmp_path / "sharded.ckpt").rename(tmp_path / "sharded.ckpt.previous")
    assert TabularRows(path=folder / "test.parquet", checkpoint=tmp_path / "sharded.ckpt").schema == data.schema


def test_a_checkpoint_of_another_log_is_refused(trained: tuple[Path, Path, list[torch.Tensor]], tmp_path: Path) -> None:
    folder, checkpoint, _ = trained
    other = tmp_path / "other"
    other.mkdir()
    for split in ("train", "valid", "test"):
        draw(200, words="fedcbaxy").write_parquet(other / f"{split}.parquet")
    data = TabularClicks(path=other, cache_dir=tmp_path / "cache", **COLUMNS)
    data.setup()
    state = torch.load(checkpoint, weights_only=False)["TabularClicks"]
    with pytest.raises(ValueError, match=r"path=.*other: the checkpoint is of another training log.*TabularRows"):
        data.load_state_dict(state)
    TabularClicks(path=folder, cache_dir=tmp_path / "cache", **COLUMNS).load_state_dict(state)


def test_the_command_predicts_rows(
    trained: tuple[Path, Path, list[torch.Tensor]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _, _ = trained
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DMT_SAVE_DIR", "run")
    (tmp_path / "config.yaml").write_text(
        """\
trainer:
  accelerator: cpu
  devices: 1
  max_epochs: 1
  log_every_n_steps: 1
  logger: {class_path: lightning.pytorch.loggers.CSVLogger, init_args: {save_dir: runs}}
model: {embedding_dim: 8}
"""
    )
    (tmp_path / "columns.yaml").write_text(
        f"""class_path: dmt.datamodules.TabularClicks
init_args: {{path: {folder}, categorical: [word, tags], numeric: [price], label: clicked}}
"""
    )
    main(["fit", "--config", "config.yaml", "--data", "columns.yaml"])
    [checkpoint] = (tmp_path / "run").rglob("*.ckpt")
    # The run's configuration has all that was in several files, and is enough from here on.
    [config] = (tmp_path / "run").rglob("config.yaml")
    (tmp_path / "columns.yaml").unlink()
    rows = draw(25, words="abz").drop("clicked")
    rows.write_parquet(tmp_path / "later.parquet")
    monkeypatch.setenv("DMT_SAVE_DIR", "predicted")
    words = ["--data", "TabularRows", "--data.path=later.parquet", f"--data.checkpoint={checkpoint}"]
    main(["predict", "--config", str(config), "--ckpt_path", str(checkpoint), *words])
    [file] = (tmp_path / "predicted").rglob("predictions.parquet")
    probabilities = pl.read_parquet(file)["probability"]
    assert len(probabilities) == 25 and probabilities.is_between(0, 1).all()


def test_wrong_inputs_are_named(tmp_path: Path) -> None:
    rows = tmp_path / "rows.parquet"
    draw(3, words="ab").write_parquet(rows)
    with pytest.raises(ValueError, match=r"path=.*none.parquet: no such parquet or CSV file; give one"):
        TabularRows(path=tmp_path / "none.parquet", checkpoint=tmp_path)
    with pytest.raises(ValueError, match=r"checkpoint=.*none.ckpt: no such checkpoint; give the path of one"):
        TabularRows(path=rows, checkpoint=tmp_path / "none.ckpt")
    (tmp_path / "bad.ckpt").write_text("what?")
    with pytest.raises(ValueError, match=r"checkpoint=.*bad.ckpt: it cannot be read"):
        TabularRows(path=rows, checkpoint=tmp_path / "bad.ckpt")
    data = SyntheticClicks(num_features=2, num_groups=1, num_train=100, num_valid=50, num_test=50)
    trainer = make_trainer()
    trainer.fit(make_model(), datamodule=data)
    trainer.save_checkpoint(tmp_path / "synthetic.ckpt")
    with pytest.raises(ValueError, match=r"synthetic.ckpt: it has no vocabularies, since its model was not trained on"):
        TabularRows(path=rows, checkpoint=tmp_path / "synthetic.ckpt")
