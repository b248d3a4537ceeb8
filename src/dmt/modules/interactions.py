"""Feature interactions of the top archs.

Shapes: B samples, n vectors, D width.
"""

import torch
from torch import Tensor, nn


class DotInteraction(nn.Module):
    """Dot products of all pairs of vectors, each pair once (Naumov et al. 2019, section 2.1.3).

    Args:
        num_vectors: n.

    Example:
        >>> DotInteraction(3)(torch.ones(2, 3, 4))
        tensor([[4., 4., 4.],
                [4., 4., 4.]])
    """

    def __init__(self, num_vectors: int) -> None:
        super().__init__()
        rows, columns = torch.triu_indices(num_vectors, num_vectors, offset=1)
        # Not a buffer: weight averaging averages buffers, and an average of indices is off by one now and then.
        self.pairs = rows * num_vectors + columns
        self.out_features = self.pairs.numel()

    def forward(self, vectors: Tensor) -> Tensor:
        """(B, n, D) -> (B, n*(n-1)/2)."""
        self.pairs = self.pairs.to(vectors.device)
        products = torch.bmm(vectors, vectors.transpose(1, 2))
        return products.flatten(1).index_select(1, self.pairs)
