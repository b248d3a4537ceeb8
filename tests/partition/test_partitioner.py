"""The tower partitioner: planted groups, bounds, baselines, and what is refused."""

import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.manifold import spectral_embedding
from sklearn.metrics import adjusted_rand_score
from threadpoolctl import threadpool_info, threadpool_limits

from dmt.errors import UserInputError
from dmt.partition import Affinity, TowerPartitioner, geometry, partitioner
from dmt.plan import TowerPlan


def planted(
    sizes: list[int], *, within: float = 0.6, across: float = 0.2, noise: float = 0.05
) -> tuple[Affinity, list[int]]:
    """An affinity in which groups stand out, in random order, and the group of each feature."""
    rng = np.random.default_rng()
    truth = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    matrix = np.where(truth[:, None] == truth, within, across) + rng.normal(0, noise, (len(truth), len(truth)))
    matrix = (matrix + matrix.T) / 2
    np.fill_diagonal(matrix, 1)
    names = [f"f{index}" for index in range(len(truth))]
    return Affinity(features=names, matrix=matrix, kind="cosine", num_samples=1000), truth.tolist()


def any_affinity(num_features: int, *, seed: int = 0) -> Affinity:
    matrix = np.random.default_rng(seed).random((num_features, num_features))
    names = [f"f{index}" for index in range(num_features)]
    return Affinity(features=names, matrix=(matrix + matrix.T) / 2, kind="cosine", num_samples=1)


def some_costs(num_features: int, *, seed: int = 0, spread: float = 0.8) -> dict[str, float]:
    values = np.random.default_rng(seed).lognormal(0, spread, num_features)
    return {f"f{index}": float(value) for index, value in enumerate(values)}


def labels(fitted: TowerPartitioner, affinity: Affinity) -> list[int]:
    tower_of = {name: tower for tower, names in enumerate(fitted.plan_.towers) for name in names}
    return [tower_of[name] for name in affinity.features]


@pytest.mark.parametrize("sizes", [[7, 7, 6, 6], [4, 4, 3, 3, 3, 3, 3, 3]])
@pytest.mark.parametrize("method", ["coherent", "spectral"])
def test_planted_groups_are_found(sizes: list[int], method: str) -> None:
    affinity, truth = planted(sizes, noise=0.02)
    # Eight groups at equal distances do not fit into a plane.
    fitted = TowerPartitioner(len(sizes), method=method, num_dims=len(sizes) - 1).fit(affinity)
    assert adjusted_rand_score(truth, labels(fitted, affinity)) == 1
    assert fitted.plan_.method == method


def test_spectral_towers_are_of_what_is_alike_where_affinities_have_signs() -> None:
    affinity, truth = planted([7, 7, 6, 6], across=-0.4, noise=0.02)
    fitted = TowerPartitioner(4, method="spectral").fit(affinity)
    assert adjusted_rand_score(truth, labels(fitted, affinity)) == 1


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
        plan = TowerPartitioner(2, costs=costs, max_load=max_load).fit(affinity).plan_
        loads[max_load] = [sum(costs[name] for name in tower) for tower in plan.towers]
    assert sorted(loads[2.0]) == [6, 60]  # 60 of a mean of 33
    assert max(loads[1.1]) <= 1.1 * 33


@pytest.mark.parametrize("scale", [1e-12, 1e-7, 1e15])
def test_costs_of_any_scale_are_bounded(scale: float) -> None:
    costs = {name: cost * scale for name, cost in some_costs(12).items()}
    plan = TowerPartitioner(3, costs=costs, max_load=1.1, num_starts=2).fit(any_affinity(12)).plan_
    loads = [sum(costs[name] for name in tower) for tower in plan.towers]
    assert max(loads) <= 1.1 * np.mean(loads) * (1 + 1e-9)
    assert TowerPartitioner(3, max_load=1.1, costs={"f0": 0}).fit(any_affinity(12)).plan_.record["costs"] == [0, 0, 0]


@pytest.mark.parametrize("ratio", [1.0, 2.0])
def test_what_a_refusal_says_is_enough_is_enough(ratio: float) -> None:
    affinity = any_affinity(10)
    enough = []
    for seed in range(4):
        costs = {name: round(cost, 2) for name, cost in some_costs(10, seed=seed).items()}
        options: dict[str, Any] = {"costs": costs, "ratio": ratio, "num_starts": 1}
        with pytest.raises(UserInputError) as refused:
            TowerPartitioner(3, max_load=1.0, **options).fit(affinity)
        told = re.search(r"([\d.]+) times the mean of all towers: allow that", str(refused.value))
        if told is not None:  # no single feature costs too much
            TowerPartitioner(3, max_load=float(told[1]), **options).fit(affinity)
            enough.append(float(told[1]))
            with pytest.raises(UserInputError, match=told[1]):
                TowerPartitioner(3, max_load=max(float(told[1]) - 0.002, 1), **options).fit(affinity)
    assert len(enough) >= 2


def test_a_hard_bound_ends_in_bounded_work() -> None:
    """Towers of equal cost to the last digit: there are none, and to prove it would take hours."""
    costs = some_costs(26, spread=0.5)
    with pytest.raises(
        UserInputError, match=r"that were found cost up to .* times the mean of all towers: allow at least that"
    ):
        TowerPartitioner(4, costs=costs, max_load=1.0, ratio=3, num_starts=1).fit(any_affinity(26))


@pytest.mark.parametrize("method", ["strided", "contiguous", "random", "greedy"])
def test_a_baseline_beyond_the_bound_is_refused(method: str) -> None:
    # Five cannot be put into two towers more evenly than 3 and 2.
    costs = {f"f{index}": 4.0 for index in range(5)}
    told = rf"max_load=1.19: tower \d of method {method} costs 1.[26]00 times the mean, .*% too much; a baseline's rule"
    with pytest.raises(UserInputError, match=told):
        TowerPartitioner(2, method=method, costs=costs, max_load=1.19).fit(any_affinity(8))
    TowerPartitioner(2, method=method, costs=costs, max_load=1.6).fit(any_affinity(8))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 30), st.integers(1, 10), st.sampled_from([1.0, 2.0, 3.5]), st.integers(0, 10**6))
def test_greedy_towers_keep_to_the_sizes(num_features: int, num_towers: int, ratio: float, seed: int) -> None:
    num_towers = min(num_towers, num_features)
    costs = some_costs(num_features, seed=seed, spread=2)
    towers = TowerPartitioner(num_towers, method="greedy", costs=costs, ratio=ratio)
    sizes = [len(tower) for tower in towers.fit(any_affinity(num_features)).plan_.towers]
    assert max(sizes) <= max(ratio * min(sizes), min(sizes) + 1)
    assert max(sizes) - min(sizes) <= 1 or ratio > 1


def test_greedy_towers_are_evener_where_sizes_are_free() -> None:
    costs = {"f0": 6.0} | {f"f{index}": 1.0 for index in range(1, 8)}
    records = [
        TowerPartitioner(2, method="greedy", costs=costs, ratio=ratio).fit(any_affinity(8)).plan_.record
        for ratio in (1, 7)
    ]
    assert [record["costs"] for record in records] == [[9, 4], [7, 6]] and records[1]["features"] == [2, 6]


def test_the_bound_on_costs_is_of_all_towers() -> None:
    costs = {f"f{index}": 10.0 if index < 4 else 1.0 for index in range(8)}
    options: dict[str, Any] = {"groups": [["f0", "f1", "f2", "f3"]], "costs": costs}
    told = r"the group of 'f0': 4 features .* at most 24.2; .* cost up to 40, 1.819 times the mean of all towers"
    with pytest.raises(UserInputError, match=told):
        TowerPartitioner(2, max_load=1.1, **options).fit(any_affinity(8))
    TowerPartitioner(2, max_load=1.819, **options).fit(any_affinity(8))
    with pytest.raises(UserInputError, match="towers=9: 8 features fill between 1 and 8 towers"):
        TowerPartitioner(9, groups=[["f0"]]).fit(any_affinity(8))


def test_groups_are_shuffled_each_in_its_own_way() -> None:
    groups = [[f"f{index}" for index in range(start, start + 12)] for start in (0, 12)]
    plan = TowerPartitioner(4, method="random", groups=groups).fit(any_affinity(24)).plan_
    of_groups = [
        sorted([int(name[1:]) % 12 for name in tower] for tower in plan.towers if (tower[0] in group))
        for group in groups
    ]
    assert of_groups[0] != of_groups[1]


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


@pytest.mark.parametrize("method", ["coherent", "spectral"])
def test_linear_algebra_runs_in_one_thread(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads add up in another order, which seldom shows in so few features."""
    seen = set()

    def look(solve: Any) -> Any:
        def solve_and_look(*arguments: Any, **options: Any) -> Any:
            seen.update(pool["num_threads"] for pool in threadpool_info())
            return solve(*arguments, **options)

        return solve_and_look

    monkeypatch.setattr(geometry, "smacof", look(geometry.smacof))
    monkeypatch.setattr(partitioner, "spectral_embedding", look(spectral_embedding))
    with threadpool_limits(2):
        TowerPartitioner(2, method=method).fit(any_affinity(8))
    assert seen == {1}


@pytest.mark.parametrize("value", [0.0, 1.0])
@pytest.mark.parametrize("method", ["coherent", "diverse", "spectral"])
def test_features_that_are_all_alike_are_divided_in_silence(value: float, method: str) -> None:
    affinity = Affinity(features=list("abcdef"), matrix=np.full((6, 6), value), kind="cosine", num_samples=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        towers = TowerPartitioner(3, method=method).fit(affinity).plan_.towers
        alone = TowerPartitioner(2, method=method, groups=[["a"]]).fit(affinity).plan_.towers
    assert [len(tower) for tower in towers] == [2, 2, 2] and alone == (("a",), ("b", "c", "d", "e", "f"))


def test_it_is_an_estimator() -> None:
    made = TowerPartitioner(2, costs={"f0": 1.0}, pinned={"f1": 0}, apart=[("f0", "f2")])
    again = clone(made)
    assert again.get_params() == made.get_params()
    affinity = any_affinity(8)
    assert again.fit(affinity).plan_ == made.fit(affinity).plan_
    with pytest.raises(UserInputError, match=r"ratio=0\.5: give a number of at least 1"):
        again.set_params(ratio=0.5).fit(affinity)


def test_a_plan_says_how_it_was_made(tmp_path: Path) -> None:
    affinity, _ = planted([4, 4])
    names, memory = affinity.features, np.arange(8.0)
    affinity = Affinity(
        features=names, matrix=affinity.matrix, kind="cosine", num_samples=9, costs={"memory": memory.tolist()}
    )
    made = TowerPartitioner(
        np.int64(2),
        ratio=np.float64(3),
        costs=dict(zip(names, memory, strict=True)),
        max_load=np.float64(1.5),
        pinned={"f0": np.int64(1)},
        apart=[("f1", "f2")],
        num_dims=3,
        num_starts=4,
        seed=np.int64(3),
    )
    plan = made.fit(affinity).plan_
    plan.save(tmp_path / "plan.yaml")
    record = TowerPlan.load(tmp_path / "plan.yaml").record
    costs = record["costs"]
    assert record == {
        "seed": 3,
        "affinity": f"cosine, 9 samples, checksum {affinity.checksum}",
        "num_starts": 4,
        "num_dims": 3,
        "ratio": 3.0,
        "max_load": 1.5,
        "pinned": {"f0": 1},
        "apart": [["f1", "f2"]],
        "features": [len(tower) for tower in plan.towers],
        "cost_kind": "memory",
        "costs": costs,
        "costliest_to_mean": round(max(costs) / 14, 3),
    }
    grouped = TowerPartitioner(2, method="strided", groups=[["f0", "f1"]]).fit(affinity).plan_
    assert grouped.record == {"seed": 0, "groups": [["f0", "f1"]], "features": [2, 6]}


def test_auto_keeps_the_method_of_the_smaller_loss() -> None:
    affinity, _ = planted([4, 4])
    found = {method: TowerPartitioner(2, method=method).fit(affinity) for method in ("coherent", "diverse")}
    for best, other in (("coherent", "diverse"), ("diverse", "coherent")):
        losses = {found[best].plan_.towers: 0.25, found[other].plan_.towers: 0.5}
        auto = TowerPartitioner(2, method="auto", loss=lambda plan, losses=losses: losses[plan.towers]).fit(affinity)
        assert (auto.plan_.towers, auto.plan_.method) == (found[best].plan_.towers, f"auto: {best}")
        assert auto.losses_ == auto.plan_.record["losses"] == {best: 0.25, other: 0.5}
        assert np.array_equal(auto.points_, found[best].points_) and auto.method == "auto"


def test_auto_keeps_no_method_that_diverges() -> None:
    affinity, _ = planted([4, 4])
    diverges = TowerPartitioner(
        2, method="auto", loss=lambda plan: float("nan") if plan.method == "coherent" else 0.4
    ).fit(affinity)
    assert diverges.plan_.method == "auto: diverse"
    with pytest.raises(UserInputError, match=r"auto: no loss is a number \(coherent: nan, diverse: nan\); lower"):
        TowerPartitioner(2, method="auto", loss=lambda plan: float("nan")).fit(affinity)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "best"}, "method=best: give one of coherent, diverse, spectral, auto, strided"),
        ({"method": "auto"}, "method=auto: auto, and no other, compares losses"),
        ({"loss": len}, "method=coherent: auto, and no other, compares losses"),
        ({"pinned": {f"f{i}": 1 for i in range(6)}}, "6 are pinned to tower 1, 2 too many"),
        ({"num_towers": 0}, "towers=0: give a whole number of at least 1"),
        ({"num_towers": 2.5}, "towers=2.5: give a whole number of at least 1"),
        ({"num_dims": True}, "num_dims=True: give a whole number of at least 1"),
        ({"num_starts": "8"}, "num_starts=8: give a whole number of at least 1"),
        ({"seed": -1}, "seed=-1: give a whole number from 0 to 4294967295"),
        ({"seed": 2**32}, "seed=4294967296: give a whole number from 0 to 4294967295"),
        ({"ratio": np.inf}, "ratio=inf: give a number of at least 1"),
        ({"ratio": np.nan}, "ratio=nan: give a number of at least 1"),
        ({"max_load": np.nan, "costs": {"f0": 1}}, "max_load=nan: no division is better .*; give a number of at least"),
        ({"costs": {"f0": np.inf}}, "costs f0=inf: give a number of at least 0"),
        ({"costs": {"f0": np.nan}}, "costs f0=nan: give a number of at least 0"),
        ({"costs": {"f0": -1}}, "costs f0=-1: give a number of at least 0"),
        ({"costs": {"f0": True}}, "costs f0=True: give a number of at least 0"),
        ({"costs": {"f0": 1e308, "f1": 1e308}}, "costs: their sum is too large for a number"),
        ({"num_towers": 9}, "towers=9: 8 features fill between 1 and 8 towers"),
        ({"ratio": 0.5}, r"ratio=0.5: give a number of at least 1"),
        ({"max_load": 0.5, "costs": {"f0": 1}}, "max_load=0.5: no division is better than an even one"),
        ({"max_load": 2.0}, "max_load=2.0: there are no costs to bound"),
        ({"max_load": 1.5, "costs": {"f1": 5, "f0": 1}}, "max_load=1.5: feature 'f1' alone costs 1.67 times the mean"),
        (
            {"num_towers": 4, "max_load": 1.2, "costs": {f"f{i}": 30 - i for i in range(7)} | {"f7": 1000}},
            r"feature 'f7' alone costs 3.36 times the mean of the towers; cut its embedding into 3 blocks .*0:N/3\]",
        ),
        (
            {"num_towers": 8, "max_load": 1.01, "costs": {f"f{i}": 30.0 - i for i in range(6)}},
            r"feature 'f0' alone costs 1.45 .* \(too costly as well: 'f1' 1.41, 'f2' 1.36, 'f3' 1.31, and 2 more\)",
        ),
        ({"costs": {"x": 1}}, "costs: no feature 'x'; the features are f0, f1"),
        ({"costs": [1] * 8}, "costs: a list; give numbers by the names of features"),
        ({"pinned": ["f0"]}, "pinned: a list; give numbers by the names of features"),
        ({"method": "greedy"}, "method=greedy: it deals features out by what they cost, and there are no costs"),
        ({"groups": [["f0"], ["f0"]]}, "groups: a feature is in more than one"),
        ({"groups": [["f0"], ["f1"]]}, "towers=2: 3 groups of features need a tower each"),
        ({"pinned": {"f0": 2}}, "pinned f0=2: give a tower from 0 to 1"),
        ({"pinned": {"f0": 1}, "groups": [["f1"]]}, "pinned: towers are dealt out to groups"),
        ({"pinned": {"f0": 1}, "method": "strided"}, "method=strided: a baseline's rule knows no pinned"),
        ({"pinned": {"f0": 0.5}}, "pinned f0=0.5: give a tower from 0 to 1"),
        ({"pinned": {f"f{i}": 0 for i in range(7)}, "ratio": 3}, "with 2 to 6 features, .* 1 too many"),
        ({"groups": ["f0", "f1"]}, "groups: 'f0' is a name; give lists of names"),
        ({"apart": [("f0", "f0")]}, r"apart \('f0', 'f0'\): give the names of two features"),
        ({"apart": [("f0", "f1", "f2")]}, r"apart \('f0', 'f1', 'f2'\): give the names of two features"),
        ({"apart": ["f0"]}, "apart 'f0': give the names of two features"),
        ({"apart": [("f0", "f1")], "pinned": {"f0": 1, "f1": 1}}, "apart f0,f1: both are pinned to tower 1"),
        (
            {"apart": [("f0", "f1"), ("f1", "f2"), ("f0", "f2")]},
            "apart: f0, f1, f2 are all kept apart from each other, which takes 3 towers, and they have 2",
        ),
        (
            # A ring of five.
            {"apart": [(f"f{i}", f"f{(i + 1) % 5}") for i in range(5)], "costs": {"f0": 1, "f1": 1}, "max_load": 2},
            "8 features cannot be put into 2 towers with .* apart, .*; no way was found to keep the pairs apart",
        ),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], message: str) -> None:
    affinity, _ = planted([4, 4])
    with pytest.raises(UserInputError, match=message):
        TowerPartitioner(**({"num_towers": 2} | options)).fit(affinity)


def test_a_matrix_without_names_is_refused() -> None:
    with pytest.raises(UserInputError, match="affinity: a ndarray; give an Affinity, which knows the features' names"):
        TowerPartitioner(2).fit(np.eye(4))  # type: ignore[arg-type]


def test_affinities_are_kept(tmp_path: Path) -> None:
    affinity, _ = planted([3, 3])
    affinity.save(tmp_path / "a.npz")
    found = Affinity.load(tmp_path / "a.npz")
    assert (found.features, found.kind, found.num_samples) == (affinity.features, "cosine", 1000)
    assert np.array_equal(found.matrix, affinity.matrix) and found.checksum == affinity.checksum
    assert affinity.checksum != planted([3, 3])[0].checksum


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        ([[1, 0.5]], r"a matrix of shape \(1, 2\) for 2 features"),
        ([[1, 0.5], [0.4, 1]], "is not symmetric, 0.5 for 'a' and 'b' but 0.4 the other way; give the same number"),
        ([[1, np.nan], [np.nan, 1]], "numbers that are not finite, nan for 'a' and 'b'; measure it on more"),
        ([[1, 0.5], [1]], "not made of numbers, or its rows differ in length; give 2 rows of 2 numbers"),
        ([["x", "y"], ["y", "x"]], "not made of numbers, or its rows differ"),
    ],
)
def test_wrong_affinities_are_named(matrix: Any, message: str) -> None:
    with pytest.raises(UserInputError, match=message):
        Affinity(features=["a", "b"], matrix=matrix, kind="cosine", num_samples=1)


def test_wrong_features_and_costs_are_named() -> None:
    good: dict[str, Any] = {"features": ["a", "b"], "matrix": np.eye(2), "kind": "cosine", "num_samples": 1}
    with pytest.raises(UserInputError, match="affinity: a feature is named 1; give names as text"):
        Affinity(**good | {"features": [1, 2]})
    for costs in ([1], [1, -1], [1, np.nan], [1, True], [1, "2"]):
        with pytest.raises(UserInputError, match="affinity: costs 'memory' are not 2 numbers of at least 0"):
            Affinity(**good, costs={"memory": costs})


def test_wrong_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserInputError, match=r"affinity .*none.npz: no such file; give one"):
        Affinity.load(tmp_path / "none.npz")
    planted([3, 3])[0].save(tmp_path / "good.npz")
    good = (tmp_path / "good.npz").read_bytes()
    np.save(tmp_path / "matrix.npy", np.eye(3))
    for content in (b"what?", b"", good[: len(good) // 2], (tmp_path / "matrix.npy").read_bytes()):
        (tmp_path / "bad.npz").write_bytes(content)
        with pytest.raises(UserInputError, match=r"affinity .*bad.npz: .+; give one that a probe"):
            Affinity.load(tmp_path / "bad.npz")
