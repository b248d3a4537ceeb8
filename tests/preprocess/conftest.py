"""Logs that the tests of preprocessing share."""

from pathlib import Path

import numpy as np
import pytest

from tests.preprocess.criteo_cases import Lines, draw_lines, write_log


@pytest.fixture(scope="session")
def days(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Lines]]:
    """Two days of 10,000 lines each."""
    folder = tmp_path_factory.mktemp("days")
    lines = [draw_lines(np.random.default_rng(day), 10_000) for day in range(2)]
    for day, of_day in enumerate(lines):
        write_log(folder / f"day_{day}", of_day)
    return folder, lines
