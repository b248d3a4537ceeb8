"""What towers of features that belong together save: bytes between hosts at the AUC of the flat model.

    python benchmarks/tp_saves.py runs/sweeps/tp_saves --output benchmarks/results/tp_saves.md

Reads the runs of a sweep over plans and compression ratios on the built-in log. A plan is known by how many of the
pairs of features that were planted together share a tower. Bytes are those of a sample's embeddings and their gradients
between hosts, a tower a host, in float32: of what towers send, or for the flat model of the features' embeddings, the
share of the other hosts. A plan keeps the flat model's AUC as long as its median is not below flat's by more than
0.0005.
"""

import statistics
from collections import defaultdict
from collections.abc import Sequence
from itertools import combinations

from common import heading, parse_sweep, publish

from dmt.datamodules import SyntheticClicks
from dmt.runs import Run, find_runs

MARGIN = 0.0005


def planted_pairs(run: Run) -> set[tuple[str, str]]:
    """Pairs of features that were planted together in a run's log."""
    groups = SyntheticClicks(**run.summary.data["init_args"]).planted_groups
    return {pair for group in groups for pair in combinations(sorted(group), 2)}


def kept_pairs(run: Run, planted: set[tuple[str, str]]) -> int:
    """How many of them share a tower of the run's plan."""
    towers = [tower["features"] for tower in run.summary.description["towers"]]
    return sum(pair in planted for tower in towers for pair in combinations(sorted(tower), 2))


def bytes_between_hosts(run: Run, *, num_hosts: int) -> float:
    """Of a sample's embeddings and gradients, both ways."""
    floats = sum(tower["out_features"] * tower["out_dim"] for tower in run.summary.description["towers"])
    return 2 * 4 * floats * (num_hosts - 1) / num_hosts


def cell(aucs: Sequence[float]) -> str:
    """Median and deviation."""
    deviation = f" ({statistics.stdev(aucs):.4f})" if len(aucs) > 1 else ""
    return f"{statistics.median(aucs):.4f}{deviation}"


def main() -> None:
    arguments = parse_sweep(__doc__)
    runs = find_runs([arguments.sweep])
    planted = planted_pairs(runs[0])
    num_hosts = max(len(run.summary.description["towers"]) for run in runs)
    flat: list[float] = []
    found: dict[int, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    sent: dict[float, float] = {}
    for run in runs:
        ratio, auc = run.summary.description["compression_ratio"], run.summary.metrics["test/auroc"]
        sent[ratio] = bytes_between_hosts(run, num_hosts=num_hosts)
        if len(run.summary.description["towers"]) == 1:
            flat.append(auc)
        else:
            found[kept_pairs(run, planted)][ratio].append(auc)
    if not flat:
        raise SystemExit(f"{arguments.sweep}: no flat run has finished yet")
    least = statistics.median(flat) - MARGIN
    ratios = sorted(ratio for ratio in sent if any(ratio in by_ratio for by_ratio in found.values()))
    lines = [
        *heading(f"What good towers save: {arguments.sweep.name}"),
        f"Test AUC, medians of seeds (deviation). Flat: {cell(flat)}, {len(flat)} seeds, {sent[1.0]:.0f} bytes.",
        "",
        f"| planted pairs in a tower, of {len(planted)} | "
        + " | ".join(f"ratio {ratio:g}: {sent[ratio]:.0f} bytes" for ratio in ratios)
        + " | fewest bytes at flat's AUC |",
        f"|{'---|' * (len(ratios) + 2)}",
    ]
    for kept, by_ratio in sorted(found.items(), reverse=True):
        enough = [ratio for ratio, aucs in by_ratio.items() if statistics.median(aucs) >= least]
        cells = [cell(by_ratio[ratio]) if ratio in by_ratio else "" for ratio in ratios]
        saved = (
            f"{sent[max(enough)]:.0f} (1/{sent[1.0] / sent[max(enough)]:.0f} of flat's)" if enough else "none of these"
        )
        lines.append(f"| {' | '.join([str(kept), *cells, saved])} |")
    publish(lines, arguments.output)


if __name__ == "__main__":
    main()
