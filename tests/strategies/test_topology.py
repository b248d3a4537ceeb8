"""Topology and Placement: the paper's arithmetic, and where tables go."""

import random

import pytest

from dmt.errors import UserInputError
from dmt.strategies.topology import Placement, TableCost, Topology

LAYOUTS = [(world, per_host) for world in range(1, 17) for per_host in range(1, world + 1) if world % per_host == 0]


def test_peer_order_of_two_hosts_with_two_ranks_is_the_papers() -> None:
    assert Topology(world_size=4, ranks_per_host=2).peer_order == [0, 2, 1, 3]


@pytest.mark.parametrize(("world_size", "ranks_per_host"), LAYOUTS)
def test_ranks_follow_the_papers_definitions(world_size: int, ranks_per_host: int) -> None:
    topology = Topology(world_size=world_size, ranks_per_host=ranks_per_host)
    ranks = range(world_size)
    # Section 3.1: peers have the same local rank, g_i mod L == g_j mod L; peer order sorts by (r mod L, r // L).
    for rank in ranks:
        peers = [other for other in ranks if other % ranks_per_host == rank % ranks_per_host]
        assert topology.peers(seat=topology.seat(rank)) == peers
        assert peers[topology.group(rank)] == rank
        neighbours = [other for other in ranks if other // ranks_per_host == rank // ranks_per_host]
        assert topology.members(group=topology.group(rank)) == neighbours
        assert neighbours[topology.seat(rank)] == rank
        assert all(topology.host(other) == topology.host(rank) for other in neighbours)
    assert topology.peer_order == sorted(ranks, key=lambda r: (r % ranks_per_host, r // ranks_per_host))
    assert (topology.num_seats, topology.num_groups) == (ranks_per_host, world_size // ranks_per_host)


@pytest.mark.parametrize(("ranks_per_host", "world_size"), [(3, 8), (0, 8), (-2, 8), (16, 8)])
def test_ranks_per_host_must_divide_the_ranks(ranks_per_host: int, world_size: int) -> None:
    with pytest.raises(UserInputError, match=rf"^ranks_per_host={ranks_per_host}: .* 8 ranks .* one of 1, 2, 4, 8,"):
        Topology(world_size=world_size, ranks_per_host=ranks_per_host)


def draw_towers(rng: random.Random, num_towers: int) -> list[list[TableCost]]:
    """Uneven towers over tables of very uneven cost; some costs are equal."""
    names = iter(range(10**6))
    return [
        [
            TableCost(
                name=f"t{next(names)}",
                output_bytes=rng.choice([64, 64, 256, 512]),
                lookups=rng.choice([0.0, 1.0, 1.0, rng.expovariate(0.1)]),
                memory_bytes=rng.choice([1024, rng.randrange(1, 10**9)]),
            )
            for _ in range(rng.choice([1, 1, rng.randint(1, 9)]))
        ]
        for _ in range(num_towers)
    ]


def work(cost: TableCost) -> float:
    """Bytes read for the lookups and bytes sent, per sample."""
    return cost.lookups * cost.output_bytes + cost.output_bytes


def spread(loads: list[float]) -> float:
    return max(loads) - min(loads)


@pytest.mark.parametrize(("world_size", "ranks_per_host"), [(1, 1), (4, 4), (4, 1), (6, 2), (8, 4)])
def test_placement_is_a_balanced_partition(rng: random.Random, world_size: int, ranks_per_host: int) -> None:
    topology = Topology(world_size=world_size, ranks_per_host=ranks_per_host)
    for _ in range(20):
        towers = draw_towers(rng, rng.randint(1, 3 * topology.num_groups))
        placement = Placement.balanced(towers, topology)
        costs = {cost.name: cost for tower in towers for cost in tower}
        assert sorted(name for names in placement.rank_tables for name in names) == sorted(costs)
        # Every table lies in its tower's group, and a rank's tables keep the order of the plan.
        for tower, home in zip(towers, placement.tower_groups, strict=True):
            group_tables = {n for rank in topology.members(group=home) for n in placement.rank_tables[rank]}
            assert {cost.name for cost in tower} <= group_tables
        order = list(costs)
        assert all(list(names) == sorted(names, key=order.index) for names in placement.rank_tables)

        # Each item went to the least loaded bin, so two bins differ by one item at most. 1e-9 for float sums.
        tolerance = 1e-9 * sum(map(work, costs.values()))
        group_loads = [0.0] * topology.num_groups
        for tower, home in zip(towers, placement.tower_groups, strict=True):
            group_loads[home] += sum(map(work, tower))
        assert spread(group_loads) <= max(sum(map(work, tower)) for tower in towers) + tolerance
        for group in range(topology.num_groups):
            tables = [placement.rank_tables[rank] for rank in topology.members(group=group)]
            heaviest = max((work(costs[name]) for names in tables for name in names), default=0.0)
            assert spread([sum(work(costs[n]) for n in names) for names in tables]) <= heaviest + tolerance


def test_the_same_towers_are_placed_alike_on_every_rank(rng: random.Random) -> None:
    """Ranks place the tables each on its own, without a word to the others."""
    towers = draw_towers(rng, 7)
    again = [[TableCost(**vars(cost)) for cost in tower] for tower in towers]
    topology = Topology(world_size=6, ranks_per_host=2)
    assert Placement.balanced(towers, topology) == Placement.balanced(again, topology)


@pytest.mark.parametrize("num_groups", [1, 2, 5, 8])
def test_with_as_many_towers_as_groups_tower_t_lies_on_group_t(rng: random.Random, num_groups: int) -> None:
    topology = Topology(world_size=2 * num_groups, ranks_per_host=2)
    placement = Placement.balanced(draw_towers(rng, num_groups), topology)
    assert placement.tower_groups == tuple(range(num_groups))
    assert [placement.group_towers(group) for group in range(num_groups)] == [[t] for t in range(num_groups)]


def test_fewer_towers_than_groups_have_a_group_each(rng: random.Random) -> None:
    placement = Placement.balanced(draw_towers(rng, 3), Topology(world_size=10, ranks_per_host=2))
    assert placement.tower_groups == (0, 1, 2)
    assert all(names == () for names in placement.rank_tables[6:])


def test_more_towers_than_groups_share_them_by_their_work() -> None:
    towers = [
        [TableCost(name=f"t{index}", output_bytes=size, lookups=1.0, memory_bytes=1)]
        for index, size in enumerate([16, 40, 24, 16, 16])
    ]
    placement = Placement.balanced(towers, Topology(world_size=2, ranks_per_host=1))
    # 40 + 16 and 24 + 16 + 16: heaviest first, each to the emptier group.
    assert sorted(sum(towers[t][0].output_bytes for t in placement.group_towers(g)) for g in range(2)) == [56, 56]
    assert placement.tower_groups[0] == 0
    assert placement.rank_tables == tuple(tuple(f"t{t}" for t in placement.group_towers(g)) for g in range(2))


def test_memory_decides_where_work_is_equal() -> None:
    tower = [
        TableCost(name=name, output_bytes=64, lookups=1.0, memory_bytes=size)
        for name, size in [("small", 1), ("big", 100), ("medium", 10), ("large", 90)]
    ]
    placement = Placement.balanced([tower], Topology(world_size=2, ranks_per_host=2))
    assert {frozenset(names) for names in placement.rank_tables} == {
        frozenset({"big", "small"}),
        frozenset({"large", "medium"}),
    }
