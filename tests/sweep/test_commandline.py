"""A trial's command is the one that `wandb agent` makes of the same file, and `dmt fit` reads both alike."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import wandb.wandb_agent
from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

from dmt.errors import UserInputError
from dmt.lightning_cli import DmtCLI, NamedCLI
from dmt.sweep.algorithms import grid_points
from dmt.sweep.commandline import check_program, check_verb, expand, fit_options, named_files
from dmt.sweep.parameters import flatten, trial_id
from dmt.sweep.spec import read_spec

ROOT = Path(__file__).parents[2]
SHIPPED = sorted(ROOT.glob("configs/sweeps/*.yaml"))
BLOCK = {"class_path": "dmt.modules.DLRMTower", "init_args": {"c": 1, "p": 3, "out_dim": 8}}


class _Started(Exception):
    def __init__(self, command: list[str]) -> None:
        self.command = command


def agent_command(
    command: list[str], program: str, point: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    """What wandb's own agent would start for a point that its server sends."""

    def start(command: list[str], env: dict[str, str], forward_signals: bool) -> None:
        raise _Started(command)

    monkeypatch.setattr(wandb.wandb_agent, "AgentProcess", start)
    monkeypatch.setenv("WANDB_DIR", str(folder))
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep")
    for name in ("WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH"):
        monkeypatch.setenv(name, "set by the agent")  # so that it is unset afterwards
    agent = wandb.wandb_agent.Agent.__new__(wandb.wandb_agent.Agent)
    agent._sweep_command, agent._function, agent._in_jupyter, agent._forward_signals = list(command), None, False, False
    arguments = {name: {"value": value} for name, value in point.items()}
    with pytest.raises(_Started) as started:
        agent._command_run({"type": "run", "run_id": "run", "args": arguments, "program": program})
    return started.value.command


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_fit_reads_what_either_runner_passes(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    spec = read_spec(path)
    for point in (grid_points(spec.config)[0], grid_points(spec.config)[-1]):
        ours = expand(spec.command, point)
        theirs = agent_command(spec.config["command"], spec.config["program"], point, tmp_path, monkeypatch)
        assert [word.split("=")[0] for word in ours] == [word.split("=")[0] for word in theirs]
        # Makes nothing, and so needs no data.
        read = [NamedCLI(["fit", *(fit_options(words) or [])], run=False).config for words in (ours, theirs)]
        assert read[0].clone().as_dict() | {"config": None} == read[1].clone().as_dict() | {"config": None}


@pytest.mark.parametrize("name", ["tower_count", "tp_method", "compression", "strategy"])
def test_trials_are_logged_as_csv_and_by_wandb(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here and under `wandb agent`, which reads the metric that the sweep's file names from a WandbLogger."""
    monkeypatch.chdir(ROOT)
    spec = read_spec(ROOT / f"configs/sweeps/{name}.yaml")
    point = grid_points(spec.config)[0]
    theirs = agent_command(spec.config["command"], spec.config["program"], point, tmp_path, monkeypatch)
    for words in (expand(spec.command, point), theirs):
        loggers = NamedCLI(["fit", *(fit_options(words) or [])], run=False).config.trainer.logger
        assert [logger.class_path.rpartition(".")[2] for logger in loggers] == ["CSVLogger", "WandbLogger"]


@pytest.mark.parametrize(
    "parameters",
    [
        {"config": {"model.num_towers": 2, "model.tower": BLOCK, "seed_everything": 7}},
        {"model": {"num_towers": 2, "tower": BLOCK}, "seed_everything": 7},
        {"model.tower": BLOCK, "model.num_towers": 2, "seed_everything": 7},
        {"model.tower.init_args": BLOCK["init_args"], "model.num_towers": 2, "seed_everything": 7},
    ],
)
def test_blocks_and_linked_options_reach_the_model(parameters: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    command = {"args": {name: {"value": value} for name, value in parameters.items()}}
    for options in (expand(["${args}"], parameters), create_sweep_command_args(command)["args"]):
        config = DmtCLI(["fit", "--config=configs/quickstart.yaml", *options], run=False).config
        assert config.model.num_towers == 2 and config.seed_everything == 7
        assert config.model.tower.init_args.as_dict() == BLOCK["init_args"]


def test_null_is_null_here_and_in_args_json_for_both(monkeypatch: pytest.MonkeyPatch) -> None:
    """`wandb agent` writes None, which is no YAML; in ${args_json} it writes null."""
    monkeypatch.chdir(ROOT)
    point = {"ranks_per_host": None, "model.tower": BLOCK}
    agents = create_sweep_command_args({"args": {name: {"value": value} for name, value in point.items()}})
    assert agents["args"][0] == "--ranks_per_host=None"
    assert expand(["${args}"], point)[0] == "--ranks_per_host=null"
    assert expand(["--config", "${args_json}"], point)[1] == agents["args_json"][0]
    for options in (expand(["${args}"], point), ["--config", agents["args_json"][0]]):
        config = DmtCLI(["fit", "--config=configs/quickstart.yaml", *options], run=False).config
        assert config.ranks_per_host is None
        assert config.model.tower.init_args.p == 3


def test_macros_are_wandbs() -> None:
    point = {"a": 1, "b": 0.5, "c": "text", "d": True, "e": False}
    theirs = create_sweep_command_args({"args": {name: {"value": value} for name, value in point.items()}})
    for macro, words in theirs.items():
        if macro != "args_dict":  # which the agent cannot put into a command either
            assert expand([f"${{{macro}}}"], point) == words, macro


def test_environment_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_DATA", "here")
    assert expand(["--path=${envvar:MY_DATA}/x"], {}) == ["--path=here/x"]
    with pytest.raises(UserInputError, match="variable MY_OTHER is not set"):
        expand(["${envvar:MY_OTHER}"], {})
    with pytest.raises(UserInputError, match=r"knows no \$\{arguments\}; choose one of \$\{env\}"):
        expand(["${arguments}"], {})


def test_a_program_that_does_not_exist() -> None:
    check_program(["/usr/bin/env", "A=1", "dmt"])
    for words in (["nowhere.sh"], ["/usr/bin/env", "nowhere.sh"]):
        with pytest.raises(UserInputError, match=r"no program nowhere\.sh"):
            check_program(words)


def test_a_command_without_a_program() -> None:
    for words in ([], ["/usr/bin/env"], ["/usr/bin/env", "A=1"]):
        with pytest.raises(UserInputError, match=r"names no program; begin it with one"):
            check_program(words)


def test_a_script_that_does_not_exist() -> None:
    for words in ([__file__], ["-S", "-X", "dev", __file__, "nowhere"], ["-m", "nowhere"], ["-c", "print()"]):
        check_program([sys.executable, *words])
    for words in (["nowhere.py"], ["-S", "-W", "error", "nowhere.py"]):
        with pytest.raises(UserInputError, match=r"no file nowhere\.py for python.* to run; give its path"):
            check_program(["/usr/bin/env", sys.executable, *words])


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["dmt", "fti", "--x=1"], "dmt fti"),
        (["/usr/bin/env", "A=1", "bin/dmt", "--x=1"], "dmt without a verb"),
        (["python", "-m", "dmt.cli"], "dmt without a verb"),
        (["python", "bin/dmt", "validate"], "dmt validate"),
    ],
)
def test_a_command_of_dmt_is_fit(words: list[str], told: str) -> None:
    with pytest.raises(UserInputError, match=rf"command: {told}: .* write dmt fit"):
        check_verb(words)


def test_commands_of_other_programs_may_be_anything() -> None:
    for words in (
        ["dmt", "fit"],
        ["python", "-m", "dmt.cli", "fit"],
        ["python", "train.py", "dmt"],
        ["bash", "-c", "exec dmt fit"],
    ):
        check_verb(words)


def test_fit_options_are_found() -> None:
    assert fit_options(["/usr/bin/env", "dmt", "fit", "--x=1"]) == ["--x=1"]
    assert fit_options(["python", "-m", "dmt.cli", "fit"]) == []
    assert fit_options(["python", "train.py", "fit"]) is None


def test_files_count_as_data_with_those_that_they_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, content in {"a.yaml": "model: {plan: plan.yaml}", "plan.yaml": "towers: []", "b.yaml": "{}"}.items():
        Path(name).write_text(content)

    def files() -> dict[str, str]:
        return named_files(["dmt", "fit", "--config=a.yaml"], {"config": {"model.plan": "b.yaml"}})

    before = files()
    assert list(before) == ["a.yaml", "b.yaml", "plan.yaml"]
    Path("plan.yaml").write_text("# a comment\ntowers: []\n")
    assert files() == before
    Path("plan.yaml").write_text("towers: [[a]]")
    assert {name for name, digest in files().items() if digest != before[name]} == {"plan.yaml"}


def test_two_parameters_for_one_option_are_refused() -> None:
    with pytest.raises(UserInputError, match=r"model\.num_towers is set by two"):
        flatten({"config": {"model.num_towers": 2}, "model": {"num_towers": 4}})
    with pytest.raises(UserInputError, match=r"model\.tower would replace model\.tower\.init_args\.p of config"):
        flatten({"config": {"model.tower.init_args.p": 2}, "model.tower": {"class_path": "A"}})


def test_trial_ids_tell_trials_apart() -> None:
    ids = {
        trial_id(parameters=parameters, command=command)
        for parameters in ({"x": 1}, {"x": 1.0}, {"x": "1"}, {"y": 1}, {"x": [1]})
        for command in (["a", "${args}"], ["b", "${args}"])
    }
    assert len(ids) == 10
    assert trial_id(parameters={"a": 1, "b": 2}, command=["c"]) == trial_id(parameters={"b": 2, "a": 1}, command=["c"])
    assert json.loads(json.dumps({"x": 1.0}))["x"] == 1.0  # numbers read back from the record give the same id
