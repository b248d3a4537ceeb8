import io
import sys
from collections.abc import Iterator

import pytest
import tqdm.std

from dmt.waiting import waiting


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Its one entry is tqdm's time."""
    now = [0.0]
    monkeypatch.setattr(tqdm.std, "time", lambda: now[0])
    return now


def slowly(clock: list[float], *, seconds: float) -> Iterator[int]:
    """Ten items, with so many seconds before each."""
    for item in range(10):
        clock[0] += seconds
        yield item


@pytest.mark.parametrize(
    ("seconds", "file", "is_shown", "is_seen"),
    [
        (1.0, Screen(), True, True),
        (0.1, Screen(), True, False),  # two seconds never pass
        (1.0, Screen(), False, False),
        (1.0, io.StringIO(), True, False),  # no terminal
    ],
)
def test_a_bar_is_shown_on_a_terminal_after_two_seconds(
    monkeypatch: pytest.MonkeyPatch,
    clock: list[float],
    seconds: float,
    file: io.StringIO,
    is_shown: bool,
    is_seen: bool,
) -> None:
    monkeypatch.setattr(sys, "stderr", file)
    items = waiting(slowly(clock, seconds=seconds), "placing features", total=10, is_shown=is_shown)
    assert list(items) == list(range(10))
    shown = file.getvalue()
    assert ("placing features" in shown) == is_seen
    assert not is_seen or "5/10 [00:05<00:05" in shown
