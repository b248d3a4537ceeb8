"""``dmt explain``: how much each tower, and each pair of towers, contributes to the prediction.

Shapes: B samples, O_t outputs of tower t, T towers, D output dim.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import combinations
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc
from torchrec.datasets.utils import Batch

from dmt import pages
from dmt.callbacks.probe import validation_batches
from dmt.commands.trained import visit
from dmt.errors import OneLineParser, UserInputError, check_new_file, write_file
from dmt.modules.click_model import ClickModel
from dmt.modules.stage import TowerStage, given_outputs
from dmt.partition.drawing import COLORS, number_towers
from dmt.plan import TowerPlan
from dmt.waiting import waiting

_DESCRIPTION = """\
How much each tower, and each pair of towers, contributes to a trained model's prediction. The outputs of a tower are
dealt out anew among the samples of each validation batch, so that they tell nothing of the sample that they are given
to; what the AUC loses by that is the tower's contribution (permutation importance, Breiman 2001). How far two towers
act together is told on the logit: what dealing out both at once changes, beyond the sum of what dealing out each
changes, as root mean square over samples. Where the logit is a sum of what each of the two gives, however much that is,
it is 0.

examples:
  dmt explain --checkpoint RUN/checkpoints/NAME.ckpt
  dmt explain --checkpoint RUN/checkpoints/NAME.ckpt --batches 50 --report towers.html
"""

Towers = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Contribution:
    """What one or two towers give.

    Args:
        towers: their places in the plan.
        auc_drop: what the AUC loses without what they tell; a pair's is that of both at once.
        deviation: of the drop over repeats; ``None`` of a single one.
    """

    towers: Towers
    auc_drop: float
    deviation: float | None


@dataclass(frozen=True, kw_only=True)
class PairContribution(Contribution):
    """What two towers give, and how far only together.

    Args:
        together: root mean square over samples of the logit's mixed difference: the logit, less it with the one dealt
            out, less it with the other dealt out, and it with both. A sum of what each gives has none.
        together_deviation: of that over repeats; ``None`` of a single one.
    """

    together: float
    together_deviation: float | None


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """Contributions to the predictions of a model.

    Args:
        auc: of the model as it is.
        num_samples: validation samples looked at.
        single: of each of the T towers.
        pairs: of each pair of them.
    """

    auc: float
    num_samples: int
    single: Sequence[Contribution]
    pairs: Sequence[PairContribution]


def explain(model: ClickModel, batches: Sequence[Batch], *, num_repeats: int = 3, seed: int = 0) -> Explanation:
    """Measure the contribution of each tower and pair of towers.

    Args:
        model: trained, in one process.
        batches: on the model's device.
        num_repeats: times that outputs are dealt out anew.
        seed: of how.

    Raises:
        UserInputError: a logit is not finite, or all labels are the same.
    """
    stage = next(child for child in model.modules() if isinstance(child, TowerStage))
    places = _places([tower.out_features for tower in stage.tower_modules])
    pairs = list(combinations(range(len(places)), 2))
    wanted: list[Towers] = [*((t,) for t in range(len(places))), *pairs]
    labels = torch.cat([batch.labels for batch in batches]).int()
    if len(labels.unique()) < 2:
        raise UserInputError(
            f"explain: the labels of all {len(labels):,} samples are the same, so there is no AUC; look at more batches"
        )
    auc, drops, together = 0.0, dict[Towers, list[float]](), dict[Towers, list[float]]()
    for repeat in range(num_repeats):
        random = torch.Generator().manual_seed(seed + repeat)
        scores: dict[Towers, list[Tensor]] = {}
        for batch in waiting(batches, f"batches, dealt out {repeat + 1} of {num_repeats} times"):
            for towers, logits in _permuted_logits(model, stage, batch, places=places, wanted=wanted, random=random):
                scores.setdefault(towers, []).append(logits)
        found = {towers: torch.cat(parts) for towers, parts in scores.items()}
        if not all(values.isfinite().all() for values in found.values()):
            raise UserInputError("explain: logits are not finite, so training has diverged; give another checkpoint")
        aucs = {towers: float(binary_auroc(values.sigmoid(), labels)) for towers, values in found.items()}
        auc = aucs[()]
        for towers in wanted:
            drops.setdefault(towers, []).append(auc - aucs[towers])
        for t, u in pairs:
            mixed = found[()].double() - found[t,] - found[u,] + found[t, u]
            together.setdefault((t, u), []).append(float(mixed.square().mean().sqrt()))

    def drop(towers: Towers) -> dict[str, Any]:
        return {"towers": towers, "auc_drop": fmean(drops[towers]), "deviation": _deviation(drops[towers])}

    return Explanation(
        auc=auc,
        num_samples=len(labels),
        single=[Contribution(**drop((t,))) for t in range(len(places))],
        pairs=[
            PairContribution(
                **drop(pair), together=fmean(together[pair]), together_deviation=_deviation(together[pair])
            )
            for pair in pairs
        ],
    )


def _deviation(values: Sequence[float]) -> float | None:
    return stdev(values) if len(values) > 1 else None


def _places(widths: Sequence[int]) -> list[slice]:
    """Where each tower's outputs are among those of the stage."""
    ends = np.cumsum(widths).tolist()
    return [slice(end - width, end) for end, width in zip(ends, widths, strict=True)]


@torch.no_grad()
def _permuted_logits(
    model: ClickModel,
    stage: TowerStage,
    batch: Batch,
    *,
    places: Sequence[slice],
    wanted: Sequence[Towers],
    random: torch.Generator,
) -> Iterator[tuple[Towers, Tensor]]:
    """Logits (B,) as they are, by ``()``, and with the outputs of each of the wanted towers dealt out anew."""
    own = stage(batch.sparse_features)  # (B, O, D)
    others = own[torch.randperm(len(own), generator=random).to(own.device)]
    for towers in ((), *wanted):
        outputs = own.clone()
        for tower in towers:
            outputs[:, places[tower]] = others[:, places[tower]]
        with given_outputs(stage, outputs):
            yield towers, model(batch).float()


def run_explain_command(arguments: list[str]) -> None:
    """``dmt explain --checkpoint FILE``."""
    options = _parse(arguments)
    found: list[tuple[Explanation, TowerPlan]] = []

    def look(trainer: pl.Trainer, module: pl.LightningModule) -> None:
        assert isinstance(module, ClickModel)
        batches = list(validation_batches(trainer, options.batches))
        found.append((explain(module, batches, num_repeats=options.repeats), module.resolved_plan))

    visit(options.checkpoint, look, config=options.config, num_batches=options.batches)
    [(explanation, plan)] = found
    if options.report is not None:
        write_file("--report", options.report, partial(write_report, explanation, plan))
    if options.json:
        print(json.dumps(_as_dict(explanation, plan), indent=2, allow_nan=False))
    else:
        _print(explanation, plan)


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = OneLineParser(prog="dmt explain", description=_DESCRIPTION)
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="FILE", help="of `dmt fit`, of any layout")
    parser.add_argument("--config", type=Path, metavar="FILE", help="default: that of the checkpoint's run")
    parser.add_argument(
        "--batches", type=int, default=50, metavar="N", help="validation batches to look at (default 50)"
    )
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="times to deal out (default 3)")
    parser.add_argument("--report", type=Path, metavar="FILE", help="page or picture: .html, .png, .svg or .pdf")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    options = parser.parse_args(arguments[1:])
    for name in ("batches", "repeats"):
        if getattr(options, name) < 1:
            raise UserInputError(f"--{name} {getattr(options, name)}: give at least 1")
    check_new_file("--report", options.report)
    pages.check_suffix("--report", options.report)
    return options


def _as_dict(explanation: Explanation, plan: TowerPlan) -> dict[str, Any]:
    return asdict(explanation) | {"features": [list(tower) for tower in plan.towers]}


def _tables(explanation: Explanation, plan: TowerPlan) -> list[pages.Table]:
    single = [
        [str(t), f"{one.auc_drop:.4f}", _told(one.deviation), ", ".join(plan.towers[t])]
        for one in explanation.single
        for t in one.towers
    ]
    strongest = sorted(explanation.pairs, key=lambda pair: -pair.together)[:10]
    pairs = [
        [
            " and ".join(map(str, pair.towers)),
            f"{pair.together:.4f}",
            _told(pair.together_deviation),
            f"{pair.auc_drop:.4f}",
            _told(pair.deviation),
        ]
        for pair in strongest
    ]
    return [
        pages.Table(header=["tower", "AUC drop", "deviation", "features"], rows=single),
        pages.Table(header=["towers", "together (logit)", "deviation", "AUC drop of both", "deviation"], rows=pairs),
    ]


def _told(deviation: float | None) -> str:
    return "" if deviation is None else f"{deviation:.4f}"


def _print(explanation: Explanation, plan: TowerPlan) -> None:
    print(f"AUC {explanation.auc:.4f} on {explanation.num_samples:,} validation samples")
    for told in _tables(explanation, plan):
        if told.rows:
            pages.print_table(told)


def write_report(explanation: Explanation, plan: TowerPlan, path: Path) -> None:
    """Write a page where the path ends in ``.html``, else a picture."""
    pictures = [_draw_single, _draw_pairs] if explanation.pairs else [_draw_single]
    figure = Figure(figsize=(5 * len(pictures), 4.5), layout="constrained")
    for axes, picture in zip(figure.subplots(1, len(pictures), squeeze=False).flat, pictures, strict=True):
        picture(axes, explanation)
    if path.suffix != ".html":
        figure.savefig(path, dpi=120)
        return
    single, pairs = _tables(explanation, plan)
    told = (
        f"AUC {explanation.auc:.4f} on {explanation.num_samples:,} validation samples. A drop is what the AUC loses "
        "when a tower's outputs are dealt out anew among the samples."
    )
    together = (
        "How far two towers act together: what dealing out both changes of the logit, beyond the sum of what dealing "
        "out each changes; root mean square over samples. It is 0 where the logit is a sum of what each gives."
    )
    pages.write_page(
        path,
        title=f"What {len(plan.towers)} towers contribute",
        sections=[
            pages.Section(heading="Towers", text=[told], tables=[single], pictures=[figure]),
            pages.Section(heading="Pairs that act together most", text=[together], tables=[pairs]),
        ][: 1 + bool(explanation.pairs)],
    )


def _draw_single(axes: Axes, explanation: Explanation) -> None:
    drops = [one.auc_drop for one in explanation.single]
    errors = [one.deviation or 0.0 for one in explanation.single]
    axes.bar(range(len(drops)), drops, yerr=errors, color=COLORS[0], ecolor=COLORS[1])
    number_towers(axes.xaxis, len(drops))
    axes.set_ylabel("AUC drop")
    axes.set_title("AUC drop without a tower")


def _draw_pairs(axes: Axes, explanation: Explanation) -> None:
    size = len(explanation.single)
    matrix = np.full((size, size), np.nan)
    for pair in explanation.pairs:
        t, u = pair.towers
        matrix[t, u] = matrix[u, t] = pair.together
    image = axes.imshow(matrix, cmap="cividis", vmin=0)
    axes.figure.colorbar(image, ax=axes, label="change of the logit")
    for axis in (axes.xaxis, axes.yaxis):
        number_towers(axis, size)
    axes.set_title("how far two towers act together")
