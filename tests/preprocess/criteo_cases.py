"""Criteo logs for the tests, and a reader of them written with nothing but Python and numpy."""

import math
from pathlib import Path

import numpy as np

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
