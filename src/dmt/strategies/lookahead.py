"""A loader that shows each batch one step before it hands it over, so that its ids can travel meanwhile."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from torchrec.sparse.jagged_tensor import KeyedJaggedTensor


class LookAhead:
    """Draws one batch more than it has handed over.

    Everything else about the loader stays: its length, its samplers and, in :class:`StatefulLookAhead`, a position
    that counts only batches that were handed over.

    Args:
        loader: any iterable of batches.
        prepare: is given each batch when it is drawn; returns what will be handed over.
        begin: called before the first batch of an iteration is drawn; returns how many will be asked for. No further
            batch is drawn ahead: not every rank may have one.
    """

    def __init__(self, loader: Iterable[Any], *, prepare: Callable[[Any], Any], begin: Callable[[], float]) -> None:
        self._loader = loader
        self._prepare, self._begin = prepare, begin

    def __len__(self) -> int:
        # Where the loader has no length, the TypeError tells Lightning so.
        return len(self._loader)  # type: ignore[arg-type]

    def __getattr__(self, name: str) -> Any:
        # Lightning looks for samplers to tell the epoch, and for workers to shut down.
        if name.startswith("__") or name == "_loader":
            raise AttributeError(name)
        return getattr(self._loader, name)

    @property
    def worker_init_fn(self) -> Any:
        """The loader's own, if it has one: Lightning sets it, and it must reach the loader."""
        return self._loader.worker_init_fn  # type: ignore[attr-defined]

    @worker_init_fn.setter
    def worker_init_fn(self, function: Any) -> None:
        self._loader.worker_init_fn = function  # type: ignore[attr-defined]

    def __iter__(self) -> Iterator[Any]:
        # A generator: like the loader's own iterator it starts with the first batch, not before.
        wanted = self._begin()
        source = iter(self._loader)
        held = self._draw(source)
        handed_over = 0
        while held is not None:
            handed_over += 1
            following = self._draw(source) if handed_over < wanted else None
            batch, position = held
            self._handed_over(position)
            yield batch
            held = self._draw(source) if handed_over >= wanted else following

    def _draw(self, source: Iterator[Any]) -> tuple[Any, Any] | None:
        """The next batch, prepared, and the loader's position after it; ``None`` at the end."""
        try:
            batch = next(source)
        except StopIteration:
            return None
        position = self._position()
        return self._prepare(batch), position

    def _position(self) -> Any:
        return None

    def _handed_over(self, position: Any) -> None:
        """Take note that the batch at ``position`` is no longer ahead."""


class StatefulLookAhead(LookAhead):
    """:class:`LookAhead` over a loader that can be resumed."""

    def __init__(self, loader: Iterable[Any], *, prepare: Callable[[Any], Any], begin: Callable[[], float]) -> None:
        super().__init__(loader, prepare=prepare, begin=begin)
        self._state: Any = None

    def state_dict(self) -> Any:
        """The loader's position after the batch that was handed over last."""
        return self._position() if self._state is None else self._state

    def load_state_dict(self, state: Any) -> None:
        """Continue from a :meth:`state_dict`."""
        self._state = None
        self._loader.load_state_dict(state)  # type: ignore[attr-defined]

    def _position(self) -> Any:
        return self._loader.state_dict()  # type: ignore[attr-defined]

    def _handed_over(self, position: Any) -> None:
        self._state = position


def look_ahead(loader: Iterable[Any], *, prepare: Callable[[Any], Any], begin: Callable[[], float]) -> LookAhead:
    """Wrap a loader; see :class:`LookAhead`."""
    is_stateful = hasattr(loader, "state_dict") and hasattr(loader, "load_state_dict")
    return (StatefulLookAhead if is_stateful else LookAhead)(loader, prepare=prepare, begin=begin)


def jagged_tensors(batch: Any) -> Iterator[KeyedJaggedTensor]:
    """The KeyedJaggedTensors of a batch, whatever dataclasses, mappings and sequences they lie in."""
    if isinstance(batch, KeyedJaggedTensor):
        yield batch
    elif isinstance(batch, Mapping):
        yield from (found for value in batch.values() for found in jagged_tensors(value))
    elif isinstance(batch, list | tuple):
        yield from (found for value in batch for found in jagged_tensors(value))
    elif is_dataclass(batch) and not isinstance(batch, type):
        yield from (found for entry in fields(batch) for found in jagged_tensors(getattr(batch, entry.name)))
