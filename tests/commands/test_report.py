"""``dmt report`` on folders as runs and sweeps leave them."""

import json
import os
from collections.abc import Iterable, Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from scipy.stats import mannwhitneyu

from dmt import waiting
from dmt.cli import main
from dmt.commands import report
from dmt.commands.report_pictures import (
    best_points,
    byte_cost,
    draw_curves,
    draw_trade_offs,
    output_bytes,
    pareto_front,
)
from dmt.runs import Point, find_runs, group
from tests.commands.runs import write_run, write_trial


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Two points of four seeds, and a trial that has not finished."""
    folder = tmp_path / "study"
    number = 0
    for towers, offset in ((4, 0.0), (1, 0.01)):
        for seed in (1, 2, 3, 4):
            trial = write_trial(folder, number, "finished")
            model = {"num_towers": towers, "tower": {"class_path": f"dmt.Tower{towers}"}}
            run = trial / "name" / "version_0"
            write_run(run, 0.7 + offset + seed / 1000, seed=seed, model=model, width=2 * towers)
            number += 1
    write_trial(folder, number, None)
    return folder


def test_seeds_of_a_sweep_are_points(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["report", str(sweep), "--baseline", "num_towers=1", "--json"])
    rows = json.loads(capsys.readouterr().out)
    assert [row["point"] for row in rows] == ["num_towers=4, tower=Tower4", "num_towers=1, tower=Tower1"]
    assert [row["n"] for row in rows] == [4, 4]
    assert rows[0]["median"] == pytest.approx(0.7025) and rows[0]["deviation"] == pytest.approx(0.00129, abs=1e-5)
    assert rows[0]["difference"] == pytest.approx(-0.01)
    assert rows[0]["p"] == pytest.approx(mannwhitneyu([1, 2, 3, 4], [11, 12, 13, 14]).pvalue)
    assert rows[1]["difference"] is None and rows[1]["p"] is None
    assert [row["is_baseline"] for row in rows] == [False, True]
    assert [row["output_bytes"] for row in rows] == [32, 8]
    assert rows[0]["samples_per_second"] == 2500
    main(["report", str(sweep)])
    told = capsys.readouterr()
    assert "num_towers=4" in told.out and "diverged" not in told.out
    assert told.err == f"{sweep}: 8 of 9 trials are compared; left out: 1 unfinished.\n"


def test_p_values_are_corrected_for_the_number_of_points(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, (towers, seed) in enumerate((towers, seed) for towers in (1, 2, 3) for seed in (1, 2, 3)):
        run = write_trial(tmp_path / "study", number, "finished") / "run"
        write_run(run, 0.7 + towers / 100 + seed / 1000, seed=seed, model={"num_towers": towers}, width=towers)
    main(["report", str(tmp_path / "study"), "--baseline", "num_towers=1", "--output", str(tmp_path / "report")])
    told = capsys.readouterr()
    assert told.out.count("0.200") == 2 and "baseline" in told.out
    assert "With so few seeds no p can be below 0.100, however much points differ." in told.err
    text = (tmp_path / "report" / "report.md").read_text()
    assert "Differences and p are to point 1, num_towers=1: p of the two-sided" in text
    assert text.count("| 0.100 | 0.200 |") == 2


def test_what_to_know_of_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [write_run(tmp_path / f"run{number}", 0.7, seed=max(number, 1)) for number in range(4)]
    os.utime(folders[0] / "summary.json", (0, 0))  # of the seed of the next
    config = yaml.safe_load((folders[2] / "config.yaml").read_text())
    (folders[2] / "config.yaml").write_text(yaml.safe_dump(config | {"ckpt_path": "a.ckpt"}))
    for folder, commit in zip(folders[1:], "aab", strict=True):
        record = {"git": {"commit": commit * 40, "is_changed": commit == "b"}, "versions": {"torch": "2"}}
        (folder / "record.json").write_text(json.dumps(record))
    main(["report", *map(str, folders)])
    assert capsys.readouterr().err.splitlines() == [
        "Not counted, since they repeat the options and the seed of a newer run: run0.",
        "These went on from a checkpoint, and count as the others do: run2.",
        "The runs are not of one version of the code: 2 of commit aaaaaaaaaa; 1 of commit bbbbbbbbbb with changes.",
    ]


@pytest.mark.parametrize(
    ("metric", "front"),
    [("test/auroc", [3]), ("test/calibration", [1]), ("samples_per_s", [3]), ("val/loss", [1]), ("val/mine", [])],
)
def test_what_is_better_depends_on_the_metric(tmp_path: Path, metric: str, front: list[int]) -> None:
    points = []
    for number, value in enumerate([1.0, 1.5, 2.0], start=1):
        run = write_run(tmp_path / str(number), 0.7)
        (run / "metrics.csv").write_text(f"step,{metric}\n1,{value}\n")
        summary = json.loads((run / "summary.json").read_text())
        (run / "summary.json").write_text(json.dumps(summary | {"metrics": {}}))
        points.append(Point(label=str(number), runs=find_runs([run])))
    found = pareto_front(points, metric=metric, cost=lambda point: 1)
    assert [points.index(point) + 1 for point in found] == front
    first, *_ = report.make_sections(points, None, metric=metric)
    assert first.heading == f"{metric}, 3 runs"


def test_the_baseline_has_a_curve(tmp_path: Path) -> None:
    points = [
        Point(label=str(number), runs=find_runs([write_run(tmp_path / str(number), 0.9 - number / 100)]))
        for number in range(1, 11)
    ]
    best = best_points(points, metric="test/auroc", baseline=points[9])
    assert [point.label for point in best] == ["1", "2", "3", "4", "5", "6", "7", "10"]
    assert len(best_points(points, metric="test/auroc", baseline=points[0])) == 8


def test_single_runs_and_other_training_samples_are_told_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = []
    for name, num_train in (("small", 10), ("large", 20)):
        data = {"init_args": {"num_train": num_train}}
        runs.append(str(write_run(tmp_path / name, 0.7, model={"num_towers": num_train}, data=data)))
    main(["report", *runs, "--baseline", "small"])
    assert capsys.readouterr().err.splitlines() == [
        "The runs were not trained on the same samples: num_train is 10 or 20.",
        "There is no p where a point or the baseline is one run alone.",
    ]


def test_a_report_is_written_as_page_and_as_markdown(
    sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["report", str(sweep), "--baseline", "tower=Tower1", "--output", str(tmp_path / "out" / "report")])
    folder = tmp_path / "out" / "report"
    assert f"wrote {folder / 'report.html'}" in capsys.readouterr().out
    page, text = (folder / "report.html").read_text(), (folder / "report.md").read_text()
    for told in (page, text):
        assert "num_towers=4, tower=Tower4" in told and "0.7025" in told and "-0.0100" in told
        assert "Learning curves" in told and "Pareto front" in told
        assert "8 of 9 trials are compared; left out: 1 unfinished." in told
        assert "bytes out of towers, per sample" in told and "Curves are read" not in told
        assert "Not drawn, being the same for all points: towers (1)." in told
    assert page.count("data:image/svg+xml;base64,") == 2
    assert sorted(path.name for path in folder.iterdir()) == [
        "report.html",
        "report.md",
        "report_1.svg",
        "report_2.svg",
    ]
    assert "![Learning curves](report_2.svg)" in text


def test_json_alone_is_on_standard_output(sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["report", str(sweep), "--json", "--output", str(tmp_path / "report")])
    told = capsys.readouterr()
    assert len(json.loads(told.out)) == 2 and "wrote" in told.err


def test_the_metric_of_a_sweep_that_the_log_alone_has(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["report", str(sweep), "--metric", "val/auroc", "--json"])
    told = capsys.readouterr()
    assert json.loads(told.out)[0]["median"] == pytest.approx(0.6025)
    assert "val/auroc is its last value in metrics.csv, for runs whose summary.json has none." in told.err


def test_few_single_runs_are_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "first" / "version_0", 0.71)
    write_run(tmp_path / "first" / "version_10", 0.72)
    write_run(tmp_path / "second", 0.73, width=8, model={"num_towers": 2})
    main(["report", str(tmp_path / "first"), str(tmp_path / "second")])
    told = capsys.readouterr().out
    assert "first" in told and "second" in told and "0.7200" in told and "0.7300" in told and "0.7100" not in told
    main(["report", str(tmp_path / "first"), str(tmp_path / "second"), "--baseline", "second", "--metric", "val/auroc"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[3::2] for line in lines if line.startswith("│ val/auroc  ")] == [["0.6200", "0.6300"]]
    assert sum("-0.0100" in line for line in lines) == 1 and "difference to second" in "\n".join(lines)


def test_a_baseline_is_named_by_its_rounded_or_whole_float(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, rate in enumerate((0.15676677195506075, 0.1)):
        model = {"rate": rate, "top": "a"}
        write_run(write_trial(tmp_path / "s", number, "finished") / "run", 0.7, model=model)
    for name in ("rate=0.1568", "rate=0.1568,top=a", "rate=0.15676677195506075"):
        main(["report", str(tmp_path / "s"), "--baseline", name, "--json"])
        rows = json.loads(capsys.readouterr().out)
        assert [(row["point"], row["is_baseline"]) for row in rows] == [("rate=0.1568", True), ("rate=0.1", False)]
    with pytest.raises(SystemExit, match="2"):
        main(["report", str(tmp_path / "s"), "--baseline", "rate=0.1568,top=ab"])
    assert "did you mean top=a?" in capsys.readouterr().err


def test_versions_of_one_name_are_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [write_run(tmp_path / "tiny" / f"version_{n}", 0.7 + n / 10, model={"number": n}) for n in (0, 1)]
    main(["report", *map(str, runs), "--baseline", "tiny/version_0", "--json"])
    rows = json.loads(capsys.readouterr().out)
    assert [row["point"] for row in rows] == ["tiny/version_0", "tiny/version_1"]
    assert rows[1]["difference"] == pytest.approx(0.1)


def test_single_trials_are_told_by_their_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, towers in enumerate((1, 4)):
        write_run(write_trial(tmp_path / "s", number, "finished") / "run", 0.7, model={"num_towers": towers})
    main(["report", str(tmp_path / "s")])
    told = capsys.readouterr().out
    assert "num_towers=1" in told and "num_towers=4" in told


def test_runs_that_diverged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nan = float("nan")
    for number, (point, auc) in enumerate([(1, 0.7), (1, 0.72), (1, nan), (2, nan), (2, float("inf"))]):
        trial = write_trial(tmp_path / "study", number, "finished")
        write_run(trial / "run", auc, seed=number, model={"number": point}, width=point)
    words = ["report", str(tmp_path / "study"), "--baseline", "number=1"]
    main([*words, "--json", "--output", str(tmp_path / "report")])
    rows = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert [(row["n"], row["diverged"]) for row in rows] == [(2, 1), (0, 2)]
    assert rows[0]["median"] == pytest.approx(0.71)
    assert [rows[1][name] for name in ("median", "deviation", "difference", "p")] == [None] * 4
    text = (tmp_path / "report" / "report.md").read_text()
    assert "| 2 | number=2 | 0 | 2 | nan |" in text and "test/auroc of 3 runs is no finite number" in text
    main(words)
    told = capsys.readouterr()
    assert "diverged" in told.out and "nan" in told.out and "of 3 runs" in told.err
    # A single one is a column.
    main(["report", str(tmp_path / "study" / "6abc" / "run"), "--output", str(tmp_path / "single")])
    assert "nan" in capsys.readouterr().out


def test_traffic_is_what_crosses_hosts(tmp_path: Path) -> None:
    layout = {"strategy": "sptt", "ranks": 4, "ranks_per_host": 2}
    folders = [
        write_run(tmp_path / "one", 0.7, model={"strategy": "auto"}),
        write_run(tmp_path / "flat", 0.7, model={"strategy": "torchrec"}, layout=layout, cross_host=2000),
        write_run(tmp_path / "towers", 0.7, model={"strategy": "sptt"}, layout=layout, cross_host=1000),
    ]
    points = group(find_runs(folders))
    name, cost = byte_cost(points)
    assert name == "bytes to other hosts, per rank and step" and [cost(point) for point in points] == [None, 2000, 1000]
    name, cost = byte_cost(points[:1])
    assert name == "bytes out of towers, per sample" and cost(points[0]) == 16
    [section, drawn, *_] = report.make_sections(points, None, metric="test/auroc")
    [table] = section.tables
    column = table.header.index("bytes to other hosts, per rank and step")
    assert [row[column] for row in table.rows] == ["", "2,000", "1,000"]
    assert [axes.get_xlabel() for axes in drawn.pictures[0].axes] == ["bytes to other hosts, per rank and step"]


def test_the_pareto_front(tmp_path: Path) -> None:
    for width, auc in ((1, 0.6), (2, 0.8), (3, 0.7), (4, 0.9), (5, 0.9)):
        write_run(tmp_path / str(width), auc, width=width, model={"width": width})
    points = group(find_runs([tmp_path / str(width) for width in (5, 4, 3, 2, 1)]))
    front = pareto_front(points, metric="test/auroc", cost=output_bytes)
    assert [point.label for point in front] == ["1", "2", "4"]


def many_points(folder: Path, options: Iterable[Mapping[str, Any]]) -> list[Point]:
    folders = [write_run(folder / str(number), **one, model={"n": number}) for number, one in enumerate(options)]
    return group(find_runs(folders))


def told_numbers(axes: Axes) -> list[int]:
    return sorted(int(text.get_text()) for text in axes.texts)


def test_of_many_points_the_best_and_the_baseline_have_numbers(tmp_path: Path) -> None:
    points = many_points(tmp_path, [{"auc": 0.7 + n / 100, "width": 4 + n // 10} for n in range(20)])
    figure = Figure()
    draw_trade_offs(figure, points, metric="test/auroc", baseline=points[3])
    by_name = {axes.get_xlabel(): axes for axes in figure.axes}
    for name in ("compression ratio", "MFLOPs per sample", "bytes out of towers, per sample"):
        assert told_numbers(by_name[name]) == [4, 10, 20]
    figure = Figure()
    draw_trade_offs(figure, points[:5] + points[15:], metric="test/auroc")
    assert told_numbers(figure.axes[0]) == list(range(1, 11))


@pytest.mark.parametrize("num_alike", [3, 11])
def test_numbers_cover_neither_each_other_nor_markers(tmp_path: Path, num_alike: int) -> None:
    options = [{"auc": 0.7 + n % 3 / 1e4, "width": 4} for n in range(num_alike)]
    points = many_points(tmp_path, [*options, {"auc": 0.71, "width": 8}])
    figure = Figure(figsize=(12, 9), layout="constrained")
    draw_trade_offs(figure, points, metric="test/auroc")
    for dpi in (60, 110):
        figure.set_dpi(dpi)
        figure.draw_without_rendering()
        for axes in figure.axes[:3]:
            boxes = [Text.get_window_extent(text) for text in axes.texts]
            assert len(boxes) == len(points)
            assert all(axes.bbox.containsx(x) and axes.bbox.containsy(y) for box in boxes for x, y in box.corners())
            assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
            places = [axes.transData.transform(xy) for line in axes.lines if len(xy := line.get_xydata()) == 1]
            assert len(places) == len(points)
            half = 2.5 / 72 * dpi  # of a marker 6 points wide, that letters may touch
            markers = [Bbox([place - half, place + half]) for [place] in places]
            assert not any(box.overlaps(marker) for box in boxes for marker in markers)


def test_the_front_goes_through_its_points(tmp_path: Path) -> None:
    points = many_points(tmp_path, [{"auc": 0.7 + n / 100, "width": 4 + n // 3} for n in range(6)])
    figure = Figure()
    draw_trade_offs(figure, points, metric="test/auroc")
    [axes] = [axes for axes in figure.axes if axes.get_xlabel().startswith("bytes")]
    front = next(line for line in axes.lines if line.get_color() == "gray")
    drawn = {tuple(line.get_xydata()[0]) for line in axes.lines if line.get_marker() != "None"}
    assert len(drawn) == 6 and {tuple(place) for place in np.asarray(front.get_xydata())} <= drawn


def test_costs_that_all_points_have_alike_are_not_drawn(tmp_path: Path) -> None:
    points = many_points(tmp_path, [{"auc": 0.7}, {"auc": 0.8}])
    figure = Figure()
    draw_trade_offs(figure, points, metric="test/auroc")
    assert not figure.axes
    [_, section, _] = report.make_sections(points, None, metric="test/auroc")
    assert not section.pictures
    assert section.text == [
        "Not drawn, being the same for all points: towers (1), compression ratio (2), MFLOPs per sample (0.4), "
        "bytes out of towers, per sample (16)."
    ]


def test_the_legend_is_whole(tmp_path: Path) -> None:
    model = {f"option_{number}": "value" * 5 for number in range(12)}
    for number in range(8):
        trial = write_trial(tmp_path / "study", number, "finished")
        write_run(trial / "run", 0.7, model={name: value + str(number) for name, value in model.items()})
    points = group(find_runs([tmp_path / "study"]))
    figure = Figure(figsize=(12, 5), layout="constrained")
    draw_curves(figure, points, metric="test/auroc")
    figure.draw_without_rendering()
    [legend] = figure.legends
    told = [" ".join(text.get_text().split()) for text in legend.get_texts()]
    assert told == [f"{number}: {point.label}" for number, point in enumerate(points, start=1)]
    box = legend.get_window_extent()
    assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1
    assert figure.axes[0].get_window_extent().height > 0.5 * 5 * figure.dpi


def test_runs_without_curves_are_told(tmp_path: Path) -> None:
    wandb = {"class_path": "lightning.pytorch.loggers.WandbLogger"}
    for name in ("first", "second", "third"):
        write_run(tmp_path / name, 0.7, model={"name": name}, logger=wandb)
    for name in ("first", "third"):
        (tmp_path / name / "metrics.csv").unlink()
    points = group(find_runs([tmp_path / name for name in ("first", "second", "third")]))
    section = report.make_sections(points, None, metric="test/auroc")[-1]
    assert section.heading == "Learning curves" and len(section.pictures) == 1
    assert "(with the loggers that the run had): 1, WandbLogger; 3, WandbLogger." in section.text[1]
    section = report.make_sections(points[:1], None, metric="test/auroc")[-1]
    assert section.heading == "Learning curves" and not section.pictures and "1, WandbLogger" in section.text[1]


def test_reading_and_drawing_show_a_bar(sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []

    def tqdm(items: Iterable[Any], what: str, **_: Any) -> Iterable[Any]:
        shown.append(what)
        return items

    monkeypatch.setattr(waiting, "tqdm", tqdm)
    main(["report", str(sweep), "--output", str(tmp_path / "report")])
    assert shown == [f"reading {sweep}", "drawing"]


def test_wrong_input_is_named(sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "other", 0.7, data={"class_path": "b.Data"})
    (tmp_path / "empty").mkdir()
    (tmp_path / "waiting").mkdir()
    (tmp_path / "waiting" / "sweep.json").write_text("{}")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "summary.json").write_text("{")
    for words, told in {
        "study other": 'its data.class_path is "b.Data", that of',
        "empty": "no summary.json there, which `dmt fit` writes at its end; give the folder of a finished",
        "waiting": "no trial has finished; wait for one",
        "broken": "summary.json: damaged (",
        "study --baseline zzz": "zzz: 0 points have it, not one; the points are num_towers=4, tower=",
        "study --baseline tower=Towr1": "0 points have it, not one; did you mean tower=Tower1?",
        "study --metric step": "--metric step: no run has it; choose one of test/auroc",
        "study --metric auc": "--metric auc: no run has it; choose one of test/auroc",
        "study --metric test/aucroc": "--metric test/aucroc: no run has it; did you mean test/auroc?",
        "study --output empty": "it exists; give another name",
    }.items():
        given = [str(tmp_path / word) if (tmp_path / word).exists() else word for word in words.split()]
        with pytest.raises(SystemExit, match="2"):
            main(["report", *given])
        err = capsys.readouterr().err
        assert told in err and err.count("\n") == 1
