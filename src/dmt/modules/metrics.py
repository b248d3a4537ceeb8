"""Metrics of click prediction, exact under any number of ranks.

States are sums in float64 (or, for AUROC, all predictions), so that a result depends neither on how samples
are spread over ranks and batches nor on their order beyond the last digits.
"""

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import BinaryAUROC
from torchmetrics.functional.classification import binary_auroc
from torchmetrics.utilities import dim_zero_cat


class _ClickMetric(Metric):
    """Sums over samples that the metrics below are ratios of."""

    higher_is_better = False
    full_state_update = False

    log_loss_sum: Tensor
    predicted_clicks: Tensor
    clicks: Tensor
    samples: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("log_loss_sum", "predicted_clicks", "clicks", "samples"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add a batch: ``preds`` (B,) probabilities, ``target`` (B,) of 0 and 1. B may be 0."""
        preds, target = preds.double(), target.double()
        # The clamp keeps a wrong, saturated prediction finite: a probability in float32 can round to 1.
        eps = torch.finfo(torch.float32).eps
        inside = preds.clamp(eps, 1 - eps)
        self.log_loss_sum -= (target * inside.log() + (1 - target) * (1 - inside).log()).sum()
        self.predicted_clicks += preds.sum()
        self.clicks += target.sum()
        self.samples += target.numel()


class LogLoss(_ClickMetric):
    """Mean binary cross entropy, in nats."""

    def compute(self) -> Tensor:
        return (self.log_loss_sum / self.samples).float()


class NormalizedEntropy(_ClickMetric):
    """Log loss over the entropy of the mean click rate (He et al. 2014, equation 1); 1 predicts the mean.

    Example:
        >>> metric = NormalizedEntropy()
        >>> metric(torch.tensor([0.5, 0.5]), torch.tensor([0.0, 1.0]))
        tensor(1.)
    """

    def compute(self) -> Tensor:
        """NaN where all samples have the same label: their entropy is 0."""
        rate = self.clicks / self.samples
        entropy = -(torch.xlogy(rate, rate) + torch.xlogy(1 - rate, 1 - rate))
        return _ratio(self.log_loss_sum / self.samples, entropy)


class Calibration(_ClickMetric):
    """Predicted clicks over observed clicks; 1 is calibrated."""

    def compute(self) -> Tensor:
        """NaN where no sample is a click."""
        return _ratio(self.predicted_clicks, self.clicks)


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    return torch.where(denominator > 0, numerator / denominator, torch.nan).float()


class AUROC(BinaryAUROC):
    """Area under the ROC curve, exact: every prediction is kept."""

    def __init__(self) -> None:
        super().__init__(thresholds=None, validate_args=False)

    def compute(self) -> Tensor:  # type: ignore[override]  # torchmetrics makes it a kind of curve
        """NaN where a prediction is, which would have a rank like any other, or where all labels are the same."""
        preds, target = dim_zero_cat(self.preds), dim_zero_cat(self.target)
        if preds.isnan().any() or int(target.sum()) in (0, target.numel()):
            return preds.new_tensor(torch.nan)
        return binary_auroc(preds, target, validate_args=False)


def click_metrics(prefix: str) -> MetricCollection:
    """AUROC, log loss, normalised entropy and calibration, their names starting with ``prefix``."""
    return MetricCollection(
        {
            "auroc": AUROC(),
            "log_loss": LogLoss(),
            "normalized_entropy": NormalizedEntropy(),
            "calibration": Calibration(),
        },
        prefix=prefix,
    )
