"""Real training runs through Lightning's Trainer, to be compared across strategies.

The functions run inside the ranks that ``harness.run_ranks`` starts.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.accelerators import CUDAAccelerator
from torch import Tensor

from dmt.callbacks import WeightAverage
from dmt.datamodules import SyntheticClicks
from dmt.errors import UserInputError
from dmt.modules import DLRM, ClickModel, DLRMTower, EmbeddingOptimizer, MultiEmbedding, MultiTower
from dmt.modules.stage import Stage
from dmt.modules.top_arch import TopArchFactory
from dmt.modules.towers import TowerFactory
from dmt.plan import TowerPlan
from dmt.schema import FeatureSchema
from dmt.strategies import SpttStrategy, TorchRecStrategy, TowerCheckpointIO
from dmt.strategies.strategy import TowerStrategy
from tests.distributed import staged_group

GLOBAL_BATCH = 24
# Seven global batches; the last holds 3 samples, so that ranks get one sample or none.
NUM_TRAIN = 6 * GLOBAL_BATCH + 3
# Three towers, uneven; on four hosts one host has none.
PLAN = TowerPlan(towers=[["c1", "c5", "c3"], ["c0"], ["c4", "c2"]])


@dataclass(frozen=True, kw_only=True)
class Run:
    """One call of ``Trainer.fit``.

    Args:
        strategy: ``"auto"`` for a single process, ``"sptt"`` or ``"torchrec"``.
        ranks_per_host: for the latter two.
        max_steps: stop after so many steps in all.
        resume: checkpoint to start from.
        save: checkpoint to write at the end.
        dense_optimizer: of the dense layers.
        embedding_optimizer: of the rows.
        options: more arguments of the strategy.
        limits: more arguments of the Trainer.
        averages: end with averages of the weights.
        num_sets: models side by side, each with a part of the columns.
        device: where to train; all ranks share it where it is a GPU.
    """

    strategy: str
    max_steps: int
    save: Path
    ranks_per_host: int = 1
    resume: Path | None = None
    dense_optimizer: str = "SGD"
    num_nodes: int = 1
    precision: str = "32-true"
    embedding_optimizer: str = "rowwise_adagrad"
    options: dict[str, Any] = field(default_factory=dict)
    limits: dict[str, Any] = field(default_factory=dict)
    averages: bool = False
    num_sets: int = 1
    device: str = "cpu"


class SharedGpu(CUDAAccelerator):
    """One GPU for all ranks."""

    @staticmethod
    def parse_devices(devices: Any) -> Any:
        return devices

    @staticmethod
    def get_parallel_devices(devices: Any) -> list[torch.device]:
        return [torch.device("cuda", 0)] * int(devices)


def make_model(run: Run, over_layers: Sequence[int] = (16,)) -> ClickModel:
    optimizer = getattr(torch.optim, run.dense_optimizer)
    tower: TowerFactory = partial(DLRMTower, c=1, p=1, out_dim=4 // run.num_sets)
    top: TopArchFactory = partial(DLRM, bottom_layers=[8], over_layers=list(over_layers))
    if run.num_sets > 1:
        tower = partial(MultiTower, num_sets=run.num_sets, tower=tower)
        top = partial(MultiEmbedding, num_sets=run.num_sets, top=top)
    return ClickModel(
        embedding_dim=8,
        plan=PLAN,
        tower=tower,
        top=top,
        dense_optimizer=partial(optimizer, lr=0.1 if run.dense_optimizer == "SGD" else 0.01),
        embedding_optimizer=EmbeddingOptimizer(name=run.embedding_optimizer, learning_rate=0.1),
        # Reaches dense layers and embedding rows, and is resumed with them.
        lr_scheduler=partial(torch.optim.lr_scheduler.PolynomialLR, total_iters=10),
    )


def make_data() -> SyntheticClicks:
    return SyntheticClicks(
        num_features=6,
        num_groups=2,
        num_dense=3,
        num_embeddings=50,
        num_train=NUM_TRAIN,
        num_valid=31,
        num_test=29,
        global_batch_size=GLOBAL_BATCH,
        seed=5,
    )


def make_trainer(run: Run, world_size: int) -> L.Trainer:
    kinds = {"sptt": SpttStrategy, "torchrec": TorchRecStrategy}
    strategy: Any = "auto"
    if run.strategy != "auto":
        staged_group.register()
        backend = None if run.device == "cpu" or world_size == 1 else staged_group.NAME
        strategy = kinds[run.strategy](ranks_per_host=run.ranks_per_host, process_group_backend=backend, **run.options)
    averages = [WeightAverage(decay=0.6, every_n_steps=2)] if run.averages else []
    return L.Trainer(
        accelerator="cpu" if run.device == "cpu" else SharedGpu(),
        devices=world_size // run.num_nodes,
        num_nodes=run.num_nodes,
        strategy=strategy,
        plugins=[TowerCheckpointIO()] if run.strategy == "auto" else [],
        max_steps=run.max_steps,
        precision=run.precision,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        **{"num_sanity_val_steps": 0, "callbacks": averages} | run.limits,
    )


def fit(run: Run, world_size: int) -> dict[str, Any]:
    """Train; returns metrics, this rank's test predictions and, under SPTT, bytes sent per step."""
    L.seed_everything(3, verbose=False)
    torch.set_num_threads(1)
    trainer, model, data = make_trainer(run, world_size), make_model(run), make_data()
    trainer.fit(model, datamodule=data, ckpt_path=run.resume)
    metrics = {"train/loss": float(trainer.callback_metrics["train/loss"])}
    trainer.save_checkpoint(run.save)
    sent = {}
    if isinstance(trainer.strategy, TowerStrategy):
        [stage] = trainer.strategy.stages.values()
        sent = dict(stage.meter.sent_bytes) if hasattr(stage, "meter") else {}
    trainer.validate(model, datamodule=data, verbose=False)
    metrics |= {name: float(value) for name, value in trainer.callback_metrics.items()}
    trainer.test(model, datamodule=data, verbose=False)
    metrics |= {name: float(value) for name, value in trainer.callback_metrics.items()}
    predictions = torch.cat(trainer.predict(model, datamodule=data))
    return {
        "metrics": metrics,
        "predictions": predictions.tolist(),
        "sent": sent,
        "steps": trainer.global_step,
    }


def fit_all(runs: Sequence[Run], world_size: int) -> list[dict[str, Any]]:
    """Several runs, one after the other, in the same world."""
    return [fit(run, world_size) for run in runs]


def load_state(path: Path) -> dict[str, Tensor]:
    """The model's tensors in a checkpoint of either kind."""
    state: dict[str, Tensor] = TowerCheckpointIO().load_checkpoint(path, weights_only=False)["state_dict"]
    return state


def _refusal(action: Callable[[], Any]) -> str:
    try:
        action()
    except UserInputError as error:
        return str(error)
    return "accepted"


def corners(run: Run, trained: Sequence[Path], world_size: int) -> dict[str, Any]:
    """Uses of the Python API beside one fit with one Trainer.

    Args:
        run: how to shard; the first of ``trained`` is a single-process checkpoint of the same model.
        trained: checkpoints of both kinds.
        world_size: ranks.
    """
    found: dict[str, Any] = {}
    data = make_data()

    def tested(trainer: L.Trainer, model: ClickModel) -> float:
        trainer.test(model, datamodule=data, verbose=False)
        return float(trainer.callback_metrics["test/log_loss"])

    # Weights loaded before sharding.
    plain = make_model(run)
    plain.build(load_schema(trained[0]))
    plain.load_state_dict(load_state(trained[0]))
    trainer = make_trainer(run, world_size)
    found["loaded_before"] = tested(trainer, plain)
    # The sharded model in another Trainer of the same layout.
    found["other_trainer"] = tested(make_trainer(run, world_size), plain)
    # Another model in the same Trainer.
    trainer.fit(second := make_model(run), datamodule=data)
    found["second_is_sharded"] = [type(m).__name__ for m in second.modules() if isinstance(m, Stage)]
    # Checkpoints of another model, by names and by shapes.
    for kind, path in zip(("file", "directory"), trained, strict=True):
        for layers in ([16, 16], [8]):
            other, fresh = make_model(run, layers), make_trainer(run, world_size)
            found[f"{kind} {layers}"] = _refusal(lambda m=other, t=fresh, p=path: t.test(m, data, ckpt_path=p))
    ddp = L.Trainer(accelerator="cpu", devices=world_size, strategy="ddp", logger=False, enable_checkpointing=False)
    found["ddp"] = _refusal(lambda: ddp.fit(make_model(run), datamodule=data))
    return found


def load_schema(path: Path) -> FeatureSchema:
    """The columns of the data that a checkpoint was trained on."""
    stored = TowerCheckpointIO().load_checkpoint(path, weights_only=False)["dmt"]["schema"]
    return FeatureSchema.from_dict(stored)


class _Waits(L.Callback):
    """Counts broadcasts and barriers up to the start of each of five training steps, and ends the fit."""

    def __init__(self) -> None:
        self.calls, self.at_starts = 0, list[int]()
        self._originals = {name: getattr(torch.distributed, name) for name in ("broadcast", "barrier")}

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        for name, original in self._originals.items():
            setattr(torch.distributed, name, partial(self._counted, original))

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        for name, original in self._originals.items():
            setattr(torch.distributed, name, original)

    def _counted(self, original: Callable[..., Any], *args: Any, **options: Any) -> Any:
        self.calls += 1
        return original(*args, **options)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.at_starts.append(self.calls)
        trainer.should_stop = batch_idx == 4


def waits_of_steps(strategies: Sequence[str], folder: Path, world_size: int) -> list[list[int]]:
    """How many broadcasts and barriers each training step but the first took, by strategy."""
    found = []
    for name in strategies:
        counter = _Waits()
        run = Run(strategy=name, max_steps=8, save=folder / name, limits={"callbacks": [counter]})
        trainer = make_trainer(run, world_size)
        trainer.fit(make_model(run), datamodule=make_data())
        # It ended in the middle of an epoch, with a batch on its way.
        assert all(not stage._ahead for stage in trainer.strategy.stages.values())
        found.append([after - before for before, after in zip(counter.at_starts, counter.at_starts[1:], strict=False)])
    return found
