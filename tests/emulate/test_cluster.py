"""Emulated hosts: their links' rate and counters, their ranks and commands, and that nothing of them stays."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dmt.emulate import EmulatedCluster, LinkCounters, RankError, can_emulate, own_link_counters, run_local_ranks
from dmt.errors import UserInputError
from tests.emulate.rank_functions import die_on, environment, exchange, fail_on, fan, sleep, unsendable

ROOT = Path(__file__).parents[2]
needs_hosts = pytest.mark.usefixtures("emulation")


class Watch:
    """Sees what uses namespaces, by references of its own: else the kernel soon gives their inodes to new ones."""

    def __init__(self, paths: list[str]) -> None:
        self._own = [os.open(path, os.O_RDONLY) for path in paths]
        self._targets = {f"net:[{os.fstat(fd).st_ino}]" for fd in self._own}

    def users(self) -> list[str]:
        """Everything else that keeps any of the namespaces alive: processes inside, and open files."""
        own = {f"/proc/{os.getpid()}/fd/{fd}" for fd in self._own}
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                references = [process / "ns/net", *(process / "fd").iterdir()]
            except OSError:
                continue  # just ended
            for reference in references:
                try:
                    target = os.readlink(reference)
                except OSError:
                    continue
                if target in self._targets and str(reference) not in own:
                    found.append(str(reference))
        return found

    def assert_gone(self) -> None:
        deadline = time.monotonic() + 20
        while (left := self.users()) and time.monotonic() < deadline:
            time.sleep(0.1)
        for fd in self._own:
            os.close(fd)
        assert not left


@needs_hosts
def test_rate_limits_what_a_host_sends_and_what_it_receives() -> None:
    num_bytes, rate_mbit, burst_bytes = 2_000_000, 50, 131_072
    with EmulatedCluster(num_hosts=3, rate_mbit=rate_mbit) as cluster:
        seconds = cluster.run_ranks(fan, ranks_per_host=1, args=(num_bytes // 4,))[0]
    # Two hosts' data by host 0's one link: 0.62 s. Over two links of this rate, or from and to hosts without a limit
    # of their own in this direction, it would take half of that.
    least = (2 * num_bytes - burst_bytes) * 8 / (rate_mbit * 1e6)
    assert seconds["out"] >= least
    assert seconds["in"] >= least


@needs_hosts
@pytest.mark.parametrize("rate_mbit", [None, 1000])
def test_counters_tell_the_payload_that_left_the_host(rng: random.Random, rate_mbit: float | None) -> None:
    num_bytes = rng.randrange(100_000, 1_000_000)
    with EmulatedCluster(num_hosts=2, rate_mbit=rate_mbit) as cluster:
        payloads = cluster.run_ranks(exchange, ranks_per_host=2, args=(num_bytes,))
        counters = [cluster.counters(host) for host in range(2)]
        sent_bytes = cluster.sent_bytes(0)
    wanted = 4 * num_bytes  # two ranks here, each to two there
    for payload in payloads:
        # gloo's own messages of an exchange and two barriers: some headers of 50 bytes. A rank may read the counters
        # before the other one of its host has sent its share: the barrier between is itself on the wire.
        assert wanted * 0.5 < payload < wanted + 20_000
    assert max(payloads) >= wanted
    for total in counters:
        # Each packet's payload is what a cable carries at most, or up to 64 kB before it is cut.
        assert 2 * wanted < total.payload_bytes < total.sent_bytes
        assert total.sent_packets >= total.payload_bytes / 65_536
    assert sent_bytes == counters[0].sent_bytes


def test_counters_subtract() -> None:
    later, earlier = LinkCounters(sent_bytes=300, sent_packets=3), LinkCounters(sent_bytes=100, sent_packets=1)
    assert later - earlier == LinkCounters(sent_bytes=200, sent_packets=2)
    with pytest.raises(RuntimeError, match="not on an emulated host"):
        own_link_counters()


@needs_hosts
def test_ranks_know_their_places_and_clusters_do_not_meet() -> None:
    """Two clusters at once, with the same addresses and ports."""
    wanted = [(rank, rank % 2, rank // 2, 4, 2, 4) for rank in range(4)]
    with EmulatedCluster(num_hosts=2, rate_mbit=None) as one, EmulatedCluster(num_hosts=4, rate_mbit=None) as other:
        assert one.run_ranks(environment, ranks_per_host=2) == wanted
        assert other.run_ranks(environment, ranks_per_host=1) == [(rank, 0, rank, 4, 1, 4) for rank in range(4)]
        assert one.run_ranks(environment, ranks_per_host=2) == wanted
    assert run_local_ranks(environment, num_ranks=4, ranks_per_host=2) == wanted


@needs_hosts
def test_failing_ranks_surface_and_end_the_others() -> None:
    with EmulatedCluster(num_hosts=2, rate_mbit=None) as cluster:
        with pytest.raises(RankError, match="ValueError: rank 1 fails on purpose") as failure:
            cluster.run_ranks(fail_on, ranks_per_host=1, args=(1,))
        assert "fail_on" in str(failure.value)  # the traceback
        with pytest.raises(RankError, match="rank 1: died without a word"):
            cluster.run_ranks(die_on, ranks_per_host=1, args=(1,))
        with pytest.raises(RankError, match=r"(?s)rank 0: did not finish.*rank 1: did not finish"):
            cluster.run_ranks(sleep, ranks_per_host=1, timeout_s=1)
        with pytest.raises(RankError, match=r"rank 0: Traceback(?s:.*)pickle"):
            cluster.run_ranks(unsendable, ranks_per_host=1)
        assert [namespace.processes() for namespace in cluster.namespaces] == [[]] * 3


@needs_hosts
def test_commands_run_on_their_host(tmp_path: Path) -> None:
    with EmulatedCluster(num_hosts=2, rate_mbit=100) as cluster:
        output = tmp_path / "output"
        command = ["sh", "-c", "ip -4 -brief address show dmt0; echo $GREETING; pwd; echo problem >&2; exit 3"]
        process = cluster.run_command(1, command, environment={"GREETING": "hello"}, folder=tmp_path, output=output)
        assert process.wait(timeout=30) == 3
        assert cluster.address(1) in output.read_text()
        assert output.read_text().splitlines()[1:] == ["hello", str(tmp_path), "problem"]
        with pytest.raises(IndexError, match="hosts 0 to 1"):
            cluster.run_command(2, ["true"])


@needs_hosts
def test_nothing_is_left_behind() -> None:
    with pytest.raises(KeyboardInterrupt), EmulatedCluster(num_hosts=2, rate_mbit=100) as cluster:
        watch = Watch([namespace.path for namespace in cluster.namespaces])
        # A child of a child, in a session of its own, that does not mind SIGTERM and goes on to have children.
        prolific = "trap '' TERM; while :; do sleep 1000 & sleep 0.002; done"
        process = cluster.run_command(0, ["setsid", "--fork", "sh", "-c", prolific])
        assert process.wait(timeout=30) == 0
        stubborn = cluster.run_command(1, ["sleep", "1000"])
        assert watch.users()
        raise KeyboardInterrupt
    assert stubborn.returncode == -signal.SIGTERM
    watch.assert_gone()
    with pytest.raises(RuntimeError, match="inside its `with` block only"):
        cluster.sent_bytes(0)


@needs_hosts
def test_nothing_is_left_behind_by_a_killed_program() -> None:
    command = [sys.executable, "-W", "ignore", "-m", "tests.emulate.victim"]
    victims = {
        number: subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for number in (signal.SIGTERM, signal.SIGKILL)
    }
    for number, victim in victims.items():
        with victim:
            assert victim.stdout is not None
            paths = victim.stdout.readline().split()
            assert len(paths) == 3
            watch = Watch(paths)
            assert watch.users()
            victim.send_signal(number)
            assert victim.wait(timeout=30) == -number
            watch.assert_gone()


@needs_hosts
def test_without_privileges_the_reason_is_told() -> None:
    program = "from dmt.emulate import can_emulate; print(bool(can_emulate()), can_emulate().reason)"
    weak = ["setpriv", "--bounding-set", "-sys_admin", sys.executable, "-W", "ignore", "-c", program]
    told = subprocess.run(weak, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert told.startswith(
        "False emulated cluster: [Errno 1] make a network namespace: Operation not permitted; run as"
    )


def test_missing_tools_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not can_emulate()
    assert can_emulate().reason == "emulated cluster: there is no command 'ip'; install iproute2 and util-linux"


@pytest.mark.parametrize(("hosts", "rate"), [(0, 1), (251, 1), (2, 0), (2, -1), (2, float("nan"))])
def test_impossible_clusters_are_refused(hosts: int, rate: float) -> None:
    with pytest.raises(UserInputError, match=f"num_hosts={hosts}" if hosts != 2 else f"rate_mbit={rate}"):
        EmulatedCluster(num_hosts=hosts, rate_mbit=rate)
