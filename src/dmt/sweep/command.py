"""``dmt sweep``: its options, and what it prints at the end."""

import shlex
from collections.abc import Collection
from pathlib import Path

from dmt.errors import OneLineParser
from dmt.sweep.api import Plan, SweepOutcome, make_plan, run_sweep
from dmt.sweep.commandline import expand
from dmt.sweep.parameters import flatten, text
from dmt.sweep.proposals import Planned

_DESCRIPTION = """\
Run a sweep file in W&B's format on this machine, with no account, server or network. `wandb sweep FILE` and
`wandb agent` run the same file on W&B's server.

Each trial is a process of the file's command in a folder of its own, DIR/TRIAL, with all that the run leaves and
log.txt. DIR/results.csv has a row for each trial and is rewritten after each. The same command again goes on after
Ctrl-C, a kill or a crash, and runs what has been added to the file's lists.

A program other than `dmt fit` leaves one summary.json below the folder $DMT_SAVE_DIR, else the trial has failed:
{"metrics": {NAME: NUMBER, ...}, "samples_per_second": NUMBER}, where samples_per_second may be left out.
"""


def run_sweep_command(arguments: list[str]) -> None:
    """``dmt sweep FILE``; exit code 1 where trials failed."""
    parser = OneLineParser(prog="dmt sweep", description=_DESCRIPTION)
    parser.add_argument("file", type=Path, help="sweep file, such as configs/sweeps/tower_count.yaml")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="the sweep's folder (default runs/sweeps/ and the file's name without its suffix)",
    )
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="trials at a time (default 1)")
    parser.add_argument(
        "--threads_per_worker", type=int, metavar="M", help="CPU threads of a trial (default: workers share the cores)"
    )
    parser.add_argument(
        "--max_runs", type=int, metavar="N", help="trials altogether, earlier ones included (default: run_cap)"
    )
    parser.add_argument("--retry_failed", action="store_true", help="run trials again that have failed")
    parser.add_argument(
        "--dry-run", "--dry_run", action="store_true", help="check everything, print the commands, run nothing"
    )
    options = parser.parse_args(arguments[1:])
    try:
        if options.dry_run:
            plan = make_plan(options.file, output=options.output, max_runs=options.max_runs)
            _print_plan(plan, retried={trial.id for trial in plan.to_retry} if options.retry_failed else ())
            return
        outcome = run_sweep(
            options.file,
            output=options.output,
            workers=options.workers,
            threads_per_worker=options.threads_per_worker,
            max_runs=options.max_runs,
            retry_failed=options.retry_failed,
        )
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    _print_outcome(outcome)
    if outcome.unfinished:
        raise SystemExit(1)


def _print_plan(plan: Plan, *, retried: Collection[str]) -> None:
    trials = plan.ledger.trials
    if plan.target_note:
        print(plan.target_note)
    if not isinstance(plan.proposals, Planned):
        again = f", {len(retried)} failed to be run again" if retried else ""
        total = plan.proposals.total(trials)
        print(f"bayes: {total} trials, {len(trials)} started{again}; each follows from those before")
        return
    for name, point in plan.proposals.points.items():
        state = trials[name].state if name in trials else "new"
        again = ", to be run again" if name in retried else ""
        print(f"{name} {state}{again}: {shlex.join(expand(plan.spec.command, point))}")
    done = sum(trial.result is not None and trial.id not in retried for trial in plan.wanted)
    print(f"{len(plan.proposals.points)} trials, {done} of them ended, in {plan.ledger.folder}")


def _print_outcome(outcome: SweepOutcome) -> None:
    states = [trial.state for trial in outcome.trials]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    print(f"{len(states)} trials: {counts}; results in {outcome.output / 'results.csv'}")
    if "failed" in states:
        print("the log.txt of each that failed tells why; --retry_failed runs them again")
    best = outcome.best
    if best is not None and best.result is not None:
        told = " ".join(f"{name}={text(value)}" for name, value in flatten(best.parameters).items())
        print(f"best {outcome.metric}: {best.result.metrics[str(outcome.metric)]:.5g}, trial {best.id}: {told}")
