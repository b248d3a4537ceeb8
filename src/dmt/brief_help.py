"""Help of the verbs that read a training configuration, on a few screens: Lightning's own takes many."""

import re
from argparse import SUPPRESS, Action, RawDescriptionHelpFormatter

from jsonargparse import DefaultHelpFormatter

DESCRIPTIONS = {
    "fit": """\
Train a model, then test its best checkpoint.

examples:
  dmt fit --config configs/quickstart.yaml
  dmt fit --config configs/quickstart.yaml --model.num_towers 8 --seed_everything 2
  dmt fit --config configs/quickstart.yaml --trainer.fast_dev_run true    a dry run: one batch through everything
  dmt fit --config configs/quickstart.yaml --print_config                 every option as it comes out
  dmt fit --model.tower.help dmt.modules.DLRMTower                        the options of a class
  dmt fit --data.help dmt.datamodules.CriteoDataModule""",
    "validate": """\
Evaluate a checkpoint on the validation split.

example:
  dmt validate --config RUN/config.yaml --ckpt_path CHECKPOINT""",
    "test": """\
Evaluate a checkpoint on the test split.

example:
  dmt test --config RUN/config.yaml --ckpt_path CHECKPOINT""",
    "predict": """\
Click probabilities of the test split, or of the rows of a file.

examples:
  dmt predict --config RUN/config.yaml --ckpt_path CHECKPOINT
  dmt predict --config RUN/config.yaml --ckpt_path CHECKPOINT \\
      --data TabularRows --data.path ROWS.parquet --data.checkpoint CHECKPOINT""",
    "describe": """\
Towers, parameters, FLOPs and bytes of a configuration, without training.

examples:
  dmt describe --config configs/quickstart.yaml --ranks_per_host 1
  dmt describe --config configs/paper/dlrm_8t.yaml --json""",
}
TITLES = {
    "model": "model (of class paths, init_args are options too: --model.top.over_layers [64])",
    "model.embedding_optimizer": "optimiser of embedding rows, which runs inside the backward pass",
    "data": "data",
    "trainer": "trainer (options of Lightning, whose documentation has more about them)",
}
_OF_LIGHTNING = ("Runs the full optimization", "Perform one evaluation", "Run inference")


class BriefHelp(RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """What an option is for, its default and this project's classes for it; of Lightning's options a sentence."""

    def start_section(self, heading: str | None) -> None:
        """As argparse's, but for what Lightning calls the arguments of the Trainer's methods: half a sentence."""
        super().start_section("checkpoint" if heading and heading.startswith(_OF_LIGHTNING) else heading)

    # The hook by which argparse's and jsonargparse's own formatters differ; tests/cli/test_help.py guards it.
    def _get_help_string(self, action: Action) -> str:
        text = " ".join((action.help or "").split())
        if re.match(r"trainer\.|ckpt_path|weights_only", action.dest):
            text = re.sub(r":\w+:`~?([^`]*)`", r"``\1``", text.removeprefix("Defaults to ``None``. "))
            text = re.split(r"(?<=[^.][.])\s|\s- ", text)[0]
        notes = []
        if action.default not in (None, SUPPRESS) and "default" not in text.lower():
            notes.append("default: %(default)s")
        # jsonargparse's list of subclasses that are imported, which for an optimiser or a scheduler takes a page
        known = re.findall(r"dmt\.[\w.]+", action.extra_help()) if hasattr(action, "extra_help") else []
        if known:
            notes.append(f"classes: {', '.join(known)}")
        return f"{text} ({'; '.join(notes)})" if notes else text
