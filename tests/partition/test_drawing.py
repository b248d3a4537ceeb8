"""What pictures of towers are drawn of, and that they are drawn for few and many features."""

from itertools import combinations

import numpy as np
import pytest
from matplotlib.figure import Figure

from dmt.partition import Affinity, TowerPartitioner
from dmt.partition.drawing import draw, draw_map, strongest_pairs, tower_costs
from dmt.plan import TowerPlan

MATRIX = [[0, 0.9, 0.1, 0.5], [0.9, 0, 0.3, 0.2], [0.1, 0.3, 0, 0.8], [0.5, 0.2, 0.8, 0]]
AFFINITY = Affinity(features=list("abcd"), matrix=MATRIX, kind="cosine", num_samples=1, costs={"memory": [1, 2, 3, 4]})


def test_the_strongest_pairs_that_are_kept_and_cut() -> None:
    plan = TowerPlan(towers=[["b", "a"], ["c", "d"]])
    kept = strongest_pairs(AFFINITY, plan, are_kept=True)
    assert [(pair.names, pair.affinity, pair.is_kept) for pair in kept] == [
        (("a", "b"), 0.9, True), (("c", "d"), 0.8, True)
    ]  # fmt: skip
    cut = strongest_pairs(AFFINITY, plan, are_kept=False, number=3)
    assert [(pair.names, pair.affinity) for pair in cut] == [(("a", "d"), 0.5), (("b", "c"), 0.3), (("b", "d"), 0.2)]


def test_costs_of_towers() -> None:
    costs = tower_costs(AFFINITY, TowerPlan(towers=[["a", "d", "b"], ["c"]]))
    assert {kind: values.tolist() for kind, values in costs.items()} == {"features": [3, 1], "memory": [7, 3]}


@pytest.mark.parametrize(("num_features", "num_towers"), [(2, 2), (26, 4), (150, 70)])
def test_any_number_of_features_and_towers_is_drawn(num_features: int, num_towers: int) -> None:
    matrix = np.random.default_rng(0).random((num_features, num_features))
    names = [f"feature_{index}" for index in range(num_features)]
    affinity = Affinity(features=names, matrix=(matrix + matrix.T) / 2, kind="interaction", num_samples=10)
    figure = draw(affinity, TowerPartitioner(num_towers, num_starts=1).fit(affinity).plan_)
    figure.canvas.draw()
    pictures = figure.axes[:4]
    # Names are written where they can be read.
    assert len(pictures[0].get_xticklabels()) == num_features or num_features > 60
    assert len(pictures[1].collections) == num_towers
    assert len(pictures[2].patches) == num_towers


def test_names_of_features_in_one_place_do_not_cover_each_other() -> None:
    names = [f"feature_{index}" for index in range(12)]
    alike = np.kron(np.eye(3), np.ones((4, 4)))  # four features of each of three places
    affinity = Affinity(features=names, matrix=alike, kind="cosine", num_samples=1)
    figure = Figure(figsize=(9, 7), layout="constrained")
    draw_map(axes := figure.subplots(), affinity, TowerPlan(towers=[names[:4], names[4:8], names[8:]]))
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in axes.texts]
    assert len(boxes) == 12
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
