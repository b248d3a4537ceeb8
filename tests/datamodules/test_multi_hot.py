"""Columns of lists against Python's own lists and dictionaries."""

from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import polars as pl
import pytest

from dmt.datamodules import TabularClicks
from dmt.modules import DLRM, ClickModel, DLRMTower

SIZES = {"train": 300, "valid": 40, "test": 30}
Bag = list[str | None] | None


def draw_bags(rng: np.random.Generator, size: int, words: str) -> list[Bag]:
    """Lists of none to four words, with missing words and missing lists among them."""
    choices = [*words, None]
    bags: list[Bag] = [[choices[i] for i in rng.integers(0, len(choices), rng.integers(0, 5))] for _ in range(size)]
    return [None if rng.random() < 0.1 else bag for bag in bags]


def draw(rng: np.random.Generator, split: str) -> dict[str, list[Any]]:
    size = SIZES[split]
    tags = draw_bags(rng, size, "abcdefg" if split == "train" else "abcdefgz")
    return {
        "label": rng.integers(0, 2, size).tolist(),
        "tags": tags,
        "share": [None if bag is None else rng.random(len(bag)).round(3).tolist() for bag in tags],
        "plain": rng.integers(0, 5, size).tolist(),
        "sites": draw_bags(rng, size, "xy"),
    }


@pytest.fixture
def log(tmp_path: Path) -> tuple[Path, dict[str, dict[str, list[Any]]]]:
    rng = np.random.default_rng()
    splits = {split: draw(rng, split) for split in SIZES}
    for split, columns in splits.items():
        pl.DataFrame(columns, schema_overrides={"tags": pl.List(pl.String)}).write_parquet(
            tmp_path / f"{split}.parquet"
        )
    return tmp_path, splits


def make(path: Path, **options: Any) -> TabularClicks:
    data = TabularClicks(path=path, categorical=["tags", "plain", "sites"], cache_dir=path / "cache", **options)
    data.prepare_data()
    data.setup()
    return data


def rows_of(bags: list[Bag]) -> dict[str, int]:
    """Embedding rows of the words that training has twice or more."""
    counts = Counter(word for bag in bags for word in bag or [] if word)
    frequent = sorted((word for word, count in counts.items() if count >= 2), key=lambda word: (-counts[word], word))
    return {word: row for row, word in enumerate(frequent, start=2)}


@pytest.mark.parametrize("is_weighted", [False, True])
def test_bags_are_those_of_the_lists(log: tuple[Path, dict[str, dict[str, list[Any]]]], is_weighted: bool) -> None:
    path, splits = log
    data = make(path, global_batch_size=7, weights={"tags": "share"} if is_weighted else None)
    tags, plain, sites = data.schema.categorical
    assert (tags.multi_hot, plain.multi_hot, sites.multi_hot) == (True, False, True)
    assert data.schema.weighted == is_weighted
    lengths = [1 if bag is None else len(bag) for bag in splits["train"]["tags"]]
    assert tags.mean_length == pytest.approx(np.mean(lengths))
    for split in ("train", "valid", "test"):
        dataset = data._split(split)
        order = np.random.default_rng().permutation(SIZES[split])
        for indices in np.array_split(order, [0, 11]):
            sparse = dataset.batch(indices).sparse_features
            for name in ("tags", "sites"):
                rows = rows_of(splits["train"][name])
                bags = [splits[split][name][i] for i in indices]
                wanted = [[0] if bag is None else [rows.get(w, 1) if w else 0 for w in bag] for bag in bags]
                assert sparse[name].lengths().tolist() == [len(bag) for bag in wanted]
                assert sparse[name].values().tolist() == [row for bag in wanted for row in bag]
                if is_weighted:
                    shares = [splits[split]["share"][i] if name == "tags" else None for i in indices]
                    weights = [
                        given if given is not None else [1.0] * len(bag)
                        for given, bag in zip(shares, wanted, strict=True)
                    ]
                    flat = [weight for bag in weights for weight in bag]
                    assert sparse[name].weights().tolist() == np.float32(flat).tolist()
            assert sparse["plain"].lengths().tolist() == [1] * len(indices)


def test_a_model_trains_on_weighted_bags(log: tuple[Path, dict[str, dict[str, list[Any]]]]) -> None:
    data = make(log[0], weights={"tags": "share"}, global_batch_size=64)
    model = ClickModel(
        embedding_dim=8,
        num_towers=2,
        tower=partial(DLRMTower, c=1, p=0, out_dim=4),
        top=partial(DLRM, over_layers=[8]),
    )
    trainer = L.Trainer(
        accelerator="cpu", devices=1, max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    trainer.fit(model, datamodule=data)
    assert 0 < trainer.callback_metrics["train/loss"] < 2


def test_fixed_width_and_single_values_are_lists_as_well(tmp_path: Path) -> None:
    lists = pl.DataFrame({"label": [0, 1, 1], "tags": [["a", "b"], ["a", "b"], ["b", "c"]]})
    for split, frame in {
        "train": lists,
        "valid": lists.with_columns(pl.col("tags").cast(pl.Array(pl.String, 2))),
        "test": pl.DataFrame({"label": [1, 0], "tags": ["b", None]}),
    }.items():
        frame.write_parquet(tmp_path / f"{split}.parquet")
    data = TabularClicks(path=tmp_path, categorical=["tags"], cache_dir=tmp_path / "cache")
    data.setup()

    def bags(split: str) -> list[list[int]]:
        dataset = data._split(split)
        jagged = dataset.batch(np.arange(len(dataset))).sparse_features["tags"]
        return [bag.tolist() for bag in jagged.to_dense()]

    assert bags("train") == bags("valid") == [[3, 2], [3, 2], [2, 1]]
    assert bags("test") == [[2], [0]]


@pytest.mark.parametrize(
    ("weights", "columns", "message"),
    [
        (
            {"plain": "share"},
            {},
            "train.parquet: column 'plain': has weights, but holds no lists; leave it out of weights",
        ),
        ({"other": "share"}, {}, "weights=other: not a categorical column"),
        ({"tags": "plain"}, {}, "weights=plain: it is a feature or the label as well"),
        ({"tags": "shares"}, {}, "no column 'shares'; did you mean 'share'"),
        ({"tags": "share"}, {"share": [[0.5]], "tags": [["a", "b"]]}, "row 3 has 1 weights for 2 ids of 'tags'; give"),
        ({"tags": "share"}, {"share": [[0.5, None]], "tags": [["a", "b"]]}, "'share': a weight of row 3 is missing"),
    ],
)
def test_wrong_weights_are_named(
    tmp_path: Path, weights: dict[str, str], columns: dict[str, list[Any]], message: str
) -> None:
    log = {
        "label": [0, 1, 1],
        "plain": [1, 1, 2],
        "tags": [["a"], None],
        "share": [[1.0], None],
        "sites": [[], None, []],
    }
    for name, value in ({"share": [[1.0]], "tags": [["a"]]} | columns).items():
        log[name] = [*log[name], *value]
    frame = pl.DataFrame(log, schema_overrides={"sites": pl.List(pl.String)})
    for split in SIZES:
        frame.write_parquet(tmp_path / f"{split}.parquet")
    with pytest.raises(ValueError, match=message):
        make(tmp_path, weights=weights)
