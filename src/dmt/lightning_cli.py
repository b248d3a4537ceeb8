"""The verbs of the ``dmt`` command that read a training configuration: LightningCLI over ClickModel and data."""

import difflib
import json
import logging
import os
import warnings
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.plugins import CheckpointIO
from lightning.pytorch.strategies import StrategyRegistry
from lightning.pytorch.utilities import rank_zero_only

from dmt.callbacks import PredictionFile, Throughput
from dmt.datamodules import ClickDataModule
from dmt.describe import Layout, describe, print_description
from dmt.errors import UserInputError
from dmt.modules import ClickModel
from dmt.report import RunSummary
from dmt.strategies import SpttStrategy, Topology, TorchRecStrategy, TowerCheckpointIO, TowerStrategy

_STRATEGIES = {strategy.strategy_name: strategy for strategy in (SpttStrategy, TorchRecStrategy)}


class DmtCLI(LightningCLI):
    """LightningCLI with one option more, checks before anything is launched, and a test after fit."""

    def __init__(self, arguments: list[str], *, run: bool = True) -> None:
        self._throughput = Throughput()
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
                "callbacks": [self._throughput, PredictionFile()],
                # It would count this rank's shards only; the description printed before is of the whole model.
                "enable_model_summary": False,
            },
            save_config_kwargs={"overwrite": False},
            parser_kwargs={"prog": "dmt" if run else f"dmt {arguments[0]}"},
            args=arguments if run else arguments[1:],
            run=run,
        )

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """A parser that raises instead of printing its usage, page after page."""
        return super().init_parser(**kwargs, exit_on_error=False)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--ranks_per_host",
            type=int | None,
            default=None,
            help="Ranks that share a host's fast links, under the strategies sptt and torchrec. Set it to "
            "try a cluster's layout on one machine. Default: LOCAL_WORLD_SIZE, or the devices per node.",
        )

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """A Trainer whose ``strategy`` by name knows the ranks per host."""
        name = self._get(self.config_init, "trainer.strategy")
        known = ["auto", *StrategyRegistry.available_strategies()]
        if isinstance(name, str) and name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise UserInputError(
                f"trainer.strategy={name}: no such strategy; choose {near[0] if near else 'sptt, torchrec or auto'}"
            )
        if name in _STRATEGIES:
            kwargs["strategy"] = _STRATEGIES[name](ranks_per_host=self._get(self.config_init, "ranks_per_host"))
        else:
            plugins = self._get(self.config_init, "trainer.plugins") or []
            plugins = plugins if isinstance(plugins, list) else [plugins]
            if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
                kwargs["plugins"] = [*plugins, TowerCheckpointIO()]
        return super().instantiate_trainer(**kwargs)

    def before_fit(self) -> None:
        self._preflight()

    def before_validate(self) -> None:
        self._preflight()

    def before_test(self) -> None:
        self._preflight()

    def before_predict(self) -> None:
        self._preflight()

    def after_fit(self) -> None:
        """Test the best checkpoint, or the final weights where no callback keeps one, and sum up the run."""
        keeper = self.trainer.checkpoint_callback
        best = getattr(keeper, "best_model_path", "")
        results = self.trainer.test(self.model, datamodule=self.datamodule, ckpt_path="best" if best else None)
        run_dir = self.trainer.log_dir  # a collective: every rank asks
        if self.trainer.is_global_zero and self.trainer.logger is not None and run_dir is not None:
            summary = RunSummary(
                data=self.config[self.subcommand].data.as_dict(),
                description=self.description(),
                metrics={**results[0], **{n: float(v) for n, v in self.trainer.callback_metrics.items()}},
                samples_per_second=self._throughput.median_samples_per_second,
                steps=self.trainer.global_step,
                checkpoint=best,
            )
            summary.save(Path(run_dir))

    def description(self) -> dict[str, Any]:
        """Counts of the configured model on the configured layout, from nothing but the data's schema.

        Raises:
            UserInputError: model, plan, data and layout do not fit each other.
        """
        strategy = self.trainer.strategy
        if isinstance(strategy, TowerStrategy):
            name, topology = strategy.strategy_name, strategy.topology
        else:
            name, topology = "single", Topology(world_size=1, ranks_per_host=1)
        layout = Layout(strategy=name, topology=topology, global_batch_size=self.datamodule.global_batch_size)
        return describe(self.model, self.datamodule.schema, layout)

    def _preflight(self) -> None:
        """Check everything that can be checked in one process, before ranks are launched.

        Ranks other than a node's first find the data prepared and fail, if at all, in the Trainer.
        """
        if int(os.environ.get("LOCAL_RANK", "0")) != 0:
            return
        if isinstance(self.trainer.strategy, TowerStrategy):
            self.trainer.strategy.refuse_unsupported(self.trainer)
        checkpoint = self._get(self.config_init, "ckpt_path")
        if checkpoint not in (None, "best", "last", "hpc", "registry") and not Path(checkpoint).exists():
            raise UserInputError(f"ckpt_path={checkpoint}: no such checkpoint; give the path of one")
        self.datamodule.prepare_data()
        rank_zero_only(print_description)(self.description())


class _DescribeCLI(DmtCLI):
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        parser.add_argument("--json", action="store_true", help="Print JSON instead of tables.")


def _quiet_libraries() -> None:
    """Drop messages of the libraries that a user of this command can do nothing about."""
    # Lightning 2.6 uses a class that torch 2.13 has deprecated.
    warnings.filterwarnings("ignore", message=".*treespec, LeafSpec.*")
    # It warns that arguments are given twice; they are the same ones.
    warnings.filterwarnings("ignore", message="LightningCLI's args parameter is intended")
    # torchrec asks torch a question in a way that torch comments on, once a process.
    logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)
    adverts = ("💡 Tip", "GPU available", "TPU available")
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero"):
        logging.getLogger(name).addFilter(lambda record: not record.getMessage().startswith(adverts))


def _parsed(cli: type[DmtCLI], arguments: list[str], *, run: bool) -> DmtCLI:
    """``cli(arguments)``, with the parser's complaints brought down to one line."""
    _quiet_libraries()
    try:
        return cli(arguments, run=run)
    except ArgumentError as error:
        noise = (
            "Does not validate",
            "Subtypes:",
            "Errors:",
            "- Expected a <class 'NoneType'>",
            "Given value",
        )
        lines = [line.strip() for line in str(error).splitlines()]
        told = " ".join(line for line in lines if line and not line.startswith(noise))
        raise UserInputError(f"{told}; see dmt {arguments[0]} --help") from error
    except ValueError as error:
        # The parser wraps what a class says of its arguments into a page about all types that do not fit.
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, UserInputError):
            cause = cause.__cause__ or cause.__context__
        if cause is None:
            raise
        raise cause from None


def run_trainer(arguments: list[str]) -> None:
    """``dmt fit|validate|test|predict``."""
    _parsed(DmtCLI, arguments, run=True)


def run_describe(arguments: list[str]) -> None:
    """``dmt describe``."""
    cli = _parsed(_DescribeCLI, arguments, run=False)
    cli.datamodule.prepare_data()
    description = cli.description()
    if cli.config.json:
        print(json.dumps(description, indent=2))
    else:
        print_description(description)
