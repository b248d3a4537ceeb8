"""How strongly features belong together: a number for each pair, and the file that keeps them.

Shape legend: F features.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dmt.errors import UserInputError

_COSTS = "cost "  # before the kinds of costs, in a file


@dataclass(frozen=True, kw_only=True)
class Affinity:
    """A symmetric matrix over features.

    Args:
        features: names of the F features.
        matrix: float64 (F, F), symmetric; what stands on the diagonal is not read.
        kind: how it was measured, such as ``cosine``.
        num_samples: samples that it was measured on.
        costs: kinds of costs, such as ``lookups``: what each of the F features costs.

    Raises:
        UserInputError: the matrix has another shape, is not symmetric or not finite, a name is repeated, or costs are
            not F numbers of at least 0.

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
        object.__setattr__(self, "features", tuple(self.features))
        object.__setattr__(self, "matrix", np.asarray(self.matrix, dtype=np.float64))
        size = len(self.features)
        if self.matrix.shape != (size, size):
            raise UserInputError(
                f"affinity: a matrix of shape {self.matrix.shape} for {size} features; give one of both"
            )
        if not np.isfinite(self.matrix).all():
            raise UserInputError("affinity: the matrix has numbers that are not finite; measure it on more samples")
        # Sums over samples in another order for (i, j) than for (j, i) differ by rounding.
        if not np.allclose(self.matrix, self.matrix.T, rtol=1e-6, atol=1e-9):
            raise UserInputError("affinity: the matrix is not symmetric; give the same number for (i, j) and (j, i)")
        if len(set(self.features)) < size:
            raise UserInputError("affinity: a feature is named more than once; name each once")
        for kind, values in self.costs.items():
            if len(values) != size or not all(np.isfinite(value) and value >= 0 for value in values):
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
        if not path.is_file():
            raise UserInputError(f"affinity {path}: no such file; give one that was saved by Affinity.save")
        try:
            with np.load(path) as archive:
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
        except (OSError, ValueError, KeyError) as error:
            reason = str(error).splitlines()[0]
            raise UserInputError(f"affinity {path}: {reason}; give a file that was saved by Affinity.save") from None
