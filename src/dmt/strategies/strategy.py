"""The Lightning Strategies: where a plain model becomes a sharded one.

Everything a Strategy changes is the evaluation of the model's tower stages and the gradient scale; loops,
callbacks, loggers and the model stay Lightning's and the user's.
"""

import os
import subprocess
import time
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.fabric.plugins import CheckpointIO, ClusterEnvironment
from lightning.pytorch.accelerators import Accelerator
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.plugins import Precision
from lightning.pytorch.strategies import DDPStrategy, StrategyRegistry
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import override

from dmt.errors import UserInputError
from dmt.modules.embeddings import deferred_tables
from dmt.modules.optimizers import match_by_name
from dmt.modules.stage import TowerStage
from dmt.strategies.checkpoint import CheckpointDirectory
from dmt.strategies.flat import FlatStage
from dmt.strategies.sptt import ProcessGroups, SpttStage
from dmt.strategies.stage import ShardedStage
from dmt.strategies.topology import Topology

_DEFAULT_TIMEOUT = timedelta(minutes=10)
_GRACE_S = 3.0


class TowerStrategy(DDPStrategy):
    """Replaces every :class:`~dmt.modules.stage.TowerStage` of a model by a sharded one.

    Gradients are averages over the global batch (``design``'s numerics contract): dense layers through
    DistributedDataParallel, the stage's own parameters inside the stage.

    Args:
        ranks_per_host: ranks that share a host's fast links. Default: LOCAL_WORLD_SIZE where a launcher
            sets it, otherwise the devices per node.
        timeout: longest a collective may wait for the other ranks before the run fails.

    The other arguments are Lightning's, as of :class:`~lightning.pytorch.strategies.DDPStrategy`.
    """

    strategy_name: str

    def __init__(
        self,
        *,
        ranks_per_host: int | None = None,
        timeout: timedelta = _DEFAULT_TIMEOUT,
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
        self.ranks_per_host = ranks_per_host
        self.stages: dict[str, ShardedStage] = {}

    @abstractmethod
    def shard_stage(self, stage: TowerStage, topology: Topology) -> ShardedStage:
        """Make the sharded stage; called on every rank at the same point."""

    @property
    def topology(self) -> Topology:
        """Hosts and ranks of this run.

        Raises:
            UserInputError: ``ranks_per_host`` does not divide the number of ranks.
        """
        ranks_per_host = self.ranks_per_host
        if ranks_per_host is None:
            ranks_per_host = int(os.environ.get("LOCAL_WORLD_SIZE", self.num_processes))
        return Topology(world_size=self.num_nodes * self.num_processes, ranks_per_host=ranks_per_host)

    # Building and sharding the model

    @contextmanager
    @override
    def model_sharded_context(self) -> Iterator[None]:
        """Around ``configure_model``: no rank allocates the whole model's tables."""
        with deferred_tables():
            yield

    @override
    def setup(self, trainer: pl.Trainer) -> None:
        self.refuse_unsupported(trainer)
        if not self.stages:  # test after fit finds the model sharded
            self._check_agreement(trainer)
            self._shard_model()
        super().setup(trainer)

    def refuse_unsupported(self, trainer: pl.Trainer) -> None:
        """Check what can be known before ranks are launched.

        Raises:
            UserInputError: the Trainer asks for what fused embedding optimisers or hosts cannot give.
        """
        _ = self.topology
        name = type(self).__name__
        averaging = [
            callback for callback in getattr(trainer, "callbacks", []) if isinstance(callback, WeightAveraging)
        ]
        if averaging:
            raise UserInputError(
                f"callback {type(averaging[0]).__name__}: under {name} a rank cannot copy the sharded model; "
                "average weights in a single process, or decay the learning rate by model.lr_scheduler",
                on_every_rank=True,
            )
        if trainer.accumulate_grad_batches != 1:
            raise UserInputError(
                f"accumulate_grad_batches={trainer.accumulate_grad_batches}: under {name} embedding rows are "
                "updated in each backward, so gradients cannot accumulate; raise global_batch_size instead",
                on_every_rank=True,
            )
        if trainer.gradient_clip_val:
            raise UserInputError(
                f"gradient_clip_val={trainer.gradient_clip_val}: under {name} no rank sees the global gradient "
                "norm, and embedding gradients never exist as tensors; remove the option",
                on_every_rank=True,
            )

    def _check_agreement(self, trainer: pl.Trainer) -> None:
        """Fail on every rank, before any collective of the model, when ranks were configured differently."""
        assert self.lightning_module is not None
        data = getattr(trainer, "datamodule", None)
        mine = {
            "topology": str(self.topology),
            "max_epochs, max_steps": f"{trainer.max_epochs}, {trainer.max_steps}",
            "batches": f"{trainer.limit_train_batches}, {trainer.limit_val_batches}, {trainer.val_check_interval}",
            "data": f"{data}",
            "global_batch_size": f"{getattr(data, 'global_batch_size', None)}",
            "data seed": f"{getattr(data, 'seed', None)}",
        }
        for name, module in self.lightning_module.named_modules():
            if isinstance(module, TowerStage):
                mine[f"{name} schema"] = str(module.schema)
                mine[f"{name} towers"] = str(module.plan.towers)
                mine[f"{name} optimizer"] = str(module.embeddings.optimizer)
        mine["model"] = str(self.lightning_module)
        everyone: list[dict[str, str]] = [{}] * self.world_size
        dist.all_gather_object(everyone, mine)
        for rank, other in enumerate(everyone):
            different = [key for key in everyone[0] if other.get(key) != everyone[0][key]]
            if different:
                key = different[0]
                raise UserInputError(
                    f"rank {rank} was given another configuration than rank 0: {key} {_brief(other.get(key))} "
                    f"instead of {_brief(everyone[0][key])}; start every rank with the same options and files",
                    on_every_rank=True,
                )

    def _shard_model(self) -> None:
        assert self.lightning_module is not None
        plain = [(n, m) for n, m in self.lightning_module.named_modules() if isinstance(m, TowerStage)]
        for name, stage in plain:
            parent, _, child = name.rpartition(".")
            sharded = self.shard_stage(stage, self.topology)
            setattr(self.lightning_module.get_submodule(parent), child, sharded)
            self.stages[name] = sharded
        if not self.stages:
            raise UserInputError(
                f"{type(self).__name__}: the model has no TowerStage to shard; build one in configure_model",
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
        children = self.launcher.procs if isinstance(self.launcher, _SubprocessScriptLauncher) else []
        deadline = time.monotonic() + _GRACE_S
        for child in children:
            with suppress(subprocess.TimeoutExpired):
                child.wait(timeout=max(deadline - time.monotonic(), 0.01))
            child.kill()

    # Gradient scale

    @override
    def backward(self, closure_loss: Tensor, optimizer: Optimizer | None, *args: Any, **kwargs: Any) -> Tensor:
        """Weight the rank's mean loss by its share of the global batch, then run backward.

        Averaging over ranks then gives the mean over samples also when ranks hold different numbers of them.
        """
        sizes = next(iter(self.stages.values())).batch_sizes()
        if len(set(sizes)) > 1:
            closure_loss = closure_loss * (sizes[self.global_rank] * len(sizes) / sum(sizes))
        return super().backward(closure_loss, optimizer, *args, **kwargs)

    @override
    def post_backward(self, closure_loss: Tensor) -> None:
        super().post_backward(closure_loss)
        for stage in self.stages.values():
            stage.reduce_gradients()

    # Checkpoints: a directory that all ranks write, with the plain model's names

    @property
    @override
    def restore_checkpoint_after_setup(self) -> bool:
        return True

    @override
    def lightning_module_state_dict(self) -> dict[str, Any]:
        """This rank's tensors under the plain model's names."""
        assert self.lightning_module is not None
        state = self.lightning_module.state_dict()
        for name, stage in self.stages.items():
            state = {key: value for key, value in state.items() if not key.startswith(f"{name}.")}
            state |= {f"{name}.{key}": value for key, value in stage.stage_state().items()}
        return state

    @override
    def setup_optimizers(self, trainer: pl.Trainer) -> None:
        super().setup_optimizers(trainer)
        assert self.lightning_module is not None
        for optimizer in self.optimizers:
            match_by_name(optimizer, self.lightning_module)

    @override
    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any | None = None
    ) -> None:
        CheckpointDirectory(self.broadcast(Path(filepath))).save(checkpoint)

    @override
    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Read what a checkpoint holds beside tensors, or all of a single-process checkpoint file."""
        directory = CheckpointDirectory(Path(checkpoint_path))
        if directory.path.is_dir():
            return directory.load_rest() | {"state_dict": {}, "directory": directory}
        return super().load_checkpoint(checkpoint_path, weights_only=weights_only)

    @override
    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Fill this rank's tensors in place, from either kind of checkpoint."""
        own = self.lightning_module_state_dict()
        if "directory" in checkpoint:
            checkpoint["directory"].load_tensors(own)
            return
        full = checkpoint["state_dict"]
        missing = sorted(set(own) - set(full))
        if missing:
            raise UserInputError(f"checkpoint: it has no {missing[0]!r}; it belongs to another model")
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(full[name])


class SpttStrategy(TowerStrategy):
    """SPTT: towers on host groups, tables inside the group, tower modules before the cross-host hop."""

    strategy_name = "sptt"

    @override
    def shard_stage(self, stage: TowerStage, topology: Topology) -> ShardedStage:
        groups = ProcessGroups.create(topology, timeout=self._timeout or _DEFAULT_TIMEOUT)
        return SpttStage(stage, topology=topology, groups=groups, rank=self.global_rank, device=self.root_device)


class TorchRecStrategy(TowerStrategy):
    """The flat baseline: TorchRec's hybrid parallelism, tables table-wise over all ranks."""

    strategy_name = "torchrec"

    @override
    def shard_stage(self, stage: TowerStage, topology: Topology) -> ShardedStage:
        return FlatStage(stage, topology=topology, device=self.root_device)


def _brief(text: str | None) -> str:
    return repr(text) if text is None or len(text) <= 200 else f"{text[:200]!r}..."


def register_strategies() -> None:
    """Make ``Trainer(strategy="sptt")`` and ``"torchrec"`` known to Lightning; importing ``dmt`` calls it."""
    for strategy in (SpttStrategy, TorchRecStrategy):
        if strategy.strategy_name not in StrategyRegistry:
            StrategyRegistry.register(strategy.strategy_name, strategy, description=strategy.__doc__ or "")
