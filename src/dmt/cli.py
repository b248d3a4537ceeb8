"""The ``dmt`` command. Each verb imports what it needs, so that help and errors come fast."""

import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any

from dmt.errors import UserInputError, nearest

_OVERVIEW = """\
usage: dmt VERB [OPTIONS]

Disaggregated Multi-Tower training for recommendation models.

verbs:
  fit        train a model, then test its best checkpoint
  validate   evaluate a checkpoint on the validation split
  test       evaluate a checkpoint on the test split
  predict    click probabilities of the test split
  describe   towers, parameters, FLOPs and bytes of a configuration, without training
  preprocess convert Criteo's click logs to the training format, or guess the columns of a log of your own
  partition  put features into towers by how they belong together
  explain    how much each tower of a trained model contributes to its predictions
  sweep      run a W&B sweep file on this machine, with no account or network
  report     compare finished runs, or the points of a sweep, side by side

examples:
  dmt fit --config configs/quickstart.yaml
  dmt fit --config configs/flights.yaml --trainer.strategy sptt --trainer.devices 4 --ranks_per_host 2
  dmt describe --config configs/quickstart.yaml --json
  dmt sweep configs/sweeps/tower_count.yaml --workers 2
  dmt VERB --help
  dmt --version
"""

_PREPROCESS = """\
usage: dmt preprocess criteo INPUT... --output DIR
       dmt preprocess tabular PATH --infer-schema FILE

criteo   convert Criteo's click logs to what training maps into memory
tabular  guess what the columns of a log of your own are, for you to review; `dmt fit` itself encodes such a log

dmt preprocess criteo --help and dmt preprocess tabular --help have the options.
"""

_GRACE_S = 10.0


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command.

    Wrong input ends with one line on standard error and exit code 2; other failures keep their traceback.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_OVERVIEW, end="")
        return
    if arguments[0] == "--version":
        print(f"dmt {metadata.version('dmt')}")
        return
    if "" not in sys.path:
        # The user's own modules in the current folder, as `python -m` finds them, but last: a random.py there must not
        # hide Python's. Ranks are this command again, in the same folder.
        sys.path.append("")
    try:
        _load(arguments[0])(arguments)
    except UserInputError as error:
        is_told_here = not error.on_every_rank or _is_first_rank()
        if is_told_here:
            print(f"dmt: error: {' '.join(str(error).split())}", file=sys.stderr)
        _end_soon(2)
        if not is_told_here:
            # Whoever has started the ranks, torchrun or Lightning, takes the end of one for a failure, and ends the
            # others: also the first, which may not have told yet, its loggers being slow. It ends this one when it has.
            time.sleep(_GRACE_S)
        _leave_process_groups()
        raise SystemExit(2) from None
    except (KeyboardInterrupt, SystemExit) as end:
        asked = _asked_to_end(end)
        if asked is None:
            raise
        goes_on = "; --ckpt_path CHECKPOINT goes on from a checkpoint that it has kept" if arguments[0] == "fit" else ""
        if _is_first_rank():
            print(f"dmt: ended by {asked.name}{goes_on}", file=sys.stderr)
        raise SystemExit(128 + asked) from None
    except Exception:
        _end_soon(1)
        raise
    _leave_process_groups()


def _is_first_rank() -> bool:
    return os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")) == "0"


def _asked_to_end(end: BaseException) -> signal.Signals | None:
    """The signal that has ended a run. Lightning leaves after both by exit codes that say something else."""
    was_failure = isinstance(end, SystemExit) and end.code == 1
    if isinstance(end, KeyboardInterrupt) or (was_failure and isinstance(end.__context__, KeyboardInterrupt)):
        return signal.SIGINT
    lightning = sys.modules.get("lightning.pytorch.utilities.exceptions")
    # With the code of success.
    return signal.SIGTERM if lightning is not None and isinstance(end, lightning.SIGTERMException) else None


def _joined() -> Any:
    """``torch.distributed`` where this process has joined a group, else None; not imported for it."""
    distributed = sys.modules.get("torch.distributed")
    joined = distributed is not None and distributed.is_available() and distributed.is_initialized()
    return distributed if joined else None


def _end_soon(code: int) -> None:
    """End this process in a while, whatever it waits for: NCCL leaves a group only together with all its ranks."""
    distributed = _joined()
    if distributed is not None and distributed.get_backend() == "nccl":
        sys.stderr.flush()
        timer = threading.Timer(_GRACE_S, os._exit, [code])
        timer.daemon = True
        timer.start()


def _leave_process_groups() -> None:
    """Join the threads of collectives: an interpreter that ends while they run aborts now and then, with a signal."""
    distributed = _joined()
    if distributed is not None:
        gc.collect()  # a model that is gone but for its cycles holds groups too, and threads end with the last holder
        distributed.destroy_process_group()


def _run_preprocess(arguments: list[str]) -> None:
    kind = arguments[1] if len(arguments) > 1 else "--help"
    if kind == "tabular":
        from dmt.datamodules.tabular_command import run_tabular_command

        run_tabular_command(arguments)
    elif kind == "criteo":
        # Without torch, which a conversion does not need.
        from dmt.preprocess.command import run_preprocess_command

        run_preprocess_command(arguments)
    elif kind in ("-h", "--help"):
        print(_PREPROCESS, end="")
    else:
        hint = nearest(kind, ["criteo", "tabular"], otherwise="give criteo or tabular")
        raise UserInputError(f"dmt preprocess {kind}: {hint}")


def _load(name: str) -> Callable[[list[str]], None]:
    """The verb, its imports shown on a terminal: torch and what comes with it take seconds."""
    if not (sys.stderr.isatty() and _is_first_rank()):
        return _verb(name)
    from rich.console import Console
    from rich.live import Live
    from rich.spinner import Spinner

    spinner = Spinner("dots", f"dmt {name}: loading")
    # Not redirected: Lightning's log handler keeps the standard error that it finds at its import.
    with Live(spinner, console=Console(stderr=True), transient=True, redirect_stdout=False, redirect_stderr=False):
        return _verb(name)


def _verb(name: str) -> Callable[[list[str]], None]:
    if name in ("fit", "validate", "test", "predict"):
        from dmt.host_memory import reuse_host_memory

        reuse_host_memory()  # before torch is imported
        from dmt.lightning_cli import run_trainer

        return run_trainer
    if name == "describe":
        from dmt.lightning_cli import run_describe

        return run_describe
    if name == "preprocess":
        return _run_preprocess
    if name == "partition":
        from dmt.commands.partition import run_partition_command

        return run_partition_command
    if name == "explain":
        from dmt.commands.explain import run_explain_command

        return run_explain_command
    if name == "sweep":
        from dmt.sweep.command import run_sweep_command

        return run_sweep_command
    if name == "report":
        from dmt.commands.report import run_report

        return run_report
    verbs = ["fit", "validate", "test", "predict", "describe", "preprocess", "partition", "explain", "sweep", "report"]
    hint = nearest(name, verbs, otherwise=f"the verbs are {', '.join(verbs)}")
    raise UserInputError(f"unknown verb {name!r}: {hint}")


if __name__ == "__main__":
    main()
