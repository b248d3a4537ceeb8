"""The bytes that SPTT counts at its collectives are those that the kernel sees leave the host."""

import pytest

from dmt.emulate import EmulatedCluster
from dmt.emulate.namespaces import HEADER_BYTES, MAX_SEGMENT_BYTES
from tests.emulate.stage_traffic import Counted, count_steps

STEPS = 4
# What gloo sends beside payload: some 50 bytes before each message, and as many to announce that a rank is ready to
# send or to receive. Sizes of batches, and the barriers, are messages too that the meter leaves out.
CONTROL_BYTES_PER_MESSAGE = 100
UNCOUNTED_MESSAGES_PER_STEP = 24


@pytest.mark.usefixtures("emulation")
@pytest.mark.parametrize(("hosts", "ranks_per_host", "hosts_per_group"), [(2, 2, 1), (4, 1, 1), (4, 1, 2)])
def test_meter_agrees_with_the_kernels_counters(
    seed: int, hosts: int, ranks_per_host: int, hosts_per_group: int
) -> None:
    with EmulatedCluster(num_hosts=hosts, rate_mbit=1000) as cluster:
        args = (ranks_per_host, hosts_per_group, seed, STEPS)
        ranks: list[Counted] = cluster.run_ranks(count_steps, ranks_per_host=ranks_per_host, args=args)
    by_host = [ranks[start : start + ranks_per_host] for start in range(0, len(ranks), ranks_per_host)]
    payloads = [sum(sum(rank.metered_bytes.values()) for rank in host) for host in by_host]
    for host, payload in zip(by_host, payloads, strict=True):
        messages = sum(rank.messages for rank in host) + UNCOUNTED_MESSAGES_PER_STEP * STEPS * ranks_per_host
        control = CONTROL_BYTES_PER_MESSAGE * messages
        # The last rank of the host to read its counters has seen all that the host sent.
        link = max((rank.link for rank in host), key=lambda counters: counters.sent_bytes)
        purposes = {purpose: sum(rank.metered_bytes[purpose] for rank in host) for purpose in host[0].metered_bytes}
        assert min(purposes.values()) > control, purposes  # or one that is not counted could hide in the margin
        again = MAX_SEGMENT_BYTES * max(rank.segments_sent_again for rank in host)
        assert payload <= link.payload_bytes <= payload + control + again
        # Headers of full packets of what is sent, and at most one acknowledgement for each full packet received;
        # no host receives more than all others send.
        header = HEADER_BYTES / MAX_SEGMENT_BYTES
        most = (payload + control + again) * (1 + header) + (sum(payloads) - payload + control) * header
        assert payload <= link.sent_bytes <= most + HEADER_BYTES * messages * 4
