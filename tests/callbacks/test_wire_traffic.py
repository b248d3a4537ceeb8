"""WireTraffic logs the bytes that ``dmt describe`` predicts, and nothing where nothing is sent."""

from pathlib import Path
from typing import Any

import pytest

from tests.callbacks.wire_traffic_cases import metered_fits
from tests.distributed.harness import run_ranks
from tests.distributed.training_cases import Run

# Logged values are float32.
RTOL = 1e-6


def make_run(strategy: str, *, ranks_per_host: int = 2, options: dict[str, Any] | None = None, **limits: Any) -> Run:
    limits = {"log_every_n_steps": 2, "limit_val_batches": 0} | limits
    return Run(
        strategy=strategy,
        max_steps=6,
        save=Path("unused"),
        ranks_per_host=ranks_per_host,
        options=options or {},
        limits=limits,
    )


def test_it_logs_what_describe_predicts() -> None:
    validating = {"limit_val_batches": 1, "val_check_interval": 1, "num_sanity_val_steps": 1}
    runs = [
        make_run("sptt", options={"overlap": True}),
        make_run("sptt", options={"overlap": False}, **validating),
        make_run("sptt", options={"overlap": False, "hosts_per_group": 2, "sharding": "table_wise"}),
        make_run("torchrec", options={"overlap": True}, **validating),
        make_run("torchrec", options={"overlap": False}),
    ]
    by_rank = run_ranks(metered_fits, world_size=4, args=(runs, 4))
    for results in zip(*by_rank, strict=True):
        first = results[0]
        # Every rank has the mean over ranks.
        assert all(result["logged"] == first["logged"] for result in results)
        assert first["logged"][1] == {}
        for step in (2, 3, 4, 5):  # in the sixth the ids of the epoch's last batch travel ahead, a small one
            told = first["logged"][step]
            for link in ("intra_host", "cross_host"):
                assert first["predicted"][link] > 0
                assert told[f"{link}_mb"] * 1e6 == pytest.approx(first["predicted"][link], rel=RTOL), (step, link)
            assert told["exposed_comm_ms"] > 0
        # A new mean every second step.
        assert first["logged"][2]["exposed_comm_ms"] == first["logged"][3]["exposed_comm_ms"]
        assert first["logged"][3]["exposed_comm_ms"] != first["logged"][4]["exposed_comm_ms"]
        assert not first["progress_bar"], "a line of 80 letters has no room for them"


def test_in_a_single_process_it_logs_nothing() -> None:
    [results] = run_ranks(metered_fits, world_size=1, args=([make_run("auto"), make_run("sptt", ranks_per_host=1)], 1))
    assert all(told == {} for result in results for told in result["logged"].values())
