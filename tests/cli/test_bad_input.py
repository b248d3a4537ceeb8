"""Wrong input ends with one line that names option, value and fix, exit code 2, and nothing trained."""

import re
from pathlib import Path

import polars
import pytest
import torch
import wandb
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher

# Imported before any test runs: Lightning's log handler keeps the standard error of its first import.
import dmt.lightning_cli
from dmt.cli import main
from dmt.lightning_cli import check_checkpoint
from dmt.runs import RunSummary
from tests.distributed.harness import run_ranks
from tests.strategies.checkpoint_cases import DAMAGES, damage, overwrite

QUICK = ["--config", "configs/quickstart.yaml"]
SPTT = ["--trainer.strategy", "SpttStrategy"]
FLAT = ["--trainer.strategy", "dmt.strategies.TorchRecStrategy"]


@pytest.fixture(autouse=True)
def no_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything here fails before ranks are launched; launching would start this very pytest again, on and on."""

    def fail(launcher: object) -> None:
        raise AssertionError("ranks were launched")

    monkeypatch.setattr(_SubprocessScriptLauncher, "_call_children_scripts", fail)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A folder of small tabular files and a configuration that reads them; both may be broken by a test."""
    data = tmp_path / "data"
    data.mkdir()
    rows = {"user": ["a", "b", "c", "a"], "item": [1, 2, 2, 3], "price": [0.5, 1.5, None, 2.0], "label": [0, 1, 0, 1]}
    for split in ("train", "valid", "test"):
        polars.DataFrame(rows).write_parquet(data / f"{split}.parquet")
    (tmp_path / "config.yaml").write_text(
        f"""
trainer: {{accelerator: cpu, devices: 1, max_epochs: 1, logger: false}}
data:
  class_path: dmt.datamodules.TabularClicks
  init_args:
    path: {data}
    cache_dir: {tmp_path / "cache"}
    categorical: [user, item]
    numeric: [price]
    global_batch_size: 2
model:
  embedding_dim: 4
  top: {{class_path: dmt.modules.DLRM, init_args: {{bottom_layers: [4], over_layers: [4]}}}}
"""
    )
    return data


def refused(arguments: list[str], capfd: pytest.CaptureFixture[str]) -> str:
    """The error line of a command that must end with exit code 2 and no traceback."""
    with pytest.raises(SystemExit) as exit_info:
        main(arguments)
    assert exit_info.value.code == 2
    errors = capfd.readouterr().err
    assert "Traceback" not in errors
    [line] = [line for line in errors.splitlines() if line.startswith("dmt: error:")]
    return line


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--config", "configs/nope.yaml"], ["configs/nope.yaml: no such file; give"]),
        ([*QUICK, "--data.nam", "3"], ["'nam' is not accepted; its options are num_features, num_groups"]),
        ([*QUICK, "--trainer.max_epoch", "3"], ["--trainer.max_epoch 3; did you mean trainer.max_epochs?"]),
        ([*QUICK, "--modl.num_towers", "3"], ["did you mean model.num_towers?"]),
        ([*QUICK, "--model.tower.cc", "3"], ["model.tower", "option 'cc' is not accepted; did you mean c?"]),
        ([*QUICK, "--dry-run"], ["--dry-run; did you mean --trainer.fast_dev_run true, one batch"]),
        ([*QUICK, "--config", '{"trainr": {"logger": 1}}'], ["'trainr.logger'", "did you mean trainer.logger?"]),
        ([*QUICK, "--model.num_towers", "x"], ["model.num_towers=x: give a whole number"]),
        ([*QUICK, "--model.num_towers", "0"], ["num_towers=0: give a positive number"]),
        ([*QUICK, "--model.num_towers", "65"], ["num_towers=65", "choose 1 to 32 or 49 to 64"]),
        ([*QUICK, "--model.plan", "nowhere.yaml"], ["nowhere.yaml", "no such file"]),
        ([*QUICK, "--model.embedding_dim", "6"], ["embedding_dim=6", "multiple of 4", "8"]),
        ([*QUICK, "--model.embedding_dim", "-4"], ["embedding_dim=-4", "positive", "multiple of 4"]),
        ([*QUICK, "--model.table_dims", "{c03: 0}"], ["table_dims.c03=0", "positive"]),
        ([*QUICK, "--model.top", "dmt.modules.DCM"], ["model.top=dmt.modules.DCM", "did you mean dmt.modules.DCN?"]),
        ([*QUICK, "--model.tower", "dmt.modules.DLRMTowr"], ["model.tower=", "did you mean dmt.modules.DLRMTower?"]),
        ([*QUICK, "--model.top", "no_such_package.DLRM"], ["model.top", "'no_such_package'", "PYTHONPATH"]),
        (
            [
                *QUICK,
                "--model.tower",
                "dmt.modules.DCNTower",
                "--model.tower.out_dim",
                "16",
                "--model.tower.low_rank",
                "0",
            ],
            ["DCNTower low_rank=0", "positive"],
        ),
        ([*QUICK, "--model.top", "DCN", "--model.top.num_layers", "0"], ["DCN num_layers=0", "positive"]),
        (
            [*QUICK, "--model.num_towers", "15", "--model.unwrap_singletons", "true", "--model.tower.out_dim", "8"],
            ["output dims", "unwrap_singletons", "embedding dim"],
        ),
        (
            [*QUICK, "--model.tower", "tests.cli.faults.WrongShape"],
            ["WrongShape", "returned shape", "declare"],
        ),
        (
            [*QUICK, "--model.tower", "tests.cli.faults.MisfitLayer"],
            ["tower MisfitLayer", "faults.py, line ", "RuntimeError: mat1 and mat2 shapes", "mend MisfitLayer"],
        ),
        ([*QUICK, "--model.tower", "tests.cli.faults.Tuple"], ["tower Tuple: returned a tuple", "return one tensor"]),
        (
            [*QUICK, "--model.tower", "tests.cli.faults.NoOutDim"],
            ["tower NoOutDim: there is no out_dim; set self.out_d"],
        ),
        (
            [*QUICK, "--model.top", "tests.cli.faults.OfTops"],
            ["top OfTops: it returned shape (4, 1) for 4 samples", "squeeze(1)"],
        ),
        ([*QUICK, "--model.top", "tests.cli.faults.NoStage"], ["top NoStage", "set self.stage = stage in __init__"]),
        (
            [*QUICK, "--model.top", "tests.cli.faults.WrongPairs"],
            ["DotInteraction num_vectors=9: it was given 8", "num_vectors=8"],
        ),
        ([*QUICK, "--model.dense_optimizer.lr", "-1"], ["model.dense_optimizer: Invalid learning rate: -1.0; mend"]),
        ([*QUICK, "--model.dense_optimizer", "LBFGS"], ["dense_optimizer=LBFGS: it runs backward", "torch.optim.Adam"]),
        (
            ["--config", "configs/towers.yaml", "--data.num_train", "2000000", "--trainer.fast_dev_run", "true"],
            ["lr_scheduler=OneCycleLR total_steps=733: training takes 977 steps; give total_steps=977"],
        ),
        (
            [*QUICK, "--model.lr_scheduler", "OneCycleLR", "--model.lr_scheduler.max_lr", "1"],
            ["model.lr_scheduler: You must define either total_steps", "mend its options"],
        ),
        (
            [*QUICK, "--model.lr_scheduler", "torch.optim.lr_scheduler.ReduceLROnPlateau"],
            ["model.lr_scheduler=ReduceLROnPlateau: it follows a metric", "StepLR"],
        ),
        ([*QUICK, "--model.lr_scheduler", "StepLR"], ["--model.lr_scheduler.step_size is not given"]),
        (
            [*QUICK, "--model.tower", "MultiTower", "--model.tower.tower", "DotTower"],
            ["--model.tower.tower.out_dim is not given"],
        ),
        (
            [*QUICK, "--model.tower", "MultiTower", "--model.tower.tower", "DLRMTowr"],
            ["model.tower.tower=DLRMTowr: no such class; did you mean DLRMTower?"],
        ),
        (
            [
                *QUICK,
                "--model.tower",
                "MultiTower",
                "--model.tower.tower",
                "DotTower",
                "--model.tower.tower.out_dm",
                "3",
            ],
            ["model.tower.tower: option 'out_dm' is not accepted; did you mean out_dim?"],
        ),
        ([*QUICK, "--model.tower", "DCN"], ["model.tower=DCN: it is of another kind; give another class"]),
        (
            [*QUICK, "--model.top", "MultiEmbedding", "--model.top.top", "MultiEmbedding"],
            ["MultiEmbedding top=MultiEmbedding: it has several members itself"],
        ),
        (
            [*QUICK, "--model.dense_optimizer", "Adam"],
            ["model.dense_optimizer=Adam: several classes", "give torch.optim.Adam or torchrec.optim.Adam"],
        ),
        ([*QUICK, "--model.top.bottom_layers", "64"], ["model.top.bottom_layers=64: give a list, such as [64]"]),
        ([*QUICK, "--model.tower.out_dim", "0"], ["out_dim=0", "positive"]),
        ([*QUICK, "--model.tower.p", "0"], ["c=0, p=0"]),
        ([*QUICK, "--model.top.over_layers", "[]"], ["over_layers=[]", "at least one"]),
        ([*QUICK, "--model.embedding_optimizer.learning_rate", "-1"], ["learning_rate=-1", ">= 0"]),
        ([*QUICK, "--ranks_per_host", "3"], ["ranks_per_host=3", "4 ranks", "1, 2, 4"]),
        ([*QUICK, "--ranks_per_host", "0"], ["ranks_per_host=0", "1, 2, 4"]),
        ([*QUICK, "--float32_matmul_precision", "tf32"], ["float32_matmul_precision", "tf32", "highest", "high"]),
        ([*QUICK, "--data.global_batch_size", "0"], ["global_batch_size=0"]),
        ([*QUICK, "--trainer.strategy", "spt"], ["trainer.strategy=spt", "sptt"]),
        ([*QUICK, "--trainer.accumulate_grad_batches", "2"], ["accumulate_grad_batches=2", "global_batch_size"]),
        ([*QUICK, "--trainer.gradient_clip_val", "1"], ["gradient_clip_val=1", "remove"]),
        (
            [*QUICK, "--trainer.callbacks+=lightning.pytorch.callbacks.EMAWeightAveraging"],
            ["EMAWeightAveraging", "lr_scheduler"],
        ),
        ([*QUICK, "--trainer.strategy.sharding", "row_wise"], ["strategy=sptt", "--trainer.strategy SpttStrategy"]),
        ([*QUICK, *SPTT, "--trainer.strategy.sharding", "diagonal"], ["sharding=diagonal", "choose auto"]),
        ([*QUICK, *SPTT, "--trainer.strategy.sharding", "grid_shard"], ["sharding=grid_shard", "here are 2"]),
        ([*QUICK, *SPTT, "--trainer.strategy.sharding.c99", "row_wise"], ["sharding c99=row_wise", "no such table"]),
        ([*QUICK, *SPTT, "--trainer.strategy.hosts_per_group", "3"], ["hosts_per_group=3", "choose one of 1, 2"]),
        ([*QUICK, *SPTT, "--trainer.strategy.forward_precision", "fp8"], ["forward_precision", "int8", "fp8"]),
        ([*QUICK, *FLAT, "--trainer.strategy.hosts_per_group", "2"], ["hosts_per_group=2", "choose sptt"]),
        (
            [*QUICK, *FLAT, "--trainer.strategy.sharding", "grid_shard"],
            ["sharding=grid_shard", "choose one of planner"],
        ),
        (
            [*QUICK, *FLAT, "--trainer.strategy.sharding", "row_wise", "--trainer.strategy.forward_precision", "int8"],
            ["int8", "row_wise", "bf16"],
        ),
        ([*QUICK, *FLAT, "--model.embedding_optimizer.name", "adam"], ["adam", "sptt"]),
        ([*QUICK, "--trainer.strategy", "auto"], ["strategy=auto", "4 ranks", "sptt"]),
        ([*QUICK, "--trainer.precision", "64-true"], ["precision=64-true", "bf16-mixed"]),
        ([*QUICK, "--trainer.devices", "0"], ["devices", "0"]),
        ([*QUICK, "--trainer.callbacks.monitor", "val/auc"], ["monitor=val/auc", "val/auroc"]),
        ([*QUICK, "--ckpt_path", "README.md"], ["--ckpt_path README.md", "not a complete checkpoint"]),
        ([*QUICK, "--ckpt_path", "nowhere.ckpt"], ["--ckpt_path nowhere.ckpt", "no such checkpoint"]),
        ([*QUICK, "--data", "SyntheticClick"], ["data=SyntheticClick: no such class", "did you mean SyntheticClicks?"]),
        ([*QUICK, "--model.top", "DLMR"], ["model.top=DLMR: no such class; did you mean DLRM?"]),
        ([*QUICK, "--model.tower", "Quux"], ["model.tower=Quux: no such class; give one of dmt.modules, or"]),
        ([*QUICK, "--model.tower", "dmt.modules.DCN"], ["model.tower=dmt.modules.DCN: it is no TowerModule"]),
        ([*QUICK, "--data", "dmt.modules.DCN"], ["data=dmt.modules.DCN: it is no ClickDataModule"]),
        ([*QUICK, "--model.dense_optimizer", "Adm"], ["model.dense_optimizer=Adm", "did you mean torch.optim.Adam?"]),
        ([*QUICK, "--model.dense_optimizer", "torch.optim.SparseAdam"], ["model.dense_optimizer=SparseAdam", "Adam"]),
        ([*QUICK, "--trainer.logger", "WandbLoger"], ["trainer.logger=WandbLoger", "did you mean WandbLogger?"]),
        ([*QUICK, "--trainer.callbacks+=ModelCheckpont"], ["ModelCheckpont", "did you mean ModelCheckpoint?"]),
        ([*QUICK, "--seed_everything", "-1"], ["seed_everything=-1: give a number from 0 to 4294967295"]),
        ([*QUICK, "--model.tower.num_features", "3"], ["DLRMTower gets its num_features from the model: leave it out"]),
        ([*QUICK, "--model.tower.widht", "3"], ["its options are c, p, out_dim;"]),
        ([*QUICK, "--print_confg"], ["--print_confg", "did you mean print_config?"]),
        ([*QUICK, "--trainer.max_epochs", "two"], ["trainer.max_epochs=two: give a whole number"]),
        (
            [*QUICK, "--trainer.precision", "bf61"],
            ["trainer.precision=bf61: give a whole number or one of"],
        ),
        ([*QUICK, "--model.top.over_layers", "[a]"], ["model.top.over_layers=a: give a whole number"]),
        ([*QUICK, "--data.num_train", "many"], ["data.num_train=many: give a whole number"]),
        ([*QUICK, "--trainer.devices", "-3"], ["trainer: `devices`", "int > 0"]),
        (
            [*QUICK, "--trainer.logger.save_dir", "README.md"],
            ["README.md is no folder", "save_dir"],
        ),
        ([], ["--data is not given; give --config FILE"]),
    ],
)
def test_wrong_options(options: list[str], told: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    line = refused(["fit", *options], capfd)
    assert all(part in line for part in told), line


@pytest.mark.parametrize("file", list(DAMAGES))
def test_broken_checkpoints_are_found_before_ranks_start(
    file: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.ckpt"
    run_ranks(overwrite, world_size=1, args=(str(path), 3.0))
    for how, told in DAMAGES[file].items():
        damage(path / file, how)
        line = refused(["test", *QUICK, "--ckpt_path", str(path)], capfd)
        assert re.search(rf"--ckpt_path {path}: not a complete checkpoint, {told}; give one", line), line


def test_a_part_of_a_checkpoint_is_none(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run_ranks(overwrite, world_size=1, args=(str(tmp_path / "a.ckpt"), 3.0))
    line = refused(["test", *QUICK, "--ckpt_path", str(tmp_path / "a.ckpt" / "rest.pt")], capfd)
    assert "not a complete checkpoint, it is a part of the one that is the folder around it; give" in line


def test_a_checkpoint_that_a_killed_run_has_left_aside_is_found(tmp_path: Path) -> None:
    run_ranks(overwrite, world_size=1, args=(str(tmp_path / "a.ckpt"), 3.0))
    (tmp_path / "a.ckpt").rename(tmp_path / "a.ckpt.previous")
    check_checkpoint(tmp_path / "a.ckpt", option="--ckpt_path")


def test_wrong_configuration_files(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "broken.yaml").write_text("model: [\n")
    told = refused(["fit", *QUICK, "--config", str(tmp_path / "broken.yaml")], capfd)
    assert f"--config {tmp_path / 'broken.yaml'}: it is no YAML (" in told and "line 2" in told
    (tmp_path / "typo.yaml").write_text("data: {class_path: dmt.datamodules.SyntheticClicks, init_arg: {seed: 1}}\n")
    told = refused(["fit", *QUICK, "--config", str(tmp_path / "typo.yaml")], capfd)
    assert "'init_arg.seed' is not accepted; did you mean init_args?" in told
    assert "did you mean json?" in refused(["describe", *QUICK, "--jsn"], capfd)
    (tmp_path / "list.yaml").write_text(
        "trainer: {callbacks: [{class_path: dmt.callbacks.WeightAverage, init_args: {deca: 0.9}}]}\n"
    )
    told = refused(["fit", *QUICK, "--config", str(tmp_path / "list.yaml")], capfd)
    # Without the parser's words about all that a list of callbacks could be.
    assert (
        told == "dmt: error: trainer.callbacks: option 'deca' is not accepted; did you mean decay?; see dmt fit --help"
    )


def test_wandb_without_a_key_is_told_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def no_key(*_: object, **__: object) -> None:
        raise wandb.errors.UsageError("No API key configured. Use `wandb login` to log in.\nMore of it.")

    monkeypatch.setattr(dmt.lightning_cli, "RunRecord", no_key)
    told = refused(["fit", *QUICK], capfd)
    assert told.startswith(
        "dmt: error: WandbLogger: No API key configured. Use `wandb login` to log in; run `wandb login`"
    )
    assert "--trainer.logger.offline true" in told and "WANDB_MODE=offline" in told


def test_a_folder_with_files_is_not_a_new_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mine" / "version_3" / "metrics.csv"
    file.parent.mkdir(parents=True)
    file.write_text("precious")
    logger = {"save_dir": tmp_path, "name": "mine", "version": 3}
    options = [f"--trainer.logger.{name}={value}" for name, value in logger.items()]
    assert "version_3: there are files in it; give the logger another" in refused(["fit", *QUICK, *options], capfd)
    assert file.read_text() == "precious"


def test_describe_refuses_what_fit_refuses(capfd: pytest.CaptureFixture[str]) -> None:
    options = [*QUICK, *FLAT, "--trainer.strategy.hosts_per_group", "2"]
    assert refused(["describe", *options], capfd) == refused(["fit", *options], capfd)


def test_products_may_be_less_precise() -> None:
    before = torch.get_float32_matmul_precision()
    try:
        main(["describe", "--config=configs/quickstart.yaml", "--float32_matmul_precision=high"])
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)


def test_a_strategy_may_be_named_by_its_class(capfd: pytest.CaptureFixture[str]) -> None:
    main(["describe", *QUICK, "--json", *SPTT])
    by_class = capfd.readouterr().out
    main(["describe", *QUICK, "--json"])
    assert by_class == capfd.readouterr().out


def test_a_torchrun_of_another_size(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    started = {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "6", "LOCAL_WORLD_SIZE": "3", "RANK": "0", "LOCAL_RANK": "0"}
    for name, value in {**started, "GROUP_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    line = refused(["fit", *QUICK], capfd)
    assert "torchrun started 6 ranks, 3 a node; give --trainer.devices 3 --trainer.num_nodes 2" in line


@pytest.mark.parametrize(
    ("towers", "told"),
    [
        ("[[user]]", ["'item'", "in no tower"]),
        ("[[user, item], [item]]", ["'item'", "tower 0", "tower 1"]),
        ("[[user, item, price]]", ["'price'", "no categorical column"]),
        ("[]", ["no towers"]),
        ("[user, item]", ["'towers'", "list of lists"]),
    ],
)
def test_wrong_plans(towers: str, told: list[str], table: Path, capfd: pytest.CaptureFixture[str]) -> None:
    plan = table.parent / "plan.yaml"
    plan.write_text(f"towers: {towers}\n")
    line = refused(["fit", "--config", str(table.parent / "config.yaml"), "--model.plan", str(plan)], capfd)
    assert all(part in line for part in told), line


def _break_label(data: Path) -> None:
    frame = polars.read_parquet(data / "train.parquet")
    frame.with_columns(label=polars.Series([0, 1, 2, 1])).write_parquet(data / "train.parquet")


@pytest.mark.parametrize(
    ("spoil", "options", "told"),
    [
        (None, ["--data.path", "nowhere"], ["nowhere"]),
        (None, ["--data.categorical", "[user, itm]"], ["'itm'", "item"]),
        (None, ["--data.label", "clicked"], ["'clicked'"]),
        (_break_label, [], ["train.parquet", "label", "2"]),
        (lambda data: (data / "train.parquet").unlink(), [], ["train"]),
        (lambda data: (data / "valid.parquet").unlink(), [], ["no valid split", "limit_val_batches"]),
        (lambda data: (data / "train.parquet").write_bytes(b""), [], ["train.parquet"]),
        (lambda data: (data / "train.parquet").write_bytes(b"not parquet"), [], ["train.parquet"]),
    ],
)
def test_wrong_data(
    spoil: object, options: list[str], told: list[str], table: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    if callable(spoil):
        spoil(table)
    line = refused(["fit", "--config", str(table.parent / "config.yaml"), *options], capfd)
    assert all(part in line for part in told), line


def test_a_sound_table_trains(table: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """What the broken variants above differ from."""
    main(["fit", "--config", str(table.parent / "config.yaml"), "--trainer.default_root_dir", str(table)])
    assert "test/auroc" in capfd.readouterr().out


def test_a_table_without_a_test_split_trains(table: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (table / "test.parquet").unlink()
    words = ["--config", str(table.parent / "config.yaml"), "--trainer.default_root_dir", str(table)]
    logging = ["--trainer.logger=CSVLogger", f"--trainer.logger.save_dir={table}", "--trainer.log_every_n_steps=1"]
    main(["fit", *words, *logging])
    assert "no test split" in capfd.readouterr().out
    [summary] = table.rglob("summary.json")
    metrics = RunSummary.load(summary).metrics
    assert "val/auroc" in metrics and not any(name.startswith("test/") for name in metrics)


@pytest.mark.parametrize("verb", ["validate", "test", "predict"])
def test_evaluation_without_a_checkpoint(verb: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert "ckpt_path is not given" in refused([verb, *QUICK], capfd)


def test_unknown_verb_names_the_nearest(capfd: pytest.CaptureFixture[str]) -> None:
    assert "did you mean describe?" in refused(["descrbe"], capfd)


def test_report_of_no_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert f"run {tmp_path}" in refused(["report", str(tmp_path)], capfd)


def test_no_verb_shows_the_verbs(capfd: pytest.CaptureFixture[str]) -> None:
    main([])
    shown = capfd.readouterr().out
    assert all(
        f"\n  {verb} " in shown for verb in ("fit", "validate", "test", "predict", "describe", "sweep", "report")
    )
