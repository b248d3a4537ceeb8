"""Time and memory of `dmt partition`: affinities with planted groups, from 26 features to 1,000.

    python benchmarks/partition_cost.py --output benchmarks/results/partition_cost.md

Each line is a process of its own: its peak of resident memory is that of the whole command. "fit" is what the command
says that making the towers took, "command" the time from its start to its end, imports included. Balanced: the
costliest tower has at most twice the mean of memory, which varies over some decades, or 1.25 times the mean of lookups,
which vary less.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from common import heading, publish

from dmt.partition import Affinity


@dataclass(frozen=True)
class Setting:
    """What is divided, and how."""

    features: int
    towers: int
    title: str
    options: tuple[str, ...] = ()


KINDS = {
    "coherent": ("--method", "coherent"),
    "diverse": ("--method", "diverse"),
    "coherent, 8-D": ("--method", "coherent", "--dims", "8"),
    "coherent, ratio 2": ("--method", "coherent", "--ratio", "2"),
    "coherent, memory balanced": ("--method", "coherent", "--balance", "memory", "--max-load", "2"),
    "coherent, lookups balanced": ("--method", "coherent", "--balance", "lookups", "--max-load", "1.25"),
    "spectral": ("--method", "spectral"),
}
SETTINGS = [
    Setting(features, towers, title, options)
    for features, towers in ((26, 8), (200, 16), (1000, 64))
    for title, options in KINDS.items()
]


def write_affinity(path: Path, *, features: int, groups: int) -> None:
    """Affinities about 0.6 within groups of even sizes, and about 0.1 between them; costs over some decades."""
    random = np.random.default_rng(0)
    group = random.permutation(np.arange(features) % groups)
    noise = random.normal(0, 0.1, (features, features))
    matrix = np.where(group[:, None] == group, 0.6, 0.1) + (noise + noise.T) / 2
    matrix = matrix.clip(0, 1)
    np.fill_diagonal(matrix, 1)
    names = [f"f{i}" for i in range(features)]
    costs = {
        "memory": random.lognormal(0, 1, features).tolist(),
        "lookups": random.lognormal(0, 0.5, features).tolist(),
    }
    Affinity(features=names, matrix=matrix, kind="cosine", num_samples=1, costs=costs).save(path)


def measure(setting: Setting, folder: Path) -> tuple[float, float, float]:
    """Seconds of the fit and of the command, and the peak of its memory in MiB."""
    affinity, plan = folder / f"{setting.features}.npz", folder / "towers.yaml"
    if not affinity.exists():
        write_affinity(affinity, features=setting.features, groups=setting.towers)
    plan.unlink(missing_ok=True)
    command = [str(Path(sys.executable).parent / "dmt"), "partition", "--affinity", str(affinity)]
    command += ["--towers", str(setting.towers), "--output", str(plan), *setting.options]
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    told = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    fit = re.search(r"towers in ([\d.]+) s", told)
    if status or fit is None:
        raise SystemExit(f"{command} failed")
    return float(fit[1]), seconds, usage.ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=int, default=1000, help="leave out settings with more (default 1000)")
    parser.add_argument("--output", type=Path, help="Markdown file to write; printed as well")
    arguments = parser.parse_args()
    lines = [
        *heading("Time and memory of the tower partitioner"),
        "| features | towers | method | fit, s | command, s | peak memory, MiB |",
        "|---|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as folder:
        for setting in SETTINGS:
            if setting.features > arguments.features:
                continue
            fit, command, memory = measure(setting, Path(folder))
            told = [f"{setting.features:,}", str(setting.towers), setting.title]
            lines.append(f"| {' | '.join([*told, f'{fit:.1f}', f'{command:.1f}', f'{memory:.0f}'])} |")
    publish(lines, arguments.output)


if __name__ == "__main__":
    main()
