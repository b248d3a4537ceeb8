"""The tower partitioner: planted groups, bounds, baselines, and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score
from threadpoolctl import threadpool_limits

from dmt.errors import UserInputError
from dmt.partition import Affinity, TowerPartitioner


def planted(
    sizes: list[int], *, within: float = 0.6, across: float = 0.2, noise: float = 0.05
) -> tuple[Affinity, list[int]]:
    """An affinity in which groups stand out, in random order, and the group of each feature."""
    rng = np.random.default_rng()
    truth = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    matrix = np.where(truth[:, None] == truth, 0.6, 0.2) + rng.normal(0, noise, (len(truth), len(truth)))
    matrix = (matrix + matrix.T) / 2
    np.fill_diagonal(matrix, 1)
    names = [f"f{index}" for index in range(len(truth))]
    return Affinity(features=names, matrix=matrix, kind="cosine", num_samples=1000), truth.tolist()


def labels(partitioner: TowerPartitioner, affinity: Affinity) -> list[int]:
    tower_of = {name: tower for tower, names in enumerate(partitioner.plan_.towers) for name in names}
    return [tower_of[name] for name in affinity.features]


@pytest.mark.parametrize("sizes", [[7, 7, 6, 6], [4, 4, 3, 3, 3, 3, 3, 3]])
@pytest.mark.parametrize("method", ["coherent", "spectral"])
def test_planted_groups_are_found(sizes: list[int], method: str) -> None:
    affinity, truth = planted(sizes, noise=0.02)
    # Eight groups at equal distances do not fit into a plane.
    partitioner = TowerPartitioner(len(sizes), method=method, num_dims=len(sizes) - 1).fit(affinity)
    assert adjusted_rand_score(truth, labels(partitioner, affinity)) == 1
    assert partitioner.plan_.method == method


def test_diverse_towers_mix_the_groups() -> None:
    affinity, truth = planted([4, 4, 4, 4])
    towers = labels(TowerPartitioner(4, method="diverse", num_dims=3).fit(affinity), affinity)
    assert adjusted_rand_score(truth, towers) < 0


@pytest.mark.parametrize("method", ["coherent", "diverse", "spectral", "strided", "contiguous", "random", "greedy"])
@pytest.mark.parametrize("num_towers", [1, 4, 26])
def test_all_features_are_in_towers_of_even_sizes(method: str, num_towers: int) -> None:
    affinity, _ = planted([13, 13], noise=0.3)
    costs = {name: float(index + 1) for index, name in enumerate(affinity.features)}
    plan = TowerPartitioner(num_towers, method=method, costs=costs).fit(affinity).plan_
    plan.check_features(affinity.features)
    assert {len(tower) for tower in plan.towers} <= {26 // num_towers, -(-26 // num_towers)}
    if method == "greedy" and num_towers == 4:
        loads = [sum(costs[name] for name in tower) for tower in plan.towers]
        assert max(loads) / min(loads) < 1.1


def test_a_larger_ratio_lets_groups_be_uneven() -> None:
    affinity, truth = planted([12, 6, 6], noise=0.02)
    even = labels(TowerPartitioner(3).fit(affinity), affinity)
    uneven = labels(TowerPartitioner(3, ratio=2.0).fit(affinity), affinity)
    assert adjusted_rand_score(truth, uneven) == 1 > adjusted_rand_score(truth, even)


def test_costs_are_bounded() -> None:
    affinity, truth = planted([6, 6], noise=0.02)
    costs = {name: 10.0 if group == 0 else 1.0 for name, group in zip(affinity.features, truth, strict=True)}
    loads = {}
    for max_load in (2.0, 1.1):
        partitioner = TowerPartitioner(2, costs=costs, max_load=max_load).fit(affinity)
        loads[max_load] = [sum(costs[name] for name in tower) for tower in partitioner.plan_.towers]
    assert sorted(loads[2.0]) == [6, 60]  # 60 of a mean of 33
    assert max(loads[1.1]) <= 1.1 * 33


def test_groups_are_divided_apart() -> None:
    affinity, _ = planted([10, 10])
    user, item = list(affinity.features[:8]), list(affinity.features[8:12])
    plan = TowerPartitioner(5, groups=[user, item]).fit(affinity).plan_
    kinds = [{"user" if n in user else "item" if n in item else "rest" for n in tower} for tower in plan.towers]
    assert sorted("".join(kind) for kind in kinds) == ["item", "rest", "rest", "user", "user"]


def test_features_are_pinned_and_kept_apart() -> None:
    affinity, _ = planted([5, 5], noise=0.02)
    names = affinity.features
    plan = TowerPartitioner(2, pinned={names[0]: 1, names[1]: 0}, apart=[(names[2], names[3])]).fit(affinity).plan_
    assert names[0] in plan.towers[1] and names[1] in plan.towers[0]
    assert all(not {names[2], names[3]} <= set(tower) for tower in plan.towers)


def test_the_same_seed_gives_the_same_plan_on_any_number_of_threads() -> None:
    affinity, _ = planted([20, 20], noise=0.3)
    for method in ("coherent", "diverse", "spectral", "random"):
        plans = []
        for threads in (1, 2):
            with threadpool_limits(threads):
                plans.append(TowerPartitioner(4, method=method, seed=3).fit(affinity).plan_)
        assert plans[0] == plans[1]
    assert TowerPartitioner(4, method="random", seed=4).fit(affinity).plan_ != plans[0]


def test_auto_keeps_the_method_of_the_smaller_loss() -> None:
    affinity, _ = planted([4, 4])
    found = {method: TowerPartitioner(2, method=method).fit(affinity) for method in ("coherent", "diverse")}
    for best, other in (("coherent", "diverse"), ("diverse", "coherent")):
        losses = {found[best].plan_.towers: 0.25, found[other].plan_.towers: 0.5}
        auto = TowerPartitioner(2, method="auto", loss=lambda plan, losses=losses: losses[plan.towers]).fit(affinity)
        assert (auto.plan_.towers, auto.plan_.method) == (found[best].plan_.towers, f"auto: {best}")
        assert auto.losses_ == auto.plan_.record["losses"] == {best: 0.25, other: 0.5}
        assert np.array_equal(auto.points_, found[best].points_) and auto.method == "auto"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "best"}, "method=best: give one of coherent, diverse, spectral, auto, strided"),
        ({"method": "auto"}, "method=auto: auto, and no other, compares losses"),
        ({"loss": len}, "method=coherent: auto, and no other, compares losses"),
        ({"pinned": {f"f{i}": 1 for i in range(6)}}, "6 are pinned to tower 1, 2 too many"),
        ({"num_towers": 0}, "towers=0: give at least 1"),
        ({"num_towers": 9}, "towers=9: 8 features fill between 1 and 8 towers"),
        ({"ratio": 0.5}, r"ratio=0.5: give a number of at least 1"),
        ({"max_load": 0.5, "costs": {"f0": 1}}, "max_load=0.5: no division is better than an even one"),
        ({"max_load": 2.0}, "max_load=2.0: there are no costs to bound"),
        ({"max_load": 1.5, "costs": {"f1": 5, "f0": 1}}, "max_load=1.5: feature 'f1' alone costs 1.67 times the mean"),
        ({"costs": {"x": 1}}, "costs: no feature 'x'; the features are f0, f1"),
        ({"groups": [["f0"], ["f0"]]}, "groups: a feature is in more than one"),
        ({"groups": [["f0"], ["f1"]]}, "towers=2: 3 groups of features need a tower each"),
        ({"pinned": {"f0": 2}}, "pinned f0=2: give a tower from 0 to 1"),
        ({"pinned": {"f0": 1}, "groups": [["f1"]]}, "pinned: towers are dealt out to groups"),
        ({"pinned": {"f0": 1}, "method": "strided"}, "method=strided: a baseline's rule knows no pinned"),
        ({"apart": [("f0", "f1"), ("f1", "f2"), ("f0", "f2")]}, "8 features cannot be put into 2 towers with .* apart"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], message: str) -> None:
    affinity, _ = planted([4, 4])
    with pytest.raises(UserInputError, match=message):
        TowerPartitioner(**({"num_towers": 2} | options)).fit(affinity)


def test_affinities_are_kept(tmp_path: Path) -> None:
    affinity, _ = planted([3, 3])
    affinity.save(tmp_path / "a.npz")
    found = Affinity.load(tmp_path / "a.npz")
    assert (found.features, found.kind, found.num_samples) == (affinity.features, "cosine", 1000)
    assert np.array_equal(found.matrix, affinity.matrix) and found.checksum == affinity.checksum


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        ([[1, 0.5]], r"a matrix of shape \(1, 2\) for 2 features"),
        ([[1, 0.5], [0.4, 1]], "the matrix is not symmetric"),
        ([[1, np.nan], [np.nan, 1]], "numbers that are not finite"),
    ],
)
def test_wrong_affinities_are_named(matrix: list[list[float]], message: str) -> None:
    with pytest.raises(UserInputError, match=message):
        Affinity(features=["a", "b"], matrix=np.array(matrix), kind="cosine", num_samples=1)


def test_wrong_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserInputError, match=r"affinity .*none.npz: no such file; give one"):
        Affinity.load(tmp_path / "none.npz")
    (tmp_path / "bad.npz").write_text("what?")
    with pytest.raises(UserInputError, match=r"affinity .*bad.npz: .*; give a file that was saved by Affinity.save"):
        Affinity.load(tmp_path / "bad.npz")
