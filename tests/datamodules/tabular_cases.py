"""A small click log, and what is compared of it."""

import numpy as np
import polars as pl

from dmt.datamodules import TabularClicks

SIZES = {"train": 60, "valid": 20, "test": 15}
CATEGORICAL = ["color", "code", "flag", "ratio"]
NUMERIC = ["price", "stock"]


def draw(split):
    """A small log with every kind of column, with missing and, outside of training, unseen values."""
    size = SIZES[split]
    rng = np.random.default_rng(list(SIZES).index(split))
    colors = ["red", "green", "blue", None, ""] + (["unseen"] if split != "train" else [])
    return pl.DataFrame(
        {
            "label": rng.integers(0, 2, size),
            "unused": pl.Series([[0]] * size) if split == "nested" else pl.Series(range(size)),
            "color": rng.choice(np.array(colors, dtype=object), size),
            "code": pl.Series(rng.choice([1.0, 2.0, 30.0, np.nan], size)),
            "flag": rng.integers(0, 2, size).astype(bool),
            "ratio": rng.choice([0.25, 1e-7, 3.0], size),
            "price": rng.lognormal(3, 2, size),
            "stock": pl.Series(rng.choice([1.5, 2.5, np.nan, np.inf], size)),
        }
    )


def make(path, **options):
    return TabularClicks(**({"path": path, "categorical": CATEGORICAL, "numeric": NUMERIC} | options))


def ready(path, **options):
    data = make(path, **options)
    data.prepare_data()
    data.setup()
    return data


def arrays(data):
    return {(split, name): getattr(a, name) for split, a in data._splits.items() for name in ("dense", "ids", "labels")}


def folders(cache_home):
    """The prepared logs; beside them is told what was checked."""
    return [path for path in (cache_home / "dmt").iterdir() if path.is_dir()]


def assert_same(one, other):
    one, other = arrays(one), arrays(other)
    assert one.keys() == other.keys()
    for key, array in one.items():
        np.testing.assert_array_equal(array, other[key])
