"""Placement: where towers go, how tables are cut inside a host group, and which rank holds which block."""

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, get_args

import pytest
from torchrec.modules.embedding_configs import EmbeddingBagConfig

from dmt.errors import UserInputError
from dmt.modules.shards import TableShard
from dmt.strategies.placement import (
    COLUMN_STEP,
    Placement,
    ShardingKind,
    TableCost,
    cut_columns,
    cut_rows,
    place,
)
from dmt.strategies.topology import Topology

KINDS = get_args(ShardingKind)
# ranks, ranks per host, hosts per group
LAYOUTS = [(1, 1, 1), (4, 4, 1), (4, 1, 1), (6, 2, 1), (8, 4, 1), (8, 2, 2), (6, 3, 2)]
GIB = 2**30


def cost(
    name: str,
    *,
    rows: int = 100,
    dim: int = 16,
    features: Sequence[str] = (),
    lookups: float | None = None,
    state: int = 0,
    splits: bool = True,
) -> TableCost:
    features = list(features) or [name]
    return TableCost(
        table=EmbeddingBagConfig(name=name, feature_names=features, num_embeddings=rows, embedding_dim=dim),
        lookups=len(features) if lookups is None else lookups,
        row_floats=dim + state,
        can_split_columns=splits,
    )


def draw_stage(rng: random.Random, num_towers: int, *, shared: bool = True) -> tuple[list[TableCost], list[list[str]]]:
    """Uneven towers over tables of very uneven cost; some tables serve several features, also of several towers."""
    towers = [
        [f"t{tower}f{index}" for index in range(rng.choice([1, 1, rng.randint(1, 9)]))] for tower in range(num_towers)
    ]
    names = [name for tower in towers for name in tower]
    tables: dict[str, list[str]] = {}
    for name in names:
        tables.setdefault(rng.choice(names) if shared and rng.random() < 0.2 else name, []).append(name)
    splits = rng.random() < 0.7
    costs = [
        cost(
            table,
            rows=rng.choice([1, 2, 5, rng.randrange(1, 10**9)]),
            dim=rng.choice([4, 8, 20, 64, 128]),
            features=features,
            lookups=rng.choice([None, 0.0, rng.expovariate(0.1)]),
            state=rng.choice([0, 1]),
            splits=splits,
        )
        for table, features in tables.items()
    ]
    return costs, towers


def shards_of(placement: Placement, table: str) -> list[tuple[int, TableShard]]:
    """Rank and block of a table's every block."""
    return [
        (r, shard) for r, shards in enumerate(placement.rank_shards) for shard in shards if shard.table.name == table
    ]


def blocks_of(placement: Placement, table: str) -> dict[tuple[tuple[int, int], tuple[int, int]], int]:
    """Rank by rows and columns."""
    return {(shard.rows, shard.columns): rank for rank, shard in shards_of(placement, table)}


def work(placement: Placement, costs: Sequence[TableCost], rank: int) -> float:
    by_name = {own.table.name: own for own in costs}
    return sum(by_name[s.table.name].work * by_name[s.table.name].share(s) for s in placement.rank_shards[rank])


def draw_sharding(rng: random.Random, costs: Sequence[TableCost]) -> Any:
    """A kind for all, or one for some tables; kinds that some table cannot have are among them."""
    if rng.random() < 0.5:
        return rng.choice(["auto", *KINDS])
    return {own.table.name: rng.choice(["auto", *KINDS]) for own in costs if rng.random() < 0.5}


@pytest.mark.parametrize(("world_size", "ranks_per_host", "hosts_per_group"), LAYOUTS)
def test_every_table_is_tiled_exactly_once_inside_the_group_of_its_towers(
    rng: random.Random, world_size: int, ranks_per_host: int, hosts_per_group: int
) -> None:
    topology = Topology(world_size=world_size, ranks_per_host=ranks_per_host, hosts_per_group=hosts_per_group)
    placed = 0
    while placed < 30:
        costs, towers = draw_stage(rng, rng.randint(1, 3 * topology.num_groups))
        limit = rng.choice([None, sum(own.memory_bytes for own in costs)])
        try:
            placement = place(costs, towers, topology, sharding=draw_sharding(rng, costs), rank_memory_bytes=limit)
        except UserInputError:
            continue  # drawn without a look at what can be cut
        placed += 1
        group_of = {name: placement.tower_groups[t] for t, names in enumerate(towers) for name in names}
        for own in costs:
            table, shards = own.table, shards_of(placement, own.table.name)
            assert {topology.group(rank) for rank, _ in shards} == {group_of[name] for name in table.feature_names}
            assert len({rank for rank, _ in shards}) == len(shards), "two blocks of a table on one rank"
            # Blocks that lie apart and have the table's size together are a tiling.
            size = sum(shard.num_rows * shard.width for _, shard in shards)
            assert size == table.num_embeddings * table.embedding_dim
            for index, (_, one) in enumerate(shards):
                assert one.table == table and one.width % COLUMN_STEP == 0
                assert not any(overlap(one, other) for _, other in shards[:index])
        order = [own.table.name for own in costs]
        for rank in range(world_size):
            tables = [order.index(shard.table.name) for shard in placement.rank_shards[rank]]
            assert tables == sorted(tables)
            wanted = [(n, shard) for shard in placement.rank_shards[rank] for n in shard.table.feature_names]
            assert placement.lookups(rank) == wanted


def overlap(one: TableShard, other: TableShard) -> bool:
    return all(
        max(first[0], second[0]) < min(first[1], second[1])
        for first, second in ((one.rows, other.rows), (one.columns, other.columns))
    )


# Towers on groups


@pytest.mark.parametrize("num_groups", [1, 2, 5, 8])
def test_with_as_many_towers_as_groups_tower_t_lies_on_group_t(rng: random.Random, num_groups: int) -> None:
    costs, towers = draw_stage(rng, num_groups, shared=False)
    placement = place(costs, towers, Topology(world_size=2 * num_groups, ranks_per_host=2))
    assert placement.tower_groups == tuple(range(num_groups))
    assert [placement.group_towers(group) for group in range(num_groups)] == [[t] for t in range(num_groups)]


def test_fewer_towers_than_groups_have_a_group_each(rng: random.Random) -> None:
    costs, towers = draw_stage(rng, 3, shared=False)
    placement = place(costs, towers, Topology(world_size=10, ranks_per_host=2))
    assert placement.tower_groups == (0, 1, 2)
    assert all(shards == () for shards in placement.rank_shards[6:])


def test_more_towers_than_groups_share_them_by_their_work() -> None:
    dims = [16, 40, 24, 16, 16]
    costs = [cost(f"t{index}", dim=dim) for index, dim in enumerate(dims)]
    towers = [[f"t{index}"] for index in range(5)]
    placement = place(costs, towers, Topology(world_size=2, ranks_per_host=1))
    # 40 + 16 and 24 + 16 + 16: heaviest first, each to the emptier group.
    assert sorted(sum(dims[t] for t in placement.group_towers(g)) for g in range(2)) == [56, 56]
    assert placement.tower_groups[0] == 0


def test_towers_that_share_tables_lie_together() -> None:
    # a and c share through t0, c and d through t1; b and e are free.
    costs = [cost("t0", features=["a", "c1"]), cost("t1", features=["c2", "d"]), cost("b"), cost("e")]
    placement = place(costs, [["a"], ["b"], ["c1", "c2"], ["d"], ["e"]], Topology(world_size=3, ranks_per_host=1))
    first, second, third, fourth, fifth = placement.tower_groups
    assert first == third == fourth
    assert len({first, second, fifth}) == 3


def test_blocks_of_columns_lie_with_their_towers() -> None:
    topology = Topology(world_size=3, ranks_per_host=1)
    costs = [cost("a", dim=16), cost("b", dim=8)]
    # Twice as many towers as tables; those of b read what fits beside a's.
    placement = place(costs, [["a[0:8]"], ["a[8:16]"], ["b[0:4]"], ["b[4:8]"]], topology)
    assert placement.tower_groups == (0, 1, 2, 2)
    held = [[(s.table.name, s.columns) for s in own] for own in placement.rank_shards]
    # What adjoins on one group is one block.
    assert held == [[("a", (0, 8))], [("a", (8, 16))], [("b", (0, 8))]]


def test_towers_that_share_columns_of_a_table_lie_together() -> None:
    topology = Topology(world_size=2, ranks_per_host=1)
    shared = cost("t", dim=8, features=["f", "g"])
    placement = place([shared], [["f[0:4]"], ["f[4:8]"], ["g[4:8]"], ["g[0:4]"]], topology)
    assert placement.tower_groups == (0, 1, 1, 0)


def test_columns_of_one_accumulator_stay_on_one_group() -> None:
    costs, towers = [cost("a", splits=False), cost("b", splits=False)], [["a[0:8]"], ["a[8:16]"], ["b"]]
    with pytest.raises(UserInputError, match=r"^tower plan: it puts columns of table 'a' on several host groups"):
        place(costs, towers, Topology(world_size=3, ranks_per_host=1))
    placement = place(costs, towers, Topology(world_size=2, ranks_per_host=2))
    assert all(shard.is_whole for own in placement.rank_shards for shard in own)


def test_a_feature_keeps_its_own_tower_where_another_towers_feature_has_its_table() -> None:
    costs = [cost("t", features=["a", "b"])]
    placement = place(costs, [["a"], ["b"]], Topology(world_size=2, ranks_per_host=1))
    assert placement.tower_groups == (0, 0)
    assert [name for name, _ in placement.lookups(0)] == ["a", "b"]
    assert placement.lookups(1) == []


@pytest.mark.parametrize(("world_size", "ranks_per_host"), [(1, 1), (4, 4), (4, 1), (6, 2), (8, 4)])
def test_whole_tables_are_balanced(rng: random.Random, world_size: int, ranks_per_host: int) -> None:
    topology = Topology(world_size=world_size, ranks_per_host=ranks_per_host)
    for _ in range(20):
        costs, towers = draw_stage(rng, rng.randint(1, 3 * topology.num_groups), shared=False)
        placement = place(costs, towers, topology, sharding="table_wise")
        # Each item went to the least loaded bin, so two bins differ by one item at most. 1e-9 for float sums.
        tolerance = 1e-9 * sum(own.work for own in costs)
        by_feature = {own.table.name: own.work for own in costs}
        tower_loads = [sum(by_feature[name] for name in names) for names in towers]
        groups = range(topology.num_groups)
        assert spread([sum(tower_loads[t] for t in placement.group_towers(g)) for g in groups]) <= (
            max(tower_loads) + tolerance
        )
        for group in groups:
            members = topology.members(group=group)
            heaviest = max((by_feature[s.table.name] for r in members for s in placement.rank_shards[r]), default=0.0)
            assert spread([work(placement, costs, rank) for rank in members]) <= heaviest + tolerance


def spread(loads: Sequence[float]) -> float:
    return max(loads) - min(loads)


def test_memory_decides_where_work_is_equal() -> None:
    costs = [cost(name, rows=rows) for name, rows in [("small", 1), ("big", 100), ("medium", 10), ("large", 90)]]
    names = [own.table.name for own in costs]
    placement = place(costs, [names], Topology(world_size=2, ranks_per_host=2))
    assert {frozenset(shard.table.name for shard in shards) for shards in placement.rank_shards} == {
        frozenset({"big", "small"}),
        frozenset({"large", "medium"}),
    }


def test_the_same_stage_is_placed_alike_on_every_rank(rng: random.Random) -> None:
    """Ranks place the tables each on its own, without a word to the others."""
    costs, towers = draw_stage(rng, 7)
    again = [replace(own, table=replace(own.table)) for own in costs]
    topology = Topology(world_size=6, ranks_per_host=2)
    assert place(costs, towers, topology) == place(again, towers, topology)


# The rule


def ones(*names: str, **options: Any) -> list[TableCost]:
    return [cost(name, **options) for name in names]


def kinds_by_rule(costs: list[TableCost], num_seats: int = 2, **options: Any) -> dict[str, str]:
    names = [name for own in costs for name in own.table.feature_names]
    placement = place(costs, [names], Topology(world_size=num_seats, ranks_per_host=num_seats), **options)
    kinds = {}
    for own in costs:
        shards = [shard for _, shard in shards_of(placement, own.table.name)]
        by_rows = any(shard.num_rows < own.table.num_embeddings for shard in shards)
        by_columns = any(shard.width < own.table.embedding_dim for shard in shards)
        kinds[own.table.name] = {
            (False, False): "table_wise",
            (False, True): "column_wise",
            (True, False): "row_wise",
            (True, True): "grid_shard",
        }[by_rows, by_columns]
    return kinds


def test_tables_of_equal_work_stay_whole() -> None:
    assert set(kinds_by_rule(ones("a", "b", "c", "d")).values()) == {"table_wise"}


# The heavy table has (1 + 1) * 64 = 128 or more units of work, the light ones (1 + 1) * 16 = 32 each.
@pytest.mark.parametrize(
    ("heavy", "kind"),
    [
        ({"dim": 64}, "column_wise"),
        ({"dim": 64, "lookups": 7.5}, "row_wise"),
        ({"dim": 64, "splits": False}, "row_wise"),
        ({"dim": 64, "rows": 1, "lookups": 7.5}, "column_wise"),
        ({"dim": 64, "rows": 1, "splits": False}, "table_wise"),
        ({"dim": 4, "lookups": 100.0}, "row_wise"),
        ({"dim": 64, "features": ["h1", "h2"]}, "column_wise"),
        ({"dim": 64, "features": ["h1", "h2"], "lookups": 3.0}, "row_wise"),
    ],
    ids=["single", "multi", "rowwise_adagrad", "one_row", "nothing_to_cut", "narrow", "shared", "shared_multi"],
)
def test_a_heavy_table_is_cut_as_its_ids_and_its_optimizer_allow(heavy: dict[str, Any], kind: str) -> None:
    costs = [*ones("a", "b"), cost("heavy", **heavy)]
    assert kinds_by_rule(costs) == {"a": "table_wise", "b": "table_wise", "heavy": kind}
    assert set(kinds_by_rule(costs, num_seats=1).values()) == {"table_wise"}


def test_a_table_is_heavy_above_five_quarters_of_a_fair_share() -> None:
    # Work goes with the width here; a seat's fair share is half of the sum.
    assert kinds_by_rule([cost("x", dim=100), cost("y", dim=60)])["x"] == "table_wise"  # 1.25 * 80
    assert kinds_by_rule([cost("x", dim=104), cost("y", dim=60)])["x"] == "column_wise"


# Named kinds


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("table_wise", [((0, 10), (0, 24))]),
        ("column_wise", [((0, 10), (0, 8)), ((0, 10), (8, 16)), ((0, 10), (16, 20)), ((0, 10), (20, 24))]),
        ("row_wise", [((0, 3), (0, 24)), ((3, 6), (0, 24)), ((6, 9), (0, 24)), ((9, 10), (0, 24))]),
        ("grid_shard", [((0, 5), (0, 12)), ((0, 5), (12, 24)), ((5, 10), (0, 12)), ((5, 10), (12, 24))]),
    ],
)
@pytest.mark.parametrize("by_table", [False, True])
def test_a_named_kind_cuts_so(kind: str, expected: list[Any], by_table: bool) -> None:
    costs = [cost("t", rows=10, dim=24)]
    sharding: Any = {"t": kind} if by_table else kind
    placement = place(costs, [["t"]], Topology(world_size=4, ranks_per_host=4), sharding=sharding)
    assert sorted(blocks_of(placement, "t")) == expected
    assert len(set(blocks_of(placement, "t").values())) == len(expected)


def test_tables_that_are_not_named_follow_the_rule() -> None:
    costs = [*ones("a", "b", dim=8), cost("heavy", dim=64)]
    assert kinds_by_rule(costs, sharding={"a": "row_wise"}) == {
        "a": "row_wise",
        "b": "table_wise",
        "heavy": "column_wise",
    }
    assert kinds_by_rule(costs, sharding={"heavy": "table_wise"})["heavy"] == "table_wise"
    assert kinds_by_rule(costs, sharding={"heavy": "auto"})["heavy"] == "column_wise"


def test_a_kind_for_all_leaves_whole_what_it_cannot_cut() -> None:
    costs = [cost("narrow", dim=4), cost("wide", dim=16), cost("single", rows=1)]
    assert kinds_by_rule(costs, sharding="column_wise") == {
        "narrow": "table_wise",
        "wide": "column_wise",
        "single": "column_wise",
    }
    assert kinds_by_rule(costs, sharding="row_wise")["single"] == "table_wise"


def test_whole_tables_fill_the_seats_that_cut_ones_leave() -> None:
    # Two rows for four seats: the blocks lie on seats 0 and 1, and what is whole goes to the others first.
    costs = [cost("short", rows=2, dim=64), *ones("a", "b", dim=16)]
    placement = place(
        costs, [["short", "a", "b"]], Topology(world_size=4, ranks_per_host=4), sharding={"short": "row_wise"}
    )
    assert [rank for rank, _ in shards_of(placement, "short")] == [0, 1]
    assert {rank for name in "ab" for rank, _ in shards_of(placement, name)} == {2, 3}


@pytest.mark.parametrize(
    ("sharding", "message"),
    [
        ("colum_wise", r"^sharding=colum_wise: choose auto, table_wise, column_wise, row_wise, grid_shard$"),
        ({"a": "rows"}, r"^sharding a=rows: choose auto, "),
        ({"z": "row_wise"}, r"^sharding z=row_wise: there is no such table; the tables are a, narrow, short, fixed$"),
        ({"narrow": "column_wise"}, r"^sharding narrow=column_wise: a width of 4 .*; choose row_wise or table_wise$"),
        ({"narrow": "grid_shard"}, r"^sharding narrow=grid_shard: a width of 4 "),
        ({"short": "row_wise"}, r"^sharding short=row_wise: 1 rows are too few to cut; choose table_wise$"),
        ({"short": "grid_shard"}, r"^sharding short=grid_shard: 1 rows are too few to cut"),
        ({"fixed": "column_wise"}, r"^sharding fixed=column_wise: rowwise_adagrad .* optimizer adagrad or sgd$"),
        ({"fixed": "grid_shard"}, r"^sharding fixed=grid_shard: rowwise_adagrad "),
        ("column_wise", r"^sharding=column_wise: rowwise_adagrad "),
        ("grid_shard", r"^sharding=grid_shard: rowwise_adagrad "),
    ],
)
def test_what_cannot_be_cut_so_is_refused(sharding: Any, message: str) -> None:
    costs = [cost("a"), cost("narrow", dim=4), cost("short", rows=1), cost("fixed", splits=False)]
    with pytest.raises(UserInputError, match=message):
        place(costs, [[own.table.name for own in costs]], Topology(world_size=4, ranks_per_host=4), sharding=sharding)


@pytest.mark.parametrize("num_seats", [2, 3, 5])
def test_a_grid_needs_an_even_number_of_seats(num_seats: int) -> None:
    topology = Topology(world_size=num_seats, ranks_per_host=num_seats)
    with pytest.raises(UserInputError, match=rf"^sharding a=grid_shard: a grid needs .*, here are {num_seats}; choose"):
        place([cost("a")], [["a"]], topology, sharding={"a": "grid_shard"})


# Memory


def test_tables_that_do_not_fit_a_rank_are_cut_though_their_work_is_fair() -> None:
    # 3 GiB of "a" beside nothing else heavy: whole, it needs 3 of 2 GiB; in two blocks of rows 1.5 each.
    costs = [cost("a", rows=3 * GIB // 64, dim=16, lookups=2.0), cost("b", rows=10, dim=16, lookups=2.0)]
    assert kinds_by_rule(costs) == {"a": "table_wise", "b": "table_wise"}
    assert kinds_by_rule(costs, rank_memory_bytes=2 * GIB) == {"a": "row_wise", "b": "table_wise"}
    assert kinds_by_rule(costs, rank_memory_bytes=4 * GIB) == {"a": "table_wise", "b": "table_wise"}


def test_what_columns_cannot_make_small_enough_goes_by_rows() -> None:
    table = cost("t", rows=8000, dim=8)  # two blocks of columns at most
    limit = table.memory_bytes // 4
    placement = place([table], [["t"]], Topology(world_size=8, ranks_per_host=8), rank_memory_bytes=limit)
    assert [[s.num_rows for s in own] for own in placement.rank_shards] == [[1000]] * 8


def test_a_kind_that_no_table_can_have_is_refused() -> None:
    topology = Topology(world_size=2, ranks_per_host=2)
    with pytest.raises(UserInputError, match=r"^sharding=grid_shard: no table can be cut so: a grid needs 4"):
        place([cost("t")], [["t"]], topology, sharding="grid_shard")


def test_the_optimizers_state_counts_as_memory() -> None:
    costs = [cost("a", rows=GIB // 64, dim=16, state=16), cost("b", rows=10, dim=16)]
    assert kinds_by_rule(costs, rank_memory_bytes=3 * GIB // 2)["a"] == "column_wise"


def test_no_rank_holds_more_than_its_memory_or_it_is_refused(rng: random.Random) -> None:
    topology = Topology(world_size=6, ranks_per_host=3)
    refused = kept = 0
    while not (refused > 5 and kept > 5):
        costs, towers = draw_stage(rng, rng.randint(1, 4))
        by_name = {own.table.name: own for own in costs}
        limit = rng.randint(1, sum(own.memory_bytes for own in costs))
        try:
            placement = place(costs, towers, topology, rank_memory_bytes=limit)
        except UserInputError as error:
            assert str(error).startswith("the tables need ") and "hosts_per_group" in str(error)
            refused += 1
            continue
        kept += 1
        for shards in placement.rank_shards:
            # 1 byte for the rounding of shares.
            held = sum(by_name[s.table.name].memory_bytes * by_name[s.table.name].share(s) for s in shards)
            assert held <= limit + 1


def test_a_named_kind_is_kept_and_the_tables_refused() -> None:
    costs = [cost("a", rows=3 * GIB // 64, dim=16)]
    topology = Topology(world_size=2, ranks_per_host=2)
    with pytest.raises(UserInputError, match=r"^the tables need 3\.00 GiB on a rank that has 2\.00; use more ranks"):
        place(costs, [["a"]], topology, sharding={"a": "table_wise"}, rank_memory_bytes=2 * GIB)


# Cuts


def test_cuts_cover_a_block_in_order(rng: random.Random) -> None:
    for _ in range(50):
        whole = TableShard.whole(cost("t", rows=rng.randint(1, 50), dim=4 * rng.randint(1, 9)).table)
        num_blocks = rng.randint(1, 9)
        rows = cut_rows(whole, num_blocks)
        assert [block.rows[0] for block in rows] == [0, *(block.rows[1] for block in rows[:-1])]
        assert rows[-1].rows[1] == whole.num_rows and len(rows) <= num_blocks
        # An id's block is found by division, so all but the last are equal.
        assert len({block.num_rows for block in rows[:-1]}) <= 1 and rows[-1].num_rows <= rows[0].num_rows
        columns = cut_columns(whole, num_blocks)
        assert [block.columns[0] for block in columns] == [0, *(block.columns[1] for block in columns[:-1])]
        assert columns[-1].columns[1] == whole.width and len(columns) == min(num_blocks, whole.width // COLUMN_STEP)
        assert spread([block.width for block in columns]) <= COLUMN_STEP
