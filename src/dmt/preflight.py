"""Checks options of `dmt fit` without training: one process that imports torch, for many sets of options.

    echo '{"base": [...], "trials": [...], "metric": null, "early": false}' | python -m dmt.preflight

The last line of its output is JSON: null, or which trial is wrong and what to say of it. `dmt sweep` asks before it
starts anything.
"""

import difflib
import json
import sys
from typing import Any

from dmt.errors import UserInputError
from dmt.lightning_cli import DmtCLI, NamedCLI, parsed_cli
from dmt.modules import click_metrics


class _CheckedCLI(DmtCLI):
    """Does all that comes before data is read and ranks are launched."""

    def _run_subcommand(self, subcommand: str) -> None:
        self.check_layout()
        self.check_monitors()


def check(question: dict[str, Any]) -> dict[str, Any] | None:
    """The first thing that is wrong, as ``trial``, an index or None, and ``told``; None where nothing is.

    Args:
        question: ``base``, options of `dmt fit` that all trials share; ``trials``, each with its ``options`` and the
            ``names`` of those that are its own; ``metric``, a name or None; ``early``, whether the metric is needed
            while a run goes on.
    """
    for index, trial in enumerate(question["trials"]):
        try:
            parsed_cli(_CheckedCLI, ["fit", *trial["options"]], run=True)
        except UserInputError as error:
            return {"trial": index, "told": f"{error}{_nearest(question['base'], trial['names'], str(error))}"}
    if question["metric"] is not None:
        told = _wrong_metric(question["metric"], early=question["early"])
        if told:
            return {"trial": None, "told": told}
    return None


def _nearest(base: list[str], names: list[str], told: str) -> str:
    """A hint for the first name that is no option, where that is what was wrong."""
    if "did you mean" in told or not any(
        sign in told for sign in ("not accepted", "unrecognized", "does not accept", "No action for")
    ):
        return ""
    try:
        config = parsed_cli(NamedCLI, ["fit", *base], run=False).config
    except UserInputError:
        return ""
    # The parser takes `data.path` for `data.init_args.path`.
    known = {name.replace(".init_args.", "."): name for name in config.keys()}  # noqa: SIM118 a Namespace, not a dict
    for name in names:
        near = difflib.get_close_matches(name.replace(".init_args.", "."), known, n=1)
        if near and near[0] != name.replace(".init_args.", "."):
            return f"; for {name}, did you mean {known[near[0]]}?"
    return ""


def _wrong_metric(metric: str, *, early: bool) -> str:
    validation = [str(name) for name in click_metrics("val/")]
    known = ["train/loss", "samples_per_s", *validation, *(name.replace("val/", "test/") for name in validation)]
    if early and metric in known and metric not in validation:
        return (
            f"metric.name={metric}: early_terminate needs a metric while a run goes on; choose one of "
            f"{', '.join(validation)}"
        )
    if metric in known:
        return ""
    # Any other name may be a callback's own.
    near = [name for name in known if name.rpartition("/")[2] == metric] or difflib.get_close_matches(metric, known)
    if near or metric.startswith(("val/", "test/")):
        return f"metric.name={metric}: no such metric; choose one of {', '.join(near or known)}"
    return ""


if __name__ == "__main__":
    print(json.dumps(check(json.load(sys.stdin))))
