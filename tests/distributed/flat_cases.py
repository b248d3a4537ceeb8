"""What ranks do in ``test_flat``: the flat stage under every sharding, and what only it has.

Every rank draws the same cases from the same seed. Random cases and their comparison with plain torch are those of
``stage_cases``.
"""

import inspect
import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dmt.describe import Layout, describe
from dmt.modules import ClickModel, EmbeddingOptimizer, PassThrough, TowerStage, deferred_tables
from dmt.schema import CategoricalFeature, FeatureSchema
from dmt.strategies.flat import FlatStage
from dmt.strategies.flat_meter import count_torchrec
from dmt.strategies.topology import Topology
from tests.distributed.harness import join_world
from tests.distributed.stage_cases import Case, Reference, assert_near, check_case, draw_batch, draw_case
from tests.distributed.strategy_cases import build, one_case, share, train, whole_state

KINDS = ("table_wise", "row_wise", "column_wise", "table_row_wise", "table_column_wise")
SHARDINGS = (*KINDS, "planner", "mixed")
CPU = torch.device("cpu")


def flat(plain: TowerStage, topology: Topology, **options: Any) -> FlatStage:
    return FlatStage(plain, topology=topology, device=CPU, **options)


def draw_kinds(case: Case, rng: random.Random) -> dict[str, str]:
    """A kind for some tables, of those that they can be cut by on any number of ranks here."""
    kinds = {}
    for feature in case.schema.categorical:
        wide = case.table_dims.get(feature.table, case.embedding_dim) >= 8
        possible = ["table_wise", *(KINDS[2::2] if wide else []), *(KINDS[1::2] if feature.num_embeddings > 15 else [])]
        if rng.random() < 0.8:
            kinds[feature.table] = rng.choice(possible)
    return kinds


def check_shardings(ranks_per_host: int, seed: int, num_cases: int) -> list[str]:
    """Random stages under every sharding against plain torch; returns the shardings that were checked."""
    join_world()
    topology = Topology(world_size=dist.get_world_size(), ranks_per_host=ranks_per_host)
    rng = random.Random(seed)
    for sharding in SHARDINGS:
        for index in range(num_cases):
            case = draw_case(rng, multi_hot=rng.random() < 0.6, varied=index % 2 == 1)
            options = {"sharding": draw_kinds(case, rng) if sharding == "mixed" else sharding}
            try:
                check_case(case, "torchrec", topology, rng, steps=3, options=options, prefetch=rng.random() < 0.5)
            except Exception as error:
                raise AssertionError(f"seed {seed}, case {index}, {topology}, {options}, {case}: {error}") from error
    return list(SHARDINGS)


@contextmanager
def counted_payload() -> Iterator[list[int]]:
    """A list of the bytes of embeddings or gradients that each collective is given; ids and sizes are integers."""
    counts: list[int] = []

    def counting(original: Callable[..., Any]) -> Callable[..., Any]:
        second = list(inspect.signature(original).parameters)[1]

        def call(*args: Any, **kwargs: Any) -> Any:
            sent = inspect.signature(original).bind(*args, **kwargs).arguments[second]
            if sent.is_floating_point() or sent.dtype == torch.uint8:
                counts.append(sent.numel() * sent.element_size())
            return original(*args, **kwargs)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in ("all_to_all_single", "reduce_scatter_tensor", "all_gather_into_tensor"):
            patch.setattr(dist, name, counting(getattr(dist, name)))
        yield counts


def payload_bytes(seed: int) -> dict[str, dict[str, tuple[int, int]]]:
    """Bytes that this rank's collectives were given, forward and backward: ``{kind: {precisions: bytes}}``."""
    join_world()
    topology = Topology(world_size=dist.get_world_size(), ranks_per_host=2)
    optimizer = EmbeddingOptimizer(name="sgd", learning_rate=1.0)
    batch = draw_batch(build(optimizer).schema, 8 * topology.world_size, random.Random(seed))
    _, mine = share(batch, [8] * topology.world_size)  # a multiple of 8: int8 pads others
    found: dict[str, dict[str, tuple[int, int]]] = {}
    for kind in KINDS:
        for pair in (("fp32", "fp32"), ("fp16", "fp32"), ("fp32", "bf16"), ("int8", "int8")):
            if "int8" in pair and "row" in kind:
                continue
            with deferred_tables():
                stage = flat(
                    build(optimizer), topology, sharding=kind, forward_precision=pair[0], backward_precision=pair[1]
                )
            with counted_payload() as forward:
                output = stage(mine)
            with counted_payload() as backward:
                output.sum().backward()
            found.setdefault(kind, {})[" ".join(pair)] = (sum(forward), sum(backward))
    return found


def sent_and_predicted(ranks_per_host: int, seed: int) -> list[tuple[str, dict[str, int], dict[str, float]]]:
    """Bytes of a step under every kind and some precisions: those that this rank sent, and a rank's predicted mean."""
    join_world()
    topology = Topology(world_size=dist.get_world_size(), ranks_per_host=ranks_per_host)
    rng, found = random.Random(seed), []
    for sharding in SHARDINGS:
        # Single-hot, so that embeddings are not the only thing that is exact.
        schema, plan, dim = one_case(rows=64, dim=32, weighted=rng.random() < 0.5)
        features = [
            CategoricalFeature(name=f.name, num_embeddings=64, table=f.table, multi_hot=False)
            for f in schema.categorical
        ]
        schema = FeatureSchema(categorical=features, weighted=schema.weighted)
        pair = rng.choice([("fp32", "fp32"), ("fp16", "bf16"), ("int8", "fp32")])
        kinds = {"t": "table_row_wise", "uu": "column_wise", "vvv": "row_wise"} if sharding == "mixed" else sharding
        if "int8" in pair and (sharding == "mixed" or "row" in sharding):
            pair = ("fp32", "fp16")
        options = {"sharding": kinds, "forward_precision": pair[0], "backward_precision": pair[1]}
        model = ClickModel(
            embedding_dim=dim, plan=plan, tower=PassThrough, embedding_optimizer=EmbeddingOptimizer(name="sgd")
        )
        layout = Layout(strategy="torchrec", topology=topology, global_batch_size=64 * topology.world_size, **options)
        told = describe(model, schema, layout)["bytes_per_iteration"]["by_purpose"]
        predicted = {
            link: sum(links[link] for purpose, links in told.items() if purpose != "dense_gradients")
            for link in ("intra_host", "cross_host")
        }
        with deferred_tables():
            stage = flat(model.make(schema).stage, topology, **options)
        # Every row once a batch, so that every block of rows gets its share.
        ids = torch.cat([torch.randperm(64) for _ in features])
        weights = torch.rand(len(ids)) if schema.weighted else None
        lengths = torch.ones(len(ids), dtype=torch.int32)
        batch = KeyedJaggedTensor(list(schema.feature_names), ids, weights, lengths=lengths)
        with count_torchrec(stage.meter):
            stage(batch).sum().backward()
        sent = {link: stage.meter.total_bytes(link) for link in predicted}
        found.append((f"{options}, weighted={schema.weighted}", sent, predicted))
    return found


def check_small_gradients() -> float:
    """Largest relative error of gradients of a mean over a large batch, below what fp16 alone could hold."""
    join_world()
    topology = Topology(world_size=dist.get_world_size(), ranks_per_host=1)
    optimizer = EmbeddingOptimizer(name="sgd", learning_rate=1.0)
    batch_size, worst = 4096, 0.0
    sizes = [batch_size] * topology.world_size
    batch = draw_batch(build(optimizer).schema, sum(sizes), random.Random(1))
    weights = 1e-4 * (0.5 + torch.rand(sum(sizes), 4, 8, generator=torch.Generator().manual_seed(1)))
    reference = Reference(build(optimizer))
    (reference(batch) * weights).sum().backward()
    with deferred_tables():
        stage = flat(build(optimizer), topology, backward_precision="fp16")
    for shards in stage.stage_state().values():
        for shard in shards:
            shard.tensor.zero_()  # so that what a row is moved by is not rounded away
    train(stage, batch, weights, sizes)
    for name, moved in whole_state(stage.stage_state()).items():
        gradient = reference.tables[name.removeprefix("embeddings.").removesuffix("_weight")].grad / sum(sizes)
        worst = max(worst, float(((-moved - gradient) / gradient).abs().nan_to_num().max()))
    return worst


def check_inference(seed: int) -> None:
    """Outputs without gradients, as validation asks for them, between two training batches' distribution."""
    join_world()
    topology = Topology(world_size=dist.get_world_size(), ranks_per_host=1)
    optimizer = EmbeddingOptimizer(name="sgd", learning_rate=1.0)
    for kind in ("table_wise", "row_wise"):
        reference = Reference(build(optimizer))
        with deferred_tables():
            stage = flat(build(optimizer), topology, sharding=kind)
        sizes = [3, 0]
        with torch.inference_mode():
            batch = draw_batch(build(optimizer).schema, sum(sizes), random.Random(seed))
            own, mine = share(batch, sizes)
            assert_near(stage(mine), reference(batch)[own], "output")
        assert stage.rank_shares() == {(1, 0)}


def check_built_tables() -> None:
    """A plain stage that has tables already, as a loaded model has, keeps them."""
    join_world()
    topology = Topology(world_size=dist.get_world_size(), ranks_per_host=2)
    plain = build(EmbeddingOptimizer(name="adagrad"))
    with torch.no_grad():
        for tensor in plain.embeddings.state_dict().values():
            tensor.copy_(torch.arange(tensor.numel()).view_as(tensor))
    for kind in KINDS:
        torch.testing.assert_close(
            whole_state(flat(plain, topology, sharding=kind).stage_state()), plain.state_dict(), rtol=0, atol=0
        )


def check_wrong_ids() -> None:
    """An id beyond its table is an error also where TorchRec would send it to another row of another rank."""
    join_world()
    topology = Topology(world_size=dist.get_world_size(), ranks_per_host=1)
    for kind in ("row_wise", "table_row_wise"):
        with deferred_tables():
            stage = flat(build(EmbeddingOptimizer(name="sgd")), topology, sharding=kind)
        lengths = torch.ones(4, dtype=torch.int32)
        for ids, weights in (([0, 0, 24, 0], None), ([0, -2, 0, 0], None)):
            batch = KeyedJaggedTensor(["a", "b", "c", "d"], torch.tensor(ids), weights, lengths=lengths)
            # Before anything is sent: every rank finds it in its own batch.
            with pytest.raises(RuntimeError, match="idx"):
                stage(batch)


def table_row_wise_layouts() -> list[tuple[int, list[int]]]:
    """Ranks of a host in each of several layouts of one process, and the ranks that a table is on."""
    join_world()
    found = []
    for ranks_per_host in (2, 4, 1, 2):
        topology = Topology(world_size=dist.get_world_size(), ranks_per_host=ranks_per_host)
        rng = random.Random(ranks_per_host)
        case = draw_case(rng, multi_hot=True)
        check_case(case, "torchrec", topology, rng, steps=2, options={"sharding": "table_row_wise"})
        with deferred_tables():
            stage = flat(build(EmbeddingOptimizer(name="sgd")), topology, sharding="table_row_wise")
        holders: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(holders, "embeddings.uu_weight" in stage.stage_state())
        found.append((ranks_per_host, [rank for rank, holds in enumerate(holders) if holds]))
        assert os.environ["LOCAL_WORLD_SIZE"] == "4"
    return found


def planner_choices(seed: int) -> list[str]:
    """Kinds that the planner chose for rowwise_adagrad and for int8; and what it says of tables too large."""
    join_world()
    topology = Topology(world_size=dist.get_world_size(), ranks_per_host=2)
    found = []
    with deferred_tables():
        for name, options in {"rowwise_adagrad": {}, "adagrad": {"forward_precision": "int8"}}.items():
            stage = flat(build(EmbeddingOptimizer(name=name), dim=256), topology, sharding="planner", **options)
            rng = random.Random(seed)
            batch = draw_batch(build(EmbeddingOptimizer(name=name)).schema, 8, rng)
            assert stage(share(batch, [2] * 4)[1]).shape == (2, 4, 256)
            found.append(" ".join(sorted({s.sharding_type for s in stage.torchrec_plan.values()})))
        try:
            flat(build(EmbeddingOptimizer(), rows=10**9), topology, sharding="planner", rank_memory_bytes=2**30)
        except ValueError as error:
            found.append(str(error))
    return found
