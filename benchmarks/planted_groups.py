"""How well learned towers are the groups that were planted in the built-in log: adjusted Rand index.

    python benchmarks/planted_groups.py runs/sweeps/planted_groups --output benchmarks/results/planted_groups.md

Reads what AffinityProbe and InteractionProbe have left in the runs of a sweep, and makes towers of it: as many as there
are groups. An index of 1 says that towers and groups are the same, 0 that they agree no more than by chance.
"""

import json
import statistics
from itertools import product
from pathlib import Path

import yaml
from common import heading, parse_sweep, publish
from sklearn.metrics import adjusted_rand_score

from dmt.datamodules import SyntheticClicks
from dmt.partition import Affinity, TowerPartitioner

FILES = {"cosine": "affinity.npz", "interaction": "interaction.npz"}
METHODS = ("2-D", "8-D", "spectral")


def options(method: str, num_groups: int) -> dict[str, object]:
    """Of the partitioner. Groups that are all as far from each other need as many dimensions, less one."""
    if method == "spectral":
        return {"method": method}
    return {"method": "coherent", "num_dims": 2 if method == "2-D" else max(8, num_groups)}


def agreements(run: Path, data: SyntheticClicks) -> dict[str, float]:
    """The index of each method on what a run has left."""
    group_of = {name: index for index, group in enumerate(data.planted_groups) for name in group}
    found = {}
    num_groups = len(data.planted_groups)
    for title, method in product(FILES, METHODS):
        affinity = Affinity.load(run / FILES[title])
        plan = TowerPartitioner(num_groups, **options(method, num_groups)).fit(affinity).plan_  # type: ignore[arg-type]
        tower_of = {name: index for index, tower in enumerate(plan.towers) for name in tower}
        labels = [[own[name] for name in affinity.features] for own in (group_of, tower_of)]
        found[f"{title}, {method}"] = float(adjusted_rand_score(*labels))
    return found


def main() -> None:
    arguments = parse_sweep(__doc__)
    points: dict[tuple[int, int, int], list[tuple[dict[str, float], float]]] = {}
    for file in sorted(arguments.sweep.rglob("interaction.npz")):
        log = yaml.safe_load((file.parent / "config.yaml").read_text())["data"]["init_args"]
        summary = json.loads((file.parent / "summary.json").read_text())
        data = SyntheticClicks(**log)
        key = (log["num_features"], log["num_groups"], log["num_train"])
        points.setdefault(key, []).append((agreements(file.parent, data), summary["metrics"]["test/auroc"]))
    titles = [f"{title}, {method}" for title, method in product(FILES, METHODS)]
    lines = [
        *heading("Planted groups that are found"),
        "Adjusted Rand index: the lowest of the seeds, and their median. 8-D: as many dimensions as groups, if more.",
        "",
        f"| features | groups | samples | seeds | test AUC | {' | '.join(titles)} |",
        f"|{'---|' * (5 + len(titles))}",
    ]
    for (features, groups, samples), found in sorted(points.items()):
        auc = statistics.median(auc for _, auc in found)
        cells = []
        for title in titles:
            values = [indices[title] for indices, _ in found]
            cells.append(f"{min(values):.2f}, {statistics.median(values):.2f}")
        told = [str(features), str(groups), f"{samples:,}", str(len(found)), f"{auc:.4f}", *cells]
        lines.append(f"| {' | '.join(told)} |")
    publish(lines, arguments.output)


if __name__ == "__main__":
    main()
