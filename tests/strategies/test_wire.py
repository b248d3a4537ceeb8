"""Rows survive the wire as well as its format can hold them."""

import pytest
import torch

from dmt.errors import UserInputError
from dmt.strategies.wire import check_precision, wire_format


@pytest.mark.parametrize(
    ("precision", "bytes_a_row", "error"),
    [
        ("fp32", 48, 0.0),
        ("fp16", 24, 2**-11),  # half a unit of the 11 bits that a value keeps
        ("bf16", 24, 2**-8),
        ("int8", 20, 1 / 255),  # steps of a 255th of the row's range, which is at most twice the largest value
    ],
)
def test_rows_come_back(seed: int, precision: str, bytes_a_row: int, error: float) -> None:
    wire = wire_format(precision)
    rows = torch.randn(50, 12)
    sent = wire.encode(rows)
    assert sent.shape == (50, wire.row_size(12)) and sent.shape[1] * sent.element_size() == bytes_a_row
    scale = rows.abs().amax(1, keepdim=True) if precision == "int8" else rows.abs()
    assert bool(((wire.decode(sent) - rows).abs() <= error * scale + 1e-7).all())
    assert wire.decode(sent).dtype == torch.float32


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8"])
def test_no_rows_come_back_as_none(precision: str) -> None:
    wire = wire_format(precision)
    assert wire.decode(wire.encode(torch.zeros(0, 8))).shape == (0, 8)


def test_small_gradients_survive_fp16_by_their_scale(seed: int) -> None:
    gradients = torch.randn(20, 8) / 2**24  # of a mean over 16 million samples; fp16 ends at 2^-24
    lost = wire_format("fp16")
    assert (lost.decode(lost.encode(gradients)) - gradients).abs().max() > 0.1 * gradients.abs().max()
    kept = wire_format("fp16", scale=2.0**24)
    torch.testing.assert_close(kept.decode(kept.encode(gradients)), gradients, rtol=2**-11, atol=2**-48)


def test_an_unknown_precision_is_named() -> None:
    with pytest.raises(UserInputError, match=r"forward_precision=fp8: choose one of fp32, fp16, bf16, int8"):
        check_precision("forward_precision", "fp8")
