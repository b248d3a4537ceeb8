"""Sweeps of a program that takes no time: what runs, what is recorded, and what is not run again."""

import csv
import json
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from dmt.cli import main
from dmt.errors import UserInputError
from dmt.sweep import SweepOutcome, run_sweep
from dmt.sweep.ledger import Ledger

Write = Callable[..., Path]


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., SweepOutcome]:
    """Runs a sweep file into the test's folder."""
    return lambda path, **options: run_sweep(path, output=tmp_path / "out", **options)


def starts(tmp_path: Path) -> list[str]:
    """Ids of the trials that were started, repetitions included; the record begins anew."""
    path = tmp_path / "starts.txt"
    told = path.read_text().split() if path.exists() else []
    path.unlink(missing_ok=True)
    return told


def results(tmp_path: Path) -> list[dict[str, str]]:
    with (tmp_path / "out" / "results.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_grid_runs_and_is_not_run_again(write_sweep: Write, run: Callable, tmp_path: Path) -> None:
    outcome = run(write_sweep(), workers=2)
    assert [trial.state for trial in outcome.trials] == ["finished"] * 3
    assert [trial.parameters for trial in outcome.trials] == [{"x": 1}, {"x": 2}, {"x": 3}]
    assert outcome.best is not None and outcome.best.parameters == {"x": 3}
    assert sorted(starts(tmp_path)) == sorted(trial.id for trial in outcome.trials)
    rows = results(tmp_path)
    assert list(rows[0]) == [
        "trial",
        "state",
        "x",
        "seconds",
        "samples_per_second",
        "test/other",
        "test/score",
        "reason",
    ]
    assert {(row["state"], row["x"], row["test/score"], row["samples_per_second"]) for row in rows} == {
        ("finished", str(x), str(float(x)), "1000") for x in (1, 2, 3)
    }
    assert "options {'x': '1'}" in (outcome.trials[0].folder / "log.txt").read_text()

    again = run(write_sweep())
    assert again == outcome and starts(tmp_path) == []
    larger = run(write_sweep(parameters={"x": {"values": [0, 1, 2, 3]}}))
    assert starts(tmp_path) == [larger.trials[0].id]
    assert larger.trials[1:] == outcome.trials
    assert len(results(tmp_path)) == 4


def test_failures_are_told_skipped_and_run_again_on_demand(
    write_sweep: Write, run: Callable, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    linked = [{"x": 1, "fail": "1"}, {"x": 2, "fail": "0"}]
    path = write_sweep(parameters={"config": {"values": linked}})
    with pytest.raises(SystemExit) as exit_info:
        main(["sweep", str(path), "--output", str(tmp_path / "out")])
    assert exit_info.value.code == 1
    told = capsys.readouterr().out
    assert "| something is wrong" in told and "exit code 3" in told
    assert "2 trials: 1 failed, 1 finished" in told and "--retry_failed runs them again" in told
    assert [(row["x"], row["state"], row["reason"]) for row in results(tmp_path)] == [
        ("1", "failed", "exit code 3"),
        ("2", "finished", ""),
    ]
    failed, _ = starts(tmp_path)
    assert [trial.state for trial in run(path).unfinished] == ["failed"]
    assert starts(tmp_path) == []
    run(path, retry_failed=True)
    assert starts(tmp_path) == [failed]


def test_failures_of_trials_that_will_not_run_are_kept(write_sweep: Write, run: Callable, tmp_path: Path) -> None:
    def write(*linked: dict, target: int = 9) -> Path:
        metric = {"name": "test/score", "goal": "maximize", "target": target}
        return write_sweep(metric=metric, parameters={"config": {"values": list(linked)}})

    failing, sound = {"x": 2, "fail": "1"}, {"x": 3}
    first, second = run(write({"x": 1, "fail": "1"}, failing)).trials
    starts(tmp_path)
    run(write(failing), retry_failed=True)
    assert starts(tmp_path) == [second.id]
    assert json.loads((first.folder / "result.json").read_text())["reason"] == "exit code 3"
    assert [trial.state for trial in run(write(sound, failing, target=3)).trials] == ["finished", "failed"]
    starts(tmp_path)
    # The target is reached.
    again = run(write(sound, failing, target=3), retry_failed=True)
    assert starts(tmp_path) == [] and again.trials[1].result.reason == "exit code 3"


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (["true", "${args}"], "no summary.json"),
        (["bash", "-c", "echo '{' > $DMT_SAVE_DIR/summary.json", "${args}"], "not JSON"),
        (["bash", "-c", "kill -9 $$", "${args}"], "ended by SIGKILL"),
    ],
)
def test_runs_without_a_result_have_failed(command: list[str], reason: str, write_sweep: Write, run: Callable) -> None:
    outcome = run(write_sweep(command=command), max_runs=1)
    [trial] = outcome.trials
    assert trial.state == "failed" and reason in trial.result.reason


@pytest.mark.parametrize(
    ("told", "reason"),
    [
        ('{"metrics": {"test/score": 1.0, "note": null}}', "summary.json: metrics.note=null is no number; write a"),
        ('{"metrics": {"test/score": true}}', "metrics.test/score=true is no number"),
        ('{"metrics": {"test/score": "high"}}', 'metrics.test/score="high" is no number'),
        ('{"metrics": {"test/score": 1}, "samples_per_second": [1]}', "samples_per_second=[1] is no number"),
        ('{"metrics": {"test/score": NaN}, "samples_per_second": null}', None),
    ],
)
def test_what_is_no_number_fails_a_trial(told: str, reason: str | None, write_sweep: Write, run: Callable) -> None:
    command = ["bash", "-c", f"echo '{told}' > $DMT_SAVE_DIR/summary.json", "${args}"]
    trials = run(write_sweep(command=command, parameters={"x": {"values": [1, 2]}})).trials
    assert [trial.state for trial in trials] == ["finished" if reason is None else "failed"] * 2
    assert (reason or "") in trials[0].result.reason


def test_a_trial_that_somebody_else_ends_is_interrupted(write_sweep: Write, run: Callable, tmp_path: Path) -> None:
    once = 'test -e $DMT_SAVE_DIR/../../once || { touch $DMT_SAVE_DIR/../../once; kill $$; }; exec "$0" "$@"'
    path = write_sweep(command=["bash", "-c", once, "${interpreter}", "-S", "${program}", "${args}"])
    assert sorted(trial.state for trial in run(path).trials) == ["finished", "finished", "interrupted"]
    assert [trial.state for trial in run(path).trials] == ["finished"] * 3


def test_leftovers_of_an_interrupted_trial_do_not_count(write_sweep: Write, run: Callable, tmp_path: Path) -> None:
    path = write_sweep(parameters={"x": {"value": 1}})
    [trial] = run(path).trials
    (trial.folder / "result.json").unlink()
    (trial.folder / ".result.json.new").write_text('{"state": "fin')
    (trial.folder / "other").mkdir()
    (trial.folder / "other" / "summary.json").write_text("{}")
    [again] = run(path).trials
    assert again.state == "finished" and not (trial.folder / "other").exists()
    assert len(starts(tmp_path)) == 2


def test_a_changed_configuration_is_refused(write_sweep: Write, run: Callable, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("x: 1")
    path = write_sweep(command=["${interpreter}", "-S", "${program}", f"--file={config}", "${args}"])
    run(path, max_runs=1)
    config.write_text("x: 2")
    with pytest.raises(UserInputError, match=rf"{config} has changed since trial \w+ .*restore it, or give another"):
        run(path)
    config.write_text("x:   1  # as before")
    assert len(run(path).trials) == 3


def test_a_configuration_that_is_not_there_is_told(
    write_sweep: Write, run: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.yaml").write_text("x: 1")
    path = write_sweep(command=["${interpreter}", "-S", "${program}", "--file=config.yaml", "${args}"])
    monkeypatch.chdir(tmp_path)
    run(path, max_runs=1)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    told = (
        r"^config\.yaml, with which trial \w+ .* is not there; start from the directory of the first run, or restore it"
    )
    with pytest.raises(UserInputError, match=told):
        run(path)
    monkeypatch.chdir(tmp_path)
    assert len(run(path).trials) == 3


@pytest.mark.parametrize("keys", [{"parameters": {"y": {"value": 1}}}, {"program": "other.py"}, {"method": "random"}])
def test_a_folder_of_another_sweep_is_refused(keys: dict, write_sweep: Write, run: Callable) -> None:
    run(write_sweep(), max_runs=1)
    with pytest.raises(UserInputError, match=r"belongs to another sweep, whose .*give another --output"):
        run(write_sweep(run_cap=1, **keys))


def test_folders_that_are_no_sweeps_are_refused(write_sweep: Write, run: Callable, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").touch()
    with pytest.raises(UserInputError, match="holds files and no sweep"):
        run(write_sweep())
    with pytest.raises(UserInputError, match="not a folder"):
        run_sweep(write_sweep(), output=tmp_path / "out" / "thesis.tex")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.tex"]


def test_one_sweep_at_a_time_in_a_folder(write_sweep: Write, run: Callable, tmp_path: Path) -> None:
    run(write_sweep(), max_runs=1)
    identity = json.loads((tmp_path / "out" / "sweep.json").read_text())
    ledger = Ledger(folder=tmp_path / "out", identity=identity)
    ledger.open()
    with pytest.raises(UserInputError, match="another dmt sweep is at work"):
        run(write_sweep())
    ledger.close()
    run(write_sweep())


@pytest.mark.parametrize("option", ["workers", "threads_per_worker", "max_runs"])
def test_counts_are_positive(option: str, write_sweep: Write, run: Callable) -> None:
    with pytest.raises(UserInputError, match=f"{option}=0: give a positive number"):
        run(write_sweep(), **{option: 0})


def test_max_runs_counts_earlier_trials(write_sweep: Write, run: Callable, tmp_path: Path) -> None:
    for max_runs in (1, 2, 2):
        assert len(run(write_sweep(run_cap=2), max_runs=max_runs).trials) == max_runs
    assert len(starts(tmp_path)) == 2
    assert len(run(write_sweep(run_cap=2)).trials) == 2


def test_random_and_bayes_go_on_where_they_were(write_sweep: Write, run: Callable, tmp_path: Path) -> None:
    space = {"x": {"min": 0.0, "max": 1.0}}
    for method in ("random", "bayes"):
        with pytest.raises(UserInputError, match="goes on without end; add run_cap"):
            run(write_sweep(method=method, parameters=space))
        path, folder = write_sweep(method=method, parameters=space), tmp_path / method
        first = run_sweep(path, output=folder, max_runs=3)
        whole = run_sweep(path, output=folder, max_runs=5, workers=2)
        assert whole.trials[:3] == first.trials and len(whole.trials) == 5
        assert len({trial.parameters["x"] for trial in whole.trials}) == 5
        assert len(starts(tmp_path)) == 5


def test_trials_run_beside_each_other(write_sweep: Write, run: Callable) -> None:
    path = write_sweep(parameters={"x": {"values": [1, 2, 3, 4]}, "seconds": {"value": 0.6}})
    outcome = run(path, workers=4, threads_per_worker=3)
    spans = []
    for trial in outcome.trials:
        begin = (trial.folder / "environment.json").stat().st_mtime
        spans.append((begin, begin + 0.6))
        environment = json.loads((trial.folder / "environment.json").read_text())
        assert environment["OMP_NUM_THREADS"] == "3"
        assert environment["WANDB_MODE"] == "offline" and environment["WANDB_DIR"] == str(trial.folder)
        assert environment["WANDB_RUN_GROUP"] == "sweep" and environment["WANDB_NAME"] == trial.id
        assert environment["WANDB_PROJECT"] == "dmt"
    assert max(begin for begin, _ in spans) < min(end for _, end in spans)


def test_hyperband_stops_the_worse_trial(write_sweep: Write, run: Callable, tmp_path: Path) -> None:
    path = write_sweep(
        metric={"name": "val/score", "goal": "maximize"},
        early_terminate={"type": "hyperband", "min_iter": 2, "eta": 2},
        parameters={
            # Hyperband needs two better ones to end a third.
            "config": {"values": [{"x": x, "seconds": 20 if x == 1 else 0.2} for x in (3, 2, 1)]},
            "reports": {"value": 20},
        },
    )
    outcome = run(path)
    assert [trial.state for trial in outcome.trials] == ["finished", "finished", "stopped"]
    stopped = outcome.trials[2].result
    assert stopped.seconds < 15 and 2 <= len(stopped.history) < 20
    assert stopped.metrics == {"val/score": stopped.history[-1]}
    assert outcome.trials[0].result.metrics["val/score"] == 60
    assert outcome.unfinished == ()
    assert [trial.state for trial in run(path).trials] == ["finished", "finished", "stopped"]


def test_a_target_ends_the_sweep_for_good(
    write_sweep: Write, run: Callable, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_sweep(metric={"name": "test/score", "goal": "maximize", "target": 2})
    outcome = run(path)
    assert [trial.parameters["x"] for trial in outcome.trials] == [1, 2]
    told = f"metric.target is reached by {outcome.trials[1].id}: no more trials are started"
    assert capsys.readouterr().out.count(told) == 1 and len(starts(tmp_path)) == 2
    assert run(path) == outcome and starts(tmp_path) == []
    assert capsys.readouterr().out.count(told) == 1
    main(["sweep", str(path), "--output", str(tmp_path / "out"), "--dry-run"])
    assert told in capsys.readouterr().out


def test_a_metric_that_runs_do_not_have_ends_the_sweep(write_sweep: Write, run: Callable) -> None:
    with pytest.raises(UserInputError, match=r"metric\.name=auroc: trial \w+ finished without it; .* test/score"):
        run(write_sweep(metric={"name": "auroc", "goal": "maximize"}))
    assert len(run(write_sweep()).trials) == 3


def test_a_metric_that_finished_trials_lack_is_refused_with_nothing_left_to_run(
    write_sweep: Write, run: Callable, tmp_path: Path
) -> None:
    path = write_sweep()
    run(path)
    starts(tmp_path)
    with pytest.raises(UserInputError, match=rf"{path}: metric\.name=test/scoer: .*did you mean test/score\?"):
        run(write_sweep(metric={"name": "test/scoer"}))
    assert starts(tmp_path) == []


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"parameters": {"x": {"min": 0.0, "max": 1.0}}}, "choose method random"),
        ({"method": "random"}, "add run_cap"),
        ({"command": ["dmt", "fit", "${arg}", "${args}"]}, r"W&B knows no \$\{arg\}"),
        ({"command": ["${args}"]}, "names no program"),
        ({"command": ["nowhere.sh", "${args}"]}, "no program nowhere.sh"),
        ({"command": "absent", "program": "nowhere.py"}, "no file nowhere.py"),
        ({"command": ["dmt", "fti", "${args}"]}, "dmt fti"),
        ({"command": ["dmt", "${args}", "fit"]}, "dmt without a verb"),
        ({"parameters": {"x": {"value": 1}, "config": {"value": {"x": 2}}}}, "x is set by two"),
    ],
)
def test_what_is_wrong_is_said_with_the_files_name(keys: dict, told: str, write_sweep: Write, run: Callable) -> None:
    path = write_sweep(**keys)
    with pytest.raises(UserInputError, match=rf"^{path}: .*{told}"):
        run(path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("result.json", "[]"),
        ("result.json", "{}"),
        ("result.json", '{"state": "done", "seconds": 1}'),
        ("result.json", '{"state": "finished", "seconds": 1, "metrics": [1]}'),
        ("result.json", '{"state": "finished", "seconds": 1, "run": 3}'),
        ("result.json", '{"state": "finished", "seconds": 1, "metrics": {"test/score": "high"}}'),
        ("trial.json", '{"number": "one", "parameters": {}, "files": {}}'),
        ("trial.json", '{"parameters": {}}'),
    ],
)
def test_damaged_records_are_told(name: str, content: str, write_sweep: Write, run: Callable) -> None:
    [trial] = run(write_sweep(parameters={"x": {"value": 1}})).trials
    (trial.folder / name).write_text(content)
    with pytest.raises(UserInputError, match=rf"{trial.folder / name}: damaged .* delete the folder {trial.folder}"):
        run(write_sweep(parameters={"x": {"value": 1}}))


def test_a_metric_of_training_counts_by_its_last_value(write_sweep: Write, run: Callable) -> None:
    path = write_sweep(metric={"name": "train/loss"}, parameters={"x": {"value": 1}, "reports": {"value": 2}})
    [trial] = run(path).trials
    assert trial.result.metrics["train/loss"] == 0.5


def test_a_result_names_its_run(write_sweep: Write, run: Callable, tmp_path: Path) -> None:
    path = write_sweep(parameters={"config": {"values": [{"x": 1}, {"x": 2, "fail": "1"}]}})
    finished, failed = run(path).trials
    assert finished.result.run == "run/version_0" and failed.result.run is None
    # Of a sweep from before they did.
    file = finished.folder / "result.json"
    told = json.loads(file.read_text())
    assert told.pop("run") == "run/version_0"
    file.write_text(json.dumps(told))
    assert run(path).trials[0].state == "finished"


def test_arguments_in_a_file(write_sweep: Write, run: Callable) -> None:
    script = 'test -s "$0" && cp "$0" "$DMT_SAVE_DIR/seen.json"'
    path = write_sweep(command=["bash", "-c", script, "${args_json_file}"], parameters={"x": {"value": [1, None]}})
    [trial] = run(path).trials
    assert json.loads((trial.folder / "seen.json").read_text()) == {"x": [1, None]}


def test_from_python_with_no_file_and_in_a_thread(write_sweep: Write, tmp_path: Path) -> None:
    import yaml

    config = yaml.safe_load(write_sweep().read_text())
    with pytest.raises(UserInputError, match="output is not given"):
        run_sweep(config)
    found: list[SweepOutcome] = []
    thread = threading.Thread(target=lambda: found.append(run_sweep(config, output=tmp_path / "out")))
    thread.start()
    thread.join()
    assert len(found[0].trials) == 3
