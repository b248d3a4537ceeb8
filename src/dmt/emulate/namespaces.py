"""Network namespaces of Linux without names, the commands run in them, and the counters of their links.

A namespace lives as long as something refers to it: a file descriptor here, and the processes inside. When the last
of them ends, by whatever signal, the kernel removes the namespace with every link in it. So there is nothing to
clean up that a killed process could leave behind, and no name that two clusters could both choose.
"""

import ctypes
import os
import subprocess
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

LINK = "dmt0"
"""Name of a host's only link to other hosts, in every namespace."""

HEADER_BYTES = 66
"""Ethernet 14, IPv4 20, TCP 20, and TCP's time stamps 12: what precedes the payload of a packet."""

MAX_SEGMENT_BYTES = 1448
"""Payload of a full packet: an Ethernet frame carries 1500 bytes, 52 of them headers of IP and TCP."""

_CLONE_NEWNET = 0x40000000
# os.setns and os.unshare came with Python 3.12.
_libc = ctypes.CDLL(None, use_errno=True)

Result = TypeVar("Result")


def _check(status: int, action: str) -> None:
    if status != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{action}: {os.strerror(error)}")


def enter_namespace(path: str) -> None:
    """Move the calling thread, and what it will start, into a namespace.

    Args:
        path: a file that refers to it, such as :attr:`Namespace.path`.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _check(_libc.setns(fd, _CLONE_NEWNET), f"enter network namespace {path}")
    finally:
        os.close(fd)


@dataclass(frozen=True, kw_only=True)
class LinkCounters:
    """What has left a host by its link since the host was made, as the kernel counts it.

    The bytes are those of Ethernet frames: beside what programs send they hold headers (:data:`HEADER_BYTES` each),
    packets without payload that acknowledge what the host received, and the few that set up connections. The kernel
    hands TCP data to a link in packets of up to 64 kB and cuts them later, so headers are counted less often than
    they would be on a cable.

    Args:
        sent_bytes: bytes of frames.
        sent_packets: number of frames.

    Example:
        >>> LinkCounters(sent_bytes=1066, sent_packets=1).payload_bytes
        1000
    """

    sent_bytes: int
    sent_packets: int

    def __sub__(self, earlier: "LinkCounters") -> "LinkCounters":
        return LinkCounters(
            sent_bytes=self.sent_bytes - earlier.sent_bytes, sent_packets=self.sent_packets - earlier.sent_packets
        )

    @property
    def payload_bytes(self) -> int:
        """Bytes without headers: what programs have sent, with their own protocol's framing.

        Packets that set up or close a connection, or report a loss, have other headers; they put it off by up to
        34 bytes each.
        """
        return self.sent_bytes - HEADER_BYTES * self.sent_packets


def own_link_counters() -> LinkCounters:
    """Counters of the host that the calling rank is on.

    Raises:
        RuntimeError: the rank is not on an emulated host.
    """
    for line in Path("/proc/thread-self/net/dev").read_text().splitlines():
        name, _, numbers = line.partition(":")
        if name.strip() == LINK:
            columns = numbers.split()  # eight of receiving, then bytes, packets... of sending
            return LinkCounters(sent_bytes=int(columns[8]), sent_packets=int(columns[9]))
    raise RuntimeError(f"no link {LINK} here: this process is not on an emulated host")


class Namespace:
    """A new network namespace.

    Args:
        settings: kernel settings of it, by path under ``/proc/sys/net``.

    Raises:
        OSError: the process may not make one.
    """

    def __init__(self, settings: dict[str, str]) -> None:
        self._fd = _in_thread(lambda: _create(settings))

    @property
    def path(self) -> str:
        """A file that refers to it, for any process of this user."""
        return f"/proc/{os.getpid()}/fd/{self._fd}"

    @property
    def inode(self) -> int:
        """What tells it from all others."""
        return os.fstat(self._fd).st_ino

    def command(self, command: Sequence[str]) -> list[str]:
        """A command line that runs another one inside."""
        return ["nsenter", f"--net={self.path}", "--", *command]

    def run(self, command: Sequence[str], lines: Sequence[str]) -> None:
        """Feed lines to a command inside.

        Raises:
            RuntimeError: it failed; holds what it said.
        """
        text = "".join(f"{line}\n" for line in lines)
        done = subprocess.run(self.command(command), input=text, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)} failed: {done.stderr.strip()}; its input was {list(lines)}")

    def call(self, function: Callable[[], Result]) -> Result:
        """What a function returns on a thread that is inside."""

        def enter_and_call() -> Result:
            enter_namespace(self.path)
            return function()

        return _in_thread(enter_and_call)

    def processes(self) -> list[int]:
        """Ids of the processes inside."""
        inside = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    if os.stat(entry / "ns/net").st_ino == self.inode:
                        inside.append(int(entry.name))
                except OSError:
                    continue  # it has just ended, or is ending
        return inside

    def close(self) -> None:
        """Let go of it; it vanishes with the last process inside."""
        os.close(self._fd)


def _create(settings: dict[str, str]) -> int:
    _check(_libc.unshare(_CLONE_NEWNET), "make a network namespace")
    for name, value in settings.items():
        Path("/proc/sys/net", name).write_text(value)
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def _in_thread(function: Callable[[], Result]) -> Result:
    """A thread of its own may change namespace without taking the rest of the process along."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        return pool.submit(function).result()
