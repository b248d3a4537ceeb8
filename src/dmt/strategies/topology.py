"""Hosts, ranks and host groups as plain arithmetic: nothing here communicates.

G ranks in all, L ranks per host, K hosts per group, S = K*L seats per host group, P = G/S host groups.
"""

from dataclasses import dataclass

from dmt.errors import UserInputError


@dataclass(frozen=True, kw_only=True)
class Topology:
    """How ranks lie on hosts and in host groups (paper section 3.1).

    A host group holds the tables of its towers: one host, or K where a tower is to span several. Rank ``r`` has
    group ``r // S`` and seat ``r % S``; its *peers* are the ranks with the same seat.

    Args:
        world_size: G.
        ranks_per_host: L.
        hosts_per_group: K.

    Raises:
        UserInputError: L does not divide G, or K does not divide the number of hosts.

    Example:
        >>> topology = Topology(world_size=4, ranks_per_host=2)
        >>> topology.peers(seat=1), topology.members(group=1)
        ([1, 3], [2, 3])
    """

    world_size: int
    ranks_per_host: int
    hosts_per_group: int = 1

    def __post_init__(self) -> None:
        if self.ranks_per_host < 1 or self.world_size % self.ranks_per_host:
            divisors = [n for n in range(1, self.world_size + 1) if self.world_size % n == 0]
            raise UserInputError(
                f"ranks_per_host={self.ranks_per_host}: it must divide the {self.world_size} ranks of the run; "
                f"choose one of {', '.join(map(str, divisors))}, or another number of devices"
            )
        if self.hosts_per_group < 1 or self.num_hosts % self.hosts_per_group:
            divisors = [n for n in range(1, self.num_hosts + 1) if self.num_hosts % n == 0]
            raise UserInputError(
                f"hosts_per_group={self.hosts_per_group}: it must divide the {self.num_hosts} hosts of the run; "
                f"choose one of {', '.join(map(str, divisors))}"
            )

    @property
    def num_hosts(self) -> int:
        """H."""
        return self.world_size // self.ranks_per_host

    @property
    def num_seats(self) -> int:
        """S, ranks of a host group."""
        return self.ranks_per_host * self.hosts_per_group

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
