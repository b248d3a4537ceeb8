"""H hosts on one machine: a network namespace each, joined by links of a limited rate to one switch.

    host 0 [dmt0] ---- [port0]         every [ ] is an end of a virtual Ethernet cable, and limits what is sent
    host 1 [dmt0] ---- [port1] switch  from it: dmt0 what leaves the host, portN what arrives there
       ...

Ranks of one host talk over its loopback, which nothing limits. There is no added delay.
"""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from dmt.emulate.namespaces import LINK, LinkCounters, Namespace, own_link_counters
from dmt.emulate.ranks import Place, run_ranks
from dmt.errors import UserInputError

_TOOLS = ("ip", "tc", "nsenter", "setpriv")
_PACKAGES = "iproute2 and util-linux"
_FIRST_PORT = 29500
_END_GRACE_S = 10.0

_MAX_PACKET_BYTES = 65_536  # the kernel's own packets, before they are cut to what a cable carries
# What the shaper lets through at once: at least two packets of the kernel, or it cuts each one, which costs CPU time
# that the ranks need.
_BURST_BYTES = 2 * _MAX_PACKET_BYTES
# Queue of a link's end. Deep enough never to drop a packet: a loss is sent again, and counted again.
_QUEUE_BYTES = 64 * 2**20

_SETTINGS = {
    # Neither its start-up traffic nor its addresses are wanted.
    "ipv6/conf/all/disable_ipv6": "1",
    "ipv6/conf/default/disable_ipv6": "1",
    # Whatever this machine's default is. Any kernel has reno and allows it here, and where nothing is lost it sends
    # as fast as the link takes it; bbr, for one, pauses now and then to probe.
    "ipv4/tcp_congestion_control": "reno",
    # namespaces.HEADER_BYTES counts on them.
    "ipv4/tcp_timestamps": "1",
    "ipv4/tcp_slow_start_after_idle": "0",
}


@dataclass(frozen=True, kw_only=True)
class Ability:
    """Whether this machine can emulate a cluster: true in a condition if it can.

    Args:
        reason: why not, and the fix; empty if it can.
    """

    reason: str

    def __bool__(self) -> bool:
        return not self.reason


def can_emulate() -> Ability:
    """Try it, with one host: are the tools there, and the privileges, and the kernel's parts?"""
    try:
        with EmulatedCluster(num_hosts=1, rate_mbit=1000):
            return Ability(reason="")
    except UserInputError as error:
        return Ability(reason=str(error))


class EmulatedCluster:
    """H hosts on this machine, each with a link of its own to a switch. A context manager.

    Everything it consists of vanishes at the end of the ``with`` block, and also when the process is killed.

    Args:
        num_hosts: H, up to 250.
        rate_mbit: what a host can send, and what it can receive, in Mbit/s; ``None`` for no limit.

    Raises:
        UserInputError: an argument is out of range; on entering, the machine cannot do it.

    Example:
        >>> with EmulatedCluster(num_hosts=2, rate_mbit=500) as cluster:  # doctest: +SKIP
        ...     cluster.run_ranks(function, ranks_per_host=2)
    """

    def __init__(self, *, num_hosts: int, rate_mbit: float | None) -> None:
        if not 1 <= num_hosts <= 250:
            raise UserInputError(f"num_hosts={num_hosts}: give 1 to 250")
        if rate_mbit is not None and not rate_mbit > 0:
            raise UserInputError(f"rate_mbit={rate_mbit}: give a positive number, or None for no limit")
        self.num_hosts, self.rate_mbit = num_hosts, rate_mbit
        self.namespaces: list[Namespace] = []  # of each host, then of the switch; empty outside the `with` block
        self._commands: list[subprocess.Popen[bytes]] = []
        self._port = _FIRST_PORT

    def __enter__(self) -> Self:
        missing = [tool for tool in _TOOLS if shutil.which(tool) is None]
        if missing:
            raise UserInputError(f"emulated cluster: there is no command {missing[0]!r}; install {_PACKAGES}")
        try:
            for _ in range(self.num_hosts + 1):
                self.namespaces.append(Namespace(_SETTINGS))
            self._connect()
        except (OSError, RuntimeError) as error:
            self._remove()
            raise UserInputError(
                f"emulated cluster: {error}; run as root, on a Linux kernel with veth, bridge and tbf"
            ) from error
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove()

    def address(self, host: int) -> str:
        """IPv4 address of a host, as the others reach it."""
        self._check_host(host)
        return f"10.77.0.{host + 1}"

    def run_ranks(
        self,
        function: Callable[..., Any],
        *,
        ranks_per_host: int,
        args: tuple[Any, ...] = (),
        timeout_s: float = 300,
    ) -> list[Any]:
        """Call ``function(*args)`` on L ranks of every host, with the environment that a launcher would set.

        Each rank is forked from a process that has imported torch, so that it starts in a moment, and uses one
        thread. It may begin with ``torch.distributed.init_process_group("gloo")``.

        Args:
            function: an importable function; ranks of host h have numbers h*L to h*L + L-1.
            ranks_per_host: L.
            args: its arguments.
            timeout_s: seconds until all must have returned.

        Returns:
            What each rank returned, by rank; plain data, since a tensor would outlive the process that shares it.

        Raises:
            RankError: a rank raised, died or did not finish in time; holds the tracebacks. The others are ended.
        """
        self._port += 1  # the last run's may not be free yet
        places = [
            Place(namespace=namespace.path, environment=self._host_environment)
            for namespace in self.namespaces[: self.num_hosts]
            for _ in range(ranks_per_host)
        ]
        master = (self.address(0), self._port)
        return run_ranks(
            function, places=places, ranks_per_host=ranks_per_host, master=master, args=args, timeout_s=timeout_s
        )

    def run_command(
        self,
        host: int,
        command: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
        output: Path | None = None,
    ) -> "subprocess.Popen[bytes]":
        """Start a command on a host.

        It and what it has started is ended with the cluster, if it has not ended before.

        Args:
            host: which one.
            command: program and arguments.
            environment: variables beside those of this process.
            folder: working directory; default this process's.
            output: file for what it prints, errors included; default this process's own output.
        """
        self._check_host(host)
        # A program that is killed cannot end its commands itself.
        guarded = ["setpriv", "--pdeathsig", "TERM", "--", *self.namespaces[host].command(command)]
        stream = None if output is None else output.open("wb")
        try:
            process = subprocess.Popen(
                guarded,
                env={**os.environ, **self._host_environment, **(environment or {})},
                cwd=folder,
                stdout=stream,
                stderr=None if stream is None else subprocess.STDOUT,
                start_new_session=True,  # a process group, so that all of it can be ended
            )
        finally:
            if stream is not None:
                stream.close()
        self._commands.append(process)
        return process

    def counters(self, host: int) -> LinkCounters:
        """What has left a host by its link so far. A rank reads its own host's with ``own_link_counters()``."""
        self._check_host(host)
        return self.namespaces[host].call(own_link_counters)

    def sent_bytes(self, host: int) -> int:
        """Bytes that have left a host, headers and acknowledgements included; see :class:`LinkCounters`."""
        return self.counters(host).sent_bytes

    @property
    def _host_environment(self) -> dict[str, str]:
        # Without it gloo takes the address that the machine's own name stands for, which no other host can reach.
        return {"GLOO_SOCKET_IFNAME": LINK}

    def _check_host(self, host: int) -> None:
        if not self.namespaces:
            raise RuntimeError("the cluster is there inside its `with` block only")
        if not 0 <= host < self.num_hosts:
            raise IndexError(f"host {host}: there are hosts 0 to {self.num_hosts - 1}")

    def _connect(self) -> None:
        *hosts, switch = self.namespaces
        links = ["link set lo up", "link add bridge type bridge mcast_snooping 0", "link set bridge up"]
        for index, host in enumerate(hosts):
            links += [
                f"link add port{index} type veth peer name {LINK} netns {host.path}",
                f"link set port{index} master bridge up",
            ]
        switch.run(["ip", "-batch", "-"], links)
        self._limit(switch, [f"port{index}" for index in range(len(hosts))])
        for index, host in enumerate(hosts):
            address = f"address add {self.address(index)}/24 dev {LINK}"
            host.run(["ip", "-batch", "-"], ["link set lo up", address, f"link set {LINK} up"])
            self._limit(host, [LINK])

    def _limit(self, namespace: Namespace, links: Sequence[str]) -> None:
        if self.rate_mbit is None:
            return
        shape = f"tbf rate {round(self.rate_mbit * 1e6)}bit burst {_BURST_BYTES} limit {_QUEUE_BYTES}"
        namespace.run(["tc", "-batch", "-"], [f"qdisc add dev {link} root {shape}" for link in links])

    def _remove(self) -> None:
        """End every process on the hosts, then let go of the namespaces."""
        for command in self._commands:
            if command.poll() is None:
                os.killpg(command.pid, signal.SIGTERM)
        deadline = time.monotonic() + _END_GRACE_S
        while any(command.poll() is None for command in self._commands) and time.monotonic() < deadline:
            time.sleep(0.05)
        for namespace in self.namespaces:
            # Again and again: between being seen and being killed, a process may have had a child.
            while processes := namespace.processes():
                for process in processes:
                    with suppress(ProcessLookupError):
                        os.kill(process, signal.SIGKILL)
        for command in self._commands:
            command.wait()
        for namespace in self.namespaces:
            namespace.close()
        self._commands, self.namespaces = [], []
