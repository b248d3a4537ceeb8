"""Benchmarks run; what they measure is theirs to say."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_relatives_compute_the_same_and_are_compared(tmp_path: Path) -> None:
    small = ["--rows", "50", "--batch-size", "4", "--rounds", "7", "--warm-up", "0", "--compression", "2"]
    command = [sys.executable, "-W", "ignore", "benchmarks/relatives.py", *small, "--rate-mbit", "none"]
    output = tmp_path / "results" / "relatives.md"
    done = subprocess.run(
        [*command, "--output", str(output)], cwd=ROOT, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [line.split(" | ") for line in output.read_text().splitlines() if line.startswith("| ")]
    assert [row[0] for row in rows] == [
        "| variant",
        "| SPTT",
        "| SPTT, by gloo's AlltoAll",
        "| EmbeddingTowerCollection, whole tables",
        "| EmbeddingTowerCollection, tables by row",
        "| flat, table-row-wise",
        "| flat, table-wise",
    ]
