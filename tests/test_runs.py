"""Runs found in folders as `dmt fit` and `dmt sweep` leave them, and the points that they make."""

import json
import os
import shutil
from pathlib import Path

import pytest

from dmt.errors import UserInputError
from dmt.runs import RunSummary, find_runs, group, holm, p_value, read_runs
from tests.commands.runs import write_run, write_trial


def test_seeds_of_runs_asked_for_are_a_point(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / f"run{seed}", 0.7 + seed / 100, seed=seed) for seed in (1, 2, 3)]
    [point] = group(find_runs(folders))
    assert point.label == "run1 and 2 more" and point.values("test/auroc") == pytest.approx([0.71, 0.72, 0.73])


def test_a_plan_file_that_has_changed_is_another_point(tmp_path: Path) -> None:
    folders = []
    for number, towers in enumerate([[["a"], ["b"]], [["b"], ["a"]]]):
        for seed in (1, 2):
            model = {"plan": "plan.yaml"}
            folders.append(write_run(tmp_path / f"{number}_{seed}", 0.7, seed=seed, model=model, towers=towers))
    points = group(find_runs(folders))
    assert [point.label for point in points] == ["towers=a / b", "towers=b / a"]
    assert [len(point.runs) for point in points] == [2, 2]


def test_random_towers_of_several_seeds_are_one_point(tmp_path: Path) -> None:
    folders = [
        write_run(tmp_path / str(seed), 0.7, seed=seed, model={"plan": "random"}, towers=towers)
        for seed, towers in enumerate([[["a"], ["b"]], [["b"], ["a"]]])
    ]
    assert [len(point.runs) for point in group(find_runs(folders))] == [2]


def test_a_run_given_twice_counts_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trial = write_trial(tmp_path / "study", 0, "finished")
    run = write_run(trial / "name" / "version_0", 0.7)
    monkeypatch.chdir(tmp_path)
    assert len(find_runs([tmp_path / "study", Path("study"), trial, run])) == 1


def test_of_runs_of_one_seed_the_newest_counts(tmp_path: Path) -> None:
    folders = [
        write_run(tmp_path / name, auc, seed=seed)
        for name, auc, seed in (("new", 0.9, 1), ("old", 0.7, 1), ("other", 0.8, 2))
    ]
    os.utime(folders[1] / "summary.json", (0, 0))
    [point] = group(find_runs(folders))
    assert point.values("test/auroc") == [0.9, 0.8] and [run.name for run in point.repeated] == ["old"]


def test_a_newer_version_that_has_not_finished_is_told(tmp_path: Path) -> None:
    write_run(tmp_path / "tiny" / "version_9", 0.7)
    for number in (8, 10, 11):
        (tmp_path / "tiny" / f"version_{number}").mkdir()
    # 11 is of another command, or of a fit that was refused.
    for number in (8, 10):
        (tmp_path / "tiny" / f"version_{number}" / "record.json").write_text("{}")
    found = read_runs([tmp_path / "tiny"])
    assert [run.folder.name for run in found.runs] == ["version_9"]
    assert found.left_out == [f"{tmp_path / 'tiny'}: version_10 has not finished; version_9 is compared."]
    with pytest.raises(UserInputError, match="version_10: it has not finished; give the folder of a finished"):
        read_runs([tmp_path / "tiny" / "version_10"])
    with pytest.raises(UserInputError, match="version_12: there is no such folder"):
        read_runs([tmp_path / "tiny" / "version_12"])


def test_runs_may_differ_in_what_they_train_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folders = [
        write_run(tmp_path / str(size), 0.7, data={"init_args": {"num_train": size, "path": path}})
        for size, path in ((100, "log"), (200, str(tmp_path / "log")))
    ]
    assert len(group(find_runs(folders))) == 2


@pytest.mark.parametrize(
    ("values", "reference", "p"),
    [
        ([1, 2, 3], [4, 5, 6], 0.1),
        ([1, 1, 1], [2, 2, 2], 0.1),  # the normal approximation says 0.047
        ([1, 2, 2], [2, 3, 4], 0.3),  # of the 20 ways to divide them, three on a side are as far apart or farther
        ([5] * 40, [5] * 40, 1.0),  # too many to go through
    ],
)
def test_p_values_of_equal_ones_are_exact(values: list[float], reference: list[float], p: float) -> None:
    assert p_value(values, reference) == pytest.approx(p)


def test_holm() -> None:
    assert holm([0.01, 0.04, 0.03, 0.5]) == pytest.approx([0.04, 0.09, 0.09, 0.5])
    assert holm([0.6, 0.7]) == [1.0, 1.0] and holm([]) == []


def test_trials_that_do_not_count_are_told(tmp_path: Path) -> None:
    sweep = tmp_path / "study"
    for number, state in enumerate(["finished", "finished", "failed", "stopped", None, "failed", "finished"]):
        trial = write_trial(sweep, number, state)
        if number != 6:
            write_run(trial / "name" / "version_0", 0.7 + number / 100, seed=number)
    [broken] = sweep.glob("8abc/name/version_0/summary.json")
    broken.write_text('{"data": {')
    found = read_runs([sweep])
    assert [run.name for run in found.runs] == ["9abc"]
    assert found.left_out == [
        f"{sweep}: 1 of 7 trials are compared; left out: 2 without a summary.json and config.yaml that can be read, "
        "2 failed, 1 stopped early, 1 unfinished."
    ]
    with pytest.raises(UserInputError, match="7abc: this trial does not count, failed; give one that has finished"):
        find_runs([sweep / "7abc"])
    [*_, last] = sweep.glob("*/trial.json")
    content = last.read_text()
    last.write_text("{}")
    with pytest.raises(UserInputError, match=r"trial.json: not of `dmt sweep`; restore it, or remove the folder"):
        read_runs([sweep])
    last.write_text(content)
    shutil.rmtree(sweep / "9abc")
    with pytest.raises(UserInputError, match=r"no trial has finished \(2 without .*, 1 unfinished\); wait for one"):
        find_runs([sweep])


@pytest.mark.parametrize("noted", [True, False])
def test_of_a_trial_its_own_run_is_compared(tmp_path: Path, noted: bool) -> None:
    """Its configuration keeps a run in the trial's folder: a user repeats it there."""
    trial, other = (write_trial(tmp_path / "study", number, "finished") for number in range(2))
    for number, seed in ((0, 1), (1, 1), (10, 1)):
        write_run(trial / "name" / f"version_{number}", 0.7 + number / 100, seed=seed)
    write_run(other / "name" / "version_0", 0.6, seed=2)
    own = "version_1" if noted else "version_0"
    if noted:
        result = json.loads((trial / "result.json").read_text())
        (trial / "result.json").write_text(json.dumps(result | {"run": f"name/{own}"}))
    found = read_runs([tmp_path / "study"])
    assert [run.folder for run in found.runs] == [trial / "name" / own, other / "name" / "version_0"]
    told = "a trial's own run is compared; there are others beside it in 9abc."
    assert found.left_out == [f"{tmp_path / 'study'}: {told}"]
    assert read_runs([trial]).left_out == [f"{trial}: {told}"] and find_runs([trial])[0].folder.name == own
    # A version that is asked for is compared all the same.
    assert find_runs([trial / "name" / "version_10"])[0].final("test/auroc") == pytest.approx(0.8)


def test_of_a_trial_whose_own_run_is_gone_nothing_is_compared(tmp_path: Path) -> None:
    trial = write_trial(tmp_path / "study", 0, "finished")
    write_run(trial / "name" / "version_1", 0.7)
    result = json.loads((trial / "result.json").read_text())
    (trial / "result.json").write_text(json.dumps(result | {"run": "name/version_0"}))
    with pytest.raises(UserInputError, match=r"no trial has finished \(1 without a summary.json and config.yaml"):
        read_runs([tmp_path / "study"])


def test_versions_are_told_apart(tmp_path: Path) -> None:
    for number in (0, 1, 10):
        write_run(tmp_path / "tiny" / f"version_{number}", 0.7 + number / 100, model={"number": number})
    assert [run.name for run in find_runs([tmp_path / "tiny"])] == ["tiny"]
    both = [tmp_path / "tiny" / "version_0", tmp_path / "tiny" / "version_10"]
    assert [point.label for point in group(find_runs(both))] == ["tiny/version_0", "tiny/version_10"]
    write_run(tmp_path / "other" / "tiny" / "version_0", 0.7, model={"number": 2})
    apart = find_runs([both[0], tmp_path / "other" / "tiny"])
    assert [run.name for run in apart] == [f"{tmp_path.name}/tiny/version_0", "other/tiny/version_0"]


def test_a_folder_of_several_runs_is_refused(tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "a" / "version_0", 0.7)
    write_run(tmp_path / "runs" / "a" / "version_1", 0.7)
    for number in range(3):
        write_run(write_trial(tmp_path / "runs" / "sweeps" / "b", number, "finished") / "name" / "version_0", 0.7)
    assert len(find_runs([tmp_path / "runs" / "a"])) == 1
    with pytest.raises(UserInputError) as told:
        find_runs([tmp_path / "runs"])
    a, b = tmp_path / "runs" / "a", tmp_path / "runs" / "sweeps" / "b"
    assert str(told.value) == f"run {tmp_path / 'runs'}: 2 runs and sweeps are in it, {a}, {b}; give some of them"


def test_batch_size_is_not_of_the_data(tmp_path: Path) -> None:
    folders = []
    for size in (32, 64):
        for seed in (1, 2):
            arguments = {"global_batch_size": size, "num_workers": size, "seed": 0, "num_train": 10}
            trial = write_trial(tmp_path / "study", len(folders), "finished")
            folders.append(write_run(trial / "run", 0.7, seed=seed, data={"init_args": arguments}))
    points = group(find_runs([tmp_path / "study"]))
    assert [point.label for point in points] == [
        "global_batch_size=32, num_workers=32",
        "global_batch_size=64, num_workers=64",
    ]


def test_other_data_are_refused_by_name(tmp_path: Path) -> None:
    for name, arguments in {
        "built_in": {"seed": 0},
        "drawn_otherwise": {"seed": 1},
        "read": {"path": "x", "seed": 0},
        "in_another_order": {"path": "x", "seed": 1},
    }.items():
        write_run(tmp_path / name, 0.7, data={"init_args": arguments})
    with pytest.raises(
        UserInputError, match=r"drawn_otherwise: its data.init_args.seed is 1, that of .*built_in 0; com"
    ):
        find_runs([tmp_path / "built_in", tmp_path / "drawn_otherwise"])
    # The seed of a log that is read orders it, and no more.
    assert len(group(find_runs([tmp_path / "read", tmp_path / "in_another_order"]))) == 2
    with pytest.raises(UserInputError, match=r'its data.init_args.path is "x", that of .* null'):
        find_runs([tmp_path / "built_in", tmp_path / "read"])


def test_null_is_told_from_a_value(tmp_path: Path) -> None:
    scheduler = {"class_path": "torch.Linear", "init_args": {"total_steps": 7}}
    for number, model in enumerate([{"plan": None, "lr": None}, {"plan": "x/y.yaml", "lr": scheduler}]):
        write_run(write_trial(tmp_path / "study", number, "finished") / "run", 0.7, model=model)
    assert [point.label for point in group(find_runs([tmp_path / "study"]))] == [
        "lr=null, plan=null",
        "lr=Linear, plan=y",
    ]


@pytest.mark.parametrize(
    ("rates", "told"),
    [
        ([0.15676677195506075, 1e-05, 0.1], ["0.1568", "1e-05", "0.1"]),
        ([0.15676677195506075, 0.15678, 0.3333333], ["0.15677", "0.15678", "0.3333"]),
        ([100000.0, 100001.0, 2], ["100000.0", "100001.0", "2"]),
        ([0.1, 0.1 + 2**-56, float("nan")], ["0.1", "0.10000000000000002", "nan"]),
    ],
)
def test_floats_have_four_digits_where_they_tell_points_apart(
    tmp_path: Path, rates: list[float], told: list[str]
) -> None:
    for number, rate in enumerate(rates):
        write_run(write_trial(tmp_path / "study", number, "finished") / "run", 0.7, model={"lr": rate})
    points = group(find_runs([tmp_path / "study"]))
    assert [point.label for point in points] == [f"lr={rate}" for rate in told]
    assert points[0].parts >= {f"lr={rates[0]}"}


def test_points_of_options_that_only_one_has(tmp_path: Path) -> None:
    models = [{"plan": "strided"}, {"plan": {"towers": ["a"]}}, {"plan": "x/y.yaml"}, {"plan": "z/y.yaml"}]
    for number, model in enumerate(models):
        write_run(write_trial(tmp_path / "study", number, "finished") / "run", 0.7, model=model)
    labels = [point.label for point in group(find_runs([tmp_path / "study"]))]
    assert labels == ["plan=strided", 'towers=["a"]', "plan=y, 7abc", "plan=y, 6abc"]


@pytest.mark.parametrize("content", ['{"data": {', "[]", "{}", '{"name": "foreign"}', "\xff"])
def test_a_damaged_or_foreign_summary_is_one_line(tmp_path: Path, content: str) -> None:
    write_run(tmp_path / "run", 0.7)
    (tmp_path / "run" / "summary.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(UserInputError, match=r"run/summary.json: (damaged|not of `dmt).*; (give|restore)") as told:
        find_runs([tmp_path / "run"])
    assert "\n" not in str(told.value)


def test_a_summary_without_what_a_report_needs_is_foreign(tmp_path: Path) -> None:
    file = write_run(tmp_path / "run", 0.7) / "summary.json"
    whole = json.loads(file.read_text())
    for part in ({"description": {}}, {"metrics": {"test/auroc": None}}, {"metrics": 3}, {"more": 1}):
        file.write_text(json.dumps(whole | part))
        with pytest.raises(UserInputError, match=r"summary.json: not of `dmt fit`"):
            find_runs([tmp_path / "run"])


@pytest.mark.parametrize("content", ["a: [", "- 1"])
def test_a_damaged_configuration_is_one_line(tmp_path: Path, content: str) -> None:
    (write_run(tmp_path / "run", 0.7) / "config.yaml").write_text(content)
    with pytest.raises(UserInputError, match=r"run/config.yaml: no.*; restore it, or remove it"):
        group(find_runs([tmp_path / "run"]))


def test_a_summary_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    summary = RunSummary.load(write_run(tmp_path / "run", 0.7) / "summary.json")
    before = (tmp_path / "run" / "summary.json").read_bytes()

    def cut(number: int) -> None:
        os.truncate(number, 10)
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", cut)
    with pytest.raises(OSError, match="No space"):
        summary.save(tmp_path / "run")
    assert (tmp_path / "run" / "summary.json").read_bytes() == before


def test_a_metric_that_only_the_log_has(tmp_path: Path) -> None:
    [run] = find_runs([write_run(tmp_path / "run", 0.7)])
    assert run.final("test/auroc") == 0.7 and run.final("val/auroc") == pytest.approx(0.6)
    assert run.final("val/other") is None
    assert run.metrics >= {"test/log_loss", "val/auroc", "train/loss"}


def test_nan_in_a_log(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", 0.7)
    (folder / "metrics.csv").write_text("step,train/loss\n1,0.5\n2,\n3,nan\n")
    [run] = find_runs([folder])
    steps, values = run.curve("train/loss")
    assert steps == [1, 3] and values == [0.5, pytest.approx(float("nan"), nan_ok=True)]
    (folder / "metrics.csv").write_text("")
    [run] = find_runs([folder])
    assert run.curve("train/loss") == ([], [])


def test_curves_of_a_log_beside_another_logger(tmp_path: Path) -> None:
    loggers = [{"class_path": "x.WandbLogger"}, {"class_path": "x.CSVLogger"}]
    folder = write_run(tmp_path / "project" / "a1b2", 0.72, logger=loggers)
    other = tmp_path / "name" / "version_2"
    other.mkdir(parents=True)
    (folder / "metrics.csv").rename(other / "metrics.csv")
    # As the run itself has recorded it, tests/callbacks/test_run_record.py.
    (folder / "record.json").write_text(json.dumps({"metrics": "../../name/version_2/metrics.csv"}))
    [run] = find_runs([tmp_path])
    assert run.loggers == ["WandbLogger", "CSVLogger"]
    assert run.curve("train/loss") == ([1, 2], [0.5, 0.4]) and run.final("val/auroc") == pytest.approx(0.62)

    (folder / "record.json").write_text(json.dumps({"metrics": None}))
    [run] = find_runs([folder])
    assert run.curve("train/loss") == ([], [])
