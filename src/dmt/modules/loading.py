"""Whether what a checkpoint holds is a model's."""

from collections.abc import Mapping
from typing import Any

from dmt.errors import UserInputError

Shapes = Mapping[str, tuple[int, ...]]


def check_tensors(wanted: Shapes, found: Shapes, *, strict: bool, on_every_rank: bool = False) -> None:
    """Compare a model's tensors, by name, with those of a checkpoint.

    Args:
        wanted: shape of each of the model's.
        found: shape of each of the checkpoint's.
        strict: whether names that only one of them has are wrong.
        on_every_rank: whether every rank finds the same.

    Raises:
        UserInputError: a shape differs, or a name. One is told of.
    """
    wrong = sorted(name for name in wanted.keys() & found.keys() if wanted[name] != found[name])
    strange = sorted(wanted.keys() ^ found.keys()) if strict else []
    if wrong:
        name = wrong[0]
        problem = f"its {name!r} has shape {found[name]}, the model's {wanted[name]}"
    elif strange:
        problem = f"only the {'model' if strange[0] in wanted else 'checkpoint'} has {strange[0]!r}"
    else:
        return
    raise UserInputError(
        f"checkpoint: {problem}; it belongs to another model, give the configuration it was made with",
        on_every_rank=on_every_rank,
    )


def check_resumable(checkpoint: Mapping[str, Any], path: object) -> None:
    """Raise :class:`UserInputError`, as every rank does, where training cannot go on from a checkpoint.

    Args:
        checkpoint: as loaded.
        path: where from.
    """
    if not {"optimizer_states", "lr_schedulers"} <= checkpoint.keys():
        raise UserInputError(
            f"checkpoint {path}: it holds weights alone, which can be tested or predicted from and not resumed; resume "
            "from one that was written without save_weights_only",
            on_every_rank=True,
        )
