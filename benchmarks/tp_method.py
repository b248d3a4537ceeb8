"""Which towers are best: methods of a sweep against strided towers, and against the flat model.

    python benchmarks/tp_method.py runs/sweeps/tp_method --output benchmarks/results/tp_method.md

Reads the results.csv of `dmt sweep`. A setting is a top arch, a tower module and a number of towers; a method is the
name of a baseline plan, or what a plan file is called after the last underscore. Differences are of medians over seeds;
p is of the two-sided Mann-Whitney U test against strided towers, by Holm's correction over all rows of the result.
`auto` is whichever of coherent and diverse towers has the higher validation AUC with the first seed, and is judged by
the others; once by cosines, as in the paper, and once by interactions, where diverse towers are called apart. Where
random towers fall behind the flat model by more than three standard errors, `recovered` is the share of that gap which
a method makes up for, in means.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from common import finished_trials, heading, parse_sweep, publish
from scipy.stats import norm

from dmt.runs import holm, p_text, p_value

FLAT, STRIDED, RANDOM = "flat", "strided", "random"
CHOICES = {"auto": ("coherent", "diverse"), "auto, interactions": ("interaction", "apart")}

Values = Mapping[str, Mapping[str, float]]
"""Of each method, by seed."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A top arch, a tower module and a number of towers, with the metric of each method and seed on both splits."""

    top: str
    tower: str
    num_towers: int
    test: dict[str, dict[str, float]]
    valid: dict[str, dict[str, float]]

    @property
    def name(self) -> str:
        return ", ".join(filter(None, (self.top, self.tower)))


def read(folder: Path) -> list[Setting]:
    """Settings of a sweep's finished trials; the flat model of the same top arch is a method of each."""
    table = finished_trials(folder)
    found: dict[tuple[str, str, int], Setting] = {}
    for row in table.iter_rows(named=True):
        # A sweep over one top arch alone does not name it.
        top, tower = (row.get(f"model.{part}.class_path", "").rpartition(".")[2] for part in ("top", "tower"))
        number = int(row["model.num_towers"])
        key = (top, tower if number > 1 else "", number)
        setting = found.setdefault(key, Setting(top=top, tower=tower, num_towers=number, test={}, valid={}))
        method = FLAT if number == 1 else Path(row["model.plan"]).stem.rpartition("_")[2]
        for split, values in (("test", setting.test), ("val", setting.valid)):
            values.setdefault(method, {})[row["seed_everything"]] = float(row[f"{split}/auroc"])
    settings = [setting for setting in found.values() if setting.num_towers > 1]
    for setting in settings:
        flat = found[setting.top, "", 1]
        setting.test[FLAT], setting.valid[FLAT] = flat.test[FLAT], flat.valid[FLAT]
    return settings


def choose(setting: Setting) -> dict[str, dict[str, float]]:
    """Test metrics of what `auto` keeps of each pair of methods, by the other seeds; none where trials are missing."""
    first = min(setting.valid[STRIDED], key=int)
    found = {}
    for name, methods in CHOICES.items():
        if all(first in setting.valid.get(method, {}) for method in methods):
            best = max(methods, key=lambda method: setting.valid[method][first])
            found[f"{name}: {best}"] = {seed: v for seed, v in setting.test[best].items() if seed != first}
    return found


def recovered(values: Sequence[float], setting: Setting) -> str:
    """Share of the gap between random towers and flat, where there is one."""
    if len(setting.test.get(RANDOM, {})) < 2:
        return ""
    flat, random = (list(setting.test[method].values()) for method in (FLAT, RANDOM))
    gap = statistics.fmean(flat) - statistics.fmean(random)
    error = math.hypot(*(statistics.stdev(found) / math.sqrt(len(found)) for found in (flat, random)))
    return f"{(statistics.fmean(values) - statistics.fmean(random)) / gap:.0%}" if gap > 3 * error else ""


def seen(setting: Setting) -> float:
    """The difference that so many seeds show four times of five at p < 0.01, for normal values of this deviation."""
    groups = [list(values.values()) for method, values in setting.test.items() if method != RANDOM]
    deviation = math.sqrt(statistics.fmean(statistics.variance(group) for group in groups))
    number = statistics.fmean(len(group) for group in groups)
    efficiency = 3 / math.pi  # of the rank test against the t test
    return float(deviation * (norm.isf(0.005) + norm.isf(0.2)) * math.sqrt(2 / (number * efficiency)))


def tabulate(settings: Sequence[Setting]) -> list[str]:
    """A line a method and setting."""
    rows: list[tuple[Setting, str, dict[str, float]]] = []
    for setting in settings:
        kept = {name: values for name, values in choose(setting).items() if values}
        rows += [(setting, method, values) for method, values in setting.test.items() if method != FLAT]
        rows += [(setting, name, values) for name, values in kept.items()]
    tested = [row for row in rows if row[1] != STRIDED]
    p_values = [p_value(list(v.values()), list(s.test[STRIDED].values())) for s, _, v in tested]
    corrected = {id(row): p for row, p in zip(tested, holm(p_values), strict=True)}
    lines = [
        "| model | towers | method | n | median AUC | deviation | to strided | p, corrected | to flat | recovered |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    shown: set[int] = set()
    for row in rows:
        setting, method, by_seed = row
        values = list(by_seed.values())
        median = statistics.median(values)
        strided, flat = (statistics.median(setting.test[name].values()) for name in (STRIDED, FLAT))
        if id(setting) not in shown:
            shown.add(id(setting))
            group = list(setting.test[FLAT].values())
            lines.append(
                f"| {setting.top} | 1 | {FLAT} | {len(group)} | {flat:.4f} | {np.std(group, ddof=1):.4f} |  |  |  |  |"
            )
        p = corrected.get(id(row))
        cells = [
            setting.name,
            str(setting.num_towers),
            method,
            str(len(values)),
            f"{median:.4f}",
            f"{np.std(values, ddof=1):.4f}" if len(values) > 1 else "",
            "" if p is None else f"{median - strided:+.4f}",
            "" if p is None else p_text(p),
            f"{median - flat:+.4f}",
            recovered(values, setting) if method != RANDOM else "",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def main() -> None:
    arguments = parse_sweep(__doc__)
    settings = read(arguments.sweep)
    lines = [*heading(f"Towers by method: {arguments.sweep.name}"), *tabulate(settings), ""]
    for setting in settings:
        lines.append(
            f"{setting.name}, {setting.num_towers} towers: these seeds show a difference of "
            f"{seen(setting):.4f} four times of five at p < 0.01, uncorrected."
        )
    publish(lines, arguments.output)


if __name__ == "__main__":
    main()
