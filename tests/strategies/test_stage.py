"""What placement and the wire take from a plain stage."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from dmt.errors import UserInputError
from dmt.modules import EmbeddingOptimizer, PassThrough, TowerStage, deferred_tables
from dmt.modules.towers import TowerFactory
from dmt.plan import TowerPlan
from dmt.schema import CategoricalFeature, FeatureSchema
from dmt.strategies.flat import FlatStage
from dmt.strategies.stage import table_costs, wire_id_dtype
from dmt.strategies.topology import Topology
from tests.distributed.harness import join_world, run_ranks


def make_stage(
    *rows: int,
    names: Sequence[str] = ("f0", "f1", "f2"),
    tables: Sequence[str] = ("", "", ""),
    optimizer: Any = "rowwise_adagrad",
    tower: TowerFactory = PassThrough,
) -> TowerStage:
    """A stage of which the second feature holds several ids, in towers of the last feature and of the others."""
    names = names[: len(rows)]
    features = [
        CategoricalFeature(
            name=name, num_embeddings=n, multi_hot=i == 1, mean_length=2.5 if i == 1 else 1.0, table=tables[i]
        )
        for i, (name, n) in enumerate(zip(names, rows, strict=True))
    ]
    with deferred_tables():
        return TowerStage(
            schema=FeatureSchema(categorical=features),
            plan=TowerPlan(towers=[tower for tower in (names[-1:], names[:-1]) if tower]),
            embedding_dim=8,
            tower=tower,
            optimizer=EmbeddingOptimizer(name=optimizer),
        )


@pytest.mark.parametrize(
    ("name", "state", "splits"), [("sgd", 0, True), ("adagrad", 8, True), ("rowwise_adagrad", 1, False)]
)
def test_a_tables_cost_counts_its_lookups_and_its_rows_with_their_state(name: str, state: int, splits: bool) -> None:
    costs = table_costs(make_stage(10, 20, 30, optimizer=name))
    assert [cost.table.name for cost in costs] == ["f2", "f0", "f1"]
    assert [cost.lookups for cost in costs] == [1.0, 1.0, 2.5]
    assert [cost.memory_bytes for cost in costs] == [4 * rows * (8 + state) for rows in (30, 10, 20)]
    assert {cost.can_split_columns for cost in costs} == {splits}


def test_a_shared_tables_cost_has_the_lookups_of_all_its_features() -> None:
    [cost] = table_costs(make_stage(10, 10, 10, tables=["t", "t", "t"]))
    assert (cost.table.name, cost.lookups, cost.memory_bytes) == ("t", 4.5, 4 * 10 * 9)


@pytest.mark.parametrize(("rows", "dtype"), [(2, torch.int32), (2**31, torch.int32), (2**31 + 1, torch.int64)])
def test_ids_travel_in_four_bytes_while_they_fit(rows: int, dtype: torch.dtype) -> None:
    assert wire_id_dtype(make_stage(rows, 3)) == dtype


def flat_stage_errors(names: list[str]) -> list[str]:
    """Runs in a rank: why a column of each name cannot be sharded by TorchRec."""
    join_world()
    errors = []
    for name in names:
        try:
            topology = Topology(world_size=1, ranks_per_host=1)
            FlatStage(make_stage(3, names=[name]), topology=topology, device=torch.device("cpu"))
        except UserInputError:
            continue  # refused clearly
        except Exception as error:
            errors.append(f"{name}: {error!r}")
    return errors


def test_the_flat_stage_takes_a_column_of_any_name() -> None:
    # Attributes of nn.Module and nn.ModuleDict, which a registered table must not hide.
    assert run_ranks(flat_stage_errors, world_size=1, args=(["type", "items", "city"],)) == [[]]
