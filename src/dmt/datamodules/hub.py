"""Hugging Face datasets as the files of a click log."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_info

from dmt.datamodules.cache import new_folder
from dmt.datamodules.checksums import discard_if_damaged, write_checksums
from dmt.errors import UserInputError
from dmt.preprocess.dataset_text import HUB, reading_dataset

_SPLITS = {"train": "train", "valid": "valid", "validation": "valid", "val": "valid", "dev": "valid", "test": "test"}


def is_hub_or_saved(path: str | Path) -> bool:
    """Whether it is a dataset of the hub, ``hf://datasets/OWNER/NAME``, or one that ``save_to_disk`` has written."""
    return str(path).startswith(HUB) or (Path(path) / "dataset_dict.json").is_file()


def write_splits(path: str | Path, *, cache_dir: Path) -> Path:
    """Write the splits of a dataset as train, valid and test.parquet, unless that was done before and is undamaged.

    The folder appears complete or not at all, so several processes may write it at once.

    Returns:
        their folder, in ``cache_dir``.

    Raises:
        UserInputError: the dataset cannot be loaded, or has no such splits.
    """
    splits = _load(str(path))
    named = {_SPLITS[name]: dataset for name, dataset in splits.items() if name in _SPLITS}
    if "train" not in named:
        raise UserInputError(f"path={path}: its splits are {', '.join(splits)}; give a dataset with a train split")
    # The names of a dataset's files in the library's cache have its revision in them; a saved one's have a size.
    files = {
        split: [(file["filename"], os.path.getsize(file["filename"])) for file in dataset.cache_files]
        for split, dataset in named.items()
    }
    fingerprint = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()[:16]
    folder = cache_dir / f"{str(path).rstrip('/').rpartition('/')[2]}-{fingerprint}" / "log"
    discard_if_damaged(folder, cache_dir=cache_dir)
    if folder.is_dir():
        return folder
    with new_folder(folder, cache_dir=cache_dir) as unfinished:
        for split, dataset in named.items():
            dataset.to_parquet(unfinished / f"{split}.parquet")
        write_checksums(unfinished)
    rank_zero_info(f"Wrote {', '.join(named)} of {path} as parquet files: {folder}")
    return folder


def _load(name: str) -> Any:
    # Here, because it takes a second.
    import datasets

    datasets.disable_progress_bars()
    with reading_dataset(f"path={name}"):
        return datasets.load_dataset(name.removeprefix(HUB)) if name.startswith(HUB) else datasets.load_from_disk(name)
