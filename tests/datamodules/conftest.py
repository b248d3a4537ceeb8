import numpy as np
import pytest
import torch

from dmt.datamodules import ClickArrays, ClickDataModule
from tests.datamodules.tabular_cases import SIZES, draw


class NumberedClicks(ClickDataModule):
    """A log whose only feature and only numeric column are the number of the sample."""

    def __init__(self, *, num_samples=10, global_batch_size=3, seed=1):
        super().__init__(global_batch_size=global_batch_size, seed=seed)
        self.num_samples = num_samples

    def setup(self, stage=None):
        numbers = np.arange(self.num_samples)
        split = ClickArrays(
            feature_names=["number"],
            dense=numbers[:, None].astype(np.float32),
            ids=numbers[:, None].astype(np.int32),
            labels=(numbers % 2).astype(np.uint8),
        )
        self._splits = {"train": split, "valid": split, "test": split}


def numbers(batch):
    """The sample numbers of a batch of NumberedClicks."""
    return batch.sparse_features.values().tolist()


@pytest.fixture
def tiny_trainer():
    """Makes a Trainer that does nothing but train: no files, no output."""
    from lightning.pytorch import Trainer

    def make(**options):
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        quiet |= {"enable_model_summary": False, "num_sanity_val_steps": 0, "accelerator": "cpu"}
        return Trainer(**(quiet | options))

    return make


@pytest.fixture
def folder(tmp_path):
    """The small log of :mod:`tests.datamodules.tabular_cases`, as parquet files."""
    path = tmp_path / "log"
    path.mkdir()
    for split in SIZES:
        draw(split).write_parquet(path / f"{split}.parquet")
    return path


@pytest.fixture(autouse=True)
def cache_home(tmp_path, monkeypatch):
    """No test reads or writes the user's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
