"""The Lightning Strategies: where a plain model becomes a sharded one.

Everything a Strategy changes is the evaluation of the model's tower stages and the gradient scale; loops,
callbacks, loggers and the model stay Lightning's and the user's.
"""

import os
import signal
import subprocess
import time
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.fabric.plugins import CheckpointIO, ClusterEnvironment
from lightning.fabric.utilities import move_data_to_device
from lightning.fabric.utilities.imports import _IS_INTERACTIVE
from lightning.pytorch.accelerators import Accelerator
from lightning.pytorch.overrides.distributed import _sync_module_states
from lightning.pytorch.plugins import Precision
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from typing_extensions import override

from dmt.datamodules import ClickDataModule
from dmt.errors import UserInputError
from dmt.modules.embeddings import deferred_tables
from dmt.modules.limits import check_optimizer, check_trainer
from dmt.modules.loading import check_tensors
from dmt.modules.optimizers import match_by_name
from dmt.modules.shards import as_shards
from dmt.modules.stage import TowerStage
from dmt.strategies.agreement import require_agreement, succeed_together
from dmt.strategies.checkpoint import CheckpointDirectory, TowerCheckpointIO, load_group
from dmt.strategies.dense import DenseLayers, after_gradients
from dmt.strategies.ending import EndOnSigterm, end_with_parent
from dmt.strategies.lookahead import jagged_tensors, look_ahead
from dmt.strategies.meter import DenseReduction, WireMeter
from dmt.strategies.stage import ShardedStage
from dmt.strategies.topology import Topology
from dmt.strategies.unsupported import check_supported
from dmt.strategies.wire import WirePrecision, check_precision
from dmt.whole_files import find_whole

DEFAULT_TIMEOUT = timedelta(minutes=10)
_TRANSFER_HOOKS = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")
_GRACE_S = 3.0


class TowerStrategy(DDPStrategy):
    """Replaces every :class:`~dmt.modules.stage.TowerStage` of a model by a sharded one.

    Gradients are averages over the global batch (``design``'s numerics contract): dense layers through
    DistributedDataParallel, the stage's own parameters inside the stage. Do not clip them by their norm in a hook,
    which cannot be seen and refused: a rank has only its own towers' gradients, so that each would scale its copy of
    the dense layers by another norm.

    Args:
        ranks_per_host: ranks that share a host's fast links. Default: LOCAL_WORLD_SIZE where a launcher
            sets it, otherwise the devices per node.
        hosts_per_group: hosts that a tower spans; more than one under ``sptt`` only.
        sharding: how tables are cut: a kind for all that can be cut so, or a kind by table. sptt: auto (default),
            table_wise, column_wise, row_wise, grid_shard. torchrec: table_wise (default), column_wise, row_wise,
            table_row_wise, table_column_wise, planner.
        forward_precision: of tower outputs between host groups under sptt, of all embeddings under torchrec.
        backward_precision: of their gradients.
        overlap: send the next batch's ids while this one is computed. Changes no number. Left out where the module or
            the DataModule has a transfer hook of its own, which could change a batch after its ids were sent.
        timeout: longest a collective may wait for the other ranks before the run fails.

    The other arguments are filled in by Lightning's Trainer.
    """

    strategy_name: str
    default_sharding: str

    def __init__(
        self,
        *,
        ranks_per_host: int | None = None,
        hosts_per_group: int = 1,
        sharding: str | dict[str, str] | None = None,
        forward_precision: WirePrecision = "fp32",
        backward_precision: WirePrecision = "fp32",
        overlap: bool = True,
        timeout: timedelta = DEFAULT_TIMEOUT,
        accelerator: Accelerator | None = None,
        parallel_devices: list[torch.device] | None = None,
        cluster_environment: ClusterEnvironment | None = None,
        checkpoint_io: CheckpointIO | None = None,
        precision_plugin: Precision | None = None,
        process_group_backend: str | None = None,
    ) -> None:
        super().__init__(
            accelerator=accelerator,
            parallel_devices=parallel_devices,
            cluster_environment=cluster_environment,
            checkpoint_io=checkpoint_io,
            precision_plugin=precision_plugin,
            process_group_backend=process_group_backend,
            timeout=timeout,
        )
        check_precision("forward_precision", forward_precision)
        check_precision("backward_precision", backward_precision)
        self.ranks_per_host = ranks_per_host
        self.hosts_per_group = hosts_per_group
        self.sharding = self.default_sharding if sharding is None else sharding
        self.forward_precision: WirePrecision = forward_precision
        self.backward_precision: WirePrecision = backward_precision
        self.overlap = overlap
        self.stages: dict[str, ShardedStage] = {}
        self._dense_layers = DenseLayers({})
        self._dense_reduction: DenseReduction | None = None
        self._ending: EndOnSigterm | None = None

    @override
    def _configure_launcher(self) -> None:
        # Lightning's private hook: it would start processes by running the script again, which a notebook is not, and
        # then refuses even one process there. notebooks/01_quickstart.ipynb, which tests execute, guards it.
        if not _IS_INTERACTIVE:
            super()._configure_launcher()
        elif (num_ranks := self.num_nodes * self.num_processes) > 1:
            raise UserInputError(
                f"strategy={self.strategy_name} on {num_ranks} ranks: a notebook cannot start a process for each; run "
                "`!dmt fit ...` in a cell, or a script, or give devices=1"
            )

    @abstractmethod
    def shard_stage(self, stage: TowerStage, topology: Topology) -> ShardedStage:
        """Make the sharded stage; called on every rank at the same point."""

    @override
    def reduce(
        self, tensor: Any, group: dist.ProcessGroup | None = None, reduce_op: dist.ReduceOp | str | None = "mean"
    ) -> Any:
        """As Lightning's, but a sum without the barrier before it: every training step logs one."""
        if reduce_op != "sum" or not isinstance(tensor, Tensor):
            return super().reduce(tensor, group, reduce_op)
        dist.all_reduce(tensor, group=group)
        return tensor

    @contextmanager
    def metered(self) -> Iterator[list[WireMeter]]:
        """While open, the meters count all that training sends."""
        meter = WireMeter(self.topology, self.global_rank)
        self._dense_reduction = DenseReduction(meter, self._dense_layers.trained_bytes)
        try:
            yield [*(stage.meter for stage in self.stages.values()), meter]
        finally:
            self._dense_reduction = None

    @property
    def topology(self) -> Topology:
        """Hosts and ranks of this run.

        Raises:
            UserInputError: ``ranks_per_host`` does not divide the number of ranks.
        """
        ranks_per_host = self.ranks_per_host
        if ranks_per_host is None:
            ranks_per_host = int(os.environ.get("LOCAL_WORLD_SIZE", self.num_processes))
        if self.num_nodes > 1 and ranks_per_host > 0 and self.num_processes % ranks_per_host:
            raise UserInputError(
                f"ranks_per_host={ranks_per_host}: a machine here runs {self.num_processes} ranks, and a host cannot "
                "span machines; choose a divisor of that"
            )
        return Topology(
            world_size=self.num_nodes * self.num_processes,
            ranks_per_host=ranks_per_host,
            hosts_per_group=self.hosts_per_group,
        )

    # Building and sharding the model

    @contextmanager
    @override
    def model_sharded_context(self) -> Iterator[None]:
        """Around ``configure_model``: no rank allocates the whole model's tables."""
        with deferred_tables():
            yield

    @override
    def setup_environment(self) -> None:
        if self.local_rank != 0:
            end_with_parent()
        # Several communicators are at work at once: NCCL shall run what they do in the order in which it was asked for,
        # which is the same on all ranks, and not in one that can end in a deadlock.
        os.environ.setdefault("NCCL_LAUNCH_ORDER_IMPLICIT", "1")
        super().setup_environment()

    @override
    def setup(self, trainer: pl.Trainer) -> None:
        assert self.lightning_module is not None
        self.refuse_unsupported(trainer)
        self._ending = EndOnSigterm(trainer, tell=self._tell_children)
        if any(isinstance(module, TowerStage) for module in self.lightning_module.modules()):
            require_agreement(self._settings(trainer))
            self._shard_model()
        self._adopt_stages()
        super().setup(trainer)
        require_agreement({f"optimizer {i}": _optimizer_settings(o) for i, o in enumerate(self.optimizers)})

    def refuse_unsupported(self, trainer: pl.Trainer) -> None:
        """Check what can be known before ranks are launched.

        Raises:
            UserInputError: hosts and ranks do not fit, or the Trainer asks for what sharded models cannot do.
        """
        check_supported(trainer, checkpoint_io=self.checkpoint_io, num_ranks=self.topology.world_size)

    def _settings(self, trainer: pl.Trainer) -> dict[str, str]:
        """What ranks must agree on before the model's first collective."""
        assert self.lightning_module is not None
        data = getattr(trainer, "datamodule", None)
        settings = {
            "topology": str(self.topology),
            "sharding": str(self.sharding),
            "forward_precision, backward_precision": f"{self.forward_precision}, {self.backward_precision}",
            "overlap": str(self.overlap),
            "precision": str(trainer.precision),
            "max_epochs, max_steps": f"{trainer.max_epochs}, {trainer.max_steps}",
            "batches": f"{trainer.limit_train_batches}, {trainer.limit_val_batches}, {trainer.val_check_interval}",
            # The text of another is Lightning's, which makes its loaders for it.
            "data": f"{data}" if isinstance(data, ClickDataModule) else type(data).__name__,
            "global_batch_size": f"{getattr(data, 'global_batch_size', None)}",
            "data seed": f"{getattr(data, 'seed', None)}",
        }
        for name, module in self.lightning_module.named_modules():
            if isinstance(module, TowerStage):
                settings[f"{name} schema"] = str(module.schema)
                settings[f"{name} towers"] = str(module.plan.towers)
                settings[f"{name} optimizer"] = str(module.embeddings.optimizer)
        return settings | {"model": str(self.lightning_module)}

    def _shard_model(self) -> None:
        assert self.lightning_module is not None
        sharded: dict[int, ShardedStage] = {}
        # With duplicates: a stage that a model holds under two names stays one stage.
        for name, stage in list(self.lightning_module.named_modules(remove_duplicate=False)):
            if isinstance(stage, TowerStage):
                if id(stage) not in sharded:
                    sharded[id(stage)] = self.shard_stage(stage, self.topology)
                parent, _, child = name.rpartition(".")
                setattr(self.lightning_module.get_submodule(parent), child, sharded[id(stage)])

    def _adopt_stages(self) -> None:
        """Take charge of the model's sharded stages, made now or by an earlier Trainer."""
        assert self.lightning_module is not None
        self.stages = {n: m for n, m in self.lightning_module.named_modules() if isinstance(m, ShardedStage)}
        if not self.stages:
            raise UserInputError(
                f"{type(self).__name__}: the model has no TowerStage to shard; build one in configure_model",
                on_every_rank=True,
            )
        for stage in self.stages.values():
            if stage.topology != self.topology or stage.strategy_name != self.strategy_name:
                raise UserInputError(
                    f"strategy={self.strategy_name}: the model was sharded by {stage.strategy_name} on "
                    f"{stage.topology} before; make a new model, or use the strategy and layout it was made for",
                    on_every_rank=True,
                )
        # Read by DistributedDataParallel and by Lightning, though private: the way TorchRec's
        # DistributedModelParallel excludes its shards too. tests/distributed/ guards it.
        self.lightning_module._ddp_params_and_buffers_to_ignore = [  # type: ignore[assignment]
            f"{name}.{local}" for name, stage in self.stages.items() for local in stage.rank_local_names()
        ]

    @override
    def on_exception(self, exception: BaseException) -> None:
        """Let the ranks that this process launched show their own error, then end them.

        A rank that has failed makes the others fail in their next collective; one that hangs would outlive us.
        """
        super().on_exception(exception)
        children = [*self._children]
        # Lightning's thread that watches this list would take their end for one that nobody knows of, and kill this
        # process too, before it has told its error: a logger may take its time to finish. tests/cli/ guard it.
        self._children.clear()
        # What all raise alike the others do not show.
        deadline = time.monotonic() + (0 if getattr(exception, "on_every_rank", False) else _GRACE_S)
        try:
            for child in children:
                with suppress(subprocess.TimeoutExpired):
                    child.wait(timeout=max(deadline - time.monotonic(), 0.01))
        finally:  # a signal may come in between
            for child in children:
                child.kill()

    @property
    def _children(self) -> list[subprocess.Popen[Any]]:
        """The ranks that this process has launched."""
        return self.launcher.procs if isinstance(self.launcher, _SubprocessScriptLauncher) else []

    def _tell_children(self, number: signal.Signals) -> None:
        for child in self._children:
            child.send_signal(number)

    @override
    def teardown(self) -> None:
        if self._ending is not None:
            self._ending.close()
            self._ending = None
        for stage in self.stages.values():
            assert self.lightning_module is not None
            if not self.lightning_module.trainer.interrupted:  # else ranks are no longer at one point
                stage.forget_prefetched()
        super().teardown()

    # Overlap: the next batch's ids travel while this one is computed

    @override
    def process_dataloader(self, dataloader: object) -> object:
        """Let the loader draw one batch ahead, where stages can use it."""
        if not self.overlap or self._changes_batches() or not isinstance(dataloader, Iterable):
            return dataloader
        return look_ahead(
            dataloader,
            prepare=partial(self._prefetch, loader=dataloader),
            begin=partial(self._begin_loader, loader=dataloader),
        )

    def _changes_batches(self) -> bool:
        """Whether a hook may give the stages other batches than the loader did, and other ones on each rank."""
        assert self.lightning_module is not None
        owners = [self.lightning_module, getattr(self.lightning_module.trainer, "datamodule", None)]
        return any(is_overridden(hook, owner) for owner in owners if owner is not None for hook in _TRANSFER_HOOKS)

    def _prefetch(self, batch: Any, *, loader: object) -> Any:
        if self.root_device.type != "cpu":
            batch = move_data_to_device(batch, self.root_device)  # the Trainer's own transfer finds it done
        for features in jagged_tensors(batch):
            for stage in self.stages.values():
                if features.keys() == stage.feature_keys:
                    stage.prefetch(features, loader=loader)
        return batch

    def _begin_loader(self, *, loader: object) -> float:
        for stage in self.stages.values():
            stage.forget_prefetched(loader)
        return self._batches_wanted()

    def _batches_wanted(self) -> float:
        """How many batches of a loader the Trainer's present loop goes over."""
        assert self.lightning_module is not None
        trainer = self.lightning_module.trainer
        if trainer.training:
            done = trainer.fit_loop.epoch_loop.batch_progress.current.completed  # more than 0 in a resumed epoch
            steps = float("inf") if trainer.max_steps < 0 else trainer.max_steps - trainer.global_step
            return min(trainer.num_training_batches - done, steps)
        if trainer.sanity_checking:
            limits = trainer.num_sanity_val_batches
        elif trainer.validating:
            limits = trainer.num_val_batches
        else:
            limits = trainer.num_test_batches if trainer.testing else trainer.num_predict_batches
        return max(limits, default=0)

    # Dense layers, of which every rank has a copy

    @override
    def configure_ddp(self) -> None:
        """Let DistributedDataParallel average gradients, which it refuses where no dense layer is trained."""
        assert self.lightning_module is not None
        local = {f"{name}.{own}" for name, stage in self.stages.items() for own in stage.rank_local_names()}
        self._dense_layers = DenseLayers({n: p for n, p in self.lightning_module.named_parameters() if n not in local})
        if self._dense_reduction is not None:
            self._dense_reduction.num_bytes = self._dense_layers.trained_bytes
        if self._dense_layers.trained_bytes:
            super().configure_ddp()
        else:
            _sync_module_states(self.lightning_module)  # which it would do first of all

    @override
    def training_step(self, *args: Any, **kwargs: Any) -> STEP_OUTPUT:
        if self._dense_layers.have_changed:
            if isinstance(self.model, DistributedDataParallel):
                self.model._remove_autograd_hooks()
            self.model = self.lightning_module
            self.configure_ddp()
        for stage in self.stages.values():
            stage.begin_step()
        return super().training_step(*args, **kwargs)

    # Gradient scale

    @override
    def backward(self, closure_loss: Tensor, optimizer: Optimizer | None, *args: Any, **kwargs: Any) -> Tensor:
        """Weight the rank's mean loss by its share of the global batch, then run backward.

        Averaging over ranks then gives the mean over samples also when ranks hold different numbers of them.
        """
        assert self.lightning_module is not None
        check_trainer(self.lightning_module.trainer)  # a scheduler may have turned accumulation on
        shares = {ranks for stage in self.stages.values() for ranks in stage.rank_shares()}
        if len(shares) > 1:
            raise UserInputError(
                "the model's tower stages saw batches of different sizes in one step, so a rank's share of the "
                "global batch is not defined; give all stages the same samples",
                on_every_rank=True,
            )
        for ranks in shares:
            if len(set(ranks)) > 1:
                closure_loss = closure_loss * (ranks[self.global_rank] * len(ranks) / sum(ranks))
        for stage in self.stages.values():
            stage.advance()
        after_gradients(closure_loss, self._dense_layers.check_gradients)
        if self._dense_reduction is not None:
            self._dense_reduction.before_backward(closure_loss)
        return super().backward(closure_loss, optimizer, *args, **kwargs)

    @override
    def post_backward(self, closure_loss: Tensor) -> None:
        super().post_backward(closure_loss)
        if self._dense_reduction is not None:
            self._dense_reduction.after_backward()
        for stage in self.stages.values():
            stage.advance()
            stage.reduce_gradients()

    # Checkpoints: a directory that all ranks write, with the plain model's names

    @property
    @override
    def restore_checkpoint_after_setup(self) -> bool:
        return True

    @override
    def lightning_module_state_dict(self) -> dict[str, Any]:
        """This rank's part of the model under the plain model's names: tensors, and lists of ``TensorShard``."""
        assert self.lightning_module is not None
        state: dict[str, Any] = self.lightning_module.state_dict()
        for name, stage in self.stages.items():
            state = {key: value for key, value in state.items() if not key.startswith(f"{name}.")}
            state |= {f"{name}.{key}": shards for key, shards in stage.stage_state().items()}
        return state

    @override
    def setup_optimizers(self, trainer: pl.Trainer) -> None:
        super().setup_optimizers(trainer)
        assert self.lightning_module is not None
        for optimizer in self.optimizers:
            check_optimizer(optimizer)
            match_by_name(optimizer, self.lightning_module)

    @override
    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any | None = None
    ) -> None:
        if storage_options is not None:
            raise UserInputError(
                f"storage_options={storage_options}: {self.strategy_name} writes checkpoints into folders, which have "
                "none; leave them out",
                on_every_rank=True,
            )
        CheckpointDirectory(self.broadcast(Path(filepath))).save(checkpoint)

    @override
    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Read what a checkpoint holds beside tensors, or all of a single-process checkpoint file.

        Objects are refused also where the Trainer was told ``weights_only=False``: Lightning 2.6 keeps that from
        strategies that restore after set-up. torch's TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD lets them in.

        Raises:
            UserInputError: on every rank, there is no whole checkpoint, or it holds objects.
        """
        # The path of rank 0: "best" is each rank's own opinion where a rank-local value was monitored.
        path = self.broadcast(find_whole(Path(checkpoint_path)))
        return succeed_together(partial(self._read, path, weights_only))

    def _read(self, path: Path, weights_only: bool | None) -> dict[str, Any]:
        if path.is_dir():
            directory = CheckpointDirectory(path, weights_only=weights_only)
            return directory.load_rest() | {"state_dict": {}, "directory": directory}
        return TowerCheckpointIO().load_checkpoint(path, weights_only=weights_only)

    @override
    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Fill this rank's tensors in place, from either kind of checkpoint."""
        own = self.lightning_module_state_dict()
        directory = checkpoint.get("directory")
        stored = checkpoint["state_dict"] if directory is None else directory.tensor_shapes()
        found = {name: tuple(getattr(value, "shape", value)) for name, value in stored.items()}
        check_tensors(_shapes_of_all_ranks(own), found, strict=strict, on_every_rank=True)
        load_group(checkpoint, "state_dict", own)


def _shapes_of_all_ranks(own: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Shape of each tensor that all ranks together hold; collective."""
    everyone: list[dict[str, tuple[int, ...]]] = [{}] * dist.get_world_size()
    dist.all_gather_object(everyone, {name: as_shards(value)[0].shape for name, value in own.items()})
    return {name: shape for names in everyone for name, shape in names.items()}


def _optimizer_settings(optimizer: Optimizer) -> str:
    groups = [{k: v for k, v in g.items() if k not in ("params", "param_names")} for g in optimizer.param_groups]
    return f"{type(optimizer).__name__} {groups}"
