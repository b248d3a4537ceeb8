"""Encoding a click log once, into a cache folder that every later run maps into memory."""

import hashlib
import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import numpy as np
import polars as pl
import torch
from lightning.pytorch.utilities import rank_zero_info

from dmt.datamodules.arrays import ClickArrays
from dmt.datamodules.cache import new_folder
from dmt.datamodules.checksums import discard_if_damaged, find_damage, write_checksums
from dmt.datamodules.columns import ColumnNames, to_label
from dmt.datamodules.encoder import TabularEncoder, TabularLearner
from dmt.datamodules.pieces import ROWS_AT_A_TIME, read_pieces, reading
from dmt.datamodules.scales import NumericScale
from dmt.datamodules.sources import names_of
from dmt.datamodules.writer import ClickWriter
from dmt.errors import UserInputError
from dmt.schema import FeatureSchema
from dmt.waiting import waiting

# Part of the fingerprint: raise it when the encoding changes, so that no old cache is taken for a new one.
FORMAT_VERSION = 3
META_FILE = "meta.json"
VOCABULARY_FILE = "vocabulary.parquet"

T = TypeVar("T")
SplitFiles: TypeAlias = Mapping[str, Sequence[Path]]


def prepare(files: SplitFiles, *, columns: ColumnNames, min_count: int, cache_dir: Path) -> Path:
    """Encode the splits unless that was done before, or again where the result is damaged.

    The folder holds the arrays of each split in ``SPLIT`` (:class:`ClickWriter`), the vocabularies in
    ``vocabulary.parquet``, ``meta.json`` with schema, scales, sizes and sources, and the checksums of all of these. It
    appears complete or not at all, so several processes may prepare the same log at once. Some rows are in memory at a
    time, and all distinct values of categorical columns.

    Args:
        files: the files of every split; the encoding is learned from ``train``.
        columns: the columns to read.
        min_count: occurrences in training below which a value shares the row of the unseen ones.
        cache_dir: where the folder is made, named by a fingerprint of files and options.

    Returns:
        The folder.

    Raises:
        UserInputError: a file cannot be read or encoded, or ``cache_dir`` cannot be written, or is full.
    """
    description = _describe(files, columns=columns, min_count=min_count)
    fingerprint = hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()[:16]
    folder = cache_dir / f"{files['train'][0].resolve().parent.name}-{fingerprint}"
    discard_if_damaged(folder, cache_dir=cache_dir)
    if folder.is_dir():
        return folder
    start = time.monotonic()
    with new_folder(folder, cache_dir=cache_dir) as unfinished:
        meta = _encode(files, columns=columns, min_count=min_count, folder=unfinished)
        (unfinished / META_FILE).write_text(json.dumps({**description, **meta}, indent=2))
        write_checksums(unfinished)
    sizes = ", ".join(f"{size:,} {split}" for split, size in meta["num_samples"].items())
    rank_zero_info(
        f"Prepared {sizes} samples of {len(columns.categorical)} categorical and {len(columns.numeric)} "
        f"numeric columns in {time.monotonic() - start:.1f} s: {folder}"
    )
    # One rank comes here first: now the others will know it as checked, and damage would be theirs to find as well.
    find_damage(folder)
    return folder


def load_meta(folder: Path) -> tuple[FeatureSchema, dict[str, int]]:
    """Schema, and number of samples by split, of a prepared log."""
    meta = json.loads((folder / META_FILE).read_text())
    return FeatureSchema.from_dict(meta["schema"]), meta["num_samples"]


def encoder_state(folder: Path) -> dict[str, Any]:
    """What a checkpoint keeps of a prepared log, to encode rows that come later in the same way."""
    return {
        "meta": (folder / META_FILE).read_text(),
        "vocabulary": torch.from_numpy(np.fromfile(folder / VOCABULARY_FILE, dtype=np.uint8)),
    }


def encoder_of(state: Mapping[str, Any]) -> TabularEncoder:
    """The encoder of an :func:`encoder_state`."""
    meta = json.loads(state["meta"])
    table = pl.read_parquet(state["vocabulary"].numpy().tobytes())
    return TabularEncoder(
        vocabularies={
            feature["name"]: table.filter(pl.col("feature") == feature["name"]).drop("feature")
            for feature in meta["schema"]["categorical"]
        },
        scales=[NumericScale(**scale) for scale in meta["scales"]],
        mean_lengths={f["name"]: f["mean_length"] for f in meta["schema"]["categorical"] if f["multi_hot"]},
        weights=meta["columns"]["weights"],
    )


def label_of(state: Mapping[str, Any]) -> str:
    """The column of labels of the log of an :func:`encoder_state`."""
    name: str = json.loads(state["meta"])["columns"]["label"]
    return name


def encode_files(files: Sequence[Path], *, encoder: TabularEncoder, label: str | None) -> Iterator[ClickArrays]:
    """The rows of files, some at a time.

    Args:
        files: one file's rows come after the other's.
        encoder: as training has it.
        label: the column of labels; without one they are 0.

    Raises:
        UserInputError: a file cannot be read or encoded.
    """
    names, rows_before = encoder.schema.feature_names, 0
    for frame in read_pieces(files, columns=encoder.columns if label is None else [*encoder.columns, label]):
        labels = np.zeros(len(frame), np.uint8)
        with _naming(files):
            if label is not None:
                labels = to_label(frame[label], rows_before=rows_before).to_numpy()
            dense, ids, bags = encoder.encode(frame, rows_before=rows_before)
        yield ClickArrays(feature_names=names, dense=dense, ids=ids, labels=labels, bags=bags)
        rows_before += len(frame)


def _describe(files: SplitFiles, *, columns: ColumnNames, min_count: int) -> dict[str, object]:
    """What the encoded log depends on."""
    sources = {split: [_identity(file) for file in of_split] for split, of_split in files.items()}
    return {
        "version": FORMAT_VERSION,
        "sources": sources,
        "columns": {
            "categorical": list(columns.categorical),
            "numeric": list(columns.numeric),
            "label": columns.label,
            "weights": dict(columns.weights),
        },
        "min_count": min_count,
    }


def _identity(file: Path) -> dict[str, object]:
    """What tells whether a file is as it was."""
    with reading(file):
        status = file.stat()
    return {"file": str(file.resolve()), "size_bytes": status.st_size, "modified_ns": status.st_mtime_ns}


def _encode(files: SplitFiles, *, columns: ColumnNames, min_count: int, folder: Path) -> dict[str, Any]:
    """Write arrays and vocabularies into ``folder``; returns what else there is to tell."""
    encoder = _learn(files["train"], columns=columns, min_count=min_count)
    sizes = {}
    for split, of_split in files.items():
        parts = encode_files(of_split, encoder=encoder, label=columns.label)
        with ClickWriter(folder / split) as writer:
            for part in _showing(parts, f"encoding {split}"):
                writer.append(part)
        sizes[split] = writer.num_samples
    vocabularies = [
        vocabulary.select(pl.lit(name).alias("feature"), pl.all()) for name, vocabulary in encoder.vocabularies.items()
    ]
    pl.concat(vocabularies).write_parquet(folder / VOCABULARY_FILE)
    return {
        "num_samples": sizes,
        "schema": encoder.schema.to_dict(),
        "scales": [asdict(scale) for scale in encoder.scales],
    }


def _learn(files: Sequence[Path], *, columns: ColumnNames, min_count: int) -> TabularEncoder:
    learner = TabularLearner(columns)
    for piece in _showing(read_pieces(files, columns=columns.all), "learning from train"):
        with _naming(files):
            learner.add(piece)
    with _naming(files):
        return learner.encoder(min_count=min_count)


def _showing(parts: Iterator[T], what: str) -> Iterable[T]:
    """The parts, with progress on a terminal."""
    return waiting(parts, f"{what}, {ROWS_AT_A_TIME:,} rows at a time")


@contextmanager
def _naming(files: Sequence[Path]) -> Iterator[None]:
    """Say in which files a column is wrong."""
    try:
        yield
    except UserInputError as error:
        raise UserInputError(f"{names_of(files)}: {error}") from error
