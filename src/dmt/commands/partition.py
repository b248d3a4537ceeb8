"""``dmt partition``: its options, and what it prints and draws."""

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import yaml

from dmt import pages
from dmt.errors import OneLineParser, UserInputError, check_new_file, write_file
from dmt.partition.affinity import Affinity
from dmt.partition.baselines import BASELINES
from dmt.partition.drawing import draw, draw_one, map_note, mean_within, strongest_pairs, tower_costs
from dmt.partition.partitioner import AUTO, METHODS, Loss, TowerPartitioner
from dmt.plan import TowerPlan

_DESCRIPTION = """\
Put features into towers (paper section 3.3). The affinity of features is what dmt.callbacks.InteractionProbe or
AffinityProbe leave in the folder of a run of a flat model; or a checkpoint of one is probed here. The plan is used by
`dmt fit --model.plan FILE`.

methods:
  coherent    towers of like features: points at distances of 1 less the affinity, in groups of even sizes
  diverse     towers of unlike features: points at distances of the affinity
  auto        whichever of these two has the smaller validation loss after a short training run of --config
  spectral    towers of like features, by the eigenvectors of the affinity's Laplacian
  strided, contiguous, random, greedy   baselines that do not look at the affinity

examples:
  dmt partition --affinity RUN/interaction.npz --towers 4 --output towers.yaml --report towers.html
  dmt partition --checkpoint RUN/checkpoints/NAME.ckpt --probe cosine --towers 8 --balance memory --output towers.yaml
"""

_WRITTEN = ("output", "report", "save_affinity")  # files, by options


def run_partition_command(arguments: list[str]) -> None:
    """``dmt partition --affinity FILE|--checkpoint FILE --towers T --output FILE``."""
    options = _parse(arguments)
    for name in _WRITTEN:
        check_new_file(_option(name), getattr(options, name))
    with _named_as_given():
        partitioner = _partitioner(options)  # before anything is measured
        affinity = Affinity.load(options.affinity) if options.affinity else _probe(options)
        if options.balance:
            partitioner.set_params(costs=_costs_of(options.balance, affinity))
        started = time.monotonic()
        plan = partitioner.fit(affinity).plan_
        seconds = time.monotonic() - started
    if options.costs is not None:
        costs = partitioner.costs or {}
        affinity = replace(affinity, costs={"cost": [costs.get(name, 0.0) for name in affinity.features]})
    # The plan last: it is not there where something fails, and the same command may be given again.
    if options.report is not None:
        write_file("--report", options.report, partial(write_report, affinity, plan, partitioner.points_))
    write_file("--output", options.output, plan.save)
    _print(affinity, plan, partitioner.losses_)
    print(f"{len(affinity.features)} features into {options.towers} towers in {seconds:.1f} s: {options.output}")


def _partitioner(options: argparse.Namespace) -> TowerPartitioner:
    """The partitioner, without the costs that come with an affinity."""
    return TowerPartitioner(
        options.towers,
        method=options.method,
        loss=_loss(options),
        ratio=options.ratio,
        costs=_costs(options.costs),
        max_load=options.max_load,
        groups=_groups(options.groups),
        pinned=_pins(options.pin),
        apart=[_pair(text) for text in options.apart],
        num_dims=2 if options.dims is None else options.dims,
        seed=options.seed,
    )


@contextmanager
def _named_as_given() -> Iterator[None]:
    """Name options as the command has them, where the partitioner's names are others."""
    try:
        yield
    except UserInputError as error:
        told = str(error)
        for name, option in (("num_dims=", "--dims "), ("max_load=", "--max-load "), ("pinned", "--pin")):
            if told.startswith(name):
                told = option + told.removeprefix(name)
        raise UserInputError(told) from error


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = OneLineParser(prog="dmt partition", description=_DESCRIPTION)
    source = parser.add_argument_group("where the affinity is from").add_mutually_exclusive_group(required=True)
    source.add_argument("--affinity", type=Path, metavar="FILE", help="affinity.npz or interaction.npz of a run")
    source.add_argument("--checkpoint", type=Path, metavar="FILE", help="checkpoint of a flat model")
    probe = parser.add_argument_group("with --checkpoint")
    probe.add_argument(
        "--probe",
        choices=["interaction", "cosine", "signed_cosine"],
        help="what to measure (default: interaction, how much two features act together on the prediction)",
    )
    probe.add_argument("--batches", type=int, metavar="N", help="validation batches to look at (default: the probe's)")
    probe.add_argument("--save-affinity", type=Path, metavar="FILE", help="keep what was measured")
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="with --checkpoint, configuration of its model and data (default: that of its run); with --method auto, "
        "of the model with towers",
    )
    parser.add_argument("--towers", type=int, required=True, metavar="T", help="number of towers")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="YAML file to write")
    parser.add_argument("--report", type=Path, metavar="FILE", help="page or picture: .html, .png, .svg or .pdf")
    parser.add_argument("--method", choices=METHODS, default="coherent", help="default: coherent")
    parser.add_argument("--steps", type=int, metavar="N", help="of auto's training runs (default 300)")
    parser.add_argument(
        "--dims",
        type=int,
        metavar="D",
        help="of the points of coherent and diverse (default 2, as in the paper; more for many towers)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of the random starts, and of random (default 0)"
    )
    bounds = parser.add_argument_group("bounds")
    bounds.add_argument(
        "--ratio",
        type=float,
        default=1.0,
        metavar="K",
        help="largest tower at most K times the smallest (default 1); with --groups, of each group",
    )
    bounds.add_argument(
        "--balance",
        metavar="KIND",
        help="what towers shall cost alike: lookups, memory (bytes of the tables) or outputs (bytes of the embeddings)",
    )
    bounds.add_argument(
        "--costs",
        type=Path,
        metavar="FILE",
        help="YAML file with what each feature costs, NAME: NUMBER (those not named 0): told, and what --max-load and "
        "greedy go by",
    )
    bounds.add_argument(
        "--max-load",
        type=float,
        metavar="X",
        help="costliest tower at most X times the mean of the towers (default 1.25 with --balance, but for baselines)",
    )
    bounds.add_argument("--groups", type=Path, metavar="FILE", help="YAML list of lists of features to divide apart")
    bounds.add_argument(
        "--pin", action="append", default=[], metavar="NAME=TOWER", help="a feature's tower; repeatable"
    )
    bounds.add_argument(
        "--apart", action="append", default=[], metavar="NAME,NAME", help="not in one tower; repeatable"
    )
    options = parser.parse_args(arguments[1:])
    _check(options)
    return options


def _check(options: argparse.Namespace) -> None:
    if options.balance and options.costs:
        raise UserInputError(f"--balance {options.balance}: --costs {options.costs} says it too; give one of them")
    if options.balance and options.max_load is None and options.method not in BASELINES:
        options.max_load = 1.25
    _check_is_read(options)
    if options.method == AUTO and not options.config:
        raise UserInputError("--method auto: it trains a model with towers; give its configuration by --config FILE")
    if options.method == "greedy" and not options.balance and not options.costs:
        raise UserInputError("--method greedy: it deals features out by what they cost; give --balance KIND or --costs")
    pages.check_suffix("--report", options.report)
    for name in ("steps", "batches"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            raise UserInputError(f"--{name} {getattr(options, name)}: give at least 1")
    written = [(_option(name), getattr(options, name)) for name in _WRITTEN]
    for index, (option, path) in enumerate(written):
        for other, same in written[:index]:
            if path is not None and same is not None and path.resolve() == same.resolve():
                raise UserInputError(f"{option} {path}: {other} is the same file; give another name")


def _check_is_read(options: argparse.Namespace) -> None:
    """Refuse options that the others leave without a meaning."""
    is_auto, is_measured = options.method == AUTO, options.checkpoint is not None
    unread = {
        **dict.fromkeys(
            ("save_affinity", "probe", "batches"), (not is_measured, "nothing is measured; give --checkpoint")
        ),
        "config": (not (is_measured or is_auto), "nothing is measured or trained; give --checkpoint or --method auto"),
        "steps": (not is_auto, "nothing is trained; give --method auto"),
        "dims": (
            options.method not in ("coherent", "diverse", AUTO),
            f"{options.method} places no points; give --method coherent, diverse or auto",
        ),
    }
    for name, (is_unread, told) in unread.items():
        value = getattr(options, name)
        if value is not None and is_unread:
            raise UserInputError(f"{_option(name)} {value}: {told}")


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _probe(options: argparse.Namespace) -> Affinity:
    # torch comes with them, which the other ways do without.
    import lightning.pytorch as pl

    from dmt.callbacks import AffinityProbe, InteractionProbe
    from dmt.commands.trained import visit

    batches = {} if options.batches is None else {"num_batches": options.batches}
    probe = (
        InteractionProbe(**batches, seed=options.seed)
        if options.probe in (None, "interaction")
        else AffinityProbe(**batches, kind=options.probe)
    )
    found: list[Affinity] = []

    def look(trainer: pl.Trainer, module: pl.LightningModule) -> None:
        model, started = probe.check(trainer, module), time.monotonic()
        affinity = probe.measure(trainer, model)
        seconds = time.monotonic() - started
        print(f"{affinity.kind} of each pair of features over {affinity.num_samples:,} samples, in {seconds:.1f} s")
        found.append(affinity)

    # With auto, --config is of the model with towers.
    config = None if options.method == AUTO else options.config
    visit(options.checkpoint, look, config=config, num_batches=probe.num_batches)
    if options.save_affinity:
        write_file("--save-affinity", options.save_affinity, found[0].save)
    return found[0]


def _loss(options: argparse.Namespace) -> Loss | None:
    if options.method != AUTO:
        return None
    from dmt.commands.trained import short_training

    return partial(short_training, options.config, num_steps=options.steps or 300)


def write_report(affinity: Affinity, plan: TowerPlan, points: np.ndarray, path: Path) -> None:
    """Draw an affinity and its towers: a page where the path ends in ``.html``, else a picture.

    Args:
        affinity: of the features.
        plan: their towers.
        points: ``points_`` of the partitioner that made them.
        path: file to write.
    """
    if path.suffix != ".html":
        draw(affinity, plan, points).savefig(path, dpi="figure")
        return
    balance, matrix, map_ = (draw_one(name, affinity, plan, points) for name in ("balance", "affinity", "map"))
    pairs = {
        what: pages.Table(
            header=[what, affinity.kind],
            rows=[
                [" and ".join(pair.names), f"{pair.affinity:.3f}"]
                for pair in strongest_pairs(affinity, plan, are_kept=are_kept)
            ],
        )
        for what, are_kept in (("share a tower", True), ("are cut", False))
    }
    record = [f"{name}: {value}" for name, value in plan.record.items()]
    pages.write_page(
        path,
        title=f"{len(affinity.features)} features in {len(plan.towers)} towers",
        sections=[
            pages.Section(
                heading="Towers",
                text=[f"Method: {plan.method}. {'; '.join(record)}.", _summary(affinity, plan)],
                tables=[_towers(affinity, plan)],
                pictures=[balance],
            ),
            pages.Section(
                heading="Affinity",
                text=[f"{affinity.kind}, over {affinity.num_samples:,} samples; features are ordered by tower."],
                pictures=[matrix],
            ),
            pages.Section(heading="Map", text=[map_note(plan, points)], pictures=[map_]),
            pages.Section(heading="Strongest pairs", tables=list(pairs.values())),
        ],
    )


def _print(affinity: Affinity, plan: TowerPlan, losses: dict[str, float]) -> None:
    pages.print_table(_towers(affinity, plan))
    print(_summary(affinity, plan))
    for method, loss in losses.items():
        print(f"{method}: validation log loss {loss:.5f}")


def _towers(affinity: Affinity, plan: TowerPlan) -> pages.Table:
    costs = tower_costs(affinity, plan)
    rows = [
        [
            str(index),
            *(_number(values[index]) for values in costs.values()),
            _mean(affinity, [tower]),
            ", ".join(tower),
        ]
        for index, tower in enumerate(plan.towers)
    ]
    return pages.Table(header=["tower", *costs, "mean affinity", "names"], rows=rows)


def _number(value: float) -> str:
    """Bytes to the last one; other costs to six digits."""
    return f"{value:,.0f}" if 1e5 <= value < 1e15 else f"{value:,.6g}"


def _mean(affinity: Affinity, towers: Sequence[Sequence[str]]) -> str:
    mean = mean_within(affinity, towers)
    return "" if mean is None else f"{mean:.3f}"


def _summary(affinity: Affinity, plan: TowerPlan) -> str:
    within, overall = _mean(affinity, plan.towers), _mean(affinity, [affinity.features])
    if not within:
        return "no two features share a tower" + (f"; mean affinity of any two {overall}" if overall else "")
    return f"mean affinity of two features of a tower {within}, of any two {overall}"


def _costs_of(balance: str, affinity: Affinity) -> dict[str, float]:
    if balance not in affinity.costs:
        known = f"it knows {', '.join(affinity.costs)}" if affinity.costs else "it knows none; give --costs FILE"
        raise UserInputError(f"--balance {balance}: the affinity has no such costs; {known}")
    return dict(zip(affinity.features, affinity.costs[balance], strict=True))


def _costs(file: Path | None) -> dict[str, float]:
    if file is None:
        return {}
    content = _read_yaml(file, "--costs")
    if not isinstance(content, dict) or not content or not all(map(_is_cost, content.values())):
        raise UserInputError(f"--costs {file}: give numbers of at least 0 by name, for example C1: 45.8")
    return {str(name): float(value) for name, value in content.items()}


def _is_cost(value: object) -> bool:
    # Whole numbers may be too large for a float.
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= sys.float_info.max


def _groups(file: Path | None) -> list[list[str]]:
    if file is None:
        return []
    content = _read_yaml(file, "--groups")
    if not isinstance(content, list) or not content or not all(isinstance(group, list) and group for group in content):
        raise UserInputError(f"--groups {file}: give a list of lists of features, for example [[user, age], [item]]")
    return [[str(name) for name in group] for group in content]


def _read_yaml(file: Path, option: str) -> object:
    try:
        content: object = yaml.safe_load(file.read_text())
    except (OSError, ValueError, yaml.YAMLError) as error:  # ValueError of what is no text, or no date
        raise UserInputError(f"{option} {file}: {str(error).splitlines()[0]}; give a YAML file") from None
    return content


def _pins(texts: Sequence[str]) -> dict[str, int]:
    pinned: dict[str, int] = {}
    for text in texts:
        name, _, tower = text.rpartition("=")
        if not name or not tower.isdecimal():
            raise UserInputError(f"--pin {text}: write NAME=TOWER, for example user_id=0")
        if pinned.setdefault(name, int(tower)) != int(tower):
            raise UserInputError(f"--pin {text}: it is pinned to tower {pinned[name]} too; give one of the two")
    return pinned


def _pair(text: str) -> tuple[str, str]:
    words = text.split(",")
    if len(words) != 2 or not all(words):
        raise UserInputError(f"--apart {text}: write two names, for example user_id,item_id")
    return words[0], words[1]
