"""A sweep that is killed in the middle and started again, against the same sweep left in peace.

    dmt sweep configs/sweeps/tower_count.yaml --workers 2
    python benchmarks/sweep_kill.py configs/sweeps/tower_count.yaml --reference runs/sweeps/tower_count

Kills `dmt sweep` by SIGKILL, which no program can catch, when a third of its trials have ended; the same command then
goes on. The two must have the same trials with the same metrics, to the last digit.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import finished_trials, heading, publish

DMT = str(Path(sys.executable).parent / "dmt")


def ended(folder: Path) -> int:
    """Trials of a sweep that have left a result."""
    return len(list(folder.glob("*/result.json")))


def metrics(folder: Path) -> dict[str, dict[str, str]]:
    """Final metrics of each finished trial, as they are written."""
    table = finished_trials(folder)
    names = [name for name in table.columns if name.startswith(("val/", "test/"))]
    return {row["trial"]: {name: row[name] for name in names} for row in table.iter_rows(named=True)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="sweep file")
    parser.add_argument("--reference", type=Path, required=True, help="folder of the same sweep, finished")
    parser.add_argument("--workers", default="2", help="trials at a time (default 2)")
    parser.add_argument("--output", type=Path, help="Markdown file to write; printed as well")
    arguments = parser.parse_args()
    expected = metrics(arguments.reference)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "sweep"
        command = [DMT, "sweep", str(arguments.file), "--workers", arguments.workers, "--output", str(folder)]
        first = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        while ended(folder) < len(expected) / 3:
            if first.poll() is not None:
                raise SystemExit(f"{' '.join(command)} ended by itself, with exit code {first.returncode}")
            time.sleep(0.2)
        first.kill()
        first.wait()
        before = ended(folder)
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        found = metrics(folder)
    differing = [trial for trial in expected if found.get(trial) != expected[trial]]
    lines = [
        *heading(f"Killed and started again: {arguments.file.stem}"),
        f"{len(expected)} trials in the sweep left in peace. {before} had ended when the other was killed; afterwards "
        f"it had {len(found)}.",
        "",
        f"Trials with other metrics, or missing: {len(differing)}. Trials too many: "
        f"{len(found.keys() - expected.keys())}.",
    ]
    publish(lines, arguments.output)
    if differing or len(found) != len(expected):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
