"""Scales of numeric columns, from all values at once or from parts of them."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from dmt.datamodules.scales import Moments, ScaleLearner
from dmt.errors import UserInputError


def learn(*parts):
    learner = ScaleLearner(parts[0].name)
    for part in parts:
        learner.add(part)
    return learner.scale()


@pytest.mark.parametrize(
    ("values", "is_log"),
    [
        ([1, 2, 3, 4, 5], False),
        ([0, 0, 1, 1, 2, 5000], True),
        ([-5000, 0, 0, 1, 1, 2], False),
        ([1e300, 1e-300, 1.0], True),
        ([7, 7, 7], True),
    ],
)
def test_a_tail_of_large_values_is_logged(values, is_log):
    column = pl.Series("x", values, dtype=pl.Float64)
    scale = learn(column)
    assert scale.is_log == is_log
    (encoded,) = scale.encode(column)
    assert np.isfinite(encoded).all()


def test_a_numeric_column_needs_a_value():
    with pytest.raises(UserInputError, match="'x': every value is missing; leave it out of numeric"):
        learn(pl.Series("x", [None, float("nan"), float("inf")]))


DRAWS = {
    "normal": lambda rng, size: rng.normal(rng.normal(0, 10), 3, size),
    "lognormal": lambda rng, size: rng.lognormal(0, 2, size),
    "far from 0": lambda rng, size: rng.normal(1e6, 1, size),
    "counts": lambda rng, size: rng.poisson(0.3, size).astype(float),
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_moments_are_those_of_numpy(draw):
    rng = np.random.default_rng()
    values = draw(rng, 1000)
    whole = Moments.of(values)
    # To the last bit, so that a log that was read at once before has the same scales.
    assert (whole.mean, whole.std) == (values.mean(), values.std())
    parts = np.array_split(values, np.sort(rng.integers(0, 1000, 20)))
    found = sum(map(Moments.of, parts), Moments())
    assert found.count == 1000
    # A sum of 1,000 rounds by less than 1000 * 2**-53 = 1e-13 of its largest terms. Around 1e6 the mean is thus off by
    # 1e-7 deviations at most, the skewness by three times as much, and the deviation by the square of it.
    assert found.mean == pytest.approx(whole.mean, rel=1e-13, abs=1e-13 * np.abs(values).max())
    assert found.std == pytest.approx(whole.std, rel=1e-9)
    assert found.skewness == pytest.approx(whole.skewness, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("values", [[7.0] * 9, [1e300, 1e-300, 1.0] * 3, [-1e200] * 9, [0.1, 1e160] * 5])
def test_overflow_takes_the_logarithm_in_parts_too(values):
    column = pl.Series("x", values)
    parts = [column[:2], column[2:2], column[2:5], column[5:]]
    whole, scale = learn(column), learn(*parts)
    assert scale.is_log and scale.equals(whole) and np.isfinite([scale.mean, scale.std]).all()


@pytest.mark.parametrize("value", [0.1, -1e200, 3.0])
def test_a_constant_column_has_a_deviation_of_one(value):
    column = pl.Series("x", [value] * 1000)
    scale = learn(column)
    assert scale.std == 1 and scale == learn(column[:7], column[7:300], column[300:])
    assert not scale.encode(column)[0].any()


def test_missing_values_may_be_in_one_part_alone():
    values = pl.Series("x", [1.0, 2.0, 4.0])
    missing = pl.Series("x", [None, float("nan")])
    assert learn(missing, values) == learn(values, missing) == replace(learn(values), has_missing=True)
    with pytest.raises(UserInputError, match="'x': every value is missing"):
        learn(missing, missing)


def test_scales_that_differ_are_told_apart():
    scale = learn(pl.Series("x", [1.0, 2.0, 4.0]))
    # Neither a value of the log nor a seventh digit of an encoded one is so small.
    assert scale.equals(replace(scale, mean=scale.mean + 1e-12, std=scale.std * (1 + 1e-12)))
    for other in ({"mean": scale.mean + 1e-6}, {"std": scale.std + 1e-6}, {"is_log": True}, {"has_missing": True}):
        assert not scale.equals(replace(scale, **other))
