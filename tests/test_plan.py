"""TowerPlan: the naive plan, its YAML file, and what a wrong plan is told."""

import re
from pathlib import Path

import pytest

from dmt.errors import UserInputError
from dmt.plan import TowerInput, TowerPlan


def error_of(path: Path) -> str:
    """The message with which a plan file is refused."""
    with pytest.raises(UserInputError) as caught:
        TowerPlan.load(path)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message
    return message


def write(folder: Path, text: str) -> Path:
    path = folder / "plan.yaml"
    path.write_text(text)
    return path


def test_strided_is_the_papers_naive_plan() -> None:
    plan = TowerPlan.strided([str(i) for i in range(26)], num_towers=8)
    # Paper section 3.3: [[0,8,16,24],[1,9,17,25],[2,10,18],...].
    assert [[int(name) for name in tower] for tower in plan.towers] == [
        [0, 8, 16, 24],
        [1, 9, 17, 25],
        [2, 10, 18],
        [3, 11, 19],
        [4, 12, 20],
        [5, 13, 21],
        [6, 14, 22],
        [7, 15, 23],
    ]
    assert plan.method == "strided"


@pytest.mark.parametrize(("num_towers", "towers"), [(1, [["a", "b", "c"]]), (3, [["a"], ["b"], ["c"]])])
def test_strided_reaches_from_one_tower_to_one_feature_a_tower(num_towers: int, towers: list[list[str]]) -> None:
    assert TowerPlan.strided(["a", "b", "c"], num_towers=num_towers) == TowerPlan(towers=towers, method="strided")


@pytest.mark.parametrize("num_towers", [-1, 0, 4])
def test_strided_refuses_towers_that_features_cannot_fill(num_towers: int) -> None:
    with pytest.raises(UserInputError, match=rf"^num_towers={num_towers}: 3 features .* between 1 and 3 .*choose"):
        TowerPlan.strided(["a", "b", "c"], num_towers=num_towers)


def test_feature_names_follow_the_towers() -> None:
    assert TowerPlan(towers=[["b", "c"], ["a"]]).feature_names == ("b", "c", "a")


def test_a_saved_plan_loads_equal(tmp_path: Path) -> None:
    # Names that YAML would read as something else than text, or that need quotes or an encoding.
    towers = [["no", "1", "null"], ["a: b", "# x", "1e3", " padded "], ["größe", "2024-01-01"]]
    plan = TowerPlan(towers=towers, method="coherent")
    plan.save(tmp_path / "plan.yaml")
    assert TowerPlan.load(tmp_path / "plan.yaml") == plan
    assert TowerPlan.load(str(tmp_path / "plan.yaml")) == plan


def test_a_hand_written_plan_needs_no_method(tmp_path: Path) -> None:
    path = write(tmp_path, "towers: [[C1, C3], [C2]]\n")
    assert TowerPlan.load(path) == TowerPlan(towers=[["C1", "C3"], ["C2"]], method="manual")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert "no such file; give the path" in error_of(tmp_path / "nowhere.yaml")
    assert "no such file; give the path" in error_of(tmp_path)  # a folder is no plan either


def test_a_file_that_is_not_yaml_is_named(tmp_path: Path) -> None:
    assert "not a YAML file (while parsing a flow sequence); fix" in error_of(write(tmp_path, "towers: [[a, b\n"))


@pytest.mark.parametrize(
    "text",
    ["", "[[a, b], [c]]", "plan: [[a]]", "towers: 3", "towers: [a, b]", "towers: {a: [b]}", "towers: [[1, 2]]"],
)
def test_a_file_of_another_shape_is_told_the_right_one(tmp_path: Path, text: str) -> None:
    message = error_of(write(tmp_path, text))
    assert "needs a key 'towers' with a list of lists of column names" in message
    assert "towers: [[C1, C3], [C2, C4]]" in message


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("method:", "method None; give a word, such as manual, or leave it out"),
        ("method: [x]", "method ['x']; give a word, such as manual, or leave it out"),
        ("record: [1, 2]", "record [1, 2]; give values by name, such as seed: 1"),
        ("record: []", "record []; give values by name"),
        ("record: hello", "record 'hello'; give values by name"),
        ("record: 2024-13-45", "not a YAML file (month must be in 1..12)"),
    ],
)
def test_a_method_and_a_record_of_another_kind_are_named(tmp_path: Path, line: str, message: str) -> None:
    assert message in error_of(write(tmp_path, f"towers: [[a]]\n{line}\n"))


def test_an_unknown_key_is_named_with_the_known_ones(tmp_path: Path) -> None:
    message = error_of(write(tmp_path, "towers: [[a]]\nmethods: strided\n"))
    assert "unknown key 'methods'; the keys are towers, method and record" in message


def test_unknown_keys_of_several_types_are_named(tmp_path: Path) -> None:
    assert "unknown key" in error_of(write(tmp_path, "towers: [[a]]\n1: x\nb: y\n"))


def test_a_file_that_is_not_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    path.write_bytes(b"towers: [[\xff\xfe]]")
    assert "not a YAML file" in error_of(path)


@pytest.mark.parametrize(
    ("towers", "message"),
    [
        ([], "it lists no towers; give at least one"),
        ([["a"], []], "tower 1 has no features; give it some or remove it"),
        ([["a"], ["b", ""]], "tower 1 has a feature without a name; name or remove it"),
        ([["a"], ["b", "a"]], "feature 'a' is in tower 0 and again in tower 1; list each once"),
        ([["a", "a"]], "feature 'a' is in tower 0 and again in tower 0; list each once"),
        ([["a[0:8]"], ["a"]], "a column of feature 'a' is in tower 0 and again in tower 1; list each once"),
        ([["a[0:8]", "a[4:12]"]], "a column of feature 'a' is in tower 0 and again in tower 0; list each once"),
        ([["a[8:8]"]], r"'a\[8:8\]' names no columns; write name\[first:one after last\]"),
    ],
)
def test_a_plan_that_is_no_partition_is_refused_in_code_and_in_a_file(
    tmp_path: Path, towers: list[list[str]], message: str
) -> None:
    with pytest.raises(UserInputError, match=f"^tower plan: {message}$"):
        TowerPlan(towers=towers)
    assert re.search(message, error_of(write(tmp_path, f"towers: {towers}\n")))


def test_blocks_of_columns_are_read_and_written(tmp_path: Path) -> None:
    plan = TowerPlan(towers=[["a[0:8]", "b"], ["c[1:2]", "a[8:16]"]])
    assert plan.inputs == (
        (TowerInput("a", (0, 8)), TowerInput("b")),
        (TowerInput("c", (1, 2)), TowerInput("a", (8, 16))),
    )
    assert plan.feature_names == ("a", "b", "c")
    plan.check_features(["c", "b", "a"])
    plan.save(tmp_path / "plan.yaml")
    assert TowerPlan.load(tmp_path / "plan.yaml") == plan


@pytest.mark.parametrize(("num_features", "num_towers", "dim"), [(3, 4, 16), (3, 6, 8), (3, 9, 24), (1, 5, 20)])
def test_more_towers_than_features_share_all_columns(num_features: int, num_towers: int, dim: int) -> None:
    names = [f"f{i}" for i in range(num_features)]
    plan = TowerPlan.strided_columns(names, num_towers=num_towers, embedding_dim=dim)
    assert len(plan.towers) == num_towers
    columns = sorted(
        (wanted.feature, column)
        for tower in plan.inputs
        for wanted in tower
        for column in range(*(wanted.columns or (0, 0)))
    )
    assert columns == [(name, column) for name in names for column in range(dim)]


def test_too_many_towers_for_the_columns_are_refused() -> None:
    with pytest.raises(
        UserInputError, match=r"^num_towers=9: 4 features would be cut into 3 .* choose 1 to 8 or 13 to 16"
    ):
        TowerPlan.strided_columns(list("abcd"), num_towers=9, embedding_dim=16)


def test_a_plan_fits_its_features_in_any_order() -> None:
    TowerPlan(towers=[["c"], ["a", "b"]]).check_features(["a", "b", "c"])


def test_features_left_out_are_named() -> None:
    plan = TowerPlan(towers=[["a"], ["c"]])
    with pytest.raises(UserInputError, match=r"'b' of the data .*in no tower; add .* to one tower"):
        plan.check_features(["a", "b", "c"])
    with pytest.raises(UserInputError, match="features 'b', 'd' of the data"):
        plan.check_features(["a", "b", "c", "d"])


def test_unknown_features_are_named_with_the_columns_there_are() -> None:
    with pytest.raises(UserInputError, match=r"no categorical column 'x', 'y'; its columns are a, b$"):
        TowerPlan(towers=[["a", "x"], ["b", "y"]]).check_features(["a", "b"])


def test_baseline_plans_are_even_and_random_ones_differ_by_seed() -> None:
    names = [f"f{i}" for i in range(26)]
    assert [len(tower) for tower in TowerPlan.contiguous(names, num_towers=4).towers] == [7, 7, 6, 6]
    assert TowerPlan.contiguous(names, num_towers=4).feature_names == tuple(names)
    plans = [TowerPlan.random(names, num_towers=4, seed=seed) for seed in (1, 1, 2)]
    assert plans[0] == plans[1] != plans[2]
    assert sorted(plans[0].feature_names) == sorted(names)
    assert sorted(len(tower) for tower in plans[0].towers) == [6, 6, 7, 7]
    assert all(list(tower) == sorted(tower, key=names.index) for tower in plans[0].towers)
    assert plans[0].record == {"seed": 1}
