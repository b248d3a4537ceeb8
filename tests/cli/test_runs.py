"""The `dmt` command as a user runs it: real processes on this machine."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import polars
import pytest

from dmt.emulate import EmulatedCluster, can_emulate, free_port

ROOT = Path(__file__).parents[2]
DMT = [str(Path(sys.executable).parent / "dmt")]
# A quarter of a second of training: what costs time here is starting processes.
SMALL = ["--data.num_train", "3001", "--data.num_valid", "500", "--data.num_test", "500", "--trainer.max_epochs", "1"]


def fit(command: Sequence[str], runs: Path, *options: str) -> list[str]:
    """The command of a fit of the quick start, with its logs under ``runs``."""
    arguments = [*command, "fit", "--config", "configs/quickstart.yaml", *SMALL, *options]
    return [*arguments, "--trainer.logger.save_dir", str(runs)]


def start(
    command: Sequence[str], runs: Path, *options: str, env: dict[str, str] | None = None
) -> subprocess.Popen[str]:
    """Start :func:`fit`."""
    return subprocess.Popen(
        fit(command, runs, *options),
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # One process group, so that survivors can be found and ended.
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str], *, code: int | None = 0, timeout_s: float = 120) -> tuple[str, str]:
    """Output and errors of a process that must end in time, with nothing left running."""
    try:
        output, errors = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        raise
    if code is not None:
        assert process.returncode == code, errors[-3000:]
    return output, errors


def group_is_gone(pid: int, *, within_s: float) -> bool:
    """Whether every process of a group has ended."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        try:
            os.killpg(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished SPTT run of two hosts of two ranks."""
    runs = tmp_path_factory.mktemp("runs")
    finish(start(DMT, runs))
    return runs / "quickstart" / "version_0"


def summary(run: Path) -> dict:
    return json.loads((run / "summary.json").read_text())


def test_a_dry_run_tries_all_and_leaves_nothing(tmp_path: Path) -> None:
    one_process = ["--trainer.strategy", "auto", "--trainer.devices", "1", "--trainer.fast_dev_run", "true"]
    done = subprocess.run(fit(DMT, tmp_path, *one_process), cwd=ROOT, capture_output=True, text=True, check=True)
    assert all(words in done.stdout for words in ("Towers (strided plan)", "memory per rank", "test/auroc"))
    assert list(tmp_path.iterdir()) == []


def test_fit_leaves_a_complete_run_folder(finished: Path) -> None:
    told = summary(finished)
    assert told["description"]["layout"] == {
        "strategy": "sptt",
        "ranks": 4,
        "ranks_per_host": 2,
        "hosts_per_group": 1,
        "global_batch_size": 1024,
        "forward_precision": "fp32",
        "backward_precision": "fp32",
    }
    assert 0 < told["metrics"]["test/auroc"] < 1
    assert 0.7 < told["metrics"]["test/best_auroc"] < 1
    assert (finished / "config.yaml").is_file()
    checkpoint = Path(told["checkpoint"])
    assert len(list(checkpoint.glob("*.distcp"))) == 4  # a file of every rank
    with (finished / "metrics.csv").open() as file:
        columns = next(csv.reader(file))
    assert {"val/auroc", "val/log_loss", "test/auroc", "step"} <= set(columns)


def test_checkpoint_of_four_ranks_is_tested_by_one_process(finished: Path, tmp_path: Path) -> None:
    command = ["test", "--config", str(finished / "config.yaml"), "--ckpt_path", summary(finished)["checkpoint"]]
    alone = ["--trainer.strategy", "auto", "--trainer.devices", "1", "--trainer.logger.save_dir", str(tmp_path)]
    done = subprocess.run([*DMT, *command, *alone], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    [auroc] = re.findall(r"test/auroc\D+([\d.]+)", done.stdout)
    # Float32 logits of other batch shapes differ in the last digits, which can swap a close pair of samples.
    assert float(auroc) == pytest.approx(summary(finished)["metrics"]["test/auroc"], abs=1e-4)


def test_predictions_of_four_ranks_are_in_data_order(finished: Path, tmp_path: Path) -> None:
    files = {}
    for name, layout in {"one": ["auto", "1"], "four": ["sptt", "4"]}.items():
        command = ["predict", "--config", str(finished / "config.yaml"), "--ckpt_path", summary(finished)["checkpoint"]]
        options = ["--trainer.strategy", layout[0], "--trainer.devices", layout[1]]
        logs = ["--trainer.logger.save_dir", str(tmp_path / name)]
        done = subprocess.run([*DMT, *command, *options, *logs], cwd=ROOT, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr[-3000:]
        [files[name]] = (tmp_path / name).rglob("predictions.parquet")
    one, four = (polars.read_parquet(files[name])["probability"].to_list() for name in ("one", "four"))
    assert len(one) == 500  # data.num_test
    # Float32 through matrix products of another number of rows.
    assert four == pytest.approx(one, rel=1e-4)


def torchrun(node: int, master: str, port: int) -> list[str]:
    """One of two agents with two ranks each."""
    program = str(Path(sys.executable).parent / "torchrun")
    agent = [program, "--nnodes", "2", "--nproc_per_node", "2", "--node_rank", str(node)]
    return [*agent, "--master_addr", master, "--master_port", str(port), *DMT]


# No ranks_per_host: torchrun's LOCAL_WORLD_SIZE says it.
TWO_NODES = ["--trainer.devices", "2", "--trainer.num_nodes", "2", "--ranks_per_host", "null"]


def test_two_agents_of_torchrun_give_the_numbers_of_one_machine(finished: Path, tmp_path: Path) -> None:
    port = free_port()
    agents = [start(torchrun(node, "127.0.0.1", port), tmp_path, *TWO_NODES) for node in range(2)]
    for agent in agents:
        finish(agent)
    told = summary(tmp_path / "quickstart" / "version_0")
    assert told["description"]["layout"] == summary(finished)["description"]["layout"]
    # The same ranks do the same arithmetic; gloo reduces in the same order.
    assert told["metrics"] == pytest.approx(summary(finished)["metrics"], rel=1e-6)


@pytest.mark.skipif(not can_emulate(), reason=can_emulate().reason)
def test_two_machines_give_the_numbers_of_one(finished: Path, tmp_path: Path) -> None:
    """Two agents in network namespaces of their own, which reach each other by one link."""
    outputs = [tmp_path / f"node{node}.txt" for node in range(2)]
    with EmulatedCluster(num_hosts=2, rate_mbit=1000) as cluster:
        agents = [
            cluster.run_command(
                node,
                fit(torchrun(node, cluster.address(0), 29500), tmp_path, *TWO_NODES),
                environment={"OMP_NUM_THREADS": "1"},
                folder=ROOT,
                output=outputs[node],
            )
            for node in range(2)
        ]
        codes = [agent.wait(timeout=120) for agent in agents]
        sent = [cluster.sent_bytes(node) for node in range(2)]
    assert codes == [0, 0], [output.read_text()[-3000:] for output in outputs]
    assert min(sent) > 1e6  # 3 steps of 2 ranks that send 0.185 MB each to the other machine, and evaluation
    told = summary(tmp_path / "quickstart" / "version_0")
    # The same ranks do the same arithmetic; gloo reduces in the same order.
    assert told["metrics"] == pytest.approx(summary(finished)["metrics"], rel=1e-6)


def test_node_rank_and_master_addr_start_two_nodes(finished: Path, tmp_path: Path) -> None:
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    nodes = ["--trainer.devices", "2", "--trainer.num_nodes", "2", "--ranks_per_host", "null"]
    processes = [start(DMT, tmp_path, *nodes, env={**address, "NODE_RANK": str(node)}) for node in range(2)]
    for process in processes:
        finish(process)
    told = summary(tmp_path / "quickstart" / "version_0")
    assert told["metrics"] == pytest.approx(summary(finished)["metrics"], rel=1e-6)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_run_that_is_asked_to_end_tells_how(tmp_path: Path, number: signal.Signals, code: int) -> None:
    alone = ["--trainer.strategy", "auto", "--trainer.devices", "1", "--trainer.max_epochs", "10000"]
    process = start(DMT, tmp_path, *alone)
    deadline = time.monotonic() + 60
    while not list(tmp_path.rglob("*.ckpt")) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(number)
    _, errors = finish(process, code=code)
    assert errors.splitlines()[-1].startswith(f"dmt: ended by {number.name}; --ckpt_path CHECKPOINT goes on")
    assert not list(tmp_path.rglob("summary.json"))


def start_two_ranks(runs: Path, *, failing: int, how: str) -> subprocess.Popen[str]:
    """Start a fit of which one rank fails in the third step."""
    fault = ["--trainer.callbacks+=tests.cli.faults.FailOnRank", "--trainer.callbacks.rank", str(failing)]
    two_ranks = ["--trainer.devices", "2", "--ranks_per_host", "1", "--trainer.callbacks.how", how]
    return start(DMT, runs, *fault, *two_ranks, env={"PYTHONPATH": str(ROOT)})


@pytest.mark.parametrize(("rank", "how"), [(0, "raise"), (1, "raise"), (1, "kill")])
def test_a_failing_rank_ends_the_job(tmp_path: Path, rank: int, how: str) -> None:
    process = start_two_ranks(tmp_path, failing=rank, how=how)
    _, errors = finish(process, code=None, timeout_s=90)
    assert process.returncode != 0
    if how == "raise":
        assert f"RuntimeError: rank {rank} fails on purpose" in errors
    assert group_is_gone(process.pid, within_s=15)


def test_what_all_ranks_refuse_is_told_once_however_slow_the_end(finished: Path, tmp_path: Path) -> None:
    [checkpoint] = (finished / "checkpoints").iterdir()
    two_ranks = ["--trainer.devices", "2", "--ranks_per_host", "1", "--model.num_towers", "2"]
    logger = ["--trainer.logger", "tests.cli.faults.SlowLogger"]
    process = start(DMT, tmp_path, *two_ranks, *logger, "--ckpt_path", str(checkpoint), env={"PYTHONPATH": str(ROOT)})
    _, errors = finish(process, code=2)
    [line] = [line for line in errors.splitlines() if line.startswith("dmt: error:")]
    assert line.endswith("differ from this model's; give its plan by --model.plan") and errors.endswith(f"{line}\n")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_a_hanging_rank_does_not_outlive_the_first(tmp_path: Path, number: signal.Signals, code: int) -> None:
    process = start_two_ranks(tmp_path, failing=1, how="hang")
    assert process.stderr is not None
    assert any("rank 1 hangs" in line for line in process.stderr)
    time.sleep(0.5)  # until the other one waits for it in a collective
    process.send_signal(number)
    finish(process, code=code, timeout_s=60)
    assert group_is_gone(process.pid, within_s=15)


def test_ranks_with_other_options_are_refused_on_every_rank(tmp_path: Path) -> None:
    world = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2", "NODE_RANK": "0"}
    same = ["--trainer.devices", "2", "--ranks_per_host", "1"]
    first = start(DMT, tmp_path, *same, env={**world, "LOCAL_RANK": "0"})
    second = start(DMT, tmp_path, *same, "--model.num_towers", "2", env={**world, "LOCAL_RANK": "1"})
    _, errors = finish(first, code=2)
    finish(second, code=2)
    [line] = [line for line in errors.splitlines() if line.startswith("dmt: error:")]
    assert "rank 1 was given another configuration than rank 0" in line
    assert "Traceback" not in errors
