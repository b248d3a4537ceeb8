"""Random batches of any shape, for measuring throughput (paper section 5) and for counting what models cost.

Shape legend: B samples of a batch, F categorical features, C numeric columns.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torchrec.datasets.utils import Batch

from dmt.datamodules.arrays import single_hot_batch
from dmt.datamodules.loader import check_minima
from dmt.datamodules.module import ClickDataModule
from dmt.datamodules.synthetic import numbered_names
from dmt.schema import CategoricalFeature, FeatureSchema

_CLICK_RATE = 0.25


class RandomClicks(ClickDataModule):
    """Single-hot ids even over each table, numeric columns even in [0, 1), a quarter clicks: nothing to learn.

    Samples are made when a batch asks for them and take no memory. Sample ``i`` of a split depends on ``seed`` and
    its columns alone.

    Args:
        num_embeddings: rows of each table, one for each categorical feature.
        num_dense: number of numeric columns.
        num_train: training samples.
        num_valid: validation samples.
        num_test: test samples.
        global_batch_size: samples of one step over all ranks together.
        seed: seed of the samples and of their order.
        num_workers: processes of each rank that make batches ahead; 0 where a core for them is not to spare.

    Raises:
        UserInputError: a number is out of range.

    Example:
        >>> data = RandomClicks(num_embeddings=[10, 3], num_dense=1, num_train=8, num_valid=1, num_test=1)
        >>> data.setup()
        >>> next(iter(data.train_dataloader())).sparse_features.stride()
        8
    """

    def __init__(
        self,
        *,
        num_embeddings: Sequence[int],
        num_dense: int = 13,
        num_train: int = 4_194_304,
        num_valid: int = 65_536,
        num_test: int = 65_536,
        global_batch_size: int = 16_384,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__(global_batch_size=global_batch_size, seed=seed, num_workers=num_workers)
        minima = {"num_dense": (num_dense, 0), "num_train": (num_train, 1)}
        minima |= {"num_valid": (num_valid, 1), "num_test": (num_test, 1)}
        check_minima(minima)
        self.num_samples = {"train": num_train, "valid": num_valid, "test": num_test}
        names = numbered_names("c", len(num_embeddings))
        self._schema = FeatureSchema(
            categorical=[
                CategoricalFeature(name=name, num_embeddings=rows)
                for name, rows in zip(names, num_embeddings, strict=True)
            ],
            dense=numbered_names("d", num_dense),
        )

    def setup(self, stage: str | None = None) -> None:
        """Nothing is made ahead of time."""
        self._splits = {
            split: RandomSamples(schema=self.schema, num_samples=size, seed=self.seed, stream=stream)
            for stream, (split, size) in enumerate(self.num_samples.items())
        }


@dataclass(frozen=True, kw_only=True)
class RandomSamples:
    """A split of :class:`RandomClicks`.

    Args:
        schema: single-hot columns.
        num_samples: how many there are.
        seed: of the samples.
        stream: keeps splits of one seed apart.
    """

    schema: FeatureSchema
    num_samples: int
    seed: int
    stream: int

    def __len__(self) -> int:
        return self.num_samples

    def batch(self, indices: np.ndarray) -> Batch:
        """The samples at ``indices`` (B,), in that order; B may be 0."""
        rows = np.array([feature.num_embeddings for feature in self.schema.categorical], dtype=np.uint64)
        num_dense, num_columns = len(self.schema.dense), len(rows) + len(self.schema.dense) + 1
        counters = np.arange(num_columns, dtype=np.uint64)[:, None] + indices.astype(np.uint64) * np.uint64(num_columns)
        [start] = _mixed(np.array([self.seed * 3 + self.stream], dtype=np.uint64))
        random = _mixed(counters + start)  # (F + C + 1, B)
        ids = (random[: len(rows)] % rows[:, None]).astype(np.int64)
        uniform = (random[len(rows) :] >> np.uint64(40)).astype(np.float32) / np.float32(2**24)
        return single_hot_batch(
            self.schema.feature_names,
            dense=np.ascontiguousarray(uniform[:num_dense].T),
            ids=ids,
            labels=(uniform[num_dense] < _CLICK_RATE).astype(np.float32),
        )


def _mixed(numbers: np.ndarray) -> np.ndarray:
    """A random 64-bit number for each number: SplitMix64 (Steele et al. 2014), whose state is a counter."""
    mixed = numbers * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
