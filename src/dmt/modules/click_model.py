"""The LightningModule: builds the plain model, defines loss, metrics and the dense optimiser.

It never knows how the model is sharded; a Strategy replaces the tower stage after ``configure_model``.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any, Self

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import MetricCollection
from torchrec.datasets.utils import Batch

from dmt.errors import UserInputError, check_positive
from dmt.modules.dlrm import DLRM
from dmt.modules.embeddings import EmbeddingOptimizer
from dmt.modules.failures import made_by
from dmt.modules.limits import check_compiler, check_optimizer, check_schedule, check_trainer
from dmt.modules.loading import check_resumable, check_tensors
from dmt.modules.metrics import click_metrics
from dmt.modules.optimizers import match_by_name
from dmt.modules.stage import Pooling, Stage, TowerStage
from dmt.modules.top_arch import TopArch, TopArchFactory, check_logits
from dmt.modules.towers import PassThrough, TowerFactory
from dmt.plan import TowerPlan
from dmt.schema import FeatureSchema

BASELINE_PLANS = ("strided", "contiguous", "random")
_FACTORIES: dict[str, object] = {"tower": PassThrough, "top": DLRM}  # what the model is made of, where nothing is given

SchedulerFactory = Callable[[Optimizer], LRScheduler]
DenseOptimizerFactory = Callable[[Iterable[torch.nn.Parameter]], Optimizer]


class ClickModel(L.LightningModule):
    """Predicts clicks with a top arch over a tower stage.

    The model is built in ``configure_model`` from the DataModule's schema, under whatever strategy the
    Trainer has. Without a Trainer, call :meth:`build`.

    Args:
        embedding_dim: N, the width of features' embeddings; a multiple of 4.
        table_dims: width of single tables, by name, where it differs from ``embedding_dim``; a linear layer in the
            tower brings it there.
        pooling: ``sum`` or ``mean`` of a sample's embeddings of one feature, for all features or by name.
        num_towers: number of towers, where ``plan`` does not say it. With more than there are features each tower gets
            blocks of their columns.
        plan: which features a tower gets: ``strided``, ``contiguous`` or ``random`` (by the run's seed), or a TowerPlan
            file or object.
        tower: tower module by class path. PassThrough is the flat model: no tower modules.
        unwrap_singletons: let towers of one feature pass its embedding on without a tower module.
        top: model over the tower stage, by class path.
        dense_optimizer: optimiser of all dense layers, tower modules included, by class path.
        embedding_optimizer: optimiser of embedding rows, run inside the backward pass.
        lr_scheduler: learning-rate schedule, stepped after every training step, by class path. The embedding
            optimiser's rate follows the ratio between the scheduled and the configured rate of the dense one, or of
            its first parameter group.
        compile_layers: run tower modules and the layers around the stage through torch.compile, which on the CPU
            needs a C++ compiler. The first steps take half a minute longer.

    Raises:
        UserInputError: ``compile_layers`` without a C++ compiler.
    """

    def __init__(
        self,
        *,
        embedding_dim: int = 16,
        table_dims: dict[str, int] | None = None,
        pooling: Pooling | dict[str, Pooling] = "sum",
        num_towers: int = 1,
        plan: TowerPlan | str | Path = "strided",
        tower: TowerFactory = PassThrough,
        unwrap_singletons: bool = False,
        top: TopArchFactory = DLRM,
        dense_optimizer: DenseOptimizerFactory = torch.optim.Adam,
        embedding_optimizer: EmbeddingOptimizer = EmbeddingOptimizer(),  # noqa: B008 - frozen
        lr_scheduler: SchedulerFactory | None = None,
        compile_layers: bool = False,
    ) -> None:
        super().__init__()
        if compile_layers:
            check_compiler()
        if isinstance(embedding_optimizer, dict):  # as a checkpoint holds it
            embedding_optimizer = EmbeddingOptimizer(**embedding_optimizer)
        self.save_hyperparameters()
        self.embedding_dim = embedding_dim
        self.table_dims = table_dims
        self.pooling = pooling
        self.num_towers = num_towers
        self.plan = plan
        self.tower = tower
        self.unwrap_singletons = unwrap_singletons
        self.top = top
        self.dense_optimizer = dense_optimizer
        self.embedding_optimizer = embedding_optimizer
        self.lr_scheduler = lr_scheduler
        self.compile_layers = compile_layers
        self.model: TopArch | None = None
        self.val_metrics = click_metrics("val/")
        self.test_metrics = click_metrics("test/")

    def make(self, schema: FeatureSchema) -> TopArch:
        """Make the plain, unsharded model for data with this schema, without keeping it.

        Raises:
            UserInputError: plan, towers, dims or layer sizes do not fit the schema or each other, or the top arch
                does not keep the stage.
        """
        stage = TowerStage(
            schema=schema,
            plan=self._make_plan(schema.feature_names),
            embedding_dim=self.embedding_dim,
            tower=self.tower,
            optimizer=self.embedding_optimizer,
            pooling=self.pooling,
            table_dims=self.table_dims,
            unwrap_singletons=self.unwrap_singletons,
        )
        top: TopArch = made_by("top", self.top, stage, len(schema.dense))
        if not isinstance(top, torch.nn.Module) or not _stages(top):
            raise UserInputError(
                f"top {type(top).__name__}: it does not keep the tower stage as a submodule; subclass dmt.TopArch, and "
                "set self.stage = stage in __init__, after super().__init__()"
            )
        return top

    def _make_plan(self, names: Sequence[str]) -> TowerPlan:
        if isinstance(self.plan, TowerPlan):
            return self.plan
        if self.plan not in BASELINE_PLANS:
            if not Path(self.plan).is_file():
                raise UserInputError(
                    f"plan={self.plan}: no such file; give the path of a TowerPlan YAML file (a run's own plan is "
                    f"towers.yaml in its folder: --model.plan RUN/towers.yaml), or one of {', '.join(BASELINE_PLANS)}"
                )
            return TowerPlan.load(self.plan)
        check_positive("model", num_towers=self.num_towers)
        if self.num_towers == 1:
            return TowerPlan(towers=[names], method="flat")
        if self.plan == "random":
            return TowerPlan.random(names, num_towers=self.num_towers, seed=torch.initial_seed())
        if self.plan == "contiguous":
            return TowerPlan.contiguous(names, num_towers=self.num_towers)
        if self.num_towers > len(names):
            return TowerPlan.strided_columns(names, num_towers=self.num_towers, embedding_dim=self.embedding_dim)
        return TowerPlan.strided(names, num_towers=self.num_towers)

    def build(self, schema: FeatureSchema) -> TopArch:
        """:meth:`make` the model, keep it as ``self.model`` and return it."""
        self.model = self.make(schema)
        if self.compile_layers:
            towers = [tower for stage in _stages(self) for tower in stage.tower_modules]
            # Dynamo counts versions by code, and all towers run the code of one forward: without room for every
            # tower's own, and for each of several top archs, it would run what comes after the eighth uncompiled.
            num_tops = getattr(self.model, "num_members", None) or 1
            limit = torch._dynamo.config.recompile_limit * len(towers) * num_tops
            for layers in (self.model, *towers):
                layers.compile(recompile_limit=limit)
        self.schema = schema
        self.resolved_plan = _stages(self)[0].plan
        return self.model

    def configure_model(self) -> None:
        """Build the model from the DataModule's schema, unless :meth:`build` was called before."""
        if self.model is not None or self._trainer is None:
            # load_from_checkpoint calls this without a Trainer, and then on_load_checkpoint, which builds.
            return
        schema = getattr(getattr(self.trainer, "datamodule", None), "schema", None)
        if not isinstance(schema, FeatureSchema):
            raise UserInputError(
                "ClickModel: the Trainer has no DataModule with a FeatureSchema named schema; pass "
                "datamodule=..., or call model.build(schema) first"
            )
        self.build(schema)

    def forward(self, batch: Batch) -> Tensor:
        """Batch of B samples -> logits (B,), the mean over the members of a top arch that has several.

        Raises:
            UserInputError: the top arch returned something else.
        """
        return self._member_logits(batch).mean(dim=1)

    def _member_logits(self, batch: Batch) -> Tensor:
        """(B, K), with K = 1 for a top arch without members."""
        assert self.model is not None, "configure_model or build runs first"
        logits = self.model(batch.dense_features, batch.sparse_features)
        logits = check_logits(self.model, logits, batch_size=batch.dense_features.shape[0])
        return logits if logits.ndim == 2 else logits.unsqueeze(1)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Mean binary cross entropy of the rank's samples, and over members; 0 for a rank with none."""
        logits = self._member_logits(batch).float()
        labels = batch.labels.unsqueeze(1).expand_as(logits)
        # A sum over max(B, 1), since the mean of an empty batch is NaN and would poison the all-reduce.
        total = F.binary_cross_entropy_with_logits(logits, labels, reduction="sum") / logits.shape[1]
        self._log_loss(total.detach(), batch_size=batch.labels.numel())
        return total / max(batch.labels.numel(), 1)

    @torch.compiler.disable  # where the whole module is compiled: Lightning's log asks what Dynamo cannot follow
    def _log_loss(self, total: Tensor, *, batch_size: int) -> None:
        # The mean over all ranks' samples, so that every rank's callbacks see what a single process would. Lightning's
        # own sync_dist is as many collectives, but takes the mean of means, whatever number of samples a rank has.
        sums = torch.stack([total, total.new_full((), batch_size)])
        if self._trainer is not None:
            sums = self.trainer.strategy.reduce(sums, reduce_op="sum")
        self.log("train/loss", sums[0] / sums[1].clamp(min=1), prog_bar=True, batch_size=batch_size)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.val_metrics.update(self.predict_step(batch, batch_idx), batch.labels.int())

    def on_validation_epoch_end(self) -> None:
        self._log_and_reset(self.val_metrics)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self.test_metrics.update(self.predict_step(batch, batch_idx), batch.labels.int())

    def on_test_epoch_end(self) -> None:
        self._log_and_reset(self.test_metrics)

    def _log_and_reset(self, metrics: MetricCollection) -> None:
        for name, value in metrics.compute().items():
            # compute() has gathered all ranks' samples; sync_dist only tells Lightning so, averaging equal values.
            self.log(name, value, prog_bar=name == "val/auroc", sync_dist=True)
            if name.endswith("log_loss") and not value.isfinite():
                rank_zero_warn(
                    f"{name} is {value:g}: predictions are no numbers any more, so training has diverged; lower its "
                    "learning rates"
                )
        metrics.reset()

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Click probabilities (B,)."""
        return torch.sigmoid(self(batch).float())

    def on_fit_start(self) -> None:
        """Check that the Trainer trains this model right.

        Raises:
            UserInputError: several ranks would each update a whole copy of the tables, or the Trainer asks for
                what embedding rows cannot follow.
        """
        if self.trainer.world_size > 1 and any(isinstance(module, TowerStage) for module in self.modules()):
            raise UserInputError(
                f"strategy {type(self.trainer.strategy).__name__} on {self.trainer.world_size} ranks: each would "
                "train tables of its own; choose sptt or torchrec, or one device",
                on_every_rank=True,
            )
        check_trainer(self.trainer)

    def on_train_start(self) -> None:
        """Check that the schedule is as long as the training, after which it would fail.

        Raises:
            UserInputError: it is shorter.
        """
        check_schedule(self.lr_schedulers(), self.trainer.estimated_stepping_batches)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Let the embedding rows' learning rate follow the dense layers' schedule, and log both."""
        check_trainer(self.trainer)  # a callback may have turned accumulation on
        optimizer = self.optimizers(use_pl_optimizer=False)
        assert isinstance(optimizer, Optimizer)
        dense_rate = float(optimizer.param_groups[0]["lr"])
        embedding_rate = self.embedding_optimizer.learning_rate
        if self.lr_scheduler is not None:
            if self._base_rate:  # a rate of 0 stays 0 under any schedule, and tells nothing of it
                embedding_rate *= dense_rate / self._base_rate
            for module in self.modules():
                if isinstance(module, Stage):
                    module.set_learning_rate(embedding_rate)
        rates = {"learning_rate/dense": dense_rate, "learning_rate/embeddings": embedding_rate}
        # As tensors: Lightning would move numbers to the GPU, and wait for it.
        self.log_dict({name: torch.tensor(rate, device="cpu") for name, rate in rates.items()}, batch_size=1)

    def configure_optimizers(self) -> Optimizer | OptimizerLRSchedulerConfig:
        """The optimiser of the dense layers; embedding tables update themselves inside backward."""
        optimizer = self.dense_optimizer([p for p in self.parameters() if p.requires_grad])
        check_optimizer(optimizer)
        match_by_name(optimizer, self)
        if self.lr_scheduler is None:
            return optimizer
        # Here, not from the optimiser later: some schedulers change rate and initial_lr when they are made, and a
        # resumed run loads both into the optimiser.
        self._base_rate = float(optimizer.param_groups[0]["lr"])
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self.lr_scheduler(optimizer), "interval": "step"}}

    @classmethod
    def load_from_checkpoint(
        cls,
        checkpoint_path: str | Path | IO[bytes],
        map_location: Any = None,
        hparams_file: str | Path | None = None,
        strict: bool | None = None,
        weights_only: bool | None = None,
        **kwargs: Any,
    ) -> Self:
        """As Lightning's: rebuild the model from a checkpoint file.

        What is a class or function in Python is not in it: give ``tower``, ``top``, and to train on the dense optimiser
        and its schedule, again. A file that ``dmt fit`` has written holds the run's configuration, and needs nothing.

        Raises:
            UserInputError: it is a directory, as sharded runs write it; the tower module or top arch must be given.
        """
        if isinstance(checkpoint_path, str | Path) and Path(checkpoint_path).is_dir():
            raise UserInputError(
                f"checkpoint {checkpoint_path}: a sharded run's directory; make it a file, by io = "
                f"dmt.TowerCheckpointIO() and io.save_checkpoint(io.load_checkpoint({str(checkpoint_path)!r}), FILE), "
                "and load that"
            )
        return super().load_from_checkpoint(checkpoint_path, map_location, hparams_file, strict, weights_only, **kwargs)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store what the model was built from, so that a checkpoint can rebuild it without the data."""
        # Factories and objects given in Python would make the file unreadable to torch's safe loading; pass them
        # to load_from_checkpoint again. Under the CLI the hyper-parameters are its configuration: all plain.
        given = {
            name: asdict(value) if isinstance(value, EmbeddingOptimizer) else value
            for name, value in checkpoint.get(self.CHECKPOINT_HYPER_PARAMS_KEY, {}).items()
        }
        checkpoint[self.CHECKPOINT_HYPER_PARAMS_KEY] = {k: v for k, v in given.items() if _is_plain(v)}
        checkpoint["dmt"] = {
            "schema": self.schema.to_dict(),
            "towers": [list(t) for t in self.resolved_plan.towers],
            "factories": [n for n, own in _FACTORIES.items() if not _is_plain(given.get(n)) and given[n] is not own],
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Build the model where there is none yet; otherwise check that the checkpoint fits it.

        Raises:
            UserInputError: the checkpoint's columns, table sizes or towers differ from this model's, it holds weights
                alone and training was to go on from it, or the tower module or top arch must be given.
        """
        if "dmt" not in checkpoint:
            raise UserInputError(
                "checkpoint: it holds no ClickModel; give one that `dmt fit` has written", on_every_rank=True
            )
        if self._trainer is not None and self.trainer.state.fn == TrainerFn.FITTING:
            check_resumable(checkpoint, self.trainer.ckpt_path)
        stored = checkpoint["dmt"]
        if self.model is None:
            absent = [name for name in stored.get("factories", []) if getattr(self, name) is _FACTORIES[name]]
            if absent:
                raise UserInputError(
                    f"checkpoint: it lacks its {' and '.join(absent)}, made in Python; give load_from_checkpoint "
                    f"{', '.join(f'{name}=' for name in absent)} as the model had it"
                )
            self.plan = TowerPlan(towers=stored["towers"])
            self.build(FeatureSchema.from_dict(stored["schema"]))
        elif stored["schema"] != self.schema.to_dict():
            raise UserInputError(
                "checkpoint: its columns or table sizes differ from the data's (other files or vocabularies?); "
                "use the data it was trained on",
                on_every_rank=True,
            )
        elif stored["towers"] != [list(tower) for tower in self.resolved_plan.towers]:
            raise UserInputError(
                f"checkpoint: its towers {stored['towers']} differ from this model's; give its plan by --model.plan",
                on_every_rank=True,
            )

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As torch's, but what is wrong is one line.

        Raises:
            UserInputError: a tensor has another shape, or only one of the two has it.
        """
        own, found = (
            {name: tuple(getattr(value, "shape", ())) for name, value in state.items()}
            for state in (self.state_dict(), state_dict)
        )
        check_tensors(own, found, strict=strict)
        return super().load_state_dict(state_dict, strict=strict, assign=assign)


def _stages(module: torch.nn.Module) -> list[TowerStage]:
    return [child for child in module.modules() if isinstance(child, TowerStage)]


def _is_plain(value: object) -> bool:
    """Whether a value consists of numbers, text, None, lists and dictionaries only."""
    if isinstance(value, dict):
        return all(_is_plain(v) for v in value.values())
    if isinstance(value, list | tuple):
        return all(_is_plain(v) for v in value)
    return value is None or isinstance(value, bool | int | float | str)
