import pytest
import torch

from tests.modules.fixtures import rng, seed

__all__ = ["rng", "seed"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave this folder's tests out where there is no GPU."""
    if not torch.cuda.is_available():
        for item in items:
            if "tests/cuda/" in item.nodeid:
                item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))
