"""What a sharded stage does with batches that went ahead, and with the state that towers start from."""

import os
from collections.abc import Callable, Generator

import lightning.pytorch as pl
import pytest
import torch
import torch.distributed as dist
from lightning.pytorch.plugins.environments import LightningEnvironment
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dmt.errors import UserInputError
from dmt.modules import ClickModel, EmbeddingOptimizer, PassThrough, TowerModule, TowerStage
from dmt.plan import TowerPlan
from dmt.schema import CategoricalFeature, FeatureSchema
from dmt.strategies import SpttStrategy
from dmt.strategies.named import _rank_memory_bytes
from dmt.strategies.stage import Distributed, ShardedStage
from dmt.strategies.topology import Topology
from tests.distributed.harness import join_world, run_ranks
from tests.distributed.stage_cases import shard
from tests.strategies.test_stage import make_stage


def stage_outputs_of_changed_batches() -> list[list[tuple[bool, bool]]]:
    """Runs in a rank: whether a stage's output is that of the batch it is given, after another was sent ahead."""
    join_world()
    topology = Topology(world_size=dist.get_world_size(), ranks_per_host=1)
    names = ["a", "b"]
    features = [CategoricalFeature(name=name, num_embeddings=9, multi_hot=True) for name in names]
    torch.manual_seed(1)
    plain = TowerStage(
        schema=FeatureSchema(categorical=features, weighted=True),
        plan=TowerPlan(towers=[["a"], ["b"]]),
        embedding_dim=4,
        tower=PassThrough,
        optimizer=EmbeddingOptimizer(name="sgd"),
    )
    results = []
    for kind in ("sptt", "torchrec"):
        torch.manual_seed(1)
        stage = shard(kind, plain, topology)
        results.append([_follows(stage, plain, change) for change in (_same, _other_weights, _written_to)])
    return results


def _same(batch: KeyedJaggedTensor) -> KeyedJaggedTensor:
    return batch.to(torch.device("cpu"))


def _other_weights(batch: KeyedJaggedTensor) -> KeyedJaggedTensor:
    return KeyedJaggedTensor(batch.keys(), batch.values(), 2 * batch.weights(), lengths=batch.lengths())


def _written_to(batch: KeyedJaggedTensor) -> KeyedJaggedTensor:
    batch.values().add_(1)
    return batch


def _follows(
    stage: ShardedStage, plain: TowerStage, change: Callable[[KeyedJaggedTensor], KeyedJaggedTensor]
) -> tuple[bool, bool]:
    """Whether the output is right, and whether the ids that went ahead were used."""
    batch = KeyedJaggedTensor(
        ["a", "b"],
        torch.arange(6) % 8,
        torch.rand(6, dtype=torch.float64),  # as numpy makes them
        lengths=torch.tensor([2, 1, 0, 3]),
    )
    stage.prefetch(batch, loader=batch)
    given = change(batch)
    output = stage(given)
    was_used = not stage._ahead
    stage.forget_prefetched(batch)
    # Sums of at most three products.
    return bool(torch.allclose(output, plain(given), rtol=1e-5, atol=1e-6)), was_used


def test_ids_that_went_ahead_are_used_for_their_own_batch_only() -> None:
    for by_kind in run_ranks(stage_outputs_of_changed_batches, world_size=2):
        for same, other_weights, written_to in by_kind:
            assert same == (True, True)
            assert other_weights == (True, False)
            assert written_to == (True, False)


def failing_stage() -> tuple[bool, int]:
    """Runs in a rank: what is left of a distribution one of whose steps fails."""
    join_world()
    stage = shard("sptt", make_stage(3), Topology(world_size=1, ranks_per_host=1))

    def steps() -> Generator[None, None, Distributed]:
        yield
        raise ConnectionError

    batch = KeyedJaggedTensor(["f0"], torch.tensor([1]), lengths=torch.tensor([1]))
    stage.distribute = lambda features: steps()
    stage.prefetch(batch, loader=batch)
    with pytest.raises(ConnectionError):
        stage.advance()
    stage.forget_prefetched(batch)  # returns
    return True, len(stage._ahead)


def test_a_failed_step_is_not_waited_for() -> None:
    assert run_ranks(failing_stage, world_size=1) == [(True, 0)]


class Projection(TowerModule):
    """A tower with buffers that each rank draws for itself, one of which no checkpoint holds."""

    def __init__(self, num_features: int, embedding_dim: int) -> None:
        super().__init__()
        self.out_features, self.out_dim = num_features, embedding_dim
        self.register_buffer("matrix", torch.randn(embedding_dim, embedding_dim))
        self.register_buffer("shift", torch.randn(embedding_dim), persistent=False)

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        return embeddings @ self.matrix + self.shift


def memory_of_a_rank() -> int:
    join_world()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "sysconf", lambda name: 10 - dist.get_rank())
        return _rank_memory_bytes(torch.device("cpu"), ranks=1)


def test_ranks_place_tables_by_the_memory_that_all_of_them_have() -> None:
    assert run_ranks(memory_of_a_rank, world_size=2) == [9 * 9, 9 * 9]  # pages, each of so many bytes


def buffers_of_a_tower() -> list[list[float]]:
    join_world()
    torch.manual_seed(dist.get_rank())
    stage = shard("sptt", make_stage(3, tower=Projection), Topology(world_size=2, ranks_per_host=2))
    return [buffer.flatten().tolist() for buffer in stage.towers["0"].buffers()]


def test_all_seats_start_from_the_same_buffers() -> None:
    first, second = run_ranks(buffers_of_a_tower, world_size=2)
    assert len(first) == 2 and first == second


class Hooked(ClickModel):
    def on_before_batch_transfer(self, batch: object, dataloader_idx: int) -> object:
        return batch


def test_no_batch_goes_ahead_where_a_hook_could_change_it() -> None:
    for model, wrapped in ((ClickModel(), True), (Hooked(), False)):
        strategy = SpttStrategy(ranks_per_host=1)
        strategy._lightning_module = model
        model.trainer = pl.Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)
        loader = [1, 2]
        assert (strategy.process_dataloader(loader) is not loader) == wrapped


@pytest.mark.parametrize(
    ("callback", "message"),
    [
        # It would copy a sharded model, or average nothing, without a word.
        (pl.callbacks.StochasticWeightAveraging(swa_lrs=0.1), r"^callback StochasticWeightAveraging: .*lr_scheduler"),
        # A rank that has failed would wait for the others' parts until the timeout.
        (pl.callbacks.OnExceptionCheckpoint("x"), "^callback OnExceptionCheckpoint: .*every_n_train_steps"),
        (pl.callbacks.ModelCheckpoint(save_on_exception=True), "^callback ModelCheckpoint: .*every_n_train_steps"),
    ],
)
def test_callbacks_that_need_a_whole_model_are_refused(callback: pl.Callback, message: str) -> None:
    trainer = pl.Trainer(accelerator="cpu", devices=1, logger=False, callbacks=[callback])
    strategy = SpttStrategy(ranks_per_host=1, parallel_devices=[torch.device("cpu")] * 2)
    strategy.cluster_environment = LightningEnvironment()
    with pytest.raises(UserInputError, match=message):
        strategy.refuse_unsupported(trainer)
