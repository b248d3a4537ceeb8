"""How the command ends where collectives do not."""

import subprocess
import sys

import pytest

from dmt import cli
from dmt.errors import UserInputError

# NCCL is not at hand: gloo is told to be it, and to wait for ranks that never come.
HANGS = """
import sys, time
import torch.distributed as dist
from dmt import cli
from dmt.errors import UserInputError

def fail(arguments):
    dist.init_process_group("gloo", init_method="tcp://127.0.0.1:0", rank=0, world_size=1)
    dist.get_backend = lambda group=None: sys.argv[1]
    dist.destroy_process_group = lambda group=None: time.sleep(60)
    raise {error}

import atexit
atexit.register(lambda: dist.destroy_process_group())  # as Lightning does
cli._GRACE_S = 0.5
cli._verb = lambda name: fail
cli.main(["fit"])
"""


@pytest.mark.parametrize(
    ("error", "told", "code"),
    [("UserInputError('batch: give one')", "dmt: error: batch: give one", 2), ("ValueError('broken')", "Traceback", 1)],
)
def test_a_rank_that_fails_ends_although_nccl_waits_for_the_others(error: str, told: str, code: int) -> None:
    program = HANGS.format(error=error)
    ended = subprocess.run(
        [sys.executable, "-c", program, "nccl"], capture_output=True, text=True, timeout=50, check=False
    )
    assert ended.returncode == code
    assert told in ended.stderr and (code == 2 or "ValueError: broken" in ended.stderr)


def test_a_rank_that_leaves_the_telling_to_the_first_waits_for_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(arguments: list[str]) -> None:
        raise UserInputError("option: wrong", on_every_rank=True)

    waited: list[float] = []
    monkeypatch.setattr(cli, "_load", lambda verb: refuse)
    monkeypatch.setattr(cli.time, "sleep", waited.append)
    for rank, told, waits in (("1", "", [cli._GRACE_S]), ("0", "dmt: error: option: wrong\n", [])):
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(SystemExit) as ended:
            cli.main(["fit"])
        assert (ended.value.code, capsys.readouterr().err, waited) == (2, told, waits)
        waited.clear()
