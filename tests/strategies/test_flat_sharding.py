"""What TorchRec's plans say, changed to what is so."""

import pytest
import torch

from dmt.modules import EmbeddingOptimizer
from dmt.strategies.flat_sharding import TABLE_PREFIX, named_plan, set_devices
from dmt.strategies.stage import table_costs
from dmt.strategies.topology import Topology
from tests.distributed.strategy_cases import deferred

GPUS = [torch.device("cuda", index) for index in (4, 5, 6, 7)]


@pytest.mark.parametrize("kind", ["table_wise", "column_wise", "row_wise"])
def test_shards_are_on_the_gpus_that_ranks_have(kind: str) -> None:
    costs = table_costs(deferred(EmbeddingOptimizer(name="sgd")))
    topology = Topology(world_size=4, ranks_per_host=2)
    plan = named_plan({cost.table.name: kind for cost in costs}, costs, topology, device_type="cuda")
    ranks = {name: sharded.ranks for name, sharded in plan.items()}
    set_devices(plan, GPUS)
    for name, sharded in plan.items():
        placements = [shard.placement for shard in sharded.sharding_spec.shards]
        assert [placement.rank() for placement in placements] == ranks[name]
        assert [placement.device() for placement in placements] == [GPUS[rank] for rank in ranks[name]]
    assert plan.keys() == {f"{TABLE_PREFIX}{cost.table.name}" for cost in costs}
