"""Sweep files: wrong ones end in one line, shipped ones are what W&B takes."""

from collections.abc import Callable
from datetime import date
from pathlib import Path

import pytest

from dmt.cli import main
from dmt.errors import UserInputError
from dmt.sweep.algorithms import stopped_by_hyperband, violations
from dmt.sweep.spec import read_spec

ROOT = Path(__file__).parents[2]
SHIPPED = sorted(ROOT.glob("configs/sweeps/*.yaml"))


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"method": "gird"}, ["method=gird", "did you mean grid?"]),
        ({"method": "custom"}, ["method=custom", "choose grid, random or bayes"]),
        ({"method": "absent"}, ["method=None", "choose grid"]),
        ({"metric": {"name": "a", "goal": "maximise"}}, ["metric.goal=maximise", "did you mean maximize?"]),
        ({"metric": {"goal": "maximize"}}, ["metric=", "give it a name"]),
        ({"metric": {"name": "test/auroc"}}, ["metric.goal is not given", "minimise test/auroc; write goal: maximize"]),
        ({"metrics": {"name": "a"}}, ["metrics is work for W&B's servers", "or write metric"]),
        ({"metric": "absent", "method": "bayes"}, ["method=bayes needs a metric"]),
        ({"run_cap": 0}, ["run_cap=0: give a whole number, at least 1"]),
        (
            {"metric": "absent", "early_terminate": {"type": "hyperband", "min_iter": 1}},
            ["early_terminate needs a metric"],
        ),
        ({"metric": {"name": "a", "gaol": "maximize"}}, ["metric.gaol", "did you mean goal?"]),
        ({"early_terminate": "hyperband"}, ["early_terminate=hyperband", "{type: hyperband, min_iter: 2}"]),
        ({"early_terminate": {"type": "hyperband"}}, ["early_terminate", "add min_iter"]),
        ({"early_terminate": {"typ": "hyperband", "min_iter": 3}}, ["early_terminate.typ", "did you mean type?"]),
        ({"early_terminate": {"type": "median", "min_iter": 3}}, ["early_terminate.type=median", "hyperband"]),
        ({"early_terminate": {"type": "hyperband", "min_iter": 0}}, ["early_terminate.min_iter=0", "at least 1"]),
        ({"early_terminate": {"type": "hyperband", "min_iter": 1, "eta": 1}}, ["early_terminate.eta=1", "above 1"]),
        ({"early_terminate": {"type": "hyperband", "max_iter": 9}}, ["early_terminate", "max_iter needs s"]),
        (
            {"early_terminate": {"type": "hyperband", "max_iter": 2, "s": 1}},
            ["early_terminate.max_iter=2", "at least 3"],
        ),
        (
            {"early_terminate": {"type": "hyperband", "max_iter": 9, "s": 1.5}},
            ["early_terminate.s=1.5", "whole number"],
        ),
        ({"early_terminate": {"type": "hyperband", "min_iter": 2, "strict": 1}}, ["early_terminate.strict=1", "true"]),
        ({"parameters": {}}, ["parameters={}", "name at least one"]),
        ({"parameters": {"x": {"values": []}}}, ["parameters.x", "values is empty", "at least one"]),
        ({"parameters": {"m": {"parameters": {"x": {"values": []}}}}}, ["parameters.m.x", "values is empty"]),
        ({"parameters": {"x": 3}}, ["parameters.x=3", "value, values, or min and max"]),
        ({"parameters": {"x": {"valeus": [1]}}}, ["parameters.x.valeus: no such key; did you mean values?"]),
        ({"parameters": {3: {"value": 1}}}, ["parameters.3", "int", "quotes"]),
        ({"parameters": {"x": {"value": {True: 1}}}}, ["parameters.x.value.True", "bool", "quotes"]),
        ({"parameters": {"x": {"values": [date(2020, 1, 1)]}}}, ["parameters.x.values", "2020-01-01", "quotes"]),
        (
            {"method": "bayes", "parameters": {"x": {"value": 1}, "m": {"parameters": {"y": {"value": 2}}}}},
            ["method=bayes", "nothing to search", "give one of them values"],
        ),
        ({"method": "random", "parameters": {"x": {"min": "1e-3", "max": 1.0}}}, ["x.min=1e-3", "text", "0.001"]),
        ({"method": "random", "parameters": {"x": {"min": 2, "max": 1}}}, ["x: min 2 is not less than max 1"]),
        ({"parameters": {"x": {"values": list(range(400))}, "y": {"values": list(range(400))}}}, ["160,000 points"]),
        ({"parmeters": {}}, ["'parmeters'", "did you mean parameters?"]),
        ({"scheduler": {"engine": "wandb"}}, ["scheduler", "remove it"]),
        ({"run_cap": 0}, ["run_cap", "0"]),
        ({"program": "absent"}, ["program is missing"]),
        ({"command": ["python", "x.py"]}, ["command has no ${args}"]),
        ({"command": "dmt fit ${args}"}, ["command=dmt fit ${args}", "a list of words, such as [${env}, dmt, fit"]),
    ],
)
def test_wrong_files(keys: dict, told: list[str], write_sweep: Callable[..., Path]) -> None:
    path = write_sweep(**keys)
    with pytest.raises(UserInputError) as refusal:
        read_spec(path)
    assert str(refusal.value).startswith(f"{path}: ")
    assert all(part in str(refusal.value) for part in told), refusal.value


@pytest.mark.parametrize(
    "rule", [{"min_iter": 2}, {"min_iter": 1, "eta": 1.5, "strict": False}, {"max_iter": 27, "s": 2}]
)
def test_rules_of_hyperband_are_wandbs(rule: dict, write_sweep: Callable[..., Path]) -> None:
    spec = read_spec(write_sweep(early_terminate={"type": "hyperband", **rule}))
    assert stopped_by_hyperband(spec.config, []) == set()


@pytest.mark.parametrize(
    ("content", "told"),
    [(None, "no such file"), ("a: [1", "not YAML"), ("- 1", "not a sweep"), ("", "not a sweep")],
)
def test_files_that_are_no_sweep(
    content: str | None, told: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "sweep.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(SystemExit) as exit_info:
        main(["sweep", str(path)])
    assert exit_info.value.code == 2
    [line] = capfd.readouterr().err.splitlines()
    assert line.startswith(f"dmt: error: sweep file {path}: ") and told.lower() in line.lower()


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_files_are_what_wandb_takes(path: Path) -> None:
    spec = read_spec(path)
    assert violations(spec.config) == []
    head = "".join(line for line in path.read_text().splitlines(keepends=True) if line.startswith("#"))
    name = path.relative_to(ROOT)
    assert f"dmt sweep {name}" in head and f"wandb sweep {name}" in head
    assert all(word in head for word in ("Hardware:", "Time:", "Expect:"))


def test_a_grid_may_grow_and_other_searches_may_not(write_sweep: Callable[..., Path]) -> None:
    def identity(**keys: object) -> dict:
        return read_spec(write_sweep(**keys)).identity()

    longer = {"x": {"values": [1, 2, 3, 4]}}
    assert identity() == identity(parameters=longer) == identity(metric={"name": "test/other"})
    assert identity() != identity(parameters={"y": {"value": 1}})
    assert identity(method="random") != identity(method="random", parameters=longer)
    assert identity() != identity(command=["python", "${args}"])
