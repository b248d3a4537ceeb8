"""Runs a trial's command and, when the sweep that started it dies, ends it with all its children.

A sweep ends its trials itself, unless it is killed by a signal that it cannot catch. Run as a file, by its path, so
that nothing of the package is imported first:
    python launch.py PARENT_PID WORD...
"""

import ctypes
import os
import signal
import subprocess
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Run the command in this process's group; end as it ends, by the same code or signal."""
    parent, command = int(sys.argv[1]), sys.argv[2:]
    signal.signal(signal.SIGUSR1, lambda number, frame: os.killpg(0, signal.SIGKILL))
    # Whoever ends the group waits for the command. Handlers, unlike SIG_IGN, are not passed on to it.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda number, frame: None)
    # The kernel's signal comes when the thread that started this process ends.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGUSR1)
    if os.getppid() != parent:  # it died before the kernel was asked
        raise SystemExit(1)
    try:
        code = subprocess.Popen(command).wait()
    except OSError as error:
        print(f"dmt sweep: cannot start {command[0]}: {error.strerror}", file=sys.stderr)
        raise SystemExit(127) from None
    if code < 0:
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    raise SystemExit(code)


if __name__ == "__main__":
    main()
