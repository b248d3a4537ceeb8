"""Criteo logs for the tests, their conversion, and a reader of them written with nothing but Python and numpy."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dmt.datamodules import CriteoDataModule
from dmt.preprocess.criteo import ConversionOptions, Hashing, PartReport, Vocabularies
from dmt.preprocess.criteo_manifest import Splits
from dmt.preprocess.criteo_run import convert_sources
from dmt.preprocess.sources import find_sources

Lines = list[bytes]

ROWS = (1000, 7, 50, *range(2, 25))


def draw_lines(rng: np.random.Generator, count: int) -> list[bytes]:
    """Lines with all that real ones have: missing values, negative integers, upper and lower case digits."""
    lines = []
    for _ in range(count):
        integers = [b"" if rng.random() < 0.2 else b"%d" % (rng.geometric(0.02) - 4) for _ in range(13)]
        categories = [b"" if rng.random() < 0.2 else b"%08x" % rng.integers(2**32) for _ in range(26)]
        lines.append(b"\t".join([b"%d" % rng.integers(2), *integers, *categories]))
    return lines


def write_log(path: Path, lines: list[bytes]) -> Path:
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


def expected(lines: list[bytes]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """dense, ids and labels, value by value."""
    table = [line.split(b"\t") for line in lines]
    dense = [[math.log(max(int(value or 0), -2) + 3) for value in row[1:14]] for row in table]
    ids = [[int(value or b"0", 16) % rows for value, rows in zip(row[14:], ROWS, strict=True)] for row in table]
    labels = [int(row[0]) for row in table]
    return (
        np.array(dense, np.float32).reshape(-1, 13),
        np.array(ids, np.int32).reshape(-1, 26),
        np.array(labels, np.uint8),
    )


def convert(
    inputs: Sequence[str | Path],
    output: Path,
    *,
    categories: Hashing | Vocabularies = Hashing(num_embeddings=ROWS),  # noqa: B008 - frozen
    part_bytes: int = 300_000,
    skip_bad_lines: bool = False,
    fractions: tuple[float, float, float] | None = None,
    workers: int = 1,
    on_part: Callable[[str, PartReport], None] = lambda stage, report: None,
) -> Mapping[str, Any]:
    options = ConversionOptions(categories=categories, part_bytes=part_bytes, skip_bad_lines=skip_bad_lines)
    return convert_sources(
        find_sources(inputs),
        output,
        options=options,
        splits=Splits(fractions=fractions),
        workers=workers,
        on_part=on_part,
    )


def contents(output: Path) -> dict[str, bytes]:
    return {str(path.relative_to(output)): path.read_bytes() for path in output.rglob("*") if path.is_file()}


def arrays(output: Path, split: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A split as its DataModule has it, in stored order."""
    data = CriteoDataModule(path=output)
    data.setup()
    dataset = data._split(split)
    batch = dataset.batch(np.arange(len(dataset)))
    ids = batch.sparse_features.values().reshape(26, -1).T.numpy().astype(np.int32)
    return batch.dense_features.numpy(), ids, batch.labels.numpy().astype(np.uint8)


def assert_split(output: Path, split: str, lines: Lines) -> None:
    for found, wanted in zip(arrays(output, split), expected(lines), strict=True):
        # Logarithms in float32 and in float64 differ by a rounding each of argument and result.
        np.testing.assert_allclose(found, wanted, rtol=2**-22)
