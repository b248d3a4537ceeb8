"""Features as points whose distances are those that an affinity asks for (paper section 3.3).

Shape legend: F features, d dimensions.
"""

from typing import Literal

import numpy as np
from sklearn.manifold import smacof
from threadpoolctl import threadpool_limits

from dmt.waiting import waiting

Strategy = Literal["coherent", "diverse"]


def distances(affinity: np.ndarray, strategy: Strategy) -> np.ndarray:
    """Distances (F, F) that affinities (F, F) ask for.

    Coherent towers have like features: the distance is 1 less the affinity. Diverse ones have unlike features: it is
    the affinity. Affinities outside of [0, 1] are scaled into it first, so that no distance is negative.
    """
    off_diagonal = affinity[~np.eye(len(affinity), dtype=bool)]
    low, high = min(0.0, off_diagonal.min(initial=0.0)), max(1.0, off_diagonal.max(initial=1.0))
    scaled = (affinity - low) / (high - low)
    wanted = 1 - scaled if strategy == "coherent" else scaled
    symmetric = (wanted + wanted.T) / 2
    np.fill_diagonal(symmetric, 0)
    return np.asarray(symmetric)


def place(wanted: np.ndarray, *, num_dims: int = 2, num_starts: int = 8, seed: int = 0) -> tuple[np.ndarray, float]:
    """Points whose distances come near to the wanted ones.

    Minimises the stress, the sum over pairs of (distance - wanted)^2, which the paper does with Adam, by majorisation
    (SMACOF), whose steps never increase it; from several random starts, of which the best is kept. The same seed gives
    the same points on any number of threads.

    Args:
        wanted: (F, F), symmetric, 0 on the diagonal.
        num_dims: d.
        num_starts: random starts.
        seed: of the starts.

    Returns:
        points (F, d), and the stress.
    """
    if not wanted.any():  # one feature, or all of them in one place, where majorisation divides by 0
        return np.zeros((len(wanted), num_dims)), 0.0
    random = np.random.RandomState(seed)  # what smacof takes
    best: tuple[np.ndarray, float] | None = None
    # Threads add up matrix products in another order, and small differences decide where points end.
    with threadpool_limits(1):
        for _ in waiting(range(num_starts), "placing features"):
            points, stress = smacof(
                wanted,
                n_components=num_dims,
                n_init=1,
                max_iter=300,
                eps=1e-7,
                random_state=random,
                normalized_stress=False,
            )
            if best is None or stress < best[1]:
                best = points, float(stress)
    assert best is not None, "there is at least one start"
    return best
