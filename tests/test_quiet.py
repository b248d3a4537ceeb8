"""What libraries say."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize("package", ["dmt.modules", "dmt.datamodules"])
def test_lightning_says_everything_once_in_a_script(package: str) -> None:
    code = f"import {package}; from lightning.pytorch.utilities import rank_zero_info; rank_zero_info('Prepared')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines() == ["Prepared"]
