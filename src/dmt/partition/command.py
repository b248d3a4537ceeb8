"""``dmt partition``: its options, and what it prints."""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import yaml
from rich.console import Console
from rich.table import Table

from dmt.errors import OneLineParser, UserInputError
from dmt.partition.affinity import Affinity
from dmt.partition.partitioner import BASELINES, LEARNED, TowerPartitioner

_DESCRIPTION = """\
Put features into towers (paper section 3.3). The affinity is what the callback dmt.callbacks.AffinityProbe leaves in
the folder of a run of a flat model. The plan is used by `dmt fit --model.plan FILE`.

methods:
  coherent    towers of like features: points at distances of 1 less the affinity, in groups of even sizes
  diverse     towers of unlike features: points at distances of the affinity
  spectral    towers of like features, by the eigenvectors of the affinity's Laplacian
  strided, contiguous, random, greedy   baselines that do not look at the affinity
"""


def run_partition_command(arguments: list[str]) -> None:
    """``dmt partition --affinity FILE --towers T --output FILE``."""
    parser = OneLineParser(
        prog="dmt partition", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--affinity", type=Path, required=True, metavar="FILE", help="affinity.npz of a run")
    parser.add_argument("--towers", type=int, required=True, metavar="T", help="number of towers")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="YAML file to write")
    parser.add_argument("--method", choices=[*LEARNED, *BASELINES], default="coherent", help="default: coherent")
    parser.add_argument(
        "--ratio", type=float, default=1.0, metavar="K", help="largest tower at most K times the smallest (default 1)"
    )
    parser.add_argument(
        "--costs", type=Path, metavar="FILE", help="YAML file with what each feature costs, NAME: NUMBER"
    )
    parser.add_argument(
        "--max-load", type=float, metavar="X", help="costliest tower at most X times the mean of the towers"
    )
    parser.add_argument("--groups", type=Path, metavar="FILE", help="YAML list of lists of features to divide apart")
    parser.add_argument(
        "--pin", action="append", default=[], metavar="NAME=TOWER", help="a feature's tower; repeatable"
    )
    parser.add_argument(
        "--apart", action="append", default=[], metavar="NAME,NAME", help="not in one tower; repeatable"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the random starts (default 0)")
    options = parser.parse_args(arguments[1:])
    if options.output.exists():
        raise UserInputError(f"--output {options.output}: it exists; give another name, or remove it")
    affinity = Affinity.load(options.affinity)
    partitioner = TowerPartitioner(
        options.towers,
        method=options.method,
        ratio=options.ratio,
        costs=_costs(options.costs),
        max_load=options.max_load,
        groups=_groups(options.groups),
        pinned=dict(_pin(text) for text in options.pin),
        apart=[_pair(text) for text in options.apart],
        seed=options.seed,
    )
    started = time.monotonic()
    partitioner.fit(affinity)
    seconds = time.monotonic() - started
    try:
        partitioner.plan_.save(options.output)
    except OSError as error:
        raise UserInputError(f"--output {options.output}: {error}; give a file to write") from None
    _print(partitioner, affinity)
    print(f"{len(affinity.features)} features into {options.towers} towers in {seconds:.1f} s: {options.output}")


def _print(partitioner: TowerPartitioner, affinity: Affinity) -> None:
    table = Table("tower", "features", "mean affinity", *(["cost"] if partitioner.costs else []), "names")
    towers = partitioner.plan_.towers
    for index, tower in enumerate(towers):
        costs = [f"{sum(partitioner.costs.get(name, 0.0) for name in tower):,.6g}"] if partitioner.costs else []
        table.add_row(str(index), str(len(tower)), f"{mean_within(affinity, [tower]):.3f}", *costs, " ".join(tower))
    Console().print(table)
    within, overall = mean_within(affinity, towers), mean_within(affinity, [affinity.features])
    print(f"mean affinity of two features of a tower {within:.3f}, of any two {overall:.3f}")


def mean_within(affinity: Affinity, towers: Sequence[Sequence[str]]) -> float:
    """Mean affinity of the pairs of features inside the towers; 0 where there are none."""
    place = {name: index for index, name in enumerate(affinity.features)}
    values: list[float] = []
    for tower in towers:
        members = [place[name] for name in tower]
        values += affinity.matrix[np.ix_(members, members)][np.triu_indices(len(members), 1)].tolist()
    return float(np.mean(values)) if values else 0.0


def _costs(file: Path | None) -> dict[str, float]:
    content = _read_yaml(file, "--costs")
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(v, int | float) and v >= 0 for v in content.values()):
        raise UserInputError(f"--costs {file}: give numbers of at least 0 by name, for example C1: 45.8")
    return {str(name): float(value) for name, value in content.items()}


def _groups(file: Path | None) -> list[list[str]]:
    content = _read_yaml(file, "--groups")
    if content is None:
        return []
    if not isinstance(content, list) or not all(isinstance(group, list) for group in content):
        raise UserInputError(f"--groups {file}: give a list of lists of features, for example [[user, age], [item]]")
    return [[str(name) for name in group] for group in content]


def _read_yaml(file: Path | None, option: str) -> object:
    if file is None:
        return None
    try:
        content: object = yaml.safe_load(file.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise UserInputError(f"{option} {file}: {str(error).splitlines()[0]}; give a YAML file") from None
    return content


def _pin(text: str) -> tuple[str, int]:
    name, _, tower = text.rpartition("=")
    if not name or not tower.isdigit():
        raise UserInputError(f"--pin {text}: write NAME=TOWER, for example user_id=0")
    return name, int(tower)


def _pair(text: str) -> tuple[str, str]:
    words = text.split(",")
    if len(words) != 2 or not all(words):
        raise UserInputError(f"--apart {text}: write two names, for example user_id,item_id")
    return words[0], words[1]
