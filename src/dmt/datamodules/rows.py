"""Rows that come later: to test or predict by a checkpoint, without the log that it was trained on."""

import shutil
import weakref
from pathlib import Path
from tempfile import gettempdir, mkdtemp
from typing import Any

import torch

from dmt.datamodules.arrays import ClickArrays
from dmt.datamodules.cache import naming_writes
from dmt.datamodules.loader import EvaluationLoader
from dmt.datamodules.module import ClickDataModule
from dmt.datamodules.pieces import column_names
from dmt.datamodules.prepare import encode_files, encoder_of, label_of
from dmt.datamodules.sources import FILE_TYPES
from dmt.datamodules.writer import ClickWriter
from dmt.errors import UserInputError
from dmt.waiting import waiting
from dmt.whole_files import find_whole


class TabularRows(ClickDataModule):
    """Rows of a parquet or CSV file, encoded by the vocabularies and scales that a checkpoint has.

    For ``predict`` alone, and for ``test`` where the file has the column of labels.

    Args:
        path: the file.
        checkpoint: of a model that was trained on :class:`~dmt.datamodules.tabular.TabularClicks`; a file, or the
            folder that a sharded run has written.
        global_batch_size: samples of one step over all ranks together.
        num_workers: processes of each rank that make batches ahead; 0 where a core for them is not to spare.

    Raises:
        UserInputError: a file is missing, cannot be read, or lacks what is needed.
    """

    def __init__(self, *, path: Path, checkpoint: Path, global_batch_size: int = 4096, num_workers: int = 0) -> None:
        super().__init__(global_batch_size=global_batch_size, seed=0, num_workers=num_workers)
        self.path = Path(path).expanduser()
        if self.path.suffix not in FILE_TYPES or not self.path.is_file():
            raise UserInputError(f"path={self.path}: no such parquet or CSV file; give one")
        state = _read_state(Path(checkpoint).expanduser())
        self._encoder, self._label = encoder_of(state), label_of(state)
        self._schema = self._encoder.schema
        self._has_labels = False

    def has_split(self, name: str) -> bool:
        return name == "test"

    def setup(self, stage: str | None = None) -> None:
        """Encode the file, some rows at a time, into a temporary folder that is mapped into memory.

        Raises:
            UserInputError: the file cannot be read or encoded, or the folder, below $TMPDIR, cannot be written.
        """
        self._has_labels = self._label in column_names(self.path)
        parts = encode_files([self.path], encoder=self._encoder, label=self._label if self._has_labels else None)
        with naming_writes(f"TMPDIR={gettempdir()}", fix="set it to a writable folder"):
            folder = Path(mkdtemp(prefix="dmt-rows-"))
            # With this object: processes that make batches ahead map the files again.
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
            with ClickWriter(folder / "rows") as writer:
                for part in waiting(parts, f"encoding {self.path.name}"):
                    writer.append(part)
        self._splits = {"test": ClickArrays.load(folder / "rows", feature_names=self._encoder.schema.feature_names)}

    def test_dataloader(self) -> EvaluationLoader:
        """All rows, if they have labels."""
        self._split("test")
        if not self._has_labels:
            raise UserInputError(f"{self.path}: no column {self._label!r} to test against; add it, or predict")
        return super().test_dataloader()


def _read_state(checkpoint: Path) -> dict[str, Any]:
    found = find_whole(checkpoint)
    # A sharded checkpoint has all but its tensors in this file.
    file = found / "rest.pt" if found.is_dir() else found
    if not file.is_file():
        raise UserInputError(f"checkpoint={checkpoint}: no such checkpoint; give the path of one")
    try:
        # Like Lightning's own checkpoints it may hold any Python object: load only what you trust.
        content = torch.load(file, map_location="cpu", mmap=True, weights_only=False)
    except (RuntimeError, OSError, ValueError, EOFError) as error:
        reason = str(error).splitlines()[0]
        raise UserInputError(f"checkpoint={checkpoint}: it cannot be read ({reason}); give one of dmt fit") from None
    for state in content.values():
        if isinstance(state, dict) and "encoder" in state:
            encoder: dict[str, Any] = state["encoder"]
            return encoder
    raise UserInputError(
        f"checkpoint={checkpoint}: it has no vocabularies, since its model was not trained on TabularClicks; give one "
        "that was"
    )
