"""The dot interaction on a GPU in one kernel, and its gradient in another: nothing else is written to memory.

Needs Triton, which torch brings along where it is built for a GPU. A program of either kernel works on one sample,
whose products stay in its registers. A float32 product is the sum of three of TF32 ("tf32x3"), made by the tensor cores
and as near to the exact one as float32's own; an infinite value becomes NaN on the way.
"""

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

_MOST_VECTORS, _MOST_COLUMNS = 64, 512  # a sample's products stay in registers, and loops over columns unrolled
_COLUMNS = 64  # of a vector, at a time
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def fits(vectors: Tensor, num_vectors: int) -> bool:
    """Whether the kernels take these vectors (B, n or n-1, D) on their GPU, n of them a sample with the dense one."""
    small = num_vectors <= _MOST_VECTORS and vectors.shape[2] <= _MOST_COLUMNS
    return small and vectors.dtype in _DTYPES and _has_tf32(vectors.device)


@cache
def _has_tf32(device: torch.device) -> bool:
    """NVIDIA's GPUs since Ampere have."""
    return torch.version.cuda is not None and torch.cuda.get_device_capability(device) >= (8, 0)


def products(vectors: Tensor, dense: Tensor | None) -> Tensor:
    """(B, n, D) -> (B, C), or (B, n-1, D) and dense (B, D) -> (B, D + C): dense itself, and the products."""
    batch_size, count, dim = vectors.shape
    vectors, dense = _rows(vectors), None if dense is None else _rows(dense)
    num_vectors, num_before = (count, 0) if dense is None else (count + 1, dim)
    output = vectors.new_empty(batch_size, num_before + num_vectors * (num_vectors - 1) // 2)
    first = vectors if dense is None else dense
    with torch.cuda.device_of(vectors):
        _forward[(batch_size,)](
            vectors, first, output, vectors.stride(0), vectors.stride(1), first.stride(0), output.stride(0),
            num_vectors, dim, dense is not None, *_launch(num_vectors, dim), num_warps=_num_warps(num_vectors),
        )  # fmt: skip
    return output


def gradients(vectors: Tensor, dense: Tensor | None, gradient: Tensor) -> tuple[Tensor, Tensor | None]:
    """Of the vectors and of dense, from that of what :func:`products` returned."""
    batch_size, count, dim = vectors.shape
    vectors, dense, gradient = _rows(vectors), None if dense is None else _rows(dense), _rows(gradient)
    num_vectors = count if dense is None else count + 1
    of_vectors = vectors.new_empty(vectors.shape)
    of_dense = None if dense is None else dense.new_empty(dense.shape)
    first, of_first = (vectors, of_vectors) if dense is None else (dense, of_dense)
    with torch.cuda.device_of(vectors):
        _backward[(batch_size,)](
            vectors, first, gradient, of_vectors, of_first, vectors.stride(0), vectors.stride(1), first.stride(0),
            gradient.stride(0), num_vectors, dim, dense is not None, *_launch(num_vectors, dim),
            num_warps=_num_warps(num_vectors),
        )  # fmt: skip
    return of_vectors, of_dense


def _rows(tensor: Tensor) -> Tensor:
    """Columns side by side in memory, as the kernels read them."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _launch(num_vectors: int, dim: int) -> tuple[int, int]:
    """Sizes of the blocks of vectors and of columns: powers of two that tensor cores take."""
    return max(triton.next_power_of_2(num_vectors), 16), min(max(triton.next_power_of_2(dim), 16), _COLUMNS)


def _num_warps(num_vectors: int) -> int:
    return 1 if num_vectors <= 32 else 4


@triton.jit
def _forward(
    vectors, first, output, vectors_sample, vectors_row, first_sample, output_sample,
    num_vectors: tl.constexpr, dim: tl.constexpr, has_dense: tl.constexpr, rows: tl.constexpr, columns: tl.constexpr,
):  # fmt: skip
    sample = tl.program_id(0).to(tl.int64)
    vectors += sample * vectors_sample
    first += sample * first_sample
    output += sample * output_sample
    row, other = tl.arange(0, rows)[:, None], tl.arange(0, rows)[None, :]
    found = tl.zeros((rows, rows), tl.float32)
    for start in tl.static_range(0, dim, columns):
        column = start + tl.arange(0, columns)[None, :]
        if has_dense:
            own = tl.load(first + column, mask=column < dim, other=0.0)
            tl.store(output + column, own, mask=column < dim)
            mask = (row >= 1) & (row < num_vectors) & (column < dim)
            others = tl.load(vectors + (row - 1) * vectors_row + column, mask=mask, other=0.0)
            together = tl.where(row == 0, own, others)
        else:
            mask = (row < num_vectors) & (column < dim)
            together = tl.load(vectors + row * vectors_row + column, mask=mask, other=0.0)
        found = tl.dot(together, tl.trans(together), found, input_precision="tf32x3")
    pair = row * num_vectors - row * (row + 1) // 2 + other - row - 1  # where the triangle's rows follow each other
    if has_dense:
        output += dim
    tl.store(output + pair, found.to(output.dtype.element_ty), mask=(row < other) & (other < num_vectors))


@triton.jit
def _backward(
    vectors, first, gradient, of_vectors, of_first, vectors_sample, vectors_row, first_sample, gradient_sample,
    num_vectors: tl.constexpr, dim: tl.constexpr, has_dense: tl.constexpr, rows: tl.constexpr, columns: tl.constexpr,
):  # fmt: skip
    sample = tl.program_id(0).to(tl.int64)
    vectors += sample * vectors_sample
    first += sample * first_sample
    gradient += sample * gradient_sample
    row, other = tl.arange(0, rows)[:, None], tl.arange(0, rows)[None, :]
    low, high = tl.minimum(row, other), tl.maximum(row, other)
    pair = low * num_vectors - low * (low + 1) // 2 + high - low - 1
    mask = (row != other) & (row < num_vectors) & (other < num_vectors)
    of_products = tl.load(gradient + pair + (dim if has_dense else 0), mask=mask, other=0.0)
    for start in tl.static_range(0, dim, columns):
        column = start + tl.arange(0, columns)[None, :]
        if has_dense:
            own = tl.load(first + column, mask=column < dim, other=0.0)
            mask = (row >= 1) & (row < num_vectors) & (column < dim)
            others = tl.load(vectors + (row - 1) * vectors_row + column, mask=mask, other=0.0)
            found = tl.dot(of_products, tl.where(row == 0, own, others), input_precision="tf32x3")
            of_own = tl.load(gradient + column, mask=column < dim, other=0.0).to(tl.float32)
            found = tl.where(row == 0, found + of_own, found).to(of_vectors.dtype.element_ty)
            tl.store(of_first + sample * dim + column + row * 0, found, mask=(row == 0) & (column < dim))
            place = sample * ((num_vectors - 1) * dim) + (row - 1) * dim
        else:
            mask = (row < num_vectors) & (column < dim)
            together = tl.load(vectors + row * vectors_row + column, mask=mask, other=0.0)
            found = tl.dot(of_products, together, input_precision="tf32x3").to(of_vectors.dtype.element_ty)
            place = sample * (num_vectors * dim) + row * dim
        tl.store(of_vectors + place + column, found, mask=mask)
