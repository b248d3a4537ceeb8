"""``dmt report`` on folders as runs and sweeps leave them."""

import json
from pathlib import Path

import pytest
from scipy.stats import mannwhitneyu

from dmt.cli import main
from dmt.commands.report_pictures import pareto_front
from dmt.runs import find_runs, group
from tests.commands.runs import write_run


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Two points of four seeds, and a trial that has not finished."""
    folder = tmp_path / "study"
    number = 0
    for towers, offset in ((4, 0.0), (1, 0.01)):
        for seed in (1, 2, 3, 4):
            trial = folder / f"{9 - number}abc"
            model = {"num_towers": towers, "tower": {"class_path": f"dmt.Tower{towers}"}}
            run = trial / "name" / "version_0"
            write_run(run, 0.7 + offset + seed / 1000, seed=seed, model=model, width=2 * towers)
            (trial / "trial.json").write_text(json.dumps({"number": number}))
            number += 1
    (folder / "0running").mkdir()
    (folder / "0running" / "trial.json").write_text(json.dumps({"number": number}))
    (folder / "sweep.json").write_text("{}")
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
    assert [row["output_bytes"] for row in rows] == [32, 8]
    assert rows[0]["samples_per_second"] == 2500
    main(["report", str(sweep)])
    assert "num_towers=4" in capsys.readouterr().out


def test_a_report_is_written_as_page_and_as_markdown(sweep: Path, tmp_path: Path) -> None:
    main(["report", str(sweep), "--baseline", "tower=Tower1", "--output", str(tmp_path / "out" / "report")])
    folder = tmp_path / "out" / "report"
    page, text = (folder / "report.html").read_text(), (folder / "report.md").read_text()
    for told in (page, text):
        assert "num_towers=4, tower=Tower4" in told and "0.7025" in told and "-0.0100" in told
        assert "Learning curves" in told and "Pareto front" in told
    assert page.count("data:image/svg+xml;base64,") == 2
    assert sorted(path.name for path in folder.iterdir()) == [
        "report.html",
        "report.md",
        "report_1.svg",
        "report_2.svg",
    ]
    assert "![Learning curves](report_2.svg)" in text


def test_few_single_runs_are_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "first" / "version_0", 0.71)
    write_run(tmp_path / "first" / "version_10", 0.72)
    write_run(tmp_path / "second", 0.73, width=8, model={"num_towers": 2})
    main(["report", str(tmp_path / "first"), str(tmp_path / "second")])
    told = capsys.readouterr().out
    assert "first" in told and "second" in told and "0.7200" in told and "0.7300" in told and "0.7100" not in told


def test_seeds_of_runs_asked_for_are_a_point(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / f"run{seed}", 0.7 + seed / 100, seed=seed) for seed in (1, 2, 3)]
    [point] = group(find_runs(folders))
    assert point.label == "run1" and point.values("test/auroc") == pytest.approx([0.71, 0.72, 0.73])


def test_the_pareto_front(tmp_path: Path) -> None:
    for width, auc in ((1, 0.6), (2, 0.8), (3, 0.7), (4, 0.9), (5, 0.9)):
        write_run(tmp_path / str(width), auc, width=width, model={"width": width})
    points = group(find_runs([tmp_path / str(width) for width in (5, 4, 3, 2, 1)]))
    assert [point.label for point in pareto_front(points, metric="test/auroc")] == ["1", "2", "4"]


def test_wrong_input_is_named(sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "other", 0.7, data="b.Data")
    (tmp_path / "empty").mkdir()
    (tmp_path / "waiting").mkdir()
    (tmp_path / "waiting" / "sweep.json").write_text("{}")
    for words, told in {
        "study other": "its data section differs from that of",
        "empty": "no summary.json there; give the folder of a finished `dmt fit` or of a sweep",
        "waiting": "no trial has finished",
        "study --baseline tower=x": "--baseline tower=x: 0 points have it, not one; the points are num_towers=4",
        "study --metric auc": "--metric auc: no run has it; choose one of test/auroc",
        "study --output empty": "it exists; give another name",
    }.items():
        given = [str(tmp_path / word) if (tmp_path / word).exists() else word for word in words.split()]
        with pytest.raises(SystemExit, match="2"):
            main(["report", *given])
        assert told in capsys.readouterr().err
