"""Numeric columns to normalised ones, by moments of the training values that add up over parts of the rows.

Shape legend: n rows.
"""

import math
from dataclasses import dataclass

import numpy as np
import polars as pl

from dmt.datamodules.columns import to_number
from dmt.errors import UserInputError

# Counts and amounts often have a tail of large values, and on a linear scale most samples would be one point.
LARGEST_SKEWNESS = 1.0
LARGEST_DENSE = 10.0  # standard deviations


@dataclass(frozen=True, kw_only=True)
class NumericScale:
    """How one numeric column becomes a dense one.

    ``sign(x) * log(1 + |x|)`` if ``is_log``, then minus ``mean``, over ``std``, cut at 10 standard
    deviations; a missing value becomes 0, the mean.

    Args:
        name: the column.
        is_log: whether the training values have so long a tail of large values (skewness above 1) that their
            logarithm is taken.
        mean: mean of the training values after the logarithm.
        std: standard deviation of those, 1 for a constant column.
        has_missing: whether training values are missing; then a second dense column ``NAME:missing`` tells
            1 where they are, since a missing value is not an average one.
    """

    name: str
    is_log: bool
    mean: float
    std: float
    has_missing: bool

    @property
    def dense_names(self) -> list[str]:
        """Names of the one or two dense columns."""
        return [self.name, f"{self.name}:missing"] if self.has_missing else [self.name]

    def encode(self, column: pl.Series) -> list[np.ndarray]:
        """The one or two dense columns, float32 (n,) each."""
        values = to_number(column).to_numpy()  # NaN where missing
        is_missing = np.isnan(values)
        scaled = ((_signed_log(values) if self.is_log else values) - self.mean) / self.std
        scaled = np.where(is_missing, 0, np.clip(scaled, -LARGEST_DENSE, LARGEST_DENSE))
        dense = [scaled, is_missing] if self.has_missing else [scaled]
        return [part.astype(np.float32) for part in dense]

    def equals(self, other: "NumericScale") -> bool:
        """Whether all values become the same."""
        # Sums over other parts of the same rows round otherwise, by some 1e-15 of the values. A billionth of a standard
        # deviation is far below what a float32 tells apart.
        tolerance = 1e-9 * self.std + 1e-13 * abs(self.mean)
        return (
            (self.name, self.is_log, self.has_missing) == (other.name, other.is_log, other.has_missing)
            and math.isclose(self.mean, other.mean, rel_tol=0, abs_tol=tolerance)
            and math.isclose(self.std, other.std, rel_tol=0, abs_tol=tolerance)
        )


@dataclass(frozen=True)
class Moments:
    """Mean and central sums of values, of which those of several parts add up.

    Pébay 2008, "Formulas for robust, one-pass parallel computation of covariances and arbitrary-order statistical
    moments", equations 2.1, III.

    Args:
        count: n, how many values.
        mean: their mean.
        squares: sum of the squared deviations from it.
        cubes: sum of the deviations' third powers.

    Example:
        >>> values = np.array([1.0, 5.0, 2.0, 2.0])
        >>> Moments.of(values[:1]) + Moments.of(values[1:])
        Moments(count=4, mean=2.5, squares=9.0, cubes=12.0)
    """

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0
    cubes: float = 0.0

    @classmethod
    def of(cls, values: np.ndarray) -> "Moments":
        """The moments of float64 (n,)."""
        if not len(values):
            return cls()
        if values.min() == values.max():
            # Exactly: a mean that is off by rounding would make the column one of tiny deviations from it.
            return cls(len(values), float(values[0]))
        with np.errstate(all="ignore"):
            mean = float(values.mean())
            centred = values - mean
            squares = centred * centred
            return cls(len(values), mean, float(squares.sum()), float((squares * centred).sum()))

    def __add__(self, other: "Moments") -> "Moments":
        if not (self.count and other.count):
            return self if self.count else other
        count = self.count + other.count
        share, other_share = self.count / count, other.count / count
        step = other.mean - self.mean
        between = step * step * share * other.count
        return Moments(
            count,
            self.mean + step * other_share,
            self.squares + other.squares + between,
            self.cubes
            + other.cubes
            + step * between * (share - other_share)
            + 3 * step * (share * other.squares - other_share * self.squares),
        )

    @property
    def std(self) -> float:
        """Standard deviation of all values, 0 if they are one."""
        return math.sqrt(self.squares / self.count)

    @property
    def skewness(self) -> float:
        """Third standardised moment; NaN for a constant column or on overflow, where a logarithm is safe."""
        with np.errstate(all="ignore"):
            return float((np.float64(self.cubes) / self.count) / (np.float64(self.squares) / self.count) ** 1.5)


class ScaleLearner:
    """The scale of a numeric column, from its training values some at a time.

    Args:
        name: the column.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._has_missing = False
        # Which of these is needed shows when all values are known.
        self._plain = self._logarithms = Moments()

    def add(self, column: pl.Series) -> None:
        """Learn from more values.

        Raises:
            UserInputError: the column is not of numbers.
        """
        number = to_number(column)
        present = number.drop_nulls().to_numpy()
        self._has_missing |= len(present) < len(number)
        self._plain += Moments.of(present)
        self._logarithms += Moments.of(_signed_log(present))

    def scale(self) -> NumericScale:
        """What was learned.

        Raises:
            UserInputError: no value is present.
        """
        if not self._plain.count:
            raise UserInputError(f"column {self._name!r}: every value is missing; leave it out of numeric")
        is_log = not self._plain.skewness <= LARGEST_SKEWNESS
        moments = self._logarithms if is_log else self._plain
        return NumericScale(
            name=self._name,
            is_log=is_log,
            mean=moments.mean,
            std=moments.std or 1.0,
            has_missing=self._has_missing,
        )


def _signed_log(values: np.ndarray) -> np.ndarray:
    return np.sign(values) * np.log1p(np.abs(values))
