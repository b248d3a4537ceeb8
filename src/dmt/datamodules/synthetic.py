"""A click log that needs no download and whose best AUC and best towers are known."""

from functools import cached_property

import numpy as np
import torch
from torchmetrics.functional.classification import binary_auroc

from dmt.datamodules.arrays import ClickArrays
from dmt.datamodules.module import ClickDataModule, check_minima
from dmt.datamodules.teacher import ClickTeacher
from dmt.errors import UserInputError
from dmt.schema import CategoricalFeature, FeatureSchema

# Samples are drawn block by block, each from its own seed: sample i does not depend on how many there are.
BLOCK_SIZE = 8192


class SyntheticClicks(ClickDataModule):
    """A synthetic click log with planted groups of features.

    Ids are drawn independently for every feature, by a Zipf-like law; groups act on the label alone: pairs of
    features of one group interact strongly, other pairs weakly. About a quarter of the samples are clicks,
    and ``best_auc``, what a perfect model would reach, is about 0.84. Sample ``i`` of a split depends on
    ``seed`` and the shape of the log alone, not on batch size, number of ranks or size of the split.

    Args:
        num_features: number of categorical features.
        num_groups: number of planted groups; their sizes differ by at most one feature.
        num_dense: number of numeric columns.
        num_embeddings: rows of every embedding table.
        num_train: training samples.
        num_valid: validation samples.
        num_test: test samples.
        global_batch_size: samples of one step over all ranks together.
        seed: seed of the log and of the order of the training samples.

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
        num_embeddings: int = 1000,
        num_train: int = 400_000,
        num_valid: int = 50_000,
        num_test: int = 50_000,
        global_batch_size: int = 1024,
        seed: int = 0,
    ) -> None:
        super().__init__(global_batch_size=global_batch_size, seed=seed)
        minima = {
            "num_features": (num_features, 1),
            "num_dense": (num_dense, 0),
            "num_embeddings": (num_embeddings, 2),
            "num_train": (num_train, 1),
            "num_valid": (num_valid, 1),
            "num_test": (num_test, 1),
        }
        check_minima(minima)
        if not 1 <= num_groups <= num_features:
            raise UserInputError(
                f"num_groups={num_groups}: {num_features} features fill between 1 and {num_features} groups; "
                "choose a number in that range"
            )
        self.num_features = num_features
        self.num_groups = num_groups
        self.num_dense = num_dense
        self.num_embeddings = num_embeddings
        self.num_samples = {"train": num_train, "valid": num_valid, "test": num_test}
        self._schema = FeatureSchema(
            categorical=[CategoricalFeature(name=name, num_embeddings=num_embeddings) for name in self._feature_names],
            dense=numbered_names("d", num_dense),
        )

    def setup(self, stage: str | None = None) -> None:
        """Generate all splits; seconds for the default sizes."""
        if self._splits:
            return
        self._splits = {split: self._generate(split) for split in self.num_samples}

    @cached_property
    def teacher(self) -> ClickTeacher:
        """The law that the samples are drawn from."""
        return ClickTeacher(
            num_features=self.num_features,
            num_groups=self.num_groups,
            num_dense=self.num_dense,
            num_embeddings=self.num_embeddings,
            seed=self.seed,
        )

    @property
    def planted_groups(self) -> tuple[tuple[str, ...], ...]:
        """Names of the features of every planted group: the towers that a partitioner should find."""
        return tuple(tuple(self._feature_names[f] for f in group) for group in self.teacher.groups)

    @cached_property
    def best_auc(self) -> float:
        """AUC of the true click probability on the test split, after ``setup()``."""
        test = self._split("test")
        assert isinstance(test, ClickArrays)
        logits = torch.from_numpy(self.teacher.logits(test.dense, test.ids))
        return binary_auroc(logits, torch.from_numpy(test.labels.astype(np.int64))).item()

    @property
    def _feature_names(self) -> list[str]:
        return numbered_names("c", self.num_features)

    def _generate(self, split: str) -> ClickArrays:
        num_samples = self.num_samples[split]
        stream = 1 + list(self.num_samples).index(split)  # stream 0 draws the teacher
        blocks = []
        for block in range(-(-num_samples // BLOCK_SIZE)):
            rng = np.random.default_rng((self.seed, stream, block))
            blocks.append(self.teacher.draw(rng, BLOCK_SIZE))
        dense, ids, labels = (np.concatenate(parts)[:num_samples] for parts in zip(*blocks, strict=True))
        return ClickArrays(feature_names=self._feature_names, dense=dense, ids=ids, labels=labels)


def numbered_names(prefix: str, count: int) -> list[str]:
    """``c00`` to ``c15``: zeros in front, so that names sort in column order."""
    width = len(str(count - 1))
    return [f"{prefix}{index:0{width}d}" for index in range(count)]
