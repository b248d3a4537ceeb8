"""Users' own click logs: parquet, Arrow or CSV files with one row per sample, or a Hugging Face dataset."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dmt.datamodules.arrays import ClickArrays
from dmt.datamodules.cache import default_cache_dir
from dmt.datamodules.columns import ColumnNames
from dmt.datamodules.hub import is_hub_or_saved, write_splits
from dmt.datamodules.loader import ClickDataset, check_minima
from dmt.datamodules.module import ClickDataModule
from dmt.datamodules.prepare import encoder_of, encoder_state, load_meta, prepare
from dmt.datamodules.sources import find_files
from dmt.errors import UserInputError


class TabularClicks(ClickDataModule):
    """A click log of your own: a folder with train, valid and test files, parquet, Arrow or CSV with a header line.

    Categorical columns may be text, integers, floats or booleans, or but in CSV files lists of them, which become
    multi-hot features; whole floats and integers are the same category. Id 0 stands for missing values (null, NaN,
    empty text, a missing list), id 1 for values that training holds fewer than ``min_count`` times, and the others
    follow by frequency. Numeric columns are scaled by what training holds: the logarithm if a few values are very
    large, then mean 0 and standard deviation 1; a column with missing or infinite values gets a second one,
    ``NAME:missing``, that is 1 there. The encoded log is kept in ``cache_dir``, and made again where it is damaged.
    A log may be larger than memory, which has to hold some of the rows and all distinct values.

    A split may be several files, which are read in the order of their names: those in a folder ``train`` or
    ``train.parquet``, or ``train-00000-of-00002.parquet``, ``train-00001-of-00002.parquet``.

    Args:
        path: folder of the files; or a Hugging Face dataset with splits: ``hf://datasets/OWNER/NAME``, or a folder that
            its ``save_to_disk`` has written.
        categorical: the categorical columns, one embedding table each.
        numeric: the numeric columns.
        weights: for categorical columns of lists, the column with a list of weights as long.
        label: the column of labels, 0 or 1.
        global_batch_size: samples of one step over all ranks together.
        train_file: file, or folder of files, of the training samples; without an ending, .parquet, .arrow and .csv are
            tried.
        valid_file: file of the validation samples, needed to fit with validation.
        test_file: file of the test samples, needed to test and predict.
        min_count: occurrences in training that give a value a row of its own. With 1, no training sample has
            the row of unseen values, which then stays as initialised.
        cache_dir: where encoded logs are kept. Default: dmt in $XDG_CACHE_HOME or ~/.cache.
        seed: seed of the order of the training samples.
        num_workers: processes of each rank that make batches ahead; 0 where a core for them is not to spare.

    Raises:
        UserInputError: an option, a file or a value in one is wrong.
    """

    def __init__(
        self,
        *,
        path: str | Path,
        categorical: Sequence[str],
        numeric: Sequence[str] = (),
        weights: dict[str, str] | None = None,
        label: str = "label",
        global_batch_size: int = 1024,
        train_file: str = "train",
        valid_file: str = "valid",
        test_file: str = "test",
        min_count: int = 2,
        cache_dir: Path | None = None,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__(global_batch_size=global_batch_size, seed=seed, num_workers=num_workers)
        check_minima({"min_count": (min_count, 1)})
        self.min_count = min_count
        self.cache_dir = default_cache_dir() if cache_dir is None else Path(cache_dir).expanduser()
        if is_hub_or_saved(path):
            path = write_splits(path, cache_dir=self.cache_dir)
        self.path = Path(path).expanduser()  # a YAML file has no shell to do it
        self.columns = ColumnNames(categorical=categorical, numeric=numeric, label=label, weights=weights or {})
        self._folder: Path | None = None
        # Looked for here rather than in prepare_data(), which one rank runs alone while the others wait.
        self.files = find_files(self.path, names={"train": train_file, "valid": valid_file, "test": test_file})

    def has_split(self, name: str) -> bool:
        return name in self.files

    def prepare_data(self) -> None:
        """Encode the files into the cache, unless they are there already."""
        try:
            self._schema, _ = load_meta(self.prepared_folder())
        except UserInputError:
            # Lightning runs this on one rank, and an error here would leave the others waiting for it.
            # setup(), which every rank runs, meets the same error on all of them.
            if self.trainer is None or self.trainer.world_size == 1:
                raise

    def setup(self, stage: str | None = None) -> None:
        """Map the encoded splits into memory."""
        self._folder = folder = self.prepared_folder()
        self._schema, sizes = load_meta(folder)
        names = self._schema.feature_names
        self._splits = {split: ClickArrays.load(folder / split, feature_names=names) for split in sizes}

    def prepared_folder(self) -> Path:
        """The cache folder of the encoded log, which is made if need be.

        Raises:
            UserInputError: a file cannot be read or encoded, or ``cache_dir`` cannot be written.
        """
        return prepare(self.files, columns=self.columns, min_count=self.min_count, cache_dir=self.cache_dir)

    def state_dict(self) -> dict[str, Any]:
        """The data position, and how rows are encoded, for :class:`TabularRows`."""
        return super().state_dict() | {"encoder": self._encoder_state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the data position, where the checkpoint is of a model for this log.

        Raises:
            UserInputError: the checkpoint's model was trained on rows that were encoded in another way.
        """
        super().load_state_dict(state_dict)
        if "encoder" in state_dict:
            mine = encoder_of(self._encoder_state())
            if not encoder_of(state_dict["encoder"]).equals(mine):
                raise UserInputError(
                    f"path={self.path}: the checkpoint is of another training log, with other vocabularies or scales; "
                    "give that log, or test and predict rows of this one with dmt.datamodules.TabularRows",
                    on_every_rank=True,
                )

    def _encoder_state(self) -> dict[str, Any]:
        # Of the log that was set up: its files may have changed since, or gone.
        if self._folder is None or not self._folder.is_dir():
            return encoder_state(self.prepared_folder())
        return encoder_state(self._folder)

    def _split(self, name: str) -> ClickDataset:
        if self._splits and name not in self._splits:
            raise UserInputError(
                f"{name}_file={name}: no {name}.parquet, {name}.arrow or {name}.csv in {self.path}; add the file, or "
                f"{'fit with limit_val_batches=0' if name == 'valid' else 'neither test nor predict'}"
            )
        return super()._split(name)
