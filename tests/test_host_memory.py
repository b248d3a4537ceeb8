"""Memory of the host: what a step frees is there for the next one, and users' own settings stay."""

import subprocess
import sys

import pytest

# Blocks above glibc's largest default threshold of 32 MiB, as a step of a large batch has them.
STEPS = """
import os, resource
import dmt
{prepare}
import torch

def step():
    return (torch.ones(2**24) + torch.ones(2**24)).sum()

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

for _ in range(3):
    step()
before = faults()
for _ in range(5):
    step()
print(faults() - before, os.environ.get("THP_MEM_ALLOC_ENABLE"))
"""


def run(prepare: str) -> tuple[int, str]:
    """Page faults of five steps, and whether huge pages are asked for, in a process of its own."""
    code = STEPS.format(prepare=prepare)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    faults, huge_pages = done.stdout.split()
    return int(faults), huge_pages


def test_memory_of_a_step_serves_the_next_one() -> None:
    # (without huge pages, of which a block is a few faults in any case)
    faults, _ = run("os.environ['THP_MEM_ALLOC_ENABLE'] = '0'; dmt.reuse_host_memory()")
    freed, _ = run("")
    # Three blocks of 64 MiB are 49,152 pages of 4 KiB a step, or 3,072 of 64 KiB; kept, hardly any is new.
    assert freed > 10_000 > 1000 > faults


@pytest.mark.parametrize("name", ["MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"])
def test_settings_of_the_users_own_stay(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "")
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "0")
    faults, huge_pages = run("dmt.reuse_host_memory()")
    assert faults > 10_000 and huge_pages == "0"


def test_the_command_asks_before_torch_is_imported() -> None:
    code = (
        "import os, sys; from dmt import cli, host_memory;"
        "ask = cli.reuse_host_memory; torch = [];"
        "cli.reuse_host_memory = lambda: torch.append('torch' in sys.modules) or ask();\n"
        "try: cli.main(['fit', '--help'])\n"
        "except SystemExit: pass\n"
        "assert torch == [False] and 'torch' in sys.modules and os.environ['THP_MEM_ALLOC_ENABLE'] == '1'"
    )
    subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, check=True)
