"""Dense layers, of which every rank has a copy: whose gradients DistributedDataParallel averages, and when."""

from collections.abc import Callable, Mapping

from torch import Tensor, nn
from torch.autograd import Variable

from dmt.errors import UserInputError
from dmt.modules.failures import without_gradient


def after_gradients(loss: Tensor, call: Callable[[], None]) -> None:
    """Have the coming backward pass of a loss call something, once all gradients are computed.

    DistributedDataParallel waits for its collectives in such a call too. They run in the order they were queued in, and
    this one is queued before the first gradient is computed. The queue has no public name, though
    DistributedDataParallel and FSDP are built on it; ``tests/strategies/test_meter.py`` guards it.
    """
    if loss.requires_grad:
        loss.register_hook(lambda _: Variable._execution_engine.queue_callback(call))


class DenseLayers:
    """The parameters that every rank has a copy of, as they are when DistributedDataParallel is made.

    Args:
        parameters: by name.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self._parameters = parameters
        self._trained = self._are_trained()

    def _are_trained(self) -> list[bool]:
        return [parameter.requires_grad for parameter in self._parameters.values()]

    @property
    def have_changed(self) -> bool:
        """Whether some have been frozen or set free since: DistributedDataParallel would not know."""
        return self._trained != self._are_trained()

    @property
    def trained_bytes(self) -> int:
        """Bytes of all gradients that are averaged."""
        return sum(parameter.nbytes for parameter in self._parameters.values() if parameter.requires_grad)

    def check_gradients(self) -> None:
        """Check that all gradients are there, before DistributedDataParallel misses one in the next step.

        Raises:
            UserInputError: one is not.
        """
        if unused := without_gradient(self._parameters.items()):
            raise UserInputError(
                f"{unused}: trained, but this step's loss does not depend on it, and ranks average the "
                "gradients of all dense layers in every step; freeze it by requires_grad_(False), or leave it out of "
                "the model"
            )
