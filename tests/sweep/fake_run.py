"""Stands for `dmt fit` in a sweep's command: reads options, writes what a run leaves, starts at once.

Options: x, the value it measures; seconds, how long it takes; fail, to end with an error; reports, how many times it
tells x * step while it runs. Every start adds a line to starts.txt beside the sweep's folder.
"""

import json
import os
import sys
import time
from pathlib import Path


def main() -> None:
    options: dict = {}
    for word in sys.argv[1:]:
        name, _, value = word.removeprefix("--").partition("=")
        options |= json.loads(value) if name == "config" else {name: value}
    folder = Path(os.environ["DMT_SAVE_DIR"])
    with (folder.parents[1] / "starts.txt").open("a") as file:
        file.write(folder.name + "\n")
    (folder / "environment.json").write_text(json.dumps(dict(os.environ)))
    print("options", options)
    run = folder / "run" / "version_0"
    run.mkdir(parents=True)
    x, seconds, reports = (float(options.get(name, 0)) for name in ("x", "seconds", "reports"))
    with (run / "metrics.csv").open("w") as file:
        print("step,train/loss,val/score", file=file, flush=True)
        for step in range(1, int(reports) + 1):
            print(f"{step},0.5,\n{step},,{x * step}", file=file, flush=True)
            time.sleep(seconds / reports)
    time.sleep(0 if reports else seconds)
    if options.get("fail") == "1":
        print("something is wrong", file=sys.stderr)
        raise SystemExit(3)
    summary = {"metrics": {"test/score": x, "test/other": -x}, "samples_per_second": 1000.4}
    (run / "summary.json").write_text(json.dumps(summary))


if __name__ == "__main__":
    main()
