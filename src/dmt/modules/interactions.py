"""Feature interactions of the top archs.

Shapes: B samples, n vectors, D width, C = n*(n-1)/2 pairs of vectors.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from dmt.errors import UserInputError

try:
    from dmt.modules import interaction_kernels
except ImportError:  # Triton comes with torch where that is built for a GPU
    interaction_kernels = None  # type: ignore[assignment]

_CACHED_BYTES = 8 * 2**20
"""Vectors that are worked on at a time on a CPU, few enough for its cache."""


class DotInteraction(nn.Module):
    """Dot products of all pairs of vectors, each pair once (Naumov et al. 2019, section 2.1.3).

    On a GPU nothing exists but inputs and output, up to 64 vectors of 512 columns that are not float64
    (:mod:`dmt.modules.interaction_kernels`). On a CPU no more exists at a time than fits its cache of the n x n
    products of a sample, which hold each pair twice, and of the copy that puts the numeric columns' vector beside the
    others. Elsewhere, and where torch's compiler makes the kernels, it is all there at once. The gradient of the
    symmetric products is symmetric too, so that backward is one matrix product where autograd needs two.

    Args:
        num_vectors: n, that of the numeric columns included.

    Example:
        >>> DotInteraction(3)(torch.ones(1, 2, 3), torch.tensor([[5.0, 6.0, 7.0]]))
        tensor([[ 5.,  6.,  7., 18., 18.,  3.]])
    """

    def __init__(self, num_vectors: int) -> None:
        super().__init__()
        self.num_vectors = num_vectors
        self.out_features = num_vectors * (num_vectors - 1) // 2
        rows, columns = torch.triu_indices(num_vectors, num_vectors, offset=1)
        # Not buffers: weight averaging averages buffers, and an average of indices is off by one now and then.
        self.pairs = rows * num_vectors + columns  # (C,), where each pair is among the n*n products
        self.pair_of = rows.new_zeros(num_vectors, num_vectors)  # and which pair each product is; the diagonal is none
        self.pair_of[rows, columns] = self.pair_of[columns, rows] = torch.arange(len(rows), device=rows.device)

    def forward(self, vectors: Tensor, dense: Tensor | None = None) -> Tensor:
        """(B, n, D) -> (B, C), or (B, n-1, D) and dense (B, D) -> (B, D + C): dense itself, and the products.

        Under autocast the products are of its dtype. They can be differentiated once.

        Raises:
            UserInputError: there are not n vectors.
        """
        found = vectors.shape[1] + (dense is not None)
        if found != self.num_vectors:
            raise UserInputError(
                f"DotInteraction num_vectors={self.num_vectors}: it was given {found} vectors, the dense one included; "
                f"make it with num_vectors={found}"
            )
        dtype = _product_dtype(vectors)
        vectors, dense = vectors.to(dtype), None if dense is None else dense.to(dtype)
        if self.pairs.device != vectors.device:
            # A tensor made in inference mode, where an evaluation comes first, could not be saved for a backward later.
            with torch.inference_mode(False):
                self.pairs, self.pair_of = self.pairs.to(vectors.device), self.pair_of.to(vectors.device)
        output: Tensor = _DotProducts.apply(vectors, dense, self.pairs, self.pair_of)
        return output


def _product_dtype(vectors: Tensor) -> torch.dtype:
    kind = vectors.device.type
    if not vectors.is_meta and torch.is_autocast_enabled(kind):  # there is none on the meta device
        return torch.get_autocast_dtype(kind)
    return vectors.dtype


class _DotProducts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, vectors: Tensor, dense: Tensor | None, pairs: Tensor, pair_of: Tensor) -> Tensor:
        ctx.save_for_backward(vectors, dense, pair_of)
        if _in_one_kernel(vectors, len(pair_of)):
            return interaction_kernels.products(vectors, dense)
        parts = _parts(vectors)
        if len(parts) == 1:
            return _beside(dense, _pair_products(vectors, dense, pairs))
        width = len(pairs) + (0 if dense is None else dense.shape[1])
        output = vectors.new_empty(vectors.shape[0], width)
        for part in parts:
            own_dense = None if dense is None else dense[part]
            output[part] = _beside(own_dense, _pair_products(vectors[part], own_dense, pairs))
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        vectors, dense, pair_of = ctx.saved_tensors
        if _in_one_kernel(vectors, len(pair_of)):
            return *interaction_kernels.gradients(vectors, dense, gradient), None, None
        parts = _parts(vectors)
        if len(parts) == 1:
            return *_gradients(vectors, dense, pair_of, gradient), None, None
        vectors_gradient = torch.empty_like(vectors)
        dense_gradient = None if dense is None else torch.empty_like(dense)
        for part in parts:
            own_dense = None if dense is None else dense[part]
            vectors_gradient[part], own_gradient = _gradients(vectors[part], own_dense, pair_of, gradient[part])
            if dense_gradient is not None and own_gradient is not None:
                dense_gradient[part] = own_gradient
        return vectors_gradient, dense_gradient, None, None


def _in_one_kernel(vectors: Tensor, num_vectors: int) -> bool:
    if interaction_kernels is None or not vectors.is_cuda or torch.compiler.is_compiling():
        return False
    return interaction_kernels.fits(vectors, num_vectors)


def _parts(vectors: Tensor) -> list[slice]:
    """The batch in parts that fit a CPU's cache; elsewhere, and where it is compiled, in one."""
    batch_size, num_vectors, dim = vectors.shape
    size = max(_CACHED_BYTES // (num_vectors * dim * vectors.element_size()), 1)
    if not vectors.is_cpu or torch.compiler.is_compiling() or batch_size <= size:
        return [slice(None)]
    return [slice(first, first + size) for first in range(0, batch_size, size)]


def _pair_products(vectors: Tensor, dense: Tensor | None, pairs: Tensor) -> Tensor:
    together = _together(vectors, dense)
    products = torch.bmm(together, together.transpose(1, 2)).flatten(1)
    return products.gather(1, pairs.expand(len(products), -1))


def _gradients(
    vectors: Tensor, dense: Tensor | None, pair_of: Tensor, gradient: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Of the vectors and of dense, from that of the output."""
    num_before = 0 if dense is None else dense.shape[1]
    products = gradient[:, num_before:].gather(1, pair_of.flatten().expand(len(gradient), -1))
    products = products.unflatten(1, pair_of.shape)
    products.diagonal(dim1=1, dim2=2).zero_()
    together = torch.bmm(products, _together(vectors, dense))
    if dense is None:
        return together, None
    return together[:, 1:], together[:, 0] + gradient[:, :num_before]


def _together(vectors: Tensor, dense: Tensor | None) -> Tensor:
    return vectors if dense is None else torch.cat([dense.unsqueeze(1), vectors], dim=1)


def _beside(dense: Tensor | None, products: Tensor) -> Tensor:
    return products if dense is None else torch.cat([dense, products], dim=1)
