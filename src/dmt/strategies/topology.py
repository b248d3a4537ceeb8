"""Hosts, ranks and towers as plain arithmetic: nothing here communicates.

G ranks in all, L ranks per host, S seats per host group, P = G/S host groups, T towers.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from dmt.errors import UserInputError


@dataclass(frozen=True, kw_only=True)
class Topology:
    """How ranks lie on hosts and in host groups (paper section 3.1).

    A host group holds the tables of its towers; here it is one host, so S = L. Rank ``r`` has group
    ``r // S`` and seat ``r % S``; its *peers* are the ranks with the same seat.

    Args:
        world_size: G.
        ranks_per_host: L.

    Raises:
        UserInputError: L does not divide G.

    Example:
        >>> topology = Topology(world_size=4, ranks_per_host=2)
        >>> topology.peers(seat=1), topology.members(group=1)
        ([1, 3], [2, 3])
        >>> topology.peer_order
        [0, 2, 1, 3]
    """

    world_size: int
    ranks_per_host: int

    def __post_init__(self) -> None:
        if self.ranks_per_host < 1 or self.world_size % self.ranks_per_host:
            divisors = [n for n in range(1, self.world_size + 1) if self.world_size % n == 0]
            raise UserInputError(
                f"ranks_per_host={self.ranks_per_host}: it must divide the {self.world_size} ranks of the run; "
                f"choose one of {', '.join(map(str, divisors))}, or another number of devices"
            )

    @property
    def num_seats(self) -> int:
        """S, ranks of a host group."""
        return self.ranks_per_host

    @property
    def num_groups(self) -> int:
        """P, host groups."""
        return self.world_size // self.num_seats

    def group(self, rank: int) -> int:
        """Host group of a rank."""
        return rank // self.num_seats

    def seat(self, rank: int) -> int:
        """Seat of a rank inside its host group."""
        return rank % self.num_seats

    def host(self, rank: int) -> int:
        """Host of a rank."""
        return rank // self.ranks_per_host

    def link(self, source: int, target: int) -> str:
        """``"intra_host"`` or ``"cross_host"``: what a message between two ranks travels over."""
        return "intra_host" if self.host(source) == self.host(target) else "cross_host"

    def members(self, *, group: int) -> list[int]:
        """Ranks of a host group, by seat."""
        return [group * self.num_seats + seat for seat in range(self.num_seats)]

    def peers(self, *, seat: int) -> list[int]:
        """Ranks with this seat, by group."""
        return [group * self.num_seats + seat for group in range(self.num_groups)]

    @property
    def peer_order(self) -> list[int]:
        """All ranks sorted by (seat, group): the row order that step (c) establishes."""
        return [rank for seat in range(self.num_seats) for rank in self.peers(seat=seat)]


@dataclass(frozen=True, kw_only=True)
class TableCost:
    """What placing a table costs its rank.

    Args:
        name: table, and the feature that looks it up.
        output_bytes: bytes of pooled output per sample.
        lookups: expected rows read per sample.
        memory_bytes: bytes of weights and optimiser state.
    """

    name: str
    output_bytes: int
    lookups: float
    memory_bytes: int


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Towers on host groups and tables on ranks.

    Args:
        tower_groups: host group of each tower.
        rank_tables: tables of each rank, in the order of the plan.
    """

    tower_groups: tuple[int, ...]
    rank_tables: tuple[tuple[str, ...], ...]

    @classmethod
    def balanced(cls, towers: Sequence[Sequence[TableCost]], topology: Topology) -> "Placement":
        """Spread towers over host groups and each group's tables over its seats, heaviest first.

        A rank's step time follows its lookups and the bytes it sends, so those are balanced first and
        memory second. With as many towers as groups, tower ``t`` lies on group ``t``.
        """
        tower_groups = _place_towers(towers, topology.num_groups)
        owner: dict[str, int] = {}
        for group in range(topology.num_groups):
            costs = [cost for tower, home in zip(towers, tower_groups, strict=True) if home == group for cost in tower]
            seats = _least_loaded([(_work(c), c.memory_bytes) for c in costs], topology.num_seats)
            members = topology.members(group=group)
            owner |= {cost.name: members[seat] for cost, seat in zip(costs, seats, strict=True)}
        names = [cost.name for tower in towers for cost in tower]
        rank_tables = [tuple(n for n in names if owner[n] == rank) for rank in range(topology.world_size)]
        return cls(tower_groups=tower_groups, rank_tables=tuple(rank_tables))

    def group_towers(self, group: int) -> list[int]:
        """Towers of a host group, in plan order."""
        return [tower for tower, home in enumerate(self.tower_groups) if home == group]


def _work(cost: TableCost) -> float:
    """Bytes read plus bytes sent per sample."""
    return (1 + cost.lookups) * cost.output_bytes


def _place_towers(towers: Sequence[Sequence[TableCost]], num_groups: int) -> tuple[int, ...]:
    loads = [(sum(map(_work, tower)), sum(cost.memory_bytes for cost in tower)) for tower in towers]
    homes = _least_loaded(loads, num_groups)
    # Number the bins by their first tower, so that with one tower a group tower t lies on group t.
    first_seen = list(dict.fromkeys(homes))
    return tuple(first_seen.index(home) for home in homes)


def _least_loaded(loads: Sequence[tuple[float, int]], num_bins: int) -> list[int]:
    """Bin of each load: heaviest first, each to the bin with the least work, then the least memory."""
    bins = [(0.0, 0)] * num_bins
    choice = [0] * len(loads)
    for index in sorted(range(len(loads)), key=lambda i: loads[i], reverse=True):
        target = min(range(num_bins), key=lambda b: bins[b])
        bins[target] = (bins[target][0] + loads[index][0], bins[target][1] + loads[index][1])
        choice[index] = target
    return choice
