"""How strongly features belong together: a number for each pair, and the file that keeps them.

Shape legend: F features.
"""

import hashlib
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from numbers import Real
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from dmt.errors import UserInputError

_COSTS = "cost "  # before the kinds of costs, in a file


def is_number(value: object) -> bool:
    """Whether a value is a finite real number; to Python, truth values are numbers as well."""
    return isinstance(value, Real) and not isinstance(value, bool) and isfinite(value)


@dataclass(frozen=True, kw_only=True)
class Affinity:
    """A symmetric matrix over features.

    Args:
        features: names of the F features.
        matrix: float64 (F, F), symmetric and finite; what stands on the diagonal changes no towers.
        kind: how it was measured, such as ``cosine``.
        num_samples: samples that it was measured on.
        costs: kinds of costs, such as ``lookups``: what each of the F features costs.

    Raises:
        UserInputError: the matrix has another shape, is not symmetric or not finite, a name is repeated or no text, or
            costs are not F numbers of at least 0.

    Example:
        >>> affinity = Affinity(features=["a", "b"], matrix=[[1, 0.2], [0.2, 1]], kind="cosine", num_samples=100)
        >>> affinity.matrix[0, 1]
        np.float64(0.2)
    """

    features: Sequence[str]
    matrix: np.ndarray
    kind: str
    num_samples: int
    costs: Mapping[str, Sequence[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in self.features:
            if not isinstance(name, str):
                raise UserInputError(f"affinity: a feature is named {name!r}; give names as text")
        # NumPy's texts are none to YAML.
        object.__setattr__(self, "features", tuple(str(name) for name in self.features))
        size = len(self.features)
        try:
            object.__setattr__(self, "matrix", np.asarray(self.matrix, dtype=np.float64))
        except (TypeError, ValueError):
            raise UserInputError(
                f"affinity: the matrix is not made of numbers, or its rows differ in length; give {size} rows of "
                f"{size} numbers"
            ) from None
        if self.matrix.shape != (size, size):
            raise UserInputError(
                f"affinity: a matrix of shape {self.matrix.shape} for {size} features; give one of both"
            )
        for i, j in np.argwhere(~np.isfinite(self.matrix))[:1]:
            raise UserInputError(
                f"affinity: the matrix has numbers that are not finite, {self.matrix[i, j]} for {self.features[i]!r} "
                f"and {self.features[j]!r}; measure it on more samples"
            )
        # Sums over samples in another order for (i, j) than for (j, i) differ by rounding.
        for i, j in np.argwhere(~np.isclose(self.matrix, self.matrix.T, rtol=1e-6, atol=1e-9))[:1]:
            raise UserInputError(
                f"affinity: the matrix is not symmetric, {self.matrix[i, j]:.6g} for {self.features[i]!r} and "
                f"{self.features[j]!r} but {self.matrix[j, i]:.6g} the other way; give the same number for both"
            )
        if len(set(self.features)) < size:
            raise UserInputError("affinity: a feature is named more than once; name each once")
        for kind, values in self.costs.items():
            if len(values) != size or not all(is_number(value) and value >= 0 for value in values):
                raise UserInputError(f"affinity: costs {kind!r} are not {size} numbers of at least 0; give those")

    @property
    def checksum(self) -> str:
        """Eight hexadecimal digits that tell affinities apart."""
        digest = hashlib.sha256("\n".join(self.features).encode())
        digest.update(np.ascontiguousarray(self.matrix).tobytes())
        return digest.hexdigest()[:8]

    def save(self, path: str | Path) -> None:
        """Write it as a NumPy archive."""
        costs: dict[str, Any] = {_COSTS + kind: np.array(values) for kind, values in self.costs.items()}
        with Path(path).open("wb") as file:
            np.savez_compressed(
                file,
                features=np.array(self.features),
                matrix=self.matrix,
                kind=np.array(self.kind),
                num_samples=np.array(self.num_samples),
                **costs,
            )

    @classmethod
    def load(cls, path: str | Path) -> "Affinity":
        """Read what :meth:`save` wrote.

        Raises:
            UserInputError: there is no such file, or it holds something else.
        """
        path = Path(path)
        fix = "give one that a probe of dmt.callbacks or Affinity.save has written"
        if not path.is_file():
            raise UserInputError(f"affinity {path}: no such file; {fix}")
        try:
            # Opened here, for NumPy leaves a damaged file open.
            with path.open("rb") as file, np.load(file) as archive:
                return cls(
                    features=archive["features"].tolist(),
                    matrix=archive["matrix"],
                    kind=str(archive["kind"]),
                    num_samples=int(archive["num_samples"]),
                    costs={
                        name.removeprefix(_COSTS): archive[name].tolist()
                        for name in archive.files
                        if name.startswith(_COSTS)
                    },
                )
        except UserInputError as error:
            raise UserInputError(f"{path}: {error}") from None
        # An empty file, a damaged one, a matrix alone, ...
        except (OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile, zlib.error) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            if "allow_pickle" in reason:  # what NumPy says of any other file, with the advice to run it
                reason = "it is no archive of arrays"
            raise UserInputError(f"affinity {path}: {reason}; {fix}") from None
