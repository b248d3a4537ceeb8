"""What the benchmarks share: the machine, the command, and the file that a result goes to."""

import datetime
import os
import platform
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import torch


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
