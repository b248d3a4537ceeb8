"""For all tests: a cache folder of their own, and an environment that no test changes for the next one."""

import os
import signal
from collections.abc import Iterator

import pytest

# What a script starts in the background ignores Ctrl-C, and so would all that tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _own_huge_pages() -> Iterator[None]:
    """`dmt fit` asks torch for huge pages by an environment variable, also where it runs in this process."""
    name = "THP_MEM_ALLOC_ENABLE"
    before = os.environ.get(name)
    yield
    os.environ.pop(name, None)
    if before is not None:
        os.environ[name] = before
