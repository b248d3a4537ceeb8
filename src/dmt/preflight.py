"""Checks options of `dmt fit` without training: one process that imports torch, for many sets of options.

    echo '{"base": [...], "trials": [...], "metric": null, "early": false}' | python -m dmt.preflight

For each set it prints a line of JSON, null where nothing is wrong. The first that is not ends it, and says which trial
is wrong and what to say of it. `dmt sweep` asks before it starts anything.
"""

import contextlib
import difflib
import json
import sys
from collections.abc import Iterator
from typing import Any

from lightning.pytorch import Trainer

from dmt.datamodules import ClickDataModule, TabularClicks
from dmt.errors import UserInputError
from dmt.lightning_cli import DmtCLI, NamedCLI, parsed_cli
from dmt.modules import click_metrics
from dmt.schema import CategoricalFeature, FeatureSchema


class _CheckedCLI(DmtCLI):
    """Does all that comes before data is prepared and ranks are launched."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Only fit: the other parsers would take as long again, for each trial."""
        return {"fit": DmtCLI.subcommands()["fit"]}

    def _run_subcommand(self, subcommand: str) -> None:
        self.check_layout()
        self.check_monitors()
        self.check_optimizers()
        _check_result(self.trainer, self.datamodule)
        self.check_ckpt_path()
        if _is_schema_known(self.datamodule):
            self.description()  # makes the model, its tables without storage, tries it, and places it


def check(question: dict[str, Any]) -> dict[str, Any] | None:
    """The first thing that is wrong, as ``trial``, an index or None, and ``told``; None where nothing is.

    Args:
        question: ``base``, options of `dmt fit` that all trials share; ``trials``, each with its ``options`` and the
            ``names`` of those that are its own; ``metric``, a name or None; ``early``, whether the metric is needed
            while a run goes on.
    """
    return next((answer for answer in answers(question) if answer is not None), None)


def answers(question: dict[str, Any]) -> Iterator[dict[str, Any] | None]:
    """As :func:`check`, one after the other: None for each trial with which nothing is wrong."""
    metric, early = question["metric"], question["early"]
    for index, trial in enumerate(question["trials"]):
        try:
            cli = parsed_cli(_CheckedCLI, ["fit", *trial["options"]], run=True)
            if metric is not None:
                _check_validated(metric, cli.trainer)
        except UserInputError as error:
            yield {"trial": index, "told": f"{error}{_nearest(question['base'], trial['names'], str(error))}"}
            return
        yield None
    if metric is not None:
        told = _wrong_metric(metric, early=early)
        if told:
            yield {"trial": None, "told": told}


def _check_result(trainer: Trainer, data: ClickDataModule) -> None:
    """Raise :class:`UserInputError` where a run would end without the summary that `dmt sweep` reads."""
    if not trainer.loggers:
        raise UserInputError(
            "trainer.logger=false: a run without a logger leaves no result; write --trainer.logger+=CSVLogger and "
            "--trainer.logger.save_dir=runs"
        )
    for split, is_wanted in (("train", True), ("valid", bool(trainer.limit_val_batches)), ("test", True)):
        if is_wanted and not data.has_split(split):
            raise UserInputError(f"data: there is no {split} split, and a trial needs it for its result; add the file")


def _is_schema_known(data: ClickDataModule) -> bool:
    """Whether a model can be made for it: some logs tell their columns only when they have been prepared."""
    if isinstance(data, TabularClicks):
        # Encoding the files would tell how large the tables are, and may take hours; what can be wrong is in the names.
        data._schema = FeatureSchema(
            categorical=[CategoricalFeature(name=name, num_embeddings=1000) for name in data.columns.categorical],
            dense=data.columns.numeric,
        )
    try:
        return bool(data.schema)
    except RuntimeError:
        return False


def _check_validated(metric: str, trainer: Trainer) -> None:
    """Raise :class:`UserInputError` for a metric of a validation that is left out."""
    if metric.startswith("val/") and not trainer.limit_val_batches:
        raise UserInputError(
            f"metric.name={metric}: trainer.limit_val_batches=0 leaves out validation; remove it, or choose a metric "
            "of the test such as test/auroc"
        )


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
    known = ["train/loss", "samples_per_s", *validation, *map(str, click_metrics("test/"))]
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
        fix = f"did you mean {near[0]}?" if len(near) == 1 else f"choose one of {', '.join(near or known)}"
        return f"metric.name={metric}: no such metric; {fix}"
    return ""


def main() -> None:
    """Answer the question on standard input."""
    answered = sys.stdout
    # What a class of the user's own prints is no answer.
    with contextlib.redirect_stdout(sys.stderr):
        for answer in answers(json.load(sys.stdin)):
            print(json.dumps(answer), file=answered, flush=True)


if __name__ == "__main__":
    main()
