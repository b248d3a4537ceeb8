import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

FAKE_RUN = Path(__file__).parent / "fake_run.py"


@pytest.fixture
def write_sweep(tmp_path: Path) -> Callable[..., Path]:
    """Writes a sweep file over the fake run; keywords replace or add its keys."""

    def write(**keys: object) -> Path:
        config = {
            "method": "grid",
            "metric": {"name": "test/score", "goal": "maximize"},
            "program": str(FAKE_RUN),
            "command": ["${interpreter}", "-S", "${program}", "${args}"],
            "parameters": {"x": {"values": [1, 2, 3]}},
        }
        path = tmp_path / "sweep.yaml"
        path.write_text(
            yaml.safe_dump({name: value for name, value in {**config, **keys}.items() if value != "absent"})
        )
        return path

    return write


@pytest.fixture
def dmt() -> str:
    return str(Path(sys.executable).parent / "dmt")
