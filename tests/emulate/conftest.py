import pytest

from dmt.emulate import can_emulate
from tests.modules.fixtures import one_thread, rng, seed

__all__ = ["one_thread", "rng", "seed"]


@pytest.fixture(scope="session")
def emulation() -> None:
    """For tests that need an emulated cluster: they are skipped where there can be none."""
    ability = can_emulate()
    if not ability:
        pytest.skip(f"no emulated hosts on this machine: {ability.reason}")
