"""How float32 rows travel between hosts: as they are, or narrower.

Shapes: R rows, W columns.
"""

from abc import ABC, abstractmethod
from typing import Literal, get_args

import torch
from torch import Tensor

from dmt.errors import UserInputError

WirePrecision = Literal["fp32", "fp16", "bf16", "int8"]
"""TorchRec's names of what travels. ``int8``: 8 bits a value and a float32 scale and bias a row."""


class WireFormat(ABC):
    """Turns float32 rows into what is sent, and back."""

    @abstractmethod
    def row_size(self, width: int) -> int:
        """Elements sent for a row of ``width`` columns."""

    @abstractmethod
    def encode(self, rows: Tensor) -> Tensor:
        """float32 (R, W) -> (R, row_size(W)) of the type that travels."""

    @abstractmethod
    def decode(self, sent: Tensor) -> Tensor:
        """The inverse of :meth:`encode`, up to the format's rounding."""


class CastRows(WireFormat):
    """Rows cast to another floating-point type.

    Args:
        dtype: what travels; float32 leaves rows as they are.
        scale: a power of two by which values are multiplied on the way, so that fp16 can hold small gradients.
    """

    def __init__(self, dtype: torch.dtype, *, scale: float = 1.0) -> None:
        self.dtype, self.scale = dtype, scale

    def row_size(self, width: int) -> int:
        return width

    def encode(self, rows: Tensor) -> Tensor:
        if self.scale != 1.0:
            rows = rows * self.scale
        return rows.to(self.dtype)

    def decode(self, sent: Tensor) -> Tensor:
        rows = sent.float()
        return rows / self.scale if self.scale != 1.0 else rows


class Int8Rows(WireFormat):
    """Rows in 8 bits a value, with the row's own scale and bias (FBGEMM's fused row-wise format)."""

    def row_size(self, width: int) -> int:
        return width + 8

    def encode(self, rows: Tensor) -> Tensor:
        return torch.ops.fbgemm.FloatToFused8BitRowwiseQuantized(rows.contiguous())

    def decode(self, sent: Tensor) -> Tensor:
        return torch.ops.fbgemm.Fused8BitRowwiseQuantizedToFloat(sent)


FLOAT32 = CastRows(torch.float32)


def wire_format(precision: WirePrecision, *, scale: float = 1.0) -> WireFormat:
    """The format of a precision; ``scale`` matters to ``fp16`` alone."""
    if precision == "int8":
        return Int8Rows()
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    return CastRows(dtypes[precision], scale=scale if precision == "fp16" else 1.0)


def check_precision(option: str, value: str) -> None:
    """Raise :class:`UserInputError` unless ``value`` is a :data:`WirePrecision`."""
    if value not in get_args(WirePrecision):
        raise UserInputError(f"{option}={value}: choose one of {', '.join(get_args(WirePrecision))}")
