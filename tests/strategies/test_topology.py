"""Topology: the paper's arithmetic of hosts, seats and peers."""

import pytest

from dmt.errors import UserInputError
from dmt.strategies.topology import Topology

LAYOUTS = [(world, per_host) for world in range(1, 17) for per_host in range(1, world + 1) if world % per_host == 0]


@pytest.mark.parametrize(("world_size", "ranks_per_host"), LAYOUTS)
def test_ranks_follow_the_papers_definitions(world_size: int, ranks_per_host: int) -> None:
    topology = Topology(world_size=world_size, ranks_per_host=ranks_per_host)
    ranks = range(world_size)
    # Section 3.1: peers have the same local rank, g_i mod L == g_j mod L.
    for rank in ranks:
        peers = [other for other in ranks if other % ranks_per_host == rank % ranks_per_host]
        assert topology.peers(seat=topology.seat(rank)) == peers
        assert peers[topology.group(rank)] == rank
        neighbours = [other for other in ranks if other // ranks_per_host == rank // ranks_per_host]
        assert topology.members(group=topology.group(rank)) == neighbours
        assert neighbours[topology.seat(rank)] == rank
        assert all(topology.host(other) == topology.host(rank) for other in neighbours)
    assert (topology.num_seats, topology.num_groups) == (ranks_per_host, world_size // ranks_per_host)


@pytest.mark.parametrize(("ranks_per_host", "world_size"), [(3, 8), (0, 8), (-2, 8), (16, 8)])
def test_ranks_per_host_must_divide_the_ranks(ranks_per_host: int, world_size: int) -> None:
    with pytest.raises(UserInputError, match=rf"^ranks_per_host={ranks_per_host}: .* 8 ranks .* one of 1, 2, 4, 8,"):
        Topology(world_size=world_size, ranks_per_host=ranks_per_host)


@pytest.mark.parametrize(("hosts", "ranks_per_host", "hosts_per_group"), [(2, 2, 2), (4, 2, 2), (6, 1, 3), (6, 3, 2)])
def test_a_group_may_span_hosts(hosts: int, ranks_per_host: int, hosts_per_group: int) -> None:
    world_size, num_seats = hosts * ranks_per_host, ranks_per_host * hosts_per_group
    topology = Topology(world_size=world_size, ranks_per_host=ranks_per_host, hosts_per_group=hosts_per_group)
    assert (topology.num_hosts, topology.num_seats, topology.num_groups) == (hosts, num_seats, hosts // hosts_per_group)
    for rank in range(world_size):
        members = topology.members(group=topology.group(rank))
        assert members[topology.seat(rank)] == rank
        assert len({topology.host(member) for member in members}) == hosts_per_group
        peers = topology.peers(seat=topology.seat(rank))
        assert peers[topology.group(rank)] == rank
        # What is said between peers crosses hosts; inside a group only what is said to its other hosts.
        assert {topology.link(rank, peer) for peer in peers if peer != rank} <= {"cross_host"}
        near = [member for member in members if topology.link(rank, member) == "intra_host"]
        assert near == [member for member in members if topology.host(member) == topology.host(rank)]


@pytest.mark.parametrize("hosts_per_group", [3, 0, -1, 8])
def test_hosts_per_group_must_divide_the_hosts(hosts_per_group: int) -> None:
    with pytest.raises(UserInputError, match=rf"^hosts_per_group={hosts_per_group}: .* 4 hosts .* one of 1, 2, 4$"):
        Topology(world_size=8, ranks_per_host=2, hosts_per_group=hosts_per_group)
