"""The known law behind :class:`~dmt.datamodules.synthetic.SyntheticClicks`.

Shape legend: n samples, F categorical features, V embedding rows per feature, K latent dimensions,
C numeric columns, T planted groups.
"""

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


class ClickTeacher:
    """Draws samples and knows the probability of a click of each.

    The logit is ``bias + main effects + pairs inside groups + pairs across groups + dense part``. A pair of
    features contributes the dot product of the latent vectors of its two ids; each part is scaled to its
    standard deviation above. Latent vectors are centred under the law of the ids, so that a pair cannot be
    replaced by main effects: only a model that combines the two features can learn it.

    Args:
        num_features: F.
        num_groups: T, between 1 and F; group sizes differ by at most one.
        num_dense: C; may be 0.
        num_embeddings: V.
        seed: seed of the law and of the samples.
    """

    def __init__(self, *, num_features: int, num_groups: int, num_dense: int, num_embeddings: int, seed: int) -> None:
        rng = np.random.default_rng((seed, 0))
        self.num_features = num_features
        self.num_dense = num_dense
        self.groups = draw_groups(rng, num_features=num_features, num_groups=num_groups)
        frequency = np.arange(1, num_embeddings + 1) ** -ZIPF_EXPONENT
        frequency /= frequency.sum()
        self._cumulative = np.cumsum(frequency)
        self._main = _centred(rng.standard_normal((num_features, num_embeddings, 1)), frequency)[..., 0]
        self.latent = _centred(  # (F, V, K)
            rng.standard_normal((num_features, num_embeddings, NUM_LATENT)), frequency
        ).astype(np.float32)
        self._dense_weights = rng.standard_normal(num_dense)
        self.coefficients = self._calibrate(rng)

    def draw(self, rng: np.random.Generator, num_samples: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Draw samples.

        Returns:
            dense float32 (n, C) standard normal, ids int32 (n, F) by Zipf's law, labels uint8 (n,).
        """
        dense, ids = self._draw_features(rng, num_samples)
        clicked = rng.random(num_samples) < _sigmoid(self.logits(dense, ids))
        return dense, ids, clicked.astype(np.uint8)

    def logits(self, dense: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """Log-odds of a click (n,), the best that any model can predict."""
        main, within, across, linear = self._parts(dense, ids)
        factors = self.coefficients
        return (
            factors.bias
            + factors.main * main
            + factors.within * within
            + factors.across * across
            + factors.dense * linear
        )

    def _draw_features(self, rng: np.random.Generator, num_samples: int) -> tuple[np.ndarray, np.ndarray]:
        uniform = rng.random((num_samples, self.num_features))
        ids = np.searchsorted(self._cumulative, uniform).astype(np.int32)
        np.minimum(ids, len(self._cumulative) - 1, out=ids)  # the cumulative sum may end just below 1
        return rng.standard_normal((num_samples, self.num_dense), dtype=np.float32), ids

    def _parts(self, dense: np.ndarray, ids: np.ndarray) -> tuple[np.ndarray, ...]:
        """The unscaled parts of the logit: main, within, across, dense; (n,) each."""
        main = np.zeros(len(ids))
        within = np.zeros(len(ids))
        across = np.zeros(len(ids))
        overall = np.zeros((len(ids), NUM_LATENT), dtype=np.float32)
        for group in self.groups:
            total = np.zeros_like(overall)
            for feature in group:
                latent = self.latent[feature, ids[:, feature]]  # (n, K)
                main += self._main[feature, ids[:, feature]]
                # Each new feature meets the sum of those before it: all pairs without a double loop.
                within += (total * latent).sum(axis=1)
                total += latent
            across += (overall * total).sum(axis=1)
            overall += total
        return main, within, across, dense @ self._dense_weights

    def _calibrate(self, rng: np.random.Generator) -> Coefficients:
        parts = self._parts(*self._draw_features(rng, NUM_CALIBRATION))
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


def _centred(values: np.ndarray, frequency: np.ndarray) -> np.ndarray:
    """Rows of ``values`` (F, V, K) with mean zero under ``frequency`` (V,)."""
    return values - np.einsum("v,fvk->fk", frequency, values)[:, None]


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logits))
