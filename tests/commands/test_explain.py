"""What `dmt explain` finds out of a model whose contributions are known."""

import json
import re
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torchrec.datasets.utils import Batch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dmt.commands import explain as command
from dmt.commands.explain import Contribution, Explanation, PairContribution, explain, write_report
from dmt.datamodules import SyntheticClicks
from dmt.errors import UserInputError
from dmt.modules import ClickModel, TopArch
from dmt.modules.stage import Stage, TowerStage
from dmt.plan import TowerPlan

PLAN = TowerPlan(towers=[["c0"], ["c1"], ["c2"], ["c3"], ["c4"]])


class Known(TopArch):
    """A sum of the first two towers' outputs, the product of the next two, and nothing of the last."""

    def __init__(self, stage: Stage, num_dense: int) -> None:
        super().__init__()
        self.stage = stage

    def forward(self, dense_features: Tensor, sparse_features: KeyedJaggedTensor) -> Tensor:
        vectors = self.stage(sparse_features)  # (B, 5, N)
        return vectors[:, :2].sum(dim=(1, 2)) + (vectors[:, 2] * vectors[:, 3]).sum(dim=1)


@pytest.fixture(scope="module")
def known() -> tuple[ClickModel, list[Batch], np.ndarray]:
    """A model, batches whose labels follow its law, and its embeddings of them (B, 5, N)."""
    data = SyntheticClicks(num_features=5, num_groups=1, num_embeddings=50, num_train=100, num_valid=6000, num_test=10)
    data.setup("fit")
    torch.manual_seed(0)
    model = ClickModel(embedding_dim=4, plan=PLAN, top=Known)
    model.build(data.schema)
    for tensor in model.state_dict().values():
        if tensor.ndim == 2:
            tensor.normal_()
    batches, vectors = [], []
    for start in (0, 3000):
        batch = data._split("valid").batch(np.arange(start, start + 3000))
        with torch.no_grad():
            labels = torch.bernoulli(model(batch).sigmoid())
            [stage] = [child for child in model.modules() if isinstance(child, TowerStage)]
            vectors.append(stage(batch.sparse_features).numpy())
        batches.append(Batch(batch.dense_features, batch.sparse_features, labels))
    return model, batches, np.concatenate(vectors)


def test_contributions_are_those_of_the_model(known: tuple[ClickModel, list[Batch], np.ndarray]) -> None:
    model, batches, vectors = known
    found = explain(model, batches)
    labels = np.concatenate([batch.labels.numpy() for batch in batches])
    others = vectors[np.random.default_rng(0).permutation(len(vectors))]

    def auc(*dealt: int) -> float:
        mixed = vectors.copy()
        mixed[:, dealt] = others[:, dealt]
        return float(roc_auc_score(labels, mixed[:, :2].sum(axis=(1, 2)) + (mixed[:, 2] * mixed[:, 3]).sum(axis=1)))

    assert found.num_samples == 6000 and found.auc == pytest.approx(auc(), abs=1e-5)
    assert [one.towers for one in found.single] == [(0,), (1,), (2,), (3,), (4,)] and len(found.pairs) == 10
    for one in (*found.single, *found.pairs):
        # Other samples are dealt out here: by chance, some thousandths.
        assert one.auc_drop == pytest.approx(auc() - auc(*one.towers), abs=0.015)
        assert one.deviation is not None and one.deviation < 0.01
    # The top does not read the last tower.
    assert (found.single[4].auc_drop, found.single[4].deviation) == (0, 0)
    assert min(one.auc_drop for one in found.single[:4]) > 0.05


def test_towers_act_together_where_the_logit_is_no_sum(known: tuple[ClickModel, list[Batch], np.ndarray]) -> None:
    model, batches, vectors = known
    together = {pair.towers: pair for pair in explain(model, batches).pairs}
    steps = vectors[np.random.default_rng(0).permutation(len(vectors))] - vectors
    product = np.sqrt(np.mean((steps[:, 2] * steps[:, 3]).sum(axis=1) ** 2))
    # Other samples are dealt out here.
    assert together[2, 3].together == pytest.approx(product, rel=0.1)
    assert 0 < (together[2, 3].together_deviation or 0) < 0.1 * product
    # Float32 logits of some units are rounded at the seventh digit.
    assert max(pair.together for towers, pair in together.items() if towers != (2, 3)) < 1e-5


def test_one_repeat_has_no_deviation_and_is_json(
    known: tuple[ClickModel, list[Batch], np.ndarray], tmp_path: Path
) -> None:
    model, batches, _ = known
    found = explain(model, batches[:1], num_repeats=1)
    told = json.loads(json.dumps(command._as_dict(found, PLAN), allow_nan=False))
    assert told["single"][0]["deviation"] is told["pairs"][0]["together_deviation"] is None
    write_report(found, PLAN, tmp_path / "report.html")
    page = re.sub(r'<img src="[^"]*"', "", (tmp_path / "report.html").read_text())
    assert '<td class="left">2 and 3</td>' in page and "None" not in page and "nan" not in page


def test_pairs_are_told_by_how_far_they_act_together() -> None:
    pairs = [
        PairContribution(towers=(t, t + 1), auc_drop=0.1, deviation=None, together=t % 12, together_deviation=0.5)
        for t in range(13)
    ]
    single = [Contribution(towers=(t,), auc_drop=0.2, deviation=0.01) for t in range(14)]
    plan = TowerPlan(towers=[[f"c{t}"] for t in range(14)])
    explanation = Explanation(auc=0.8, num_samples=10, single=single, pairs=pairs)
    towers, together = command._tables(explanation, plan)
    assert towers.rows[3] == ["3", "0.2000", "0.0100", "c3"]
    assert [row[0] for row in together.rows] == [f"{t} and {t + 1}" for t in range(11, 1, -1)]
    assert together.rows[0] == ["11 and 12", "11.0000", "0.5000", "0.1000", ""]


def test_a_single_tower_has_no_picture_of_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    single = [Contribution(towers=(0,), auc_drop=0.2, deviation=0.01)]
    explanation = Explanation(auc=0.8, num_samples=10, single=single, pairs=[])
    monkeypatch.setattr(command, "_draw_pairs", None)
    write_report(explanation, TowerPlan(towers=[["a"]]), tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "<h2>Towers</h2>" in page and "Pairs" not in page
    write_report(explanation, TowerPlan(towers=[["a"]]), tmp_path / "report.png")


def test_names_are_told_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    single = [Contribution(towers=(0,), auc_drop=0.2, deviation=0.01)]
    explanation = Explanation(auc=0.8, num_samples=10, single=single, pairs=[])
    command._print(explanation, TowerPlan(towers=[["[/x]", "[red]y"]]))
    assert "[/x], [red]y" in capsys.readouterr().out


def test_numbers_of_many_towers_do_not_cover_each_other() -> None:
    figure = Figure(figsize=(10, 4.5), layout="constrained")
    single, pair = figure.subplots(1, 2)
    drops = [Contribution(towers=(t,), auc_drop=0.2, deviation=0.01) for t in range(26)]
    pairs = [
        PairContribution(towers=towers, auc_drop=0.1, deviation=None, together=0.5, together_deviation=None)
        for towers in combinations(range(26), 2)
    ]
    explanation = Explanation(auc=0.8, num_samples=10, single=drops, pairs=pairs)
    command._draw_single(single, explanation)
    command._draw_pairs(pair, explanation)
    figure.draw_without_rendering()
    for axis in (single.xaxis, pair.xaxis, pair.yaxis):
        boxes = [label.get_window_extent() for label in axis.get_ticklabels()]
        assert len(boxes) == 26 and not any(one.overlaps(other) for one, other in pairwise(boxes))


def test_labels_that_are_all_the_same_are_told(known: tuple[ClickModel, list[Batch], np.ndarray]) -> None:
    model, [batch, _], _ = known
    alike = Batch(batch.dense_features, batch.sparse_features, torch.zeros_like(batch.labels))
    with pytest.raises(UserInputError, match="explain: the labels of all 3,000 samples are the same, so there is no"):
        explain(model, [alike])


def test_logits_that_are_not_finite_are_told(known: tuple[ClickModel, list[Batch], np.ndarray]) -> None:
    model, batches, _ = known
    spoiled = ClickModel(embedding_dim=4, plan=PLAN, top=Known)
    spoiled.build(model.schema)
    for tensor in spoiled.state_dict().values():
        if tensor.ndim == 2:
            tensor.fill_(float("nan"))
    with pytest.raises(UserInputError, match="explain: logits are not finite, so training has diverged"):
        explain(spoiled, batches[:1])
