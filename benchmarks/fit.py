"""Quality of a configuration over seeds and strategies, written as a table with date, hardware and command.

    python benchmarks/fit.py configs/flights.yaml --seeds 3 --output benchmarks/results/flights.md

Runs `dmt fit` for each seed and strategy, one after the other, strategies in alternation, and reads what each
run reports of itself. The seed sets the initial weights and the order of the data.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import heading, publish

STRATEGIES = {
    "single": ["--trainer.strategy", "auto", "--trainer.devices", "1"],
    "sptt": ["--trainer.strategy", "sptt", "--trainer.devices", "4", "--ranks_per_host", "2"],
    "torchrec": ["--trainer.strategy", "torchrec", "--trainer.devices", "4", "--ranks_per_host", "2"],
}


def run(config: str, strategy: str, seed: int, options: list[str]) -> dict[str, Any]:
    """One `dmt fit`; its summary and the seconds it took, start of processes and test included."""
    with tempfile.TemporaryDirectory() as folder:
        command = [str(Path(sys.executable).parent / "dmt"), "fit", "--config", config, *STRATEGIES[strategy]]
        seeds = ["--seed_everything", str(seed), "--data.seed", str(seed)]
        started = time.perf_counter()
        subprocess.run(
            [*command, *seeds, *options, "--trainer.logger.save_dir", folder],
            check=True,
            stdout=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1"} if strategy != "single" else None,
        )
        [path] = Path(folder).rglob("summary.json")
        summary: dict[str, Any] = json.loads(path.read_text())
    return summary | {"seconds": time.perf_counter() - started}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="a configuration of `dmt fit`")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, from 1 on (default 3)")
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=["single", "sptt"])
    parser.add_argument("--output", type=Path, help="Markdown file to write; printed as well")
    arguments, options = parser.parse_known_args()

    rows: dict[str, list[dict[str, Any]]] = {strategy: [] for strategy in arguments.strategies}
    for seed in range(1, arguments.seeds + 1):
        for strategy, summaries in rows.items():
            summaries.append(run(arguments.config, strategy, seed, options))
            auc = summaries[-1]["metrics"]["test/auroc"]
            print(f"seed {seed} {strategy}: test AUC {auc:.4f}, {summaries[-1]['seconds']:.0f} s", file=sys.stderr)

    lines = [
        *heading(f"{' '.join([arguments.config, *options])} over {arguments.seeds} seeds"),
        "| strategy | ranks | test AUC, each seed | median | test NE, median | steps | seconds, median |",
        "|---|---|---|---|---|---|---|",
    ]
    for strategy, summaries in rows.items():
        layout = summaries[0]["description"]["layout"]
        aucs = [s["metrics"]["test/auroc"] for s in summaries]
        entropy = statistics.median(s["metrics"]["test/normalized_entropy"] for s in summaries)
        seconds = statistics.median(s["seconds"] for s in summaries)
        each = " ".join(f"{auc:.4f}" for auc in aucs)
        lines.append(
            f"| {strategy} | {layout['ranks']} | {each} | {statistics.median(aucs):.4f} | {entropy:.4f} | "
            f"{summaries[0]['steps']} | {seconds:.0f} |"
        )
    publish(lines, arguments.output)


if __name__ == "__main__":
    main()
