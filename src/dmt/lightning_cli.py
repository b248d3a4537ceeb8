"""The verbs of the ``dmt`` command that read a training configuration: LightningCLI over ClickModel and data."""

import json
import math
import os
import sys
from argparse import SUPPRESS
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse import ArgumentError, Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.plugins import CheckpointIO
from lightning.pytorch.strategies import StrategyRegistry
from lightning.pytorch.utilities import rank_zero_only
from torch.optim.lr_scheduler import ReduceLROnPlateau

from dmt.brief_help import DESCRIPTIONS, TITLES, BriefHelp
from dmt.callbacks import PlainProgress, PredictionFile, RunRecord, Throughput, WireTraffic, logger_folder, run_folder
from dmt.complaints import one_line
from dmt.datamodules import ClickDataModule
from dmt.describe import Layout, describe, print_description
from dmt.errors import UserInputError, nearest
from dmt.modules import ClickModel, click_metrics
from dmt.modules.limits import check_optimizer, check_schedule, check_trainer
from dmt.quiet import quiet_libraries
from dmt.runs import RunSummary
from dmt.strategies import SpttStrategy, Topology, TorchRecStrategy, TowerCheckpointIO, TowerStrategy
from dmt.strategies.checkpoint_files import incompleteness
from dmt.whole_files import find_whole

_STRATEGY_CLASSES = {strategy.__name__: strategy.strategy_name for strategy in (SpttStrategy, TorchRecStrategy)}


class DmtCLI(LightningCLI):
    """LightningCLI with two options more, checks before anything is launched, and a test after fit."""

    def __init__(self, arguments: list[str], *, run: bool = True) -> None:
        self._throughput = Throughput()
        self._record = RunRecord()
        super().__init__(
            ClickModel,
            ClickDataModule,
            subclass_mode_data=True,
            seed_everything_default=1,
            # ClickModel names its optimisers itself: dense layers and embedding rows have different ones.
            auto_configure_optimizers=False,
            # Loaders shard themselves by rank, without losing or repeating a sample.
            trainer_defaults={
                "use_distributed_sampler": False,
                "callbacks": [self._throughput, self._record, WireTraffic(), PredictionFile()],
                # It would count this rank's shards only; the description printed before is of the whole model.
                "enable_model_summary": False,
            },
            save_config_callback=_RunConfig,
            parser_kwargs={"prog": "dmt", **{verb: _introduction(verb) for verb in self.subcommands()}}
            if run
            else {"prog": f"dmt {arguments[0]}", **_introduction(arguments[0])},
            args=arguments if run else arguments[1:],
            run=run,
        )

    def _parse_ckpt_path(self) -> None:
        # Lightning's private hook would let a checkpoint file's hyper-parameters override the configuration, without
        # a word, and would not for a checkpoint directory. Here the configuration rules, and the model checks that
        # the checkpoint fits it. tests/cli/test_bad_input.py guards it.
        pass

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """A parser that raises instead of printing its usage, page after page."""
        # Nor does it take --trainer.max_epoch for max_epochs: what is not a name is a typo.
        return super().init_parser(**kwargs, exit_on_error=False, allow_abbrev=False, formatter_class=BriefHelp)

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """As Lightning's, with its own Trainer last: help is in this order."""
        parser.add_lightning_class_args(ClickModel, "model")
        parser.add_lightning_class_args(ClickDataModule, "data", subclass_mode=True)
        parser.add_lightning_class_args(Trainer, "trainer")
        parser.set_defaults({f"trainer.{k}": v for k, v in self.trainer_defaults.items() if k != "callbacks"})
        for name, group in (parser.groups or {}).items():
            group.title = TITLES[name]

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--ranks_per_host",
            type=int | None,
            default=None,
            help="Ranks that share a host's fast links, under the strategies sptt and torchrec. Set it to "
            "try a cluster's layout on one machine. Default: LOCAL_WORLD_SIZE, or the devices per node.",
        )
        parser.add_argument(
            "--float32_matmul_precision",
            type=Literal["highest", "high", "medium"],
            default="highest",
            help="Of dense layers' products in float32, as torch.set_float32_matmul_precision takes it: high is TF32 "
            "on GPUs that have it.",
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """As Lightning's; it seeds next, and NumPy's complaint of a seed would be a page.

        Raises:
            UserInputError: the seed is out of range.
        """
        super().parse_arguments(parser, args)
        verb = self.config.get("subcommand")
        seed = (self.config[verb] if verb else self.config).get("seed_everything")
        if isinstance(seed, int) and not 0 <= seed < 2**32:
            raise UserInputError(f"seed_everything={seed}: give a number from 0 to {2**32 - 1}")

    def before_instantiate_classes(self) -> None:
        """Set how products are computed, and keep the run where ``DMT_SAVE_DIR`` says: a trial of a sweep."""
        torch.set_float32_matmul_precision(self._get(self.config, "float32_matmul_precision"))
        folder = os.environ.get("DMT_SAVE_DIR")
        if folder is None:
            return
        trainer = (self.config[self.subcommand] if self.subcommand else self.config).trainer
        trainer.default_root_dir = folder
        for logger in trainer.logger if isinstance(trainer.logger, list) else [trainer.logger]:
            if isinstance(logger, Namespace) and "save_dir" in logger.init_args:
                logger.init_args.save_dir = folder

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """A Trainer that reads checkpoints of any layout, and whose strategy knows the ranks per host."""
        name = self._get(self.config_init, "trainer.strategy")
        if isinstance(name, str):
            # A class without options is a mere name to the parser.
            name = kwargs["strategy"] = _STRATEGY_CLASSES.get(name.rpartition(".")[2], name)
        known = ["auto", *StrategyRegistry.available_strategies()]
        if isinstance(name, str) and name not in known:
            hint = nearest(name, known, otherwise="choose sptt, torchrec or auto")
            raise UserInputError(f"trainer.strategy={name}: no such strategy; {hint}")
        plugins = self._get(self.config_init, "trainer.plugins") or []
        plugins = plugins if isinstance(plugins, list) else [plugins]
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            kwargs["plugins"] = [*plugins, TowerCheckpointIO()]
        if not sys.stdout.isatty() and self._get(self.config, "trainer.enable_progress_bar") is not False:
            own = self._get(self.config_init, "trainer.callbacks") or []
            if not any(isinstance(callback, ProgressBar) for callback in own):
                self.trainer_defaults["callbacks"].append(PlainProgress())
        try:
            trainer = super().instantiate_trainer(**kwargs)
        except (MisconfigurationException, ValueError, TypeError) as error:
            raise UserInputError(f"trainer: {error}") from error
        if isinstance(trainer.strategy, TowerStrategy) and trainer.strategy.ranks_per_host is None:
            trainer.strategy.ranks_per_host = self._get(self.config_init, "ranks_per_host")
        return trainer

    def before_fit(self) -> None:
        self._preflight("train", "valid")

    def before_validate(self) -> None:
        self._require_checkpoint()
        self._preflight("valid")

    def before_test(self) -> None:
        self._require_checkpoint()
        self._preflight("test")

    def before_predict(self) -> None:
        self._require_checkpoint()
        self._preflight("test")

    def after_fit(self) -> None:
        """Test the best checkpoint, or the final weights where no callback keeps one, and sum up the run."""
        keeper = self.trainer.checkpoint_callback
        best = getattr(keeper, "best_model_path", "")
        tested: Mapping[str, float] = {}
        if self.datamodule.has_split("test"):
            [tested] = self.trainer.test(self.model, datamodule=self.datamodule, ckpt_path="best" if best else None)
        else:
            rank_zero_only(print)("no test split, so nothing was tested")
        run_dir = run_folder(self.trainer)  # a collective: every rank asks
        if not self.trainer.is_global_zero:
            return
        known = {}
        if (best_auc := getattr(self.datamodule, "best_auc", None)) is not None:
            known["test/best_auroc"] = best_auc
            print(f"the best AUC that any model can reach on this test split: {best_auc:.4f}")
        if run_dir is not None:
            summary = RunSummary(
                data=self.config[self.subcommand].data.as_dict(),
                # Of the model that was trained: its plan file may have changed since.
                description=self._record.description,
                metrics={**tested, **known, **{n: float(v) for n, v in self.trainer.callback_metrics.items()}},
                samples_per_second=self._throughput.median_samples_per_second,
                steps=self.trainer.global_step,
                checkpoint=best,
            )
            summary.save(run_dir)
            print(f"the run is in {run_dir}")

    def description(self) -> dict[str, Any]:
        """Counts of the configured model on the configured layout, from nothing but the data's schema.

        Raises:
            UserInputError: model, plan, data and layout do not fit each other.
        """
        strategy, global_batch_size = self.trainer.strategy, self.datamodule.global_batch_size
        if isinstance(strategy, TowerStrategy):
            layout = Layout(
                strategy=strategy.strategy_name,
                topology=strategy.topology,
                global_batch_size=global_batch_size,
                device_type=strategy.root_device.type,
                sharding=strategy.sharding,
                forward_precision=strategy.forward_precision,
                backward_precision=strategy.backward_precision,
            )
        else:
            topology = Topology(world_size=1, ranks_per_host=1)
            layout = Layout(strategy="single", topology=topology, global_batch_size=global_batch_size)
        return describe(self.model, self.datamodule.schema, layout)

    def _require_checkpoint(self) -> None:
        if self._get(self.config_init, "ckpt_path") is None:
            raise UserInputError(
                f"ckpt_path is not given: dmt {self.subcommand} would evaluate random weights; give --ckpt_path "
                "CHECKPOINT",
                on_every_rank=True,
            )

    def _preflight(self, *splits: str) -> None:
        """Check everything that can be checked in one process, before ranks are launched.

        Ranks other than a node's first find the data prepared and fail, if at all, in the Trainer.
        """
        self._check_torchrun()
        if int(os.environ.get("LOCAL_RANK", "0")) != 0:
            return
        self.check_layout()
        self.check_ckpt_path()
        self.check_monitors()
        self.check_optimizers()
        self._check_run_folder()
        self.datamodule.prepare_data()
        for split in splits:
            wanted = split != "valid" or self.trainer.limit_val_batches
            if wanted and not self.datamodule.has_split(split):
                raise UserInputError(
                    f"data: there is no {split} split for dmt {self.subcommand}; add the file"
                    + (", or give --trainer.limit_val_batches 0" if split == "valid" else "")
                )
        self._record.description = self.description()
        if self.subcommand == "fit":
            rank_zero_only(print_description)(self._record.description)

    def _check_run_folder(self) -> None:
        for folder in filter(None, map(logger_folder, self.trainer.loggers)):
            # Before Lightning makes the logger's files: CSVLogger would remove what is there.
            if folder.is_dir() and any(folder.iterdir()):
                raise UserInputError(
                    f"run folder {folder}: there are files in it; give the logger another name or version"
                )
            above = next(path for path in (folder, *folder.absolute().parents) if path.exists())
            if not above.is_dir() or not os.access(above, os.W_OK):
                raise UserInputError(
                    f"run folder {folder}: {above} is no folder that can be written; give another "
                    "--trainer.logger.save_dir"
                )

    def _check_torchrun(self) -> None:
        started = int(os.environ.get("WORLD_SIZE", "1"))
        devices, nodes = self.trainer.num_devices, self.trainer.num_nodes
        if "TORCHELASTIC_RUN_ID" in os.environ and started != devices * nodes:
            per_node = int(os.environ["LOCAL_WORLD_SIZE"])
            raise UserInputError(
                f"trainer.devices={devices}, trainer.num_nodes={nodes}: torchrun started {started} ranks, {per_node} "
                f"a node; give --trainer.devices {per_node} --trainer.num_nodes {started // per_node}",
                on_every_rank=True,
            )

    def check_layout(self) -> None:
        """Raise :class:`UserInputError` for ranks, hosts and Trainer options that do not go together."""
        strategy = self.trainer.strategy
        num_ranks = self.trainer.num_devices * self.trainer.num_nodes
        if isinstance(strategy, TowerStrategy):
            strategy.refuse_unsupported(self.trainer)
        elif num_ranks > 1:
            raise UserInputError(
                f"trainer.strategy={self._get(self.config_init, 'trainer.strategy')} on {num_ranks} ranks: each would "
                "train tables of its own; choose sptt or torchrec, or --trainer.devices 1"
            )
        else:
            check_trainer(self.trainer)

    def check_ckpt_path(self) -> None:
        """Raise :class:`UserInputError` where it is neither one of Lightning's words nor a checkpoint."""
        checkpoint = self._get(self.config_init, "ckpt_path")
        if checkpoint not in (None, "best", "last", "hpc", "registry"):
            check_checkpoint(Path(checkpoint), option="--ckpt_path")

    def check_monitors(self) -> None:
        """Raise :class:`UserInputError` for a wrong name of a metric, otherwise found after an epoch."""
        known = ["train/loss", "samples_per_s", *map(str, click_metrics("val/"))]
        for callback in getattr(self.trainer, "callbacks", []):
            monitor = getattr(callback, "monitor", None)
            if monitor is not None and monitor not in known:
                raise UserInputError(
                    f"{type(callback).__name__} monitor={monitor}: no such metric; choose one of {', '.join(known)}"
                )

    def check_optimizers(self) -> None:
        """Raise :class:`UserInputError` for options that the dense optimiser or its schedule refuses."""
        # A matrix: some optimisers are for nothing else.
        parameter = torch.nn.Parameter(torch.zeros(2, 2))
        optimizer = _made("model.dense_optimizer", self.model.dense_optimizer, [parameter])
        check_optimizer(optimizer)
        _try_step(optimizer, parameter)
        if self.model.lr_scheduler is None:
            return
        scheduler = _made("model.lr_scheduler", self.model.lr_scheduler, optimizer)
        if isinstance(scheduler, ReduceLROnPlateau):
            raise UserInputError(
                "model.lr_scheduler=ReduceLROnPlateau: it follows a metric, and this schedule moves with every "
                "training step; give one of steps, such as torch.optim.lr_scheduler.StepLR"
            )
        check_schedule(scheduler, self._asked_steps())

    def _asked_steps(self) -> float:
        """Steps of training, of the whole one where a dry run is asked for; infinite where it is not known yet."""
        rows = getattr(self.datamodule, "num_samples", {}).get("train")
        options = ("max_epochs", "max_steps", "limit_train_batches")
        epochs, most, part = (self._get(self.config_init, f"trainer.{name}") for name in options)
        if rows is None or not epochs or epochs < 0 or part not in (None, 1.0):
            return math.inf
        steps = epochs * math.ceil(rows / self.datamodule.global_batch_size)
        return min(steps, most) if most and most > 0 else steps


def _made(option: str, factory: Callable[[Any], Any], of: Any) -> Any:
    """What a factory makes; raise :class:`UserInputError` by the option's name where it refuses its arguments."""
    try:
        return factory(of)
    except (ValueError, TypeError) as error:
        raise UserInputError(f"{option}: {error}; mend its options") from error


def _try_step(optimizer: torch.optim.Optimizer, parameter: torch.nn.Parameter) -> None:
    """Raise :class:`UserInputError` where an optimiser has no use for gradients of dense layers."""
    parameter.grad = torch.zeros_like(parameter)
    try:
        optimizer.step()
    except (RuntimeError, ValueError, TypeError) as error:
        name = type(optimizer).__name__
        raise UserInputError(
            f"model.dense_optimizer={name}: {error}; choose another, such as torch.optim.Adam"
        ) from error


def check_checkpoint(path: Path, *, option: str) -> None:
    """Raise unless the path that an option gives looks like a checkpoint of either kind."""
    found = find_whole(path)
    if not found.exists():
        raise UserInputError(f"{option} {path}: no such checkpoint; give the path of one")
    if problem := incompleteness(found):
        raise UserInputError(
            f"{option} {path}: not a complete checkpoint, {problem}; give one that `dmt fit` has written"
        )


def _introduction(verb: str) -> dict[str, str]:
    return {"usage": f"dmt {verb} [--config FILE] [--OPTION VALUE ...]", "description": DESCRIPTIONS.get(verb, "")}


class _RunConfig(SaveConfigCallback):
    """Keeps the resolved configuration in the run's folder; without a logger there is none."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self.already_saved or (folder := run_folder(trainer)) is None:
            return
        if trainer.is_global_zero:
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / self.config_filename
            # In one file: parts that the configuration had in files of their own may change.
            self.parser.save(self.config, path, skip_unset=False, overwrite=True, multifile=False)
        self.already_saved = True


class RunCLI(DmtCLI):
    """For verbs that train nothing: takes the configuration that `dmt fit` leaves in a run's folder as well."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        for name in ("ckpt_path", "weights_only"):
            parser.add_argument(f"--{name}", type=Any, default=None, help=SUPPRESS)


class _DescribeCLI(RunCLI):
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        parser.add_argument("--json", action="store_true", help="Print JSON instead of tables.")


def parsed_cli(cli: type[DmtCLI], arguments: list[str], *, run: bool) -> DmtCLI:
    """``cli(arguments)``, with the parser's complaints brought down to one line."""
    quiet_libraries()
    try:
        return cli(arguments, run=run)
    except ArgumentError as error:
        raise one_line(str(error), arguments, names=_names_of_options, strategies=_STRATEGY_CLASSES) from error
    except ValueError as error:
        # The parser wraps what a class says of its arguments into a page about all types that do not fit.
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, UserInputError):
            cause = cause.__cause__ or cause.__context__
        if cause is None:
            raise
        raise cause from None
    except Exception as error:
        # Not imported for it: W&B takes a second, and most runs go without.
        if not type(error).__module__.startswith("wandb.errors"):
            raise
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise UserInputError(
            f"WandbLogger: {reason}; run `wandb login`, or log without a server: --trainer.logger.offline true, or "
            "WANDB_MODE=offline in the environment, and `wandb sync` later"
        ) from error


class NamedCLI(DmtCLI):
    """Knows the options' names and makes nothing."""

    def instantiate_classes(self) -> None:
        pass


def _names_of_options() -> list[str]:
    return list(NamedCLI(["fit", "--data=SyntheticClicks"], run=False).config.keys())


def run_trainer(arguments: list[str]) -> None:
    """``dmt fit|validate|test|predict``."""
    parsed_cli(DmtCLI, arguments, run=True)
    if (wandb := sys.modules.get("wandb")) is not None:
        wandb.finish()  # else it says its last when Python ends, in colours, be it into a file


def run_describe(arguments: list[str]) -> None:
    """``dmt describe``."""
    cli = parsed_cli(_DescribeCLI, arguments, run=False)
    cli.check_layout()
    cli.datamodule.prepare_data()
    description = cli.description()
    if cli.config.json:
        print(json.dumps(description, indent=2))
    else:
        print_description(description)
