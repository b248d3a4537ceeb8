"""Which trials' options are checked before one runs, and what is shown meanwhile."""

import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dmt.sweep.api import make_plan
from dmt.sweep.progress import checking


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, write_sweep: Callable[..., Path]) -> Callable[..., list]:
    """Options of the trials of a random search that would be checked, as mappings."""
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr("dmt.sweep.checks._ask", asked.append)

    def check(num: int, **parameters: object) -> list[dict[str, str]]:
        path = write_sweep(method="random", command=["dmt", "fit", "${args}"], parameters=parameters, run_cap=num)
        make_plan(path, output=tmp_path / "out", max_runs=None)
        words = [trial["options"] for trial in asked.pop()["trials"]]
        return [dict(word.removeprefix("--").split("=", 1) for word in own) for own in words]

    return check


def test_of_reals_only_the_ends_are_checked(checked: Callable[..., list]) -> None:
    space = {"lr": {"distribution": "log_uniform_values", "min": 1e-4, "max": 1.0}, "n": {"min": 1, "max": 3}}
    space |= {"kind": {"values": [0.5, 1.5, "a"]}, "m": {"parameters": {"p": {"min": 0.0, "max": 1.0}}}}
    few = checked(300, **space)
    assert len(few) <= 2 + 3 + 3 + 2
    assert {options["n"] for options in few} == {"1", "2", "3"}
    assert {options["kind"] for options in few} == {"0.5", "1.5", "a"}
    # Beside a parameter that steps, each point is checked.
    every = checked(300, **space, step={"distribution": "q_uniform", "min": 0.0, "max": 1e6, "q": 0.5})
    assert len(every) == 300
    rates = [float(options["lr"]) for options in checked(300, lr=space["lr"])]
    assert len(rates) == 2 and min(rates) < 2e-4 and max(rates) > 0.9


def test_a_bar_is_shown_while_options_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    class Screen(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    for file, is_seen in ((Screen(), True), (io.StringIO(), False)):
        monkeypatch.setattr(sys, "stderr", file)
        answers = checking(iter([None, None]), total=2)
        # From the start: it is the first answer that takes long.
        assert next(answers) is None and ("checking the trials' options" in file.getvalue()) == is_seen
        assert ("-:--:--" in file.getvalue()) == is_seen
        assert list(answers) == [None]
