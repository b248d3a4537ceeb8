"""What pictures of towers are drawn of, and that they are drawn for few and many features."""

from itertools import combinations, pairwise

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from dmt.partition import Affinity, TowerPartitioner
from dmt.partition.drawing import COLORS, draw, draw_one, map_note, strongest_pairs, tower_costs
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


def luminance(color: str) -> float:
    """Of what a colour sends to the eye, 1 for white (sRGB)."""
    shares = np.array(to_rgb(color))
    return float(
        [0.2126, 0.7152, 0.0722] @ np.where(shares > 0.04045, ((shares + 0.055) / 1.055) ** 2.4, shares / 12.92)
    )


@pytest.mark.parametrize("color", COLORS)
def test_thin_lines_show_on_white(color: str) -> None:
    assert 1.05 / (luminance(color) + 0.05) > 2  # contrast, of 1 to 21; that of yellow is 1.3


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
    assert len(pictures[1].patches) == num_towers
    assert len(pictures[3].collections) == num_towers


def names_of(axes: Axes) -> list[Bbox]:
    """Where names are on a map, without the lines that lead to them."""
    return [Text.get_window_extent(text) for text in axes.texts]


def test_names_of_features_in_one_place_do_not_cover_each_other() -> None:
    names = [f"feature_{index}" for index in range(12)]
    alike = np.kron(np.eye(3), np.ones((4, 4)))  # four features of each of three places
    affinity = Affinity(features=names, matrix=alike, kind="cosine", num_samples=1)
    figure = draw_one("map", affinity, TowerPlan(towers=[names[:4], names[4:8], names[8:]]))
    figure.draw_without_rendering()
    boxes = names_of(figure.axes[0])
    assert len(boxes) == 12
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))


@pytest.mark.parametrize("is_alone", [True, False])
def test_long_names_cover_no_other_name_nor_the_legend_and_are_inside(is_alone: bool) -> None:
    matrix = np.random.default_rng(0).random((26, 26))
    names = [f"a_long_feature_name_number_{index:02d}" for index in range(26)]
    affinity = Affinity(features=names, matrix=(matrix + matrix.T) / 2, kind="cosine", num_samples=10)
    plan = TowerPlan.strided(names, num_towers=8)
    figure = draw_one("map", affinity, plan) if is_alone else draw(affinity, plan)
    figure.draw_without_rendering()
    axes, legend = figure.axes[0 if is_alone else 3], figure.axes[0 if is_alone else 3].get_legend()
    boxes = names_of(axes)
    assert legend is not None and len(boxes) == 26
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
    for box in boxes:
        assert not box.overlaps(legend.get_window_extent())
        # Letters are a little wider at some resolutions than at others.
        assert axes.bbox.x0 - 3 <= box.x0 and box.x1 <= axes.bbox.x1 + 3
        assert axes.bbox.y0 <= box.y0 and box.y1 <= axes.bbox.y1


def test_towers_of_many_colours_and_markers_are_told() -> None:
    names = [f"f{index}" for index in range(26)]
    affinity = Affinity(features=names, matrix=np.full((26, 26), 0.5), kind="cosine", num_samples=1)
    figure = draw(affinity, TowerPlan.strided(names, num_towers=26))
    figure.draw_without_rendering()
    legend = figure.axes[3].get_legend()
    assert legend is not None and [text.get_text() for text in legend.get_texts()] == [str(t) for t in range(26)]
    assert legend.get_window_extent().y0 >= 0 and legend.get_window_extent().x1 <= figure.bbox.x1
    boxes = [label.get_window_extent() for label in figure.axes[1].get_xticklabels()]
    assert len(boxes) == 26 and not any(one.overlaps(other) for one, other in pairwise(boxes))


def test_pairs_of_a_kind_that_is_not_there_are_not_in_the_legend() -> None:
    axes = draw_one("pairs", AFFINITY, TowerPlan(towers=[["a", "b", "c", "d"]])).axes[0]
    legend = axes.get_legend()
    assert legend is not None and [text.get_text() for text in legend.get_texts()] == ["share a tower"]


def test_names_are_no_formulas_and_not_too_long() -> None:
    names = ["$_^$", "a$b$", "c" * 100, "d"]
    affinity = Affinity(features=names, matrix=MATRIX, kind="$_$", num_samples=1, costs={"$x_^$": [1, 1, 1, 1]})
    figure = draw(affinity, TowerPlan(towers=[names[:2], names[2:]]))
    figure.draw_without_rendering()
    assert [text.get_text() for text in figure.axes[3].texts] == ["$_^$", "a$b$", f"{'c' * 15}…{'c' * 14}", "d"]


def test_the_matrix_is_ordered_by_tower_and_towers_are_framed() -> None:
    axes = draw_one("affinity", AFFINITY, TowerPlan(towers=[["d", "a", "c"], ["b"]])).axes[0]
    order = [0, 2, 3, 1]
    shown = np.ma.filled(axes.images[0].get_array(), 0)  # type: ignore[no-untyped-call]
    np.testing.assert_array_equal(shown, np.array(MATRIX)[np.ix_(order, order)])
    assert [text.get_text() for text in axes.get_yticklabels()] == ["a", "c", "d", "b"]
    frames = [np.asarray(line.get_xdata()) for line in axes.lines]
    assert [(frame.min(), frame.max()) for frame in frames] == [(-0.5, 2.5), (2.5, 3.5)]


def test_bars_are_costs_over_the_mean_of_the_towers() -> None:
    axes = draw_one("balance", AFFINITY, TowerPlan(towers=[["a", "d", "b"], ["c"]])).axes[0]
    heights = [patch.get_height() for patch in axes.patches]  # type: ignore[attr-defined]
    # Features 3 and 1, of which the mean is 2; memory 7 and 3, of which it is 5.
    assert heights == pytest.approx([1.5, 0.5, 1.4, 0.6])


def places_on(axes: Axes) -> np.ndarray:
    return np.concatenate([np.asarray(points.get_offsets()) for points in axes.collections])


@pytest.mark.parametrize(("method", "near"), [("coherent", "like"), ("diverse", "unlike"), ("auto: diverse", "unlike")])
def test_the_map_is_of_the_points_that_towers_were_made_of(method: str, near: str) -> None:
    points = np.array([[0.0, 1], [2, 3], [4, 5], [6, 7]])
    plan = TowerPlan(towers=[["a", "b"], ["c", "d"]], method=method)
    axes = draw_one("map", AFFINITY, plan, points).axes[0]
    np.testing.assert_array_equal(places_on(axes), points)
    note = map_note(plan, points)
    assert note == f"features on a plane, {near} ones near each other; towers were made of these points"
    assert axes.get_title() == note.replace("; ", "\n")


@pytest.mark.parametrize("points", [None, np.empty((0, 2)), np.zeros((4, 8))])
def test_the_map_has_like_features_near_each_other_where_towers_were_made_otherwise(points: np.ndarray | None) -> None:
    plan = TowerPlan(towers=[["a", "b"], ["c", "d"]], method="spectral")
    axes = draw_one("map", AFFINITY, plan, points).axes[0]
    places = places_on(axes)
    distance = np.linalg.norm(places[:, None] - places, axis=2)
    # Of the features of affinity 0.9 and 0.8, and of those of 0.1 and 0.2.
    assert max(distance[0, 1], distance[2, 3]) < 0.5 < min(distance[0, 2], distance[1, 3])
    assert "placed for this picture, towers were made otherwise" in map_note(plan, points)
    assert "otherwise" in axes.get_title()
