"""A progress bar for whatever takes longer than two seconds."""

from collections.abc import Iterable
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")


def waiting(items: Iterable[T], what: str, *, total: int | None = None, is_shown: bool = True) -> Iterable[T]:
    """The items, with a bar, its rate and the time left on standard error once two seconds have passed.

    Nothing is shown where standard error is no terminal. The bar goes when the items have been taken.

    Args:
        items: to iterate over.
        what: is done with them.
        total: number of items, where they do not know it themselves.
        is_shown: false on ranks that stay silent.
    """
    return tqdm(items, what, total=total, delay=2, disable=None if is_shown else True, leave=False)
