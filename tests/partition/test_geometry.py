"""Points whose distances are the wanted ones."""

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_limits

from dmt.partition.geometry import distances, place


def test_distances_are_affinities_or_what_they_lack_to_one() -> None:
    affinity = np.array([[1.0, 0.25], [0.25, 1.0]])
    assert distances(affinity, "coherent").tolist() == [[0, 0.75], [0.75, 0]]
    assert distances(affinity, "diverse").tolist() == [[0, 0.25], [0.25, 0]]
    # Affinities that may be negative, such as cosines with a sign, or large.
    assert distances(np.array([[1.0, -1.0], [-1.0, 1.0]]), "coherent")[0, 1] == 1
    assert distances(np.array([[0.0, 4.0], [4.0, 0.0]]), "diverse")[0, 1] == 1


@pytest.mark.parametrize("num_dims", [1, 2, 3])
def test_points_in_a_plane_are_found_again(num_dims: int) -> None:
    points = np.random.default_rng().standard_normal((12, num_dims))
    wanted = np.linalg.norm(points[:, None] - points, axis=2)
    found, stress = place(wanted, num_dims=num_dims, num_starts=30)
    # In one dimension points cannot pass each other, and a start may end in another order.
    if num_dims > 1:
        assert stress < 1e-3
        np.testing.assert_allclose(np.linalg.norm(found[:, None] - found, axis=2), wanted, atol=0.05)
    recounted = ((np.linalg.norm(found[:, None] - found, axis=2) - wanted) ** 2)[np.triu_indices(12, 1)].sum()
    assert stress == pytest.approx(recounted, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("seed", [3, 4, 5])
def test_the_stress_is_not_above_that_of_gradient_descent(seed: int) -> None:
    """The paper minimises it with Adam. Seeds are fixed: both end in local minima, and either may find a better one."""
    rng = np.random.default_rng(seed)
    wanted = rng.random((15, 15))
    wanted = (wanted + wanted.T) / 2
    np.fill_diagonal(wanted, 0)
    _, stress = place(wanted)
    pairs = np.triu_indices(15, 1)
    target = torch.from_numpy(wanted[pairs])
    best = np.inf
    for _ in range(4):
        points = torch.from_numpy(rng.standard_normal((15, 2))).requires_grad_()
        optimizer = torch.optim.Adam([points], lr=0.05)
        for _ in range(400):
            optimizer.zero_grad()
            loss = (((points[pairs[0]] - points[pairs[1]]).norm(dim=1) - target) ** 2).sum()
            loss.backward()
            optimizer.step()
        best = min(best, float(loss.detach()))
    assert stress <= best * 1.001


def test_threads_and_repetition_change_nothing() -> None:
    wanted = distances(np.random.default_rng(1).random((40, 40)), "coherent")
    found = []
    for threads in (1, 2, 2):
        with threadpool_limits(threads):
            found.append(place(wanted, num_starts=2)[0])
    assert np.array_equal(found[0], found[1]) and np.array_equal(found[1], found[2])


def test_one_feature_is_a_point() -> None:
    points, stress = place(np.zeros((1, 1)))
    assert points.tolist() == [[0, 0]] and stress == 0
