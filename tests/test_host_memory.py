"""Memory of the host: what a step frees is there for the next one, and users' own settings stay."""

import os
import platform
import subprocess
import sys

import pytest
from packaging.version import Version

# Blocks of 64 MiB: above 32 MiB glibc returns them unless it is told not to.
STEPS = """
import os, resource
import dmt
{prepare}
import torch

def step():
    return (torch.ones(2**24) + torch.ones(2**24)).sum()

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

# Holes that small blocks of the first steps break up are filled later: it settles within six steps (16 processes).
for _ in range(20):
    step()
before = faults()
for _ in range(5):
    step()
print(faults() - before, os.environ.get("THP_MEM_ALLOC_ENABLE"))
"""
SETTINGS = ("THP_MEM_ALLOC_ENABLE", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES", "LD_PRELOAD")
_LIBRARY, _VERSION = platform.libc_ver()
needs_kept_blocks = pytest.mark.skipif(
    # Older ones cannot be told so of blocks of this size.
    not (_LIBRARY == "glibc" and Version(_VERSION) >= Version("2.35")),
    reason="glibc 2.35 alone can be told to keep such blocks",
)


def run(prepare: str, **settings: str) -> tuple[int, str]:
    """Page faults of five steps, and whether huge pages are asked for, in a process with these settings alone."""
    environment = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    words = [sys.executable, "-c", STEPS.format(prepare=prepare)]
    done = subprocess.run(words, capture_output=True, text=True, check=True, env=environment | settings)
    faults, huge_pages = done.stdout.split()
    return int(faults), huge_pages


@needs_kept_blocks
def test_memory_of_a_step_serves_the_next_one() -> None:
    # (without huge pages, of which a block is a few faults in any case)
    freed, _ = run("", THP_MEM_ALLOC_ENABLE="0")
    kept, huge_pages = run("dmt.reuse_host_memory()", THP_MEM_ALLOC_ENABLE="0")
    assert kept < freed / 5 and huge_pages == "0"
    _, huge_pages = run("dmt.reuse_host_memory()")
    assert huge_pages == "1"


@needs_kept_blocks
@pytest.mark.parametrize(
    "own", [{"MALLOC_TRIM_THRESHOLD_": "131072"}, {"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=131072"}]
)
def test_settings_of_the_users_own_stay(own: dict[str, str]) -> None:
    freed, _ = run("", THP_MEM_ALLOC_ENABLE="0", **own)
    kept, _ = run("dmt.reuse_host_memory()", THP_MEM_ALLOC_ENABLE="0", **own)
    assert kept > freed / 5


@needs_kept_blocks
def test_other_tunables_are_no_settings_of_memory() -> None:
    other = {"GLIBC_TUNABLES": "glibc.rtld.optional_static_tls=1024", "THP_MEM_ALLOC_ENABLE": "0"}
    assert run("dmt.reuse_host_memory()", **other)[0] < run("", **other)[0] / 5


def test_the_command_asks_before_torch_is_imported() -> None:
    code = (
        "import os, sys; from dmt import cli, host_memory;"
        "ask = host_memory.reuse_host_memory; torch = [];"
        "host_memory.reuse_host_memory = lambda: torch.append('torch' in sys.modules) or ask();\n"
        "try: cli.main(['fit', '--help'])\n"
        "except SystemExit: pass\n"
        "assert torch == [False] and 'torch' in sys.modules and os.environ['THP_MEM_ALLOC_ENABLE'] == '1'"
    )
    environment = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, check=True, env=environment)
