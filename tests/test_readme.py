"""The README's commands parse and its Python runs; configurations say how they are run and describe cleanly."""

import json
import re
import shlex
import subprocess
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
import yaml

from dmt.cli import main
from dmt.datamodules import TabularClicks
from dmt.lightning_cli import DmtCLI
from dmt.partition import Affinity
from tests.commands.runs import write_run as finished_run
from tests.preprocess.criteo_cases import draw_lines, write_log

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
CONFIGS = sorted(path.relative_to(ROOT) for path in ROOT.glob("configs/*.yaml"))
HAS_FLIGHTS = (ROOT / "../shared/data/flights").is_dir()


def readme_commands() -> list[list[str]]:
    """The arguments of every `dmt` command in the README's indented blocks, placeholders left in."""
    blocks = re.findall(r"(?m)^    ((?:.*\\\n)*.*)$", README)
    words = [shlex.split(block.replace("\\\n", " "), comments=True) for block in blocks]
    return [line[line.index(name) + 1 :] for line in words for name in ("dmt", ".venv/bin/dmt") if name in line]


def write_criteo(folder: Path) -> None:
    """A log of 20 lines, as the Kaggle challenge has it."""
    folder.mkdir()
    write_log(folder / "train.txt", draw_lines(np.random.default_rng(0), 20))


def write_run(folder: Path) -> dict[str, str]:
    """What stands for a run on a tabular log in the README's commands."""
    folder.mkdir()
    frame = pl.DataFrame({"label": [0, 1, 1], "word": ["a", "b", "b"]})
    for split in ("train", "valid", "test"):
        frame.write_parquet(folder / f"{split}.parquet")
    data = TabularClicks(path=folder, categorical=["word"], cache_dir=folder / "cache")
    torch.save({"TabularClicks": data.state_dict()}, folder / "last.ckpt")
    logger = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": str(folder)}}
    options = {"path": str(folder), "categorical": ["word"]}
    log = {"class_path": "dmt.datamodules.TabularClicks", "init_args": options}
    (folder / "config.yaml").write_text(yaml.safe_dump({"data": log, "trainer": {"logger": logger}}))
    names = [f"c{index:02d}" for index in range(16)]
    Affinity(features=names, matrix=np.eye(16), kind="interaction", num_samples=1).save(folder / "interaction.npz")
    return {
        "RUN/config.yaml": str(folder / "config.yaml"),
        "CHECKPOINT": str(folder / "last.ckpt"),
        "ROWS": str(folder / "test.parquet"),
        "RUN/interaction.npz": str(folder / "interaction.npz"),
        "learned.yaml": str(folder / "learned.yaml"),
        "learned.html": str(folder / "learned.html"),
        "towers.yaml": str(folder / "towers.yaml"),
        "runs/quickstart": str(finished_run(folder / "quickstart", 0.71)),
        "runs/quickstart_flat": str(finished_run(folder / "quickstart_flat", 0.72, width=8)),
        "quickstart_report": str(folder / "report"),
        "PATH": str(folder),
        "columns.yaml": str(folder / "columns.yaml"),
    }


def write_checkpoint(folder: Path) -> str:
    """That of a short run of a flat model on the built-in log."""
    sizes = [f"--data.{name}={size}" for name, size in (("num_train", 25_000), ("num_valid", 500), ("num_test", 100))]
    one_process = ["--trainer.strategy=auto", "--trainer.devices=1", f"--trainer.logger.init_args.save_dir={folder}"]
    main(["fit", "--config=configs/quickstart_flat.yaml", *sizes, *one_process, "--trainer.max_epochs=1"])
    [checkpoint] = folder.rglob("*.ckpt")
    return str(checkpoint)


def test_readme_has_commands() -> None:
    verbs = [command[0] for command in readme_commands()]
    assert verbs.count("fit") >= 5
    assert verbs.count("describe") >= 2


@pytest.mark.parametrize("command", readme_commands(), ids=" ".join)
def test_readme_commands_parse(command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = tmp_path / "plan.yaml"
    plan.write_text("towers: [[a], [b]]\n")
    logs, converted = tmp_path / "logs", tmp_path / "converted"
    write_criteo(logs)
    if "configs/criteo.yaml" in command:
        main(["preprocess", "criteo", str(logs), "--output", str(converted), "--workers", "1"])
    is_criteo = {"preprocess", "configs/criteo.yaml"} & set(command)
    folder = converted if is_criteo else tmp_path
    meant = {"DIR": str(folder), "LOGS": str(logs), "my_towers.yaml": str(plan)} | write_run(tmp_path / "run")
    if "RUN/checkpoints/LAST" in command:
        meant["RUN/checkpoints/LAST"] = write_checkpoint(tmp_path / "checkpoints")
    filled = [meant.get(word, word) for word in command]
    data_is_missing = "configs/flights.yaml" in filled and not HAS_FLIGHTS
    if data_is_missing or str(tmp_path) in filled:
        (tmp_path / "train.csv").write_text("label\n0\n")
        (tmp_path / "valid.csv").write_text("label\n0\n")
        filled += ["--data.path", str(tmp_path)]
    if "columns.yaml" in command and filled[0] == "fit":
        main(["preprocess", "tabular", meant["PATH"], "--infer-schema", meant["columns.yaml"]])
    if "learned.yaml" in command and filled[0] == "fit":
        main(
            [
                "partition",
                "--affinity",
                meant["RUN/interaction.npz"],
                "--towers",
                "4",
                "--output",
                meant["learned.yaml"],
            ]
        )
    if filled[0] == "sweep":
        main([*filled, "--dry-run", "--output", str(tmp_path / "out")])
        assert "dmt fit" in capsys.readouterr().out
    elif filled[:2] == ["preprocess", "tabular"]:
        main(filled)
        assert "review it" in capsys.readouterr().out
    elif filled[0] == "report":
        main(filled)
        assert "wrote" in capsys.readouterr().out
    elif filled[0] == "explain":
        main(filled)
        assert "AUC drop" in capsys.readouterr().out
    elif filled[0] == "partition":
        main(filled)
        assert "16 features into 4 towers" in capsys.readouterr().out
    elif filled[0] == "preprocess":
        main(filled)
        assert "20 rows (16 train, 2 valid, 2 test)" in capsys.readouterr().out
    elif filled[0] == "describe":
        main(filled)
        assert "compression" in capsys.readouterr().out
    else:
        # The verb's own options, parsed and instantiated as it would, without launching ranks. --ckpt_path is an
        # argument of the launch.
        launched = filled.index("--ckpt_path") if "--ckpt_path" in filled else len(filled)
        DmtCLI([*filled[:launched], *filled[launched + 2 :]], run=False)


def test_readme_python_runs() -> None:
    [code] = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    small = code.replace("num_train=100_000", "num_train=2000, num_valid=200, num_test=200").replace(
        "max_epochs=1", "max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False"
    )
    assert small.count("enable_progress_bar") == 1 and "num_valid" in small
    exec(compile(small, "README.md", "exec"), {})


def test_readme_make_targets_exist() -> None:
    told = re.findall(r"(?m)^    make (\w+)", README)
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert told and all(f"make {target}" in shown for target in told)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_config_opens_with_its_command_and_result(config: Path) -> None:
    head = "".join(line for line in (ROOT / config).read_text().splitlines(keepends=True) if line.startswith("#"))
    assert f"dmt fit --config {config}" in head
    assert all(word in head for word in ("Hardware:", "Time:", "Expect:"))


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_config_describes(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if "flights" in config.name and not HAS_FLIGHTS:
        pytest.skip("the flights data is not part of the project")
    data = []
    if "criteo" in config.name:
        write_criteo(tmp_path / "logs")
        main(["preprocess", "criteo", str(tmp_path / "logs"), "--output", str(tmp_path / "out"), "--workers", "1"])
        data = ["--data.path", str(tmp_path / "out")]
        capsys.readouterr()
    main(["describe", "--config", str(config), *data, "--json"])
    told = json.loads(capsys.readouterr().out)
    assert {"parameters", "mflops_per_sample", "compression_ratio", "towers", "bytes_per_iteration"} <= set(told)
    for tower in told["towers"]:
        assert len(tower["features"]) == tower["in_features"]
        assert tower["out_features"] > 0 and tower["out_dim"] > 0
    assert {"intra_host", "cross_host"} <= set(told["bytes_per_iteration"])


@pytest.mark.parametrize("file", sorted(ROOT.glob("configs/data/*.yaml")), ids=lambda file: file.stem)
def test_data_files_are_used_as_they_say(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    [command] = re.findall(r"(?m)^#   dmt fit (.*)$", file.read_text())
    main(["describe", *shlex.split(command), "--json"])
    told = json.loads(capsys.readouterr().out)
    options = yaml.safe_load(file.read_text())["init_args"]
    assert sum(len(tower["features"]) for tower in told["towers"]) == options["num_features"]
