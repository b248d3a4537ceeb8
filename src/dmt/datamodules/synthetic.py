"""A click log that needs no download and whose best AUC and best towers are known."""

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from torchmetrics.functional.classification import binary_auroc
from torchrec.datasets.utils import Batch

from dmt.datamodules.arrays import Bags, ClickArrays, offsets_of
from dmt.datamodules.loader import ClickDataset, GlobalBatchSampler, check_minima
from dmt.datamodules.module import ClickDataModule
from dmt.datamodules.teacher import ClickTeacher, LogShape, Samples
from dmt.errors import UserInputError
from dmt.schema import CategoricalFeature, FeatureSchema

MAX_MEAN_LENGTH = 1000
# Samples are drawn block by block, each from its own seed: sample i does not depend on how many there are.
BLOCK_SIZE = 8192
# Splits of up to so many samples are drawn once and kept; larger ones are drawn when a batch asks for them.
MAX_STORED = 2**22


class SyntheticClicks(ClickDataModule):
    """A synthetic click log with planted groups of features.

    Ids are drawn independently for every feature, by a Zipf-like law; groups act on the label alone: pairs of
    features of one group interact strongly, other pairs weakly. About a quarter of the samples are clicks,
    and ``best_auc``, what a perfect model would reach, is about 0.84. Sample ``i`` of a split depends on
    ``seed`` and the shape of the log alone, not on batch size, number of ranks or size of the split.

    A split of more than 4,194,304 samples takes no memory: its samples are drawn when a batch asks for them. Their
    order is then that of the log, since samples are independent of each other.

    Args:
        num_features: number of categorical features.
        num_groups: number of planted groups; their sizes differ by at most one feature.
        num_dense: number of numeric columns.
        num_embeddings: rows of every embedding table, or of each.
        num_multi_hot: the last so many features are multi-hot; a sample may have none of their ids, or several.
        mean_length: mean number of ids of a sample's multi-hot feature.
        drift_samples: samples in which main effects and interactions of ids become wholly others; the log turns on. The
            validation samples follow those of training, then the test samples. 0: the law stays.
        num_train: training samples.
        num_valid: validation samples.
        num_test: test samples.
        global_batch_size: samples of one step over all ranks together.
        seed: seed of the log and of the order of the training samples.
        num_workers: processes of each rank that make batches ahead; 0 where a core for them is not to spare.

    Raises:
        UserInputError: a number is out of range.

    Example:
        >>> data = SyntheticClicks(num_features=4, num_groups=2, num_train=100, num_valid=10, num_test=10)
        >>> data.planted_groups
        (('c0', 'c3'), ('c1', 'c2'))
        >>> data.setup()
        >>> next(iter(data.train_dataloader())).labels.shape
        torch.Size([100])
    """

    def __init__(
        self,
        *,
        num_features: int = 16,
        num_groups: int = 4,
        num_dense: int = 8,
        num_embeddings: int | list[int] = 1000,
        num_multi_hot: int = 0,
        mean_length: float = 3.0,
        drift_samples: int = 0,
        num_train: int = 400_000,
        num_valid: int = 50_000,
        num_test: int = 50_000,
        global_batch_size: int = 1024,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__(global_batch_size=global_batch_size, seed=seed, num_workers=num_workers)
        sizes = num_embeddings if isinstance(num_embeddings, list) else [num_embeddings] * num_features
        minima = {
            "num_features": (num_features, 1),
            "num_dense": (num_dense, 0),
            "num_embeddings": (min(sizes, default=2), 2),
            "num_multi_hot": (num_multi_hot, 0),
            "drift_samples": (drift_samples, 0),
            "num_train": (num_train, 1),
            "num_valid": (num_valid, 1),
            "num_test": (num_test, 1),
        }
        check_minima(minima)
        if len(sizes) != num_features:
            raise UserInputError(
                f"num_embeddings={sizes}: {len(sizes)} numbers for num_features={num_features}; give one for each, or "
                "a single one"
            )
        if not 1 <= num_groups <= num_features:
            raise UserInputError(
                f"num_groups={num_groups}: {num_features} features fill between 1 and {num_features} groups; "
                "choose a number in that range"
            )
        if num_multi_hot > num_features:
            raise UserInputError(f"num_multi_hot={num_multi_hot}: there are {num_features} features; give fewer")
        if not 0 < mean_length <= MAX_MEAN_LENGTH:
            raise UserInputError(f"mean_length={mean_length}: give a number above 0, up to {MAX_MEAN_LENGTH}")
        self.shape = LogShape(
            num_embeddings=sizes,
            num_dense=num_dense,
            num_multi_hot=num_multi_hot,
            mean_length=mean_length,
            drift_samples=drift_samples,
        )
        self.num_groups = num_groups
        self.num_samples = {"train": num_train, "valid": num_valid, "test": num_test}
        self._schema = FeatureSchema(
            categorical=[
                CategoricalFeature(
                    name=name,
                    num_embeddings=size,
                    multi_hot=(is_multi_hot := index >= num_features - num_multi_hot),
                    mean_length=mean_length if is_multi_hot else 1.0,
                )
                for index, (name, size) in enumerate(zip(numbered_names("c", num_features), sizes, strict=True))
            ],
            dense=numbered_names("d", num_dense),
        )

    def setup(self, stage: str | None = None) -> None:
        """Draw all splits but very large ones; seconds for the default sizes."""
        if self._splits:
            return
        drawn = {split: self._samples(split) for split in self.num_samples}
        self._splits = {
            split: samples.stored() if len(samples) <= MAX_STORED else samples for split, samples in drawn.items()
        }

    @cached_property
    def teacher(self) -> ClickTeacher:
        """The law that the samples are drawn from."""
        return ClickTeacher(self.shape, num_groups=self.num_groups, seed=self.seed)

    @property
    def planted_groups(self) -> tuple[tuple[str, ...], ...]:
        """Names of the features of every planted group: the towers that a partitioner should find."""
        return tuple(tuple(self.schema.feature_names[f] for f in group) for group in self.teacher.groups)

    @cached_property
    def best_auc(self) -> float:
        """AUC of the true click probability on the test split."""
        logits, labels = self._samples("test").best_predictions()
        return binary_auroc(torch.from_numpy(logits), torch.from_numpy(labels.astype(np.int64))).item()

    def _samples(self, split: str) -> "SyntheticSamples":
        index = list(self.num_samples).index(split)
        return SyntheticSamples(
            teacher=self.teacher,
            feature_names=self.schema.feature_names,
            num_samples=self.num_samples[split],
            first_time=sum(list(self.num_samples.values())[:index]),
            seed=(self.seed, 1 + index),  # stream 0 draws the teacher
        )

    def _sampler(self, dataset: ClickDataset, *, shuffle_seed: int | None) -> GlobalBatchSampler:
        is_drawn = isinstance(dataset, SyntheticSamples)
        return super()._sampler(dataset, shuffle_seed=None if is_drawn else shuffle_seed)


class SyntheticSamples:
    """A split whose samples are drawn when they are asked for.

    Args:
        teacher: the law.
        feature_names: the F categorical features.
        num_samples: how many there are.
        first_time: place of the first one in the log.
        seed: of the split.
    """

    def __init__(
        self,
        *,
        teacher: ClickTeacher,
        feature_names: Sequence[str],
        num_samples: int,
        first_time: int,
        seed: tuple[int, int],
    ) -> None:
        self._teacher = teacher
        self._names = feature_names
        self._num_samples = num_samples
        self._first_time = first_time
        self._seed = seed
        self._last_blocks: dict[int, ClickArrays] = {}

    def __len__(self) -> int:
        return self._num_samples

    def batch(self, indices: np.ndarray) -> Batch:
        """The samples at ``indices`` (B,), in that order; fast where they are neighbours."""
        numbers = np.unique(indices // BLOCK_SIZE) if len(indices) else np.zeros(1, np.int64)
        # Not read again: another iteration's thread may ask for other blocks meanwhile.
        kept = self._last_blocks
        drawn = {number: kept.get(number) or self._arrays(number) for number in numbers.tolist()}
        self._last_blocks = drawn
        blocks = list(drawn.values())
        samples = blocks[0] if len(blocks) == 1 else ClickArrays.concatenate(blocks)
        places = np.searchsorted(numbers, indices // BLOCK_SIZE) * BLOCK_SIZE + indices % BLOCK_SIZE
        return samples.batch(places)

    def stored(self) -> ClickArrays:
        """All of them in memory."""
        blocks = [self._arrays(number) for number in range(self._num_blocks)]
        return ClickArrays.concatenate(blocks).first(self._num_samples)

    def best_predictions(self) -> tuple[np.ndarray, np.ndarray]:
        """True log-odds (n,) and labels (n,)."""
        drawn = [self._draw(number) for number in range(self._num_blocks)]
        logits = np.concatenate([self._teacher.logits(samples) for samples, _ in drawn])
        return logits[: self._num_samples], np.concatenate([labels for _, labels in drawn])[: self._num_samples]

    @property
    def _num_blocks(self) -> int:
        return -(-self._num_samples // BLOCK_SIZE)

    def _draw(self, number: int) -> tuple[Samples, np.ndarray]:
        rng = np.random.default_rng((*self._seed, number))
        return self._teacher.draw(rng, self._first_time + number * BLOCK_SIZE + np.arange(BLOCK_SIZE))

    def _arrays(self, number: int) -> ClickArrays:
        samples, labels = self._draw(number)
        multi_hot = self._names[len(self._names) - len(samples.values) :]
        return ClickArrays(
            feature_names=self._names,
            dense=samples.dense,
            ids=samples.ids,
            labels=labels,
            bags={
                name: Bags(values=values, offsets=offsets_of(lengths))
                for name, values, lengths in zip(multi_hot, samples.values, samples.lengths, strict=True)
            },
        )


def numbered_names(prefix: str, count: int) -> list[str]:
    """``c00`` to ``c15``: zeros in front, so that names sort in column order."""
    width = len(str(count - 1))
    return [f"{prefix}{index:0{width}d}" for index in range(count)]
