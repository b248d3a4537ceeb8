"""torchrec = plain torch under every kind of sharding, precision and optimiser that the flat stage has."""

from contextlib import nullcontext

import pytest
import torch
from torchrec.modules.embedding_configs import EmbeddingBagConfig

from dmt.errors import UserInputError
from dmt.modules import EmbeddingOptimizer, deferred_tables
from dmt.modules.shards import TableShard
from dmt.strategies.flat import FlatStage
from dmt.strategies.flat_sharding import check_kernel_sizes
from dmt.strategies.topology import Topology
from tests.distributed import flat_cases as cases
from tests.distributed.harness import fresh_seed, run_ranks
from tests.distributed.strategy_cases import build, check_optimizers, check_precision


@pytest.mark.parametrize(("hosts", "ranks_per_host"), [(1, 1), (1, 2), (2, 1), (2, 2)])
def test_every_sharding_equals_plain_torch(hosts: int, ranks_per_host: int) -> None:
    world_size = hosts * ranks_per_host
    checked = run_ranks(
        cases.check_shardings, world_size=world_size, args=(ranks_per_host, fresh_seed(), 2), timeout_s=200
    )
    assert checked == [list(cases.SHARDINGS)] * world_size


def test_every_optimizer_equals_the_plain_stage_and_checkpoints_move_between_shardings(tmp_path) -> None:
    arguments = ("torchrec", 2, ("sgd", "adagrad", "rowwise_adagrad"), cases.SHARDINGS[:6], str(tmp_path), fresh_seed())
    [checked, *_] = run_ranks(check_optimizers, world_size=4, args=arguments, timeout_s=200)
    assert len(checked) == 6 + 6 + 4  # row-wise Adagrad has no blocks of columns


@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8"])
def test_precision_costs_its_own_rounding(precision: str) -> None:
    kinds = [kind for kind in cases.KINDS if precision != "int8" or "row" not in kind]
    run_ranks(check_precision, world_size=4, args=("torchrec", kinds, precision, fresh_seed()))


def test_lower_precision_sends_fewer_bytes() -> None:
    for by_kind in run_ranks(cases.payload_bytes, world_size=4, args=(fresh_seed(),)):
        for kind, by_precision in by_kind.items():
            forward, backward = by_precision["fp32 fp32"]
            assert by_precision["fp16 fp32"] == (forward / 2, backward), kind
            assert by_precision["fp32 bf16"] == (forward, backward / 2), kind
            if "row" not in kind:
                # 32 values in 32 bytes, and a scale and a bias of 4 bytes
                assert by_precision["int8 int8"] == (forward * 40 / 128, backward * 40 / 128), kind
    assert forward or backward


@pytest.mark.parametrize(("world_size", "ranks_per_host"), [(2, 1), (4, 2)])
def test_described_bytes_are_the_bytes_sent(world_size: int, ranks_per_host: int) -> None:
    by_rank = run_ranks(cases.sent_and_predicted, world_size=world_size, args=(ranks_per_host, fresh_seed()))
    for ranks in zip(*by_rank, strict=True):
        options, _, predicted = ranks[0]
        for link, size in predicted.items():
            mean = sum(sent[link] for _, sent, _ in ranks) / world_size
            assert mean == pytest.approx(size, rel=1e-12), f"{options}, {link}"  # integers, but for the mean


def test_fp16_holds_gradients_of_large_batches() -> None:
    # 1e-4 / 4096 = 2.4e-8 is less than half of fp16's least value, and unscaled would be 0: an error of 1. Each term
    # is rounded by 2**-11; float32 sums of some hundred terms add 1e-5.
    assert max(run_ranks(cases.check_small_gradients, world_size=2)) <= 2**-11 + 1e-5


def test_outputs_without_gradients() -> None:
    run_ranks(cases.check_inference, world_size=2, args=(fresh_seed(),))


def test_tables_that_are_built_already_are_kept() -> None:
    run_ranks(cases.check_built_tables, world_size=4)


def test_ids_beyond_a_row_wise_table_are_errors() -> None:
    run_ranks(cases.check_wrong_ids, world_size=2)


def test_table_row_wise_follows_the_layout_it_is_given() -> None:
    """TorchRec itself keeps the host groups of its first layout, and reads them from LOCAL_WORLD_SIZE."""
    [found, *_] = run_ranks(cases.table_row_wise_layouts, world_size=4, ranks_per_node=4)
    for ranks_per_host, holders in found:
        assert len(holders) == ranks_per_host
        assert holders[0] % ranks_per_host == 0


def test_the_planner_keeps_to_what_is_exact() -> None:
    for rowwise, int8, too_large in run_ranks(cases.planner_choices, world_size=4, args=(fresh_seed(),)):
        assert "column" not in rowwise
        assert "row" not in int8
        assert too_large.startswith("sharding=planner: TorchRec's planner found no plan: ")


@pytest.mark.parametrize(
    ("optimizer", "options", "words"),
    [
        ("sgd", {"sharding": "diagonal"}, "sharding=diagonal: choose one of planner, table_wise, row_wise"),
        ("sgd", {"sharding": {"t": "planner"}}, "sharding t=planner: choose one of table_wise, row_wise"),
        ("sgd", {"sharding": {"x": "row_wise"}}, "sharding x=row_wise: there is no such table; the tables are vvv, t"),
        ("sgd", {"sharding": "data_parallel"}, "sharding=data_parallel: TorchRec updates replicated tables by a dense"),
        ("sgd", {"sharding": {"t": "data_parallel"}}, "sharding t=data_parallel: TorchRec updates"),
        ("rowwise_adagrad", {"sharding": "column_wise"}, "sharding=column_wise: rowwise_adagrad keeps one"),
        (
            "rowwise_adagrad",
            {"sharding": {"uu": "table_column_wise"}},
            "sharding uu=table_column_wise: rowwise_adagrad",
        ),
        ("sgd", {"sharding": {"t": "column_wise"}, "dim": 4}, "a width of 4 has no two blocks of 4 columns"),
        (
            "sgd",
            {"sharding": {"t": "row_wise"}, "rows": 1},
            "blocks of 1 of its 2 rows do not reach all of the 4 ranks",
        ),
        ("sgd", {"sharding": "row_wise", "forward_precision": "int8"}, "precision int8 with sharding row_wise"),
        ("adam", {}, "embedding optimizer name='adam': TorchRec"),
    ],
)
def test_what_cannot_be_is_refused(optimizer: str, options: dict, words: str) -> None:
    shape = {name: options[name] for name in ("rows", "dim") if name in options}
    settings = {name: value for name, value in options.items() if name not in shape}
    with deferred_tables():
        plain = build(EmbeddingOptimizer(name=optimizer), **shape)
    topology = Topology(world_size=4, ranks_per_host=2)
    with pytest.raises(UserInputError) as refusal:
        FlatStage(plain, topology=topology, device=torch.device("cpu"), **settings)
    assert words in str(refusal.value)


@pytest.mark.parametrize(("rows", "refused"), [(2**26, False), (2**26 + 1, True)])
def test_rows_beyond_what_fbgemm_can_address_are_refused(rows: int, refused: bool) -> None:
    """FBGEMM's row-wise Adagrad on the CPU updates row 0 of a table of 16 columns in the place of row 2^26."""
    table = EmbeddingBagConfig(name="t", feature_names=["t"], num_embeddings=rows, embedding_dim=16)
    shards = [TableShard.whole(table)]
    check_kernel_sizes(shards, optimizer_name="adagrad", device_type="cpu")
    check_kernel_sizes(shards, optimizer_name="rowwise_adagrad", device_type="cuda")
    expected = pytest.raises(
        UserInputError, match=r"^table 't': 67108865 rows of 16 columns on one rank are more than 4"
    )
    with expected if refused else nullcontext():
        check_kernel_sizes(shards, optimizer_name="rowwise_adagrad", device_type="cpu")
