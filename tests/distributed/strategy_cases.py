"""What ranks do to check a strategy against the plain stage: its optimisers, checkpoints and precisions.

Every rank draws the same cases from the same seed.
"""

import random
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dmt.modules import EmbeddingOptimizer, PassThrough, TowerStage, deferred_tables
from dmt.modules.shards import ShardedState
from dmt.plan import TowerPlan
from dmt.schema import CategoricalFeature, FeatureSchema
from dmt.strategies.checkpoint import CheckpointDirectory
from dmt.strategies.stage import ShardedStage
from dmt.strategies.topology import Topology
from tests.distributed.harness import join_world
from tests.distributed.stage_cases import TOLERANCE, Reference, draw_batch, rows_of, shard


def one_case(*, rows: int = 23, dim: int = 8, weighted: bool = False) -> tuple[FeatureSchema, TowerPlan, int]:
    """A fixed schema of four features, two of which share a table; rows enough for four ranks."""
    features = [
        CategoricalFeature(name=name, num_embeddings=rows + len(table), table=table, multi_hot=name != "a")
        for name, table in {"a": "t", "b": "uu", "c": "t", "d": "vvv"}.items()
    ]
    return FeatureSchema(categorical=features, weighted=weighted), TowerPlan(towers=[["d", "a"], ["c", "b"]]), dim


def build(optimizer: EmbeddingOptimizer, **shape: Any) -> TowerStage:
    schema, plan, dim = one_case(**shape)
    torch.manual_seed(7)
    return TowerStage(schema=schema, plan=plan, embedding_dim=dim, tower=PassThrough, optimizer=optimizer)


def deferred(optimizer: EmbeddingOptimizer) -> TowerStage:
    """:func:`build` without tables, as a Strategy shards it."""
    with deferred_tables():
        return build(optimizer)


def whole_state(state: ShardedState) -> dict[str, Tensor]:
    """All ranks' shards put together; fails where an element is on no rank, or one of a table on several."""
    everyone: list[Any] = [None] * dist.get_world_size()
    mine = {n: [(p.offsets, p.shape, p.tensor.detach().clone()) for p in parts] for n, parts in state.items()}
    dist.all_gather_object(everyone, mine)
    wholes: dict[str, Tensor] = {}
    counts: dict[str, Tensor] = {}
    for name, (offsets, shape, part) in ((n, part) for held in everyone for n, parts in held.items() for part in parts):
        whole = wholes.setdefault(name, torch.zeros(shape, dtype=part.dtype, device=part.device))
        count = counts.setdefault(name, torch.zeros(shape, dtype=torch.int32))
        block = tuple(slice(start, start + size) for start, size in zip(offsets, part.shape, strict=True))
        whole[block], count[block] = part, count[block] + 1
    for name, count in counts.items():
        assert (count == 1).all() or not (name.startswith("embeddings.") and count.dim()), name
        assert (count > 0).all(), name
    return wholes


def share(batch: KeyedJaggedTensor, sizes: list[int]) -> tuple[slice, KeyedJaggedTensor]:
    """This rank's samples of a batch."""
    start = sum(sizes[: dist.get_rank()])
    stop = start + sizes[dist.get_rank()]
    return slice(start, stop), rows_of(batch, start, stop)


def train(stage: ShardedStage, batch: KeyedJaggedTensor, weights: Tensor, sizes: list[int]) -> Tensor:
    """One step of the mean of ``output * weights`` over the global batch; returns this rank's output."""
    own, mine = share(batch, sizes)
    output = stage(mine)
    ((output * weights[own]).sum() * len(sizes) / sum(sizes)).backward()
    return output


def check_optimizers(
    strategy: str, ranks_per_host: int, optimizers: Sequence[str], kinds: Sequence[str], path: str, seed: int
) -> list[str]:
    """Optimisers under kinds of sharding against the plain stage, with a changing learning rate; then a checkpoint.

    The checkpoint of each kind is read by the next one, whose state must be that of the plain stage.
    """
    join_world()
    topology = Topology(world_size=dist.get_world_size(), ranks_per_host=ranks_per_host)
    rng, checked = random.Random(seed), []
    for name in optimizers:
        # With a large eps a gradient that is nothing but rounding moves a row by no more than rounding.
        optimizer = EmbeddingOptimizer(name=name, learning_rate=0.1, eps=0.1)
        plain = build(optimizer)
        possible = [k for k in kinds if optimizer.can_split_columns or not ("column" in k or "grid" in k)]
        stages = [shard(strategy, deferred(optimizer), topology, sharding=kind) for kind in possible]
        for rate in (0.1, 0.3, 0.0):
            sizes = [rng.randint(0, 4) for _ in range(3)] + [2]
            batch = draw_batch(plain.schema, sum(sizes), rng)
            weights = torch.randn(sum(sizes), plain.out_features, plain.out_dim)
            dist.broadcast(weights, src=0)
            plain.set_learning_rate(rate)
            ((plain(batch) * weights).sum() / sum(sizes)).backward()
            for stage in stages:
                stage.set_learning_rate(rate)
                train(stage, batch, weights, sizes)
        expected = {n: tensor for n, tensor in plain.state_dict().items() if n.startswith("embeddings.")}
        for index, (kind, stage) in enumerate(zip(possible, stages, strict=True)):
            compare = partial(torch.testing.assert_close, msg=lambda m, k=kind, o=name: f"{o}, {k}: {m}", **TOLERANCE)
            compare(whole_state(stage.stage_state()), expected)
            directory = CheckpointDirectory(Path(path) / f"{name}_{kind}.ckpt")
            directory.save({"state_dict": stage.stage_state()})
            assert directory.tensor_shapes() == {n: tuple(tensor.shape) for n, tensor in expected.items()}
            reader = shard(strategy, deferred(optimizer), topology, sharding=possible[index - 1])
            directory.load_tensors(reader.stage_state())
            compare(whole_state(reader.stage_state()), expected)
            checked.append(f"{name} {kind}")
    return checked


UNIT_ROUNDOFF = {"fp16": 2.0**-11, "bf16": 2.0**-8}
"""Of rounding to the nearest value of 11 or 8 significant bits."""


def check_precision(strategy: str, kinds: Sequence[str], precision: str, seed: int) -> list[str]:
    """Outputs and row gradients within the precision's own rounding of float32, and really narrower."""
    join_world()
    topology = Topology(world_size=dist.get_world_size(), ranks_per_host=2)
    rng = random.Random(seed)
    optimizer = EmbeddingOptimizer(name="sgd", learning_rate=1.0)
    for kind in kinds:
        sizes = [rng.randint(0, 5), 3, 7, 1]
        reference = Reference(build(optimizer))
        batch = draw_batch(build(optimizer).schema, sum(sizes), rng)
        expected = reference(batch)
        weights = torch.randn(expected.shape)
        dist.broadcast(weights, src=0)
        stage = shard(
            strategy,
            deferred(optimizer),
            topology,
            sharding=kind,
            forward_precision=precision,
            backward_precision=precision,
        )
        before = whole_state(stage.stage_state())
        output = train(stage, batch, weights, sizes)
        own, _ = share(batch, sizes)
        sums_travel = strategy == "torchrec" and "row" in kind
        _compare_outputs(output, expected[own], precision, sums_travel, len(sizes))
        after = whole_state(stage.stage_state())
        moved = {name: before[name] - tensor for name, tensor in after.items()}
        _compare_gradients(moved, reference, batch, weights / sum(sizes), precision)
    return list(kinds)


def _compare_outputs(output: Tensor, expected: Tensor, precision: str, sums_travel: bool, num_ranks: int) -> None:
    errors = (output - expected).detach().abs()
    if not errors.numel():
        return
    if precision == "int8":
        # Half of one of 255 steps between the least and the largest of 32 values; 0 pads batches.
        spread = max(float(expected.max()), 0.0) - min(float(expected.min()), 0.0)
        assert float(errors.max()) <= 1.01 * spread / 510 + 1e-6
        return
    unit = UNIT_ROUNDOFF[precision]
    if sums_travel:
        # Every partial sum is rounded, and so is each of their sums on the way. Each is below four rows of the
        # tables, whose values are below 23**-0.5.
        assert float(errors.max()) <= 2 * num_ranks * unit * 4 * 23**-0.5
    else:
        # 1e-6: what is rounded was summed in another order than the reference; 2**-24: the least fp16 value.
        assert bool((errors <= (1 + 1e-3) * unit * expected.abs() + 1e-6 + 2**-24).all())


def _compare_gradients(
    moved: dict[str, Tensor], reference: Reference, batch: KeyedJaggedTensor, weights: Tensor, precision: str
) -> None:
    """Compare what a step of size 1 moved rows by with their gradients, each of whose terms was rounded."""

    def gradients(of_outputs: Tensor) -> dict[str, Tensor]:
        reference.zero_grad()
        (reference(batch) * of_outputs).sum().backward()
        return {f"embeddings.{name}_weight": table.grad for name, table in reference.tables.items()}

    exact, sum_of_sizes = gradients(weights), gradients(weights.abs())
    number_of_terms = gradients(torch.ones_like(weights))
    spread = max(float(weights.max()), 0.0) - min(float(weights.min()), 0.0)
    for name, gradient in exact.items():
        error = (moved[name] - gradient).abs()
        if precision == "int8":
            bound = 1.01 * spread / 510 * number_of_terms[name]
        else:
            bound = 1.01 * UNIT_ROUNDOFF[precision] * sum_of_sizes[name]
        # 1e-6: rounding of the rows themselves, whose values are below 1.
        assert bool((error <= bound + 1e-6).all()), f"{name}: {float((error - bound).max())}"
        assert bool((error > 1e-6).any()), f"{name}: the gradients travelled in float32"
