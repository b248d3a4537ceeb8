"""In what precision TorchRec's embedding exchanges travel."""

from fbgemm_gpu.quantize_comm import QuantizationContext, QuantizedCommCodec
from fbgemm_gpu.split_embedding_configs import SparseType
from torch import Tensor
from torchrec.distributed.fbgemm_qcomm_codec import CommType, QCommsConfig, get_qcomm_codecs
from torchrec.distributed.types import CommOp, QuantizedCommCodecs
from typing_extensions import override

from dmt.strategies.wire import WirePrecision

INT8_BATCH_STEP = 8
"""Batches must be a multiple of it for int8: TorchRec quantises 32 values together, and widths are multiples of 4."""


class HalfGradients(QuantizedCommCodec):
    """Gradients in fp16, multiplied by :attr:`scale` on the way so that small ones are not lost.

    TorchRec's own ``backward_loss_scale`` is a constant, and is divided out while the values are still fp16, where
    what is small is lost after all.

    Attributes:
        scale: a power of two; all ranks must set the same.
    """

    def __init__(self) -> None:
        super().__init__(SparseType.FP16, is_fwd=False)
        self.scale = 1.0

    @override
    def encode(self, input_tensor: Tensor, ctx: QuantizationContext | None = None) -> Tensor:
        return super().encode(input_tensor * self.scale, ctx)

    @override
    def decode(self, input_tensor: Tensor, ctx: QuantizationContext | None = None) -> Tensor:
        return super().decode(input_tensor, ctx) / self.scale


class WireCodecs:
    """TorchRec's codecs of all embedding exchanges.

    Args:
        forward_precision: of embeddings.
        backward_precision: of their gradients.
    """

    def __init__(self, *, forward_precision: WirePrecision, backward_precision: WirePrecision) -> None:
        precisions = (forward_precision, backward_precision)
        self.is_int8 = "int8" in precisions
        self._half: list[HalfGradients] = []
        self.registry: dict[str, QuantizedCommCodecs] | None = None
        if precisions != ("fp32", "fp32"):
            operations = [CommOp.POOLED_EMBEDDINGS_ALL_TO_ALL]
            if not self.is_int8:
                operations.append(CommOp.POOLED_EMBEDDINGS_REDUCE_SCATTER)
            self.registry = {operation.name: self._make(*precisions) for operation in operations}

    def _make(self, forward_precision: WirePrecision, backward_precision: WirePrecision) -> QuantizedCommCodecs:
        # Not get_qcomm_codecs_registry(): on the CPU it makes fp16 of bf16, which gloo can send.
        config = QCommsConfig(CommType(forward_precision), CommType(backward_precision))
        codecs = get_qcomm_codecs(config)
        if backward_precision == "fp16":
            self._half.append(HalfGradients())
            codecs.backward = self._half[-1]
        return codecs

    def scale_gradients(self, num_samples: int) -> None:
        """Set the scale of fp16 gradients for a mean over so many samples; every rank calls it with the same."""
        for codec in self._half:
            codec.scale = 2.0 ** (max(num_samples, 1) - 1).bit_length()
