"""Click metrics against scikit-learn and numpy."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss, roc_auc_score
from torch import Tensor
from torchmetrics import Metric

from dmt.modules import Calibration, LogLoss, NormalizedEntropy, click_metrics
from dmt.modules.metrics import AUROC

# The metrics sum in float64 and return float32, whose rounding is 6e-8; 1e-6 leaves a factor ten.
RTOL = 1e-6
METRICS = [AUROC, LogLoss, NormalizedEntropy, Calibration]


def draw(seed: int, size: int = 500) -> tuple[Tensor, Tensor]:
    """Probabilities with ties, and clicks that follow them."""
    generator = torch.Generator().manual_seed(seed)
    preds = torch.rand(size, generator=generator).mul(99).round().clamp(1, 98) / 99
    return preds, torch.bernoulli(preds * 0.5, generator=generator).int()


def split(preds: Tensor, target: Tensor, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Random batches, one of them empty."""
    cuts = np.sort(np.random.default_rng(seed).integers(0, len(preds), 5))
    sizes = np.diff([0, *cuts, cuts[-1], len(preds)]).tolist()
    return list(zip(preds.split(sizes), target.split(sizes), strict=True))


def expected(preds: Tensor, target: Tensor) -> dict[str, float]:
    p, y = preds.double().numpy(), target.numpy()
    entropy = -(y.mean() * math.log(y.mean()) + (1 - y.mean()) * math.log(1 - y.mean()))
    return {
        "auroc": roc_auc_score(y, p),
        "log_loss": log_loss(y, p),
        "normalized_entropy": log_loss(y, p) / entropy,
        "calibration": p.sum() / y.sum(),
    }


def test_metrics_equal_scikit_learn_over_any_batches(seed: int) -> None:
    preds, target = draw(seed)
    metrics = click_metrics("val/")
    batches = split(preds, target, seed)
    assert any(not len(batch) for batch, _ in batches)
    for batch in batches:
        metrics.update(*batch)
    found = {name: value.item() for name, value in metrics.compute().items()}
    assert found == pytest.approx({f"val/{k}": v for k, v in expected(preds, target).items()}, rel=RTOL)

    metrics.reset()
    preds, target = draw(seed + 1, size=60)
    metrics.update(preds, target)
    found = {name: value.item() for name, value in metrics.compute().items()}
    assert found == pytest.approx({f"val/{k}": v for k, v in expected(preds, target).items()}, rel=RTOL)


def test_merged_states_are_those_of_all_samples(seed: int) -> None:
    """What ranks do when they gather: each has seen some of the samples, one of them none."""
    preds, target = draw(seed)
    ranks = [click_metrics("") for _ in range(7)]
    for metrics, batch in zip(ranks, split(preds, target, seed), strict=True):
        metrics.update(*batch)
    for name, value in expected(preds, target).items():
        total: Metric = ranks[0][name]
        for other in ranks[1:]:
            total.merge_state(other[name])
        assert total.compute().item() == pytest.approx(value, rel=RTOL), name


def test_sums_do_not_lose_small_batches() -> None:
    """In float32, 2^24 + 1 = 2^24: a long evaluation would stop counting."""
    metric = Calibration()
    metric.update(torch.ones(1), torch.ones(1))
    metric.clicks += 2.0**24
    metric.predicted_clicks += 2.0**25
    for _ in range(1000):
        metric.update(torch.full((1,), 0.5), torch.ones(1))
    # Float32 in the result: relative rounding of 6e-8.
    assert metric.compute().item() == pytest.approx((2**25 + 501) / (2**24 + 1001), rel=1e-7)


def test_saturated_predictions_stay_finite() -> None:
    preds, target = torch.tensor([0.0, 1.0, 0.0, 1.0]), torch.tensor([1, 0, 0, 1])
    metric = LogLoss()
    metric.update(preds, target)
    # Two are wrong and cost -log of float32's rounding, two are right and cost next to nothing.
    assert metric.compute().item() == pytest.approx(-math.log(torch.finfo(torch.float32).eps) / 2, rel=1e-6)
    assert all(value.isfinite() for value in click_metrics("")(preds, target).values())


@pytest.mark.parametrize("metric_class", METRICS)
@pytest.mark.parametrize("preds", [[0.5, torch.nan], [torch.nan, torch.nan]])
def test_nan_predictions_are_not_hidden(metric_class: type[Metric], preds: list[float]) -> None:
    metric, other = metric_class(), metric_class()
    metric.update(torch.tensor(preds), torch.tensor([0, 1]))
    other.update(torch.tensor([0.2, 0.8]), torch.tensor([0, 1]))
    other.merge_state(metric)  # of another rank
    assert metric.compute().isnan() and other.compute().isnan()


@pytest.mark.parametrize("label", [0, 1])
def test_labels_that_are_all_the_same_have_no_area(label: int) -> None:
    metric = AUROC()
    metric.update(torch.empty(0), torch.empty(0, dtype=torch.int32))
    assert metric.compute().isnan()
    metric.reset()
    metric.update(torch.tensor([0.2, 0.8]), torch.tensor([label, label]))
    assert metric.compute().isnan()
    metric.update(torch.tensor([0.5]), torch.tensor([1 - label]))
    assert metric.compute() == 0.5


def test_known_values() -> None:
    ne = NormalizedEntropy()
    ne.update(torch.full((8,), 0.25), torch.tensor([1, 0, 0, 0, 1, 0, 0, 0]))
    assert ne.compute().item() == pytest.approx(1, rel=RTOL)  # predicting the mean click rate
    calibration = Calibration()
    calibration.update(torch.full((8,), 0.5), torch.tensor([1, 0, 0, 0, 1, 0, 0, 0]))
    assert calibration.compute().item() == 2
