"""Bags of ids: what a batch holds of its categorical features, in the order in which something looks them up.

Shapes: B samples, F features, V ids.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dmt.errors import UserInputError
from dmt.schema import FeatureSchema


@dataclass(frozen=True)
class Bags:
    """Feature-major bags of ids.

    Args:
        ids: (V,), all samples' ids of the first feature, then of the second...
        lengths: (F, B), ids of each bag; ``None`` when every bag holds exactly one.
        weights: (V,) float32, or ``None`` for ids without weights.
        batch_size: B.
    """

    ids: Tensor
    lengths: Tensor | None
    weights: Tensor | None
    batch_size: int

    def offsets(self) -> Tensor:
        """Start of every bag in ``ids``, and the end of the last: (F*B + 1,), same dtype as ``ids``."""
        return bag_offsets(self.ids, self.lengths)


def bag_offsets(ids: Tensor, lengths: Tensor | None) -> Tensor:
    """Start of every bag in ``ids``, and the end of the last: (bags + 1,), same dtype as ``ids``."""
    if lengths is None:
        return torch.arange(ids.numel() + 1, dtype=ids.dtype, device=ids.device)
    return torch.ops.fbgemm.asynchronous_complete_cumsum(lengths.reshape(-1).to(ids.dtype))


class BagOrder(nn.Module):
    """Puts the bags of a batch into another feature order.

    Args:
        schema: the data's columns: the keys of every batch, in order.
        names: features in the wanted order; one may be named several times, or not at all.
    """

    def __init__(self, schema: FeatureSchema, names: Sequence[str]) -> None:
        super().__init__()
        self.keys = list(schema.feature_names)
        self.single_hot = schema.single_hot
        self.weighted = schema.weighted
        self._single_hot_rows = [i for i, feature in enumerate(schema.categorical) if not feature.multi_hot]
        positions = [self.keys.index(name) for name in names]
        self.is_identity = positions == list(range(len(self.keys)))
        self._has_each_once = sorted(positions) == list(range(len(self.keys)))
        # Not a buffer: weight averaging averages buffers, and an average of indices is off by one now and then.
        # int32, as FBGEMM's permutation wants it.
        self.order = torch.tensor(positions, dtype=torch.int32)

    def forward(self, features: KeyedJaggedTensor) -> Bags:
        """Reorder a batch of B samples.

        Raises:
            UserInputError: the batch's keys are not the schema's features, its ids are weighted where the schema
                says they are not or the reverse, or a single-hot feature does not hold exactly one id per sample.
        """
        self.check(features)
        self.order = self.order.to(features.device())
        batch_size = features.stride()
        ids, weights = features.values().contiguous(), features.weights_or_none()
        weights = None if weights is None else weights.float().contiguous()
        if self.single_hot:
            if not self.is_identity:
                ids = self._pick_single(ids, batch_size)
                weights = None if weights is None else self._pick_single(weights, batch_size)
            return Bags(ids, None, weights, batch_size)
        lengths = features.lengths().view(len(self.keys), batch_size)
        if not self.is_identity:
            # With their number where it is known, for which FBGEMM would wait for the GPU.
            num_ids = ids.numel() if self._has_each_once else None
            lengths, ids, weights = torch.ops.fbgemm.permute_2D_sparse_data(self.order, lengths, ids, weights, num_ids)
        return Bags(ids, lengths, weights, batch_size)

    def _pick_single(self, values: Tensor, batch_size: int) -> Tensor:
        return values.view(len(self.keys), batch_size)[self.order].view(-1)

    def check(self, features: KeyedJaggedTensor) -> None:
        """Raise unless a batch is what the schema says; see :meth:`forward`."""
        if features.keys() != self.keys:
            raise UserInputError(
                f"batch: its features are {features.keys()}, the model's schema has {self.keys}; "
                "train on the data the model was built for",
                on_every_rank=True,
            )
        if self.weighted != (features.weights_or_none() is not None):
            raise UserInputError(
                f"batch: its ids have {'no ' if self.weighted else ''}weights, the model's schema says "
                f"weighted={str(self.weighted).lower()}; give both the same",
                on_every_rank=True,
            )
        ids, batch_size = features.values(), features.stride()
        # On a GPU a look at the lengths would wait for the device; there only the count is checked, if all have one.
        wrong = self.single_hot and ids.numel() != len(self.keys) * batch_size
        if not wrong and ids.is_cpu and self._single_hot_rows:
            lengths = features.lengths().view(len(self.keys), batch_size)
            own = lengths if self.single_hot else lengths[self._single_hot_rows]
            wrong = not bool((own == 1).all())
        if wrong:
            raise UserInputError(
                f"batch: {ids.numel()} ids for {batch_size} samples of {len(self.keys)} features, of which "
                f"{len(self._single_hot_rows)} are single-hot, do not give each of these exactly one; mark features "
                "with none or several ids as multi_hot in the schema"
            )


class MeanPooling(nn.Module):
    """Turns sums of embeddings into means for some features: divides by the number of ids, an empty bag by 1.

    Weighted ids are summed with their weights and divided by their number, as in FBGEMM.

    Args:
        widths: columns of each of the F features.
        is_mean: which of them are to be means.
    """

    def __init__(self, widths: Sequence[int], is_mean: Sequence[bool]) -> None:
        super().__init__()
        self.widths = list(widths)
        self.is_needed = any(is_mean)
        # Plain attributes, not buffers, for the same reason as in BagOrder.
        self._is_mean = torch.tensor(is_mean, dtype=torch.bool)
        self._repeats = torch.tensor(self.widths)

    def forward(self, sums: Tensor, lengths: Tensor | None) -> Tensor:
        """(B, sum of widths), lengths (F, B) -> (B, sum of widths). Without lengths every bag holds one id."""
        if lengths is None or not self.is_needed:
            return sums
        device = sums.device
        self._is_mean, self._repeats = self._is_mean.to(device), self._repeats.to(device)
        divisors = torch.where(self._is_mean, lengths.t().clamp(min=1), 1).to(sums.dtype)  # (B, F)
        return sums / divisors.repeat_interleave(self._repeats, dim=1, output_size=sums.shape[1])
