"""What placement and the wire take from a plain stage."""

import pytest
import torch

from dmt.modules import EmbeddingOptimizer, PassThrough, TowerStage, deferred_tables
from dmt.plan import TowerPlan
from dmt.schema import CategoricalFeature, FeatureSchema
from dmt.strategies.stage import table_costs, wire_id_dtype
from dmt.strategies.topology import TableCost


def make_stage(*rows: int) -> TowerStage:
    """Features f0, f1, ..., of which f1 holds several ids, in towers of one and of the others."""
    features = [
        CategoricalFeature(name=f"f{i}", num_embeddings=n, multi_hot=i == 1, mean_length=2.5 if i == 1 else 1.0)
        for i, n in enumerate(rows)
    ]
    names = [feature.name for feature in features]
    with deferred_tables():
        return TowerStage(
            schema=FeatureSchema(categorical=features),
            plan=TowerPlan(towers=[names[-1:], names[:-1]]),
            embedding_dim=8,
            tower=PassThrough,
            optimizer=EmbeddingOptimizer(),
        )


def test_a_tables_cost_counts_float32_rows() -> None:
    assert table_costs(make_stage(10, 20, 30)) == [
        [TableCost(name="f2", output_bytes=32, lookups=1.0, memory_bytes=30 * 32)],
        [
            TableCost(name="f0", output_bytes=32, lookups=1.0, memory_bytes=10 * 32),
            TableCost(name="f1", output_bytes=32, lookups=2.5, memory_bytes=20 * 32),
        ],
    ]


@pytest.mark.parametrize(("rows", "dtype"), [(2, torch.int32), (2**31, torch.int32), (2**31 + 1, torch.int64)])
def test_ids_travel_in_four_bytes_while_they_fit(rows: int, dtype: torch.dtype) -> None:
    assert wire_id_dtype(make_stage(rows, 3)) == dtype
