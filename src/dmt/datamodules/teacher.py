"""The known law behind :class:`~dmt.datamodules.synthetic.SyntheticClicks`.

Shape legend: n samples, F categorical features, V embedding rows of a feature, K latent dimensions,
C numeric columns, T planted groups.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

NUM_LATENT = 2
ZIPF_EXPONENT = 1.5

# Standard deviations of the parts of the logit. Together about 1.7, which puts the best AUC near 0.84, and
# most of it in the pairs inside the groups, so that a model that separates those pairs loses visibly.
# Measured on the default log (two epochs, embeddings of 16): with the dot products of all pairs 0.80, those
# inside the planted groups 0.80, those inside strided groups 0.75, none 0.70.
MAIN_STD, WITHIN_STD, ACROSS_STD, DENSE_STD = 0.9, 1.25, 0.3, 0.6
POSITIVE_RATE = 0.25
NUM_CALIBRATION = 65_536


@dataclass(frozen=True, kw_only=True)
class Coefficients:
    """Factors of the four parts of the logit, and its constant."""

    main: float
    within: float
    across: float
    dense: float
    bias: float


@dataclass(frozen=True, kw_only=True)
class LogShape:
    """What a synthetic log's samples look like.

    Args:
        num_embeddings: V of each of the F categorical features.
        num_dense: C; may be 0.
        num_multi_hot: the last so many features are multi-hot.
        mean_length: mean number of ids of those, by Poisson's law.
        drift_samples: samples in which main effects and latent vectors turn by 90 degrees, away from where they began;
            0 for a law that stays.
    """

    num_embeddings: Sequence[int]
    num_dense: int
    num_multi_hot: int = 0
    mean_length: float = 3.0
    drift_samples: int = 0

    @property
    def num_features(self) -> int:
        return len(self.num_embeddings)

    @property
    def num_single_hot(self) -> int:
        return self.num_features - self.num_multi_hot


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Drawn samples.

    Args:
        times: int64 (n,), their places in the log.
        dense: float32 (n, C).
        ids: int32 (n, number of single-hot features).
        lengths: int64 (number of multi-hot features, n).
        values: int32 ids of each multi-hot feature, one sample's after the other's.
    """

    times: np.ndarray
    dense: np.ndarray
    ids: np.ndarray
    lengths: np.ndarray
    values: Sequence[np.ndarray]


class ClickTeacher:
    """Draws samples and knows the probability of a click of each.

    The logit is ``bias + main effects + pairs inside groups + pairs across groups + dense part``. A pair of
    features contributes the dot product of the latent vectors of its two ids, or of the sums of several ids' over the
    square root of their mean number; each part is scaled to its standard deviation above. Latent vectors are centred
    under the law of the ids, so that a pair cannot be replaced by main effects: only a model that combines the two
    features can learn it.

    Args:
        shape: of the samples.
        num_groups: T, between 1 and F; group sizes differ by at most one.
        seed: seed of the law and of the samples.
    """

    def __init__(self, shape: LogShape, *, num_groups: int, seed: int) -> None:
        rng = np.random.default_rng((seed, 0))
        self.shape = shape
        self.groups = draw_groups(rng, num_features=shape.num_features, num_groups=num_groups)
        frequencies = [_zipf(size) for size in shape.num_embeddings]
        self._cumulative = [np.cumsum(frequency) for frequency in frequencies]
        self._main = self._draw_vectors(rng, 1, frequencies)
        self.latent = self._draw_vectors(rng, NUM_LATENT, frequencies).astype(np.float32)  # (F, V, K)
        self._dense_weights = rng.standard_normal(shape.num_dense)
        if shape.drift_samples:
            later = np.random.default_rng((seed, 0, 1))
            self._later_main = self._draw_vectors(later, 1, frequencies)
            self._later_latent = self._draw_vectors(later, NUM_LATENT, frequencies).astype(np.float32)
        self.coefficients = self._calibrate(rng)

    def draw(self, rng: np.random.Generator, times: np.ndarray) -> tuple[Samples, np.ndarray]:
        """Draw samples and their labels uint8 (n,).

        Numeric columns are standard normal, ids follow Zipf's law.
        """
        samples = self._draw_features(rng, times)
        clicked = rng.random(len(times)) < _sigmoid(self.logits(samples))
        return samples, clicked.astype(np.uint8)

    def logits(self, samples: Samples) -> np.ndarray:
        """Log-odds of a click (n,), the best that any model can predict."""
        main, within, across, linear = self._parts(samples)
        factors = self.coefficients
        return (
            factors.bias
            + factors.main * main
            + factors.within * within
            + factors.across * across
            + factors.dense * linear
        )

    def _draw_vectors(self, rng: np.random.Generator, width: int, frequencies: Sequence[np.ndarray]) -> np.ndarray:
        """(F, largest V, width) with mean zero under each feature's law of ids."""
        vectors = rng.standard_normal((len(frequencies), max(map(len, frequencies)), width))
        for of_feature, frequency in zip(vectors, frequencies, strict=True):
            of_feature -= frequency @ of_feature[: len(frequency)]
        return vectors

    def _draw_features(self, rng: np.random.Generator, times: np.ndarray) -> Samples:
        shape, size = self.shape, len(times)
        uniform = rng.random((size, shape.num_single_hot))
        ids = np.empty((size, shape.num_single_hot), dtype=np.int32)
        for feature, law in enumerate(self._cumulative[: shape.num_single_hot]):
            ids[:, feature] = _invert(law, uniform[:, feature])
        dense = rng.standard_normal((size, shape.num_dense), dtype=np.float32)
        lengths = rng.poisson(shape.mean_length, (shape.num_multi_hot, size))
        values = [
            _invert(law, rng.random(of_feature.sum()))
            for law, of_feature in zip(self._cumulative[shape.num_single_hot :], lengths, strict=True)
        ]
        return Samples(times=times, dense=dense, ids=ids, lengths=lengths, values=values)

    def _parts(self, samples: Samples) -> tuple[np.ndarray, ...]:
        """The unscaled parts of the logit: main, within, across, dense; (n,) each."""
        size = len(samples.times)
        main, within, across = np.zeros(size), np.zeros(size), np.zeros(size)
        overall = np.zeros((size, NUM_LATENT), dtype=np.float32)
        for group in self.groups:
            total = np.zeros_like(overall)
            for feature in group:
                effect, latent = self._vectors(samples, feature)  # (n,), (n, K)
                main += effect
                # Each new feature meets the sum of those before it: all pairs without a double loop.
                within += (total * latent).sum(axis=1)
                total += latent
            across += (overall * total).sum(axis=1)
            overall += total
        return main, within, across, samples.dense @ self._dense_weights

    def _vectors(self, samples: Samples, feature: int) -> tuple[np.ndarray, np.ndarray]:
        """Main effect (n,) and latent vector (n, K) of what each sample has of a feature."""
        bag = feature - self.shape.num_single_hot
        ids = samples.ids[:, feature] if bag < 0 else samples.values[bag]
        main, latent = self._main[feature, ids, 0], self.latent[feature, ids]
        if self.shape.drift_samples:
            times = samples.times if bag < 0 else np.repeat(samples.times, samples.lengths[bag])
            angle = times * (np.pi / 2 / self.shape.drift_samples)
            main = np.cos(angle) * main + np.sin(angle) * self._later_main[feature, ids, 0]
            turned = np.stack([np.cos(angle), np.sin(angle)]).astype(np.float32)[..., None]
            latent = turned[0] * latent + turned[1] * self._later_latent[feature, ids]
        if bag < 0:
            return main, latent
        scale, lengths = self.shape.mean_length**-0.5, samples.lengths[bag]
        return _bag_sums(main, lengths) * scale, _bag_sums(latent, lengths) * np.float32(scale)

    def _calibrate(self, rng: np.random.Generator) -> Coefficients:
        parts = self._parts(self._draw_features(rng, np.zeros(NUM_CALIBRATION, dtype=np.int64)))
        stds = (MAIN_STD, WITHIN_STD, ACROSS_STD, DENSE_STD)
        # A part is absent with one group, with groups of one feature, or without numeric columns.
        factors = [std / part.std() if part.any() else 0.0 for std, part in zip(stds, parts, strict=True)]
        logits = np.sum([factor * part for factor, part in zip(factors, parts, strict=True)], axis=0)
        low, high = -20.0, 20.0
        for _ in range(50):  # bisection: the rate grows with the bias
            bias = (low + high) / 2
            low, high = (bias, high) if _sigmoid(logits + bias).mean() < POSITIVE_RATE else (low, bias)
        main, within, across, linear = map(float, factors)
        return Coefficients(main=main, within=within, across=across, dense=linear, bias=bias)


def draw_groups(rng: np.random.Generator, *, num_features: int, num_groups: int) -> tuple[tuple[int, ...], ...]:
    """A random partition of the features that the naive assignments do not guess.

    Where another partition exists, it is neither the contiguous nor the strided one.
    """
    features = np.arange(num_features)
    naive = {
        _as_partition(np.array_split(features, num_groups)),
        _as_partition([features[group::num_groups] for group in range(num_groups)]),
    }
    has_other = 1 < num_groups < num_features
    while True:
        groups = _as_partition(np.array_split(rng.permutation(num_features), num_groups))
        if groups not in naive or not has_other:
            return groups


def _as_partition(groups: list[np.ndarray]) -> tuple[tuple[int, ...], ...]:
    """Groups in an order of their own, so that equal partitions compare equal."""
    return tuple(sorted(tuple(sorted(map(int, group))) for group in groups))


def _zipf(size: int) -> np.ndarray:
    """Frequency of each of so many ids, (size,)."""
    frequency = np.arange(1, size + 1) ** -ZIPF_EXPONENT
    return np.asarray(frequency / frequency.sum())


def _invert(cumulative: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    """Ids int32 (n,) by a law, of even numbers in [0, 1)."""
    ids = np.searchsorted(cumulative, uniform).astype(np.int32)
    return np.minimum(ids, len(cumulative) - 1, out=ids)  # the cumulative sum may end just below 1


def _bag_sums(values: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Sums (n, ...) of so many values each, one bag after the other."""
    sums = np.concatenate([np.zeros((1, *values.shape[1:])), np.cumsum(values, axis=0, dtype=np.float64)])
    ends = np.cumsum(lengths)
    return np.asarray((sums[ends] - sums[ends - lengths]).astype(values.dtype))


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logits))
