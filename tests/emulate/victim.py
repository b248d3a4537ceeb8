"""A program with a cluster, a command and ranks on it, that waits to be killed: ``python -m tests.emulate.victim``."""

import threading

from dmt.emulate import EmulatedCluster
from tests.emulate.rank_functions import sleep


def main() -> None:
    with EmulatedCluster(num_hosts=2, rate_mbit=None) as cluster:
        cluster.run_command(0, ["sleep", "1000"])
        ranks = threading.Thread(target=cluster.run_ranks, args=(sleep,), kwargs={"ranks_per_host": 2})
        ranks.start()
        while len(cluster.namespaces[1].processes()) < 2:
            ranks.join(0.1)
        print(*(namespace.path for namespace in cluster.namespaces), flush=True)
        ranks.join()


if __name__ == "__main__":
    main()
