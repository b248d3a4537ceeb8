"""What the benchmarks share: the machine, the command, fair timing, and the file that a result goes to."""

import argparse
import datetime
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import polars as pl
import torch
from scipy.stats import quantile_test


def hardware() -> str:
    """Processor, cores and library versions."""
    model = "unknown processor"
    if (cpuinfo := Path("/proc/cpuinfo")).exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{model}, {os.cpu_count()} cores, {gpu}, Python {platform.python_version()}, torch {torch.__version__}"


def heading(title: str) -> list[str]:
    """First lines of a result: title, date, machine and command."""
    command = shlex.join(["python", *sys.argv])
    return [f"# {title}", "", f"{datetime.date.today()}, {hardware()}. Command: `{command}`", ""]


def publish(lines: Sequence[str], output: Path | None) -> None:
    """Print a result, and write it to a Markdown file if there is one."""
    text = "\n".join(lines) + "\n"
    print(text)
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(text)


def time_in_turn(
    contenders: Mapping[str, Callable[[], object]], *, rounds: int, warm_up: int
) -> dict[str, list[float]]:
    """Seconds of each contender, one number a round; all of them run in every round, so that noise meets all alike."""
    for contender in contenders.values():
        for _ in range(warm_up):
            contender()
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, contender in contenders.items():
            started = time.perf_counter()
            contender()
            seconds[name].append(time.perf_counter() - started)
    return seconds


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of the median, from order statistics: it assumes nothing of the distribution."""
    low, high = quantile_test(values, p=0.5).confidence_interval(0.95)
    return float(low), float(high)


def finished_trials(sweep: Path) -> pl.DataFrame:
    """Those of a sweep's folder, with all values as they are written."""
    return pl.read_csv(sweep / "results.csv", infer_schema=False).filter(pl.col("state") == "finished")


def parse_sweep(description: str | None) -> argparse.Namespace:
    """The options of a program that reads a sweep's folder: ``sweep`` and ``output``."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", type=Path, help="folder of a sweep")
    parser.add_argument("--output", type=Path, help="Markdown file to write; printed as well")
    return parser.parse_args()
