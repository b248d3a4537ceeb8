"""Which host group a tower lies on, how its tables are cut inside the group, and which rank holds which shard.

S seats of a host group, P host groups, N columns of a table.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal, get_args

from torchrec.modules.embedding_configs import EmbeddingBagConfig

from dmt.errors import UserInputError
from dmt.modules.shards import TableShard
from dmt.plan import TowerInput
from dmt.strategies.topology import Topology

ShardingKind = Literal["table_wise", "column_wise", "row_wise", "grid_shard"]
"""How a table is cut over the S seats of its host group; TorchRec's names.

``table_wise``: not at all. ``column_wise``: up to S blocks of columns. ``row_wise``: S blocks of rows.
``grid_shard``: two blocks of columns, each cut into S/2 blocks of rows.
"""

COLUMN_STEP = 4  # FBGEMM's kernels need a multiple of it
RESERVED = 0.15  # of a rank's memory, for activations, dense layers and libraries; as TorchRec's planner does by itself
_UNEVEN = 1.25  # a table with this many times a seat's fair share of the work is cut by the rule


@dataclass(frozen=True, kw_only=True)
class TableCost:
    """What a table, or a block of its columns, costs the ranks that hold it.

    Args:
        table: its size and its features.
        lookups: expected ids per sample, all its features together.
        row_floats: weights and optimiser state of a row of the whole table.
        can_split_columns: whether the optimiser's mathematics stays the same on blocks of columns.
        columns: first column of the block, and the one after the last; ``None`` for all.
    """

    table: EmbeddingBagConfig
    lookups: float
    row_floats: int
    can_split_columns: bool = True
    columns: tuple[int, int] | None = None

    @property
    def block(self) -> TableShard:
        """The block of columns."""
        whole = TableShard.whole(self.table)
        return whole if self.columns is None else replace(whole, columns=self.columns)

    @property
    def work(self) -> float:
        """Bytes read plus bytes sent per sample."""
        return (self.lookups + len(self.table.feature_names)) * 4 * self.block.width

    @property
    def memory_bytes(self) -> int:
        """Weights and optimiser state, float32."""
        return 4 * self.row_floats * self.table.num_embeddings * self.block.width // self.table.embedding_dim

    def share(self, shard: TableShard) -> float:
        """Part of the block that a shard of it is."""
        return shard.num_rows * shard.width / (self.table.num_embeddings * self.block.width)

    def holds(self, shard: TableShard) -> bool:
        """Whether a shard is part of the block."""
        if shard.table.name != self.table.name:
            return False
        first, last = self.block.columns
        return first <= shard.columns[0] and shard.columns[1] <= last


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Towers on host groups and shards of tables on ranks.

    Args:
        tower_groups: host group of each tower.
        rank_shards: shards of each rank, in the order in which it looks them up.
    """

    tower_groups: tuple[int, ...]
    rank_shards: tuple[tuple[TableShard, ...], ...]

    def group_towers(self, group: int) -> list[int]:
        """Towers of a host group, in plan order."""
        return [tower for tower, home in enumerate(self.tower_groups) if home == group]

    def lookups(self, rank: int) -> list[tuple[str, TableShard]]:
        """What a rank looks up: feature and shard, in the order of its output columns."""
        return [(name, shard) for shard in self.rank_shards[rank] for name in shard.table.feature_names]


def place(
    costs: Sequence[TableCost],
    towers: Sequence[Sequence[str]],
    topology: Topology,
    *,
    sharding: str | Mapping[str, str] = "auto",
    rank_memory_bytes: int | None = None,
) -> Placement:
    """Spread towers over host groups, cut tables where asked or needed, and spread each group's shards over its seats.

    Everything is balanced by work first, since a rank's step time follows the bytes that it reads and sends, and by
    memory second. With as many towers as groups and no shared tables, tower ``t`` lies on group ``t``. Towers that
    share a table, or the same columns of it, lie on the same group, where its rows are.

    The rule ``"auto"`` leaves a table whole unless it has 1.25 times a seat's fair share of the group's work, or
    does not fit a rank's memory. Such a table is cut by columns where all its features are single-hot and the
    optimiser allows it, and by rows otherwise (paper section 3.1): blocks of columns send the embeddings once but
    the ids S times, blocks of rows the ids once but partial sums S times.

    Args:
        costs: every table of the stage.
        towers: entries of each tower's plan: features, or blocks of their columns.
        topology: hosts and ranks.
        sharding: ``"auto"``, a kind for every table that can be cut so, or a kind by table; those not named follow
            the rule.
        rank_memory_bytes: what a rank can hold; ``None`` for no limit.

    Raises:
        UserInputError: a table cannot be cut as asked, or the tables do not fit.
    """
    _check_sharding(sharding, costs, topology.num_seats)
    pieces = _pieces(costs, towers)
    units = _connected([piece.towers for piece in pieces], len(towers))
    tower_groups = _place_units(units, pieces, topology.num_groups)
    rank_shards: list[tuple[TableShard, ...]] = []
    for group in range(topology.num_groups):
        mine = _blocks([piece.cost for piece in pieces if tower_groups[piece.towers[0]] == group])
        rank_shards += _cut_and_seat(mine, topology.num_seats, sharding, rank_memory_bytes)
    return Placement(tower_groups=tuple(tower_groups), rank_shards=tuple(rank_shards))


def _check_sharding(sharding: str | Mapping[str, str], costs: Sequence[TableCost], num_seats: int) -> None:
    if isinstance(sharding, str):
        _check_kind(f"sharding={sharding}", sharding)
        if sharding not in _UNCUT:
            _check_kind_for_all(sharding, costs, num_seats)
        return
    by_name = {cost.table.name: cost for cost in costs}
    for name, kind in sharding.items():
        option = f"sharding {name}={kind}"
        _check_kind(option, kind)
        if name not in by_name:
            raise UserInputError(f"{option}: there is no such table; the tables are {', '.join(by_name)}")
        reason = _obstacle(by_name[name], kind, num_seats) if kind not in _UNCUT and num_seats > 1 else ""
        if reason:
            raise UserInputError(f"{option}: {reason}")


_UNCUT = ("auto", "table_wise")


def _check_kind(option: str, kind: str) -> None:
    kinds = get_args(ShardingKind)
    if kind not in ("auto", *kinds):
        raise UserInputError(f"{option}: choose auto, {', '.join(kinds)}")


def _check_kind_for_all(kind: str, costs: Sequence[TableCost], num_seats: int) -> None:
    if kind in ("column_wise", "grid_shard") and not all(cost.can_split_columns for cost in costs):
        raise UserInputError(f"sharding={kind}: {ROWWISE_OBSTACLE}")
    obstacles = [_obstacle(cost, kind, num_seats) for cost in costs]
    if num_seats > 1 and all(obstacles):
        raise UserInputError(f"sharding={kind}: no table can be cut so: {obstacles[0]}")


_ONE_ACCUMULATOR = (
    "rowwise_adagrad keeps one accumulator for a whole row, so it would train differently on blocks of columns"
)
ROWWISE_OBSTACLE = f"{_ONE_ACCUMULATOR}; choose row_wise or table_wise, or the optimizer adagrad or sgd"


def _obstacle(cost: TableCost, kind: str, num_seats: int) -> str:
    """Why a table cannot be cut this way; empty if it can."""
    width, rows = cost.block.width, cost.table.num_embeddings
    if kind in ("column_wise", "grid_shard"):
        if not cost.can_split_columns:
            return ROWWISE_OBSTACLE
        if width < 2 * COLUMN_STEP:
            return f"a width of {width} has no two blocks of {COLUMN_STEP} columns; choose row_wise or table_wise"
    if kind == "grid_shard" and (num_seats < 4 or num_seats % 2):
        return f"a grid needs 4, 6, 8... ranks in a host group, here are {num_seats}; choose row_wise or column_wise"
    if (kind == "row_wise" and rows < 2) or (kind == "grid_shard" and rows < num_seats // 2):
        return f"{rows} rows are too few to cut; choose table_wise"
    return ""


@dataclass(frozen=True)
class _Piece:
    """Columns of a table that the same towers read.

    Args:
        cost: of these columns.
        towers: which they are, in plan order.
    """

    cost: TableCost
    towers: list[int]


def _pieces(costs: Sequence[TableCost], towers: Sequence[Sequence[str]]) -> list[_Piece]:
    """The tables, those that a plan cuts by columns in as many pieces."""
    inputs = [(TowerInput.parse(entry), tower) for tower, entries in enumerate(towers) for entry in entries]
    pieces = []
    for cost in costs:
        own = [(wanted, tower) for wanted, tower in inputs if wanted.feature in cost.table.feature_names]
        bounds = {0, cost.table.embedding_dim, *(bound for wanted, _ in own for bound in wanted.columns or ())}
        for columns in pairwise(sorted(bounds)):
            readers = {t for wanted, t in own if wanted.overlaps(TowerInput(wanted.feature, columns))}
            pieces.append(_Piece(replace(cost, columns=columns), sorted(readers)))
    return pieces


def _blocks(costs: Sequence[TableCost]) -> list[TableCost]:
    """Pieces of one host group, those that adjoin as one.

    Raises:
        UserInputError: the optimiser cannot train a table's other columns elsewhere.
    """
    blocks: list[TableCost] = []
    for cost in costs:
        last = blocks[-1] if blocks else cost
        if blocks and last.table.name == cost.table.name and last.block.columns[1] == cost.block.columns[0]:
            blocks[-1] = replace(last, columns=(last.block.columns[0], cost.block.columns[1]))
        else:
            blocks.append(cost)
    for cost in blocks:
        if not cost.block.is_whole and not cost.can_split_columns:
            raise UserInputError(
                f"tower plan: it puts columns of table {cost.table.name!r} on several host groups, but "
                f"{_ONE_ACCUMULATOR}; choose the optimizer adagrad, adam or sgd, or a plan without blocks of columns"
            )
    return blocks


def _connected(owners: Sequence[Sequence[int]], num_towers: int) -> list[list[int]]:
    """Towers that must lie together, because they share tables."""
    unit_of = list(range(num_towers))
    for sharing in owners:
        joined = {unit_of[tower] for tower in sharing}
        unit_of = [min(joined) if unit in joined else unit for unit in unit_of]
    return [[t for t in range(num_towers) if unit_of[t] == unit] for unit in sorted(set(unit_of))]


def _place_units(units: Sequence[Sequence[int]], pieces: Sequence[_Piece], num_groups: int) -> list[int]:
    loads = []
    for unit in units:
        own = [piece.cost for piece in pieces if piece.towers[0] in unit]
        loads.append((sum(cost.work for cost in own), float(sum(cost.memory_bytes for cost in own))))
    homes = _least_loaded(loads, [(0.0, 0.0)] * num_groups)
    # Number the groups by their first unit, so that with one tower a group tower t lies on group t.
    first_seen = list(dict.fromkeys(homes))
    homes_of_towers = {tower: first_seen.index(home) for unit, home in zip(units, homes, strict=True) for tower in unit}
    return [homes_of_towers[tower] for tower in sorted(homes_of_towers)]


Load = tuple[float, float]  # work, memory


def _least_loaded(loads: Sequence[Load], bins: Sequence[Load], apart: Sequence[str] = ()) -> list[int]:
    """Bin of each load: heaviest first, each to the bin with the least work, then the least memory.

    Loads of the same name in ``apart`` go to different bins where there are enough.
    """
    filled = list(bins)
    names = apart or [str(index) for index in range(len(loads))]
    holders: dict[str, set[int]] = {}
    choice = [0] * len(loads)
    for index in sorted(range(len(loads)), key=lambda i: loads[i], reverse=True):
        taken = holders.setdefault(names[index], set())
        free = [b for b in range(len(filled)) if b not in taken] or list(range(len(filled)))
        target = min(free, key=lambda b: filled[b])
        filled[target] = (filled[target][0] + loads[index][0], filled[target][1] + loads[index][1])
        taken.add(target)
        choice[index] = target
    return choice


def _cut_and_seat(
    costs: Sequence[TableCost], num_seats: int, sharding: str | Mapping[str, str], limit: int | None
) -> list[tuple[TableShard, ...]]:
    """Shards of each seat of one host group."""
    # By table: its blocks here, if the plan leaves several, are cut the same way.
    kinds = {cost.table.name: _kind(cost, costs, num_seats, sharding) for cost in costs}
    while True:
        seats = _seat(costs, kinds, num_seats)
        if limit is None:
            return seats
        needed = [_load(own, costs)[1] for own in seats]
        worst = max(range(num_seats), key=lambda s: needed[s])
        if needed[worst] <= limit:
            return seats
        held = [_cost_of(shard, costs) for shard in seats[worst]]
        free = [(cost, kind) for cost in held for kind in [_next_kind(cost, kinds, num_seats, sharding)] if kind]
        if not free:
            raise UserInputError(
                f"the tables need {needed[worst] / 2**30:.2f} GiB on a rank that has {limit / 2**30:.2f}; use more "
                "ranks per host, more hosts, hosts_per_group, or smaller tables",
                on_every_rank=True,
            )
        largest, kind = max(free, key=lambda candidate: candidate[0].memory_bytes)
        kinds[largest.table.name] = kind


def _next_kind(
    cost: TableCost, kinds: Mapping[str, str], num_seats: int, sharding: str | Mapping[str, str]
) -> str | None:
    """How the rule goes on to cut a table that is still too large: at last by rows, into a block for each seat."""
    now = kinds[cost.table.name]
    if _is_named(cost.table.name, sharding) or now == "row_wise":
        return None
    further = [_rule_kind(cost, num_seats), "row_wise"] if now == "table_wise" else ["row_wise"]
    return next((k for k in further if k != "table_wise" and not _obstacle(cost, k, num_seats)), None)


def _cost_of(shard: TableShard, costs: Sequence[TableCost]) -> TableCost:
    return next(cost for cost in costs if cost.holds(shard))


def _is_named(table: str, sharding: str | Mapping[str, str]) -> bool:
    kind = sharding if isinstance(sharding, str) else sharding.get(table, "auto")
    return kind != "auto"


def _kind(cost: TableCost, group: Sequence[TableCost], num_seats: int, sharding: str | Mapping[str, str]) -> str:
    if num_seats == 1:
        return "table_wise"
    kind = sharding if isinstance(sharding, str) else sharding.get(cost.table.name, "auto")
    if kind != "auto":
        return kind if not _obstacle(cost, kind, num_seats) else "table_wise"
    fair = sum(other.work for other in group) / num_seats
    return _rule_kind(cost, num_seats) if cost.work > _UNEVEN * fair else "table_wise"


def _rule_kind(cost: TableCost, num_seats: int) -> str:
    """How the rule cuts a table that is to be cut."""
    single_hot = cost.lookups == len(cost.table.feature_names)
    order = ("column_wise", "row_wise") if single_hot else ("row_wise", "column_wise")
    return next((kind for kind in order if not _obstacle(cost, kind, num_seats)), "table_wise")


def _seat(costs: Sequence[TableCost], kinds: Mapping[str, str], num_seats: int) -> list[tuple[TableShard, ...]]:
    fixed: list[list[TableShard]] = [[] for _ in range(num_seats)]
    movable: list[TableShard] = []
    for cost in costs:
        kind, whole = kinds[cost.table.name], cost.block
        if kind == "column_wise":
            movable += cut_columns(whole, num_seats)
        elif kind in ("row_wise", "grid_shard"):
            blocks = cut_columns(whole, 2) if kind == "grid_shard" else [whole]
            per_block = num_seats // len(blocks)
            for first, block in enumerate(blocks):
                for seat, shard in enumerate(cut_rows(block, per_block)):
                    fixed[first * per_block + seat].append(shard)
        else:
            movable.append(whole)
    names = [shard.table.name for shard in movable]
    choice = _least_loaded([_load([s], costs) for s in movable], [_load(own, costs) for own in fixed], names)
    for shard, seat in zip(movable, choice, strict=True):
        fixed[seat].append(shard)
    order = list(dict.fromkeys(cost.table.name for cost in costs))
    return [tuple(sorted(own, key=lambda s: (order.index(s.table.name), s.columns))) for own in fixed]


def _load(shards: Sequence[TableShard], costs: Sequence[TableCost]) -> Load:
    shares = [(cost, cost.share(shard)) for shard in shards for cost in [_cost_of(shard, costs)]]
    return (sum(cost.work * share for cost, share in shares), sum(cost.memory_bytes * share for cost, share in shares))


def cut_rows(shard: TableShard, num_blocks: int) -> list[TableShard]:
    """Blocks of ``ceil(rows / num_blocks)`` rows; fewer blocks where the rows run out."""
    first, last = shard.rows
    size = -(-shard.num_rows // num_blocks)
    return [replace(shard, rows=(start, min(start + size, last))) for start in range(first, last, size)]


def cut_columns(shard: TableShard, num_blocks: int) -> list[TableShard]:
    """Even blocks of columns, each a multiple of what the kernels need; fewer blocks of a narrow table."""
    steps = shard.width // COLUMN_STEP
    num_blocks = min(num_blocks, steps)
    base, extra = divmod(steps, num_blocks)
    shards, start = [], shard.columns[0]
    for index in range(num_blocks):
        stop = start + COLUMN_STEP * (base + (index < extra))
        shards.append(replace(shard, columns=(start, stop)))
        start = stop
    return shards
