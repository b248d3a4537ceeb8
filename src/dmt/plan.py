"""Which feature belongs to which tower: the :class:`TowerPlan` and its YAML file.

Models build their towers from a plan, strategies place them on hosts, and the partitioner writes plans;
so the plan itself lives here, below all three.
"""

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from dmt.errors import UserInputError


@dataclass(frozen=True)
class TowerInput:
    """What a tower reads of a feature: its embedding, or a block of the embedding's columns.

    Args:
        feature: the feature.
        columns: first column, and the one after the last; ``None`` for all.

    Example:
        >>> TowerInput.parse("item[0:8]")
        TowerInput(feature='item', columns=(0, 8))
        >>> TowerInput.parse("item")
        TowerInput(feature='item', columns=None)
    """

    feature: str
    columns: tuple[int, int] | None = None

    @classmethod
    def parse(cls, entry: str) -> "TowerInput":
        """Read an entry of a plan: a name, or ``name[start:stop]``."""
        match = re.fullmatch(r"(.+)\[(\d+):(\d+)\]", entry)
        return cls(match[1], (int(match[2]), int(match[3]))) if match else cls(entry)

    def overlaps(self, other: "TowerInput") -> bool:
        """Whether both read a column of the same feature."""
        if self.feature != other.feature:
            return False
        if self.columns is None or other.columns is None:
            return True
        return self.columns[0] < other.columns[1] and other.columns[0] < self.columns[1]


def _check_num_towers(features: Sequence[str], num_towers: int) -> None:
    if not 1 <= num_towers <= len(features):
        raise UserInputError(
            f"num_towers={num_towers}: {len(features)} features fill between 1 and {len(features)} "
            "towers; choose a number in that range"
        )


@dataclass(frozen=True, kw_only=True)
class TowerPlan:
    """An assignment of every categorical feature to exactly one tower (paper section 3.3).

    A feature may also be divided: ``"item[0:8]"`` is a block of the columns of its embedding. That gives more towers
    than features where a cluster needs them.

    Args:
        towers: feature names of each tower. The order of towers is the order of their outputs; the order
            inside a tower is the order in which its tower module sees the features.
        method: how the plan was made: ``"manual"``, ``"strided"``, ``"flat"``, ...
        record: what else there is to know of that, such as a seed; nothing depends on it.

    Raises:
        UserInputError: there is no tower, a tower is empty, a name is empty, a feature or a column of it is listed
            twice, or the method is no text or the record no mapping.

    Example:
        >>> TowerPlan.strided(["a", "b", "c", "d", "e"], num_towers=2).towers
        (('a', 'c', 'e'), ('b', 'd'))
    """

    towers: Sequence[Sequence[str]]
    method: str = "manual"
    record: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        if any(isinstance(tower, str) for tower in self.towers):
            raise UserInputError(f"tower plan: towers {list(self.towers)}; give a list of names for each tower")
        object.__setattr__(self, "towers", tuple(tuple(tower) for tower in self.towers))
        if not self.towers:
            raise UserInputError("tower plan: it lists no towers; give at least one")
        if not isinstance(self.method, str) or not self.method:
            raise UserInputError(f"tower plan: method {self.method!r}; give a word, such as manual, or leave it out")
        if not isinstance(self.record, Mapping):
            raise UserInputError(f"tower plan: record {self.record!r}; give values by name, such as seed: 1")
        seen: dict[str, list[tuple[TowerInput, int]]] = {}
        for index, tower in enumerate(self.towers):
            if not tower:
                raise UserInputError(f"tower plan: tower {index} has no features; give it some or remove it")
            for entry in tower:
                if not entry:
                    raise UserInputError(f"tower plan: tower {index} has a feature without a name; name or remove it")
                wanted = TowerInput.parse(entry)
                if wanted.columns is not None and wanted.columns[0] >= wanted.columns[1]:
                    raise UserInputError(f"tower plan: {entry!r} names no columns; write name[first:one after last]")
                for other, place in seen.setdefault(wanted.feature, []):
                    if wanted.overlaps(other):
                        what = "feature" if wanted == other else "a column of feature"
                        raise UserInputError(
                            f"tower plan: {what} {wanted.feature!r} is in tower {place} and again in tower {index}; "
                            "list each once"
                        )
                seen[wanted.feature].append((wanted, index))

    @property
    def inputs(self) -> tuple[tuple[TowerInput, ...], ...]:
        """What each tower reads."""
        return tuple(tuple(TowerInput.parse(entry) for entry in tower) for tower in self.towers)

    @property
    def feature_names(self) -> tuple[str, ...]:
        """All features, each once, in the order in which towers first read them."""
        return tuple(dict.fromkeys(wanted.feature for tower in self.inputs for wanted in tower))

    @classmethod
    def strided(cls, features: Sequence[str], *, num_towers: int) -> "TowerPlan":
        """Feature ``i`` goes to tower ``i mod num_towers``: the paper's naive baseline (section 5.3).

        Raises:
            UserInputError: fewer than one tower, or more towers than features.
        """
        _check_num_towers(features, num_towers)
        return cls(towers=[features[t::num_towers] for t in range(num_towers)], method="strided")

    @classmethod
    def contiguous(cls, features: Sequence[str], *, num_towers: int) -> "TowerPlan":
        """Features in the data's order, cut into even blocks.

        Raises:
            UserInputError: fewer than one tower, or more towers than features.

        Example:
            >>> TowerPlan.contiguous(["a", "b", "c", "d", "e"], num_towers=2).towers
            (('a', 'b', 'c'), ('d', 'e'))
        """
        _check_num_towers(features, num_towers)
        # The first towers are one larger where it does not divide, as in the strided plan.
        size, larger = divmod(len(features), num_towers)
        ends = [(t + 1) * size + min(t + 1, larger) for t in range(num_towers)]
        towers = [features[start:end] for start, end in zip([0, *ends], ends, strict=False)]
        return cls(towers=towers, method="contiguous")

    @classmethod
    def random(cls, features: Sequence[str], *, num_towers: int, seed: int) -> "TowerPlan":
        """Features shuffled and dealt out; inside a tower they keep their order.

        Raises:
            UserInputError: fewer than one tower, or more towers than features.
        """
        _check_num_towers(features, num_towers)
        shuffled = random.Random(seed).sample(list(features), len(features))
        towers = [sorted(shuffled[t::num_towers], key=list(features).index) for t in range(num_towers)]
        return cls(towers=towers, method="random", record={"seed": seed})

    @classmethod
    def strided_columns(cls, features: Sequence[str], *, num_towers: int, embedding_dim: int) -> "TowerPlan":
        """More towers than features: every embedding is cut into even blocks of columns, which are dealt out in turn.

        Raises:
            UserInputError: the embeddings have too few columns for blocks of 4, 8, 12...

        Example:
            >>> TowerPlan.strided_columns(["a", "b"], num_towers=4, embedding_dim=8).towers
            (('a[0:4]',), ('b[0:4]',), ('a[4:8]',), ('b[4:8]',))
        """
        num_blocks = -(-num_towers // len(features))
        if num_towers < 1 or embedding_dim % (4 * num_blocks):
            possible = [k for k in range(1, embedding_dim // 4 + 1) if embedding_dim % (4 * k) == 0]
            # From the first after a number of blocks that does not go, to the last before the next one.
            firsts = [k for k in possible if k - 1 not in possible]
            lasts = [k for k in possible if k + 1 not in possible]
            ends = zip(firsts, lasts, strict=True)
            ranges = [f"{len(features) * (first - 1) + 1} to {len(features) * last}" for first, last in ends]
            raise UserInputError(
                f"num_towers={num_towers}: {len(features)} features would be cut into {num_blocks} blocks of columns "
                f"each, and {embedding_dim} columns are not {num_blocks} even blocks of a multiple of 4; choose "
                f"{' or '.join(ranges)}, or another embedding_dim"
            )
        width = embedding_dim // num_blocks
        entries = [f"{name}[{i * width}:{(i + 1) * width}]" for i in range(num_blocks) for name in features]
        return cls(towers=[entries[t::num_towers] for t in range(num_towers)], method="strided")

    def check_features(self, features: Sequence[str]) -> None:
        """Raise unless the plan covers exactly ``features``.

        Raises:
            UserInputError: a feature of the data is in no tower, or the plan names a column that the
                data does not have.
        """
        planned = self.feature_names
        missing = [name for name in features if name not in planned]
        if missing:
            raise UserInputError(
                f"tower plan: feature{'s' * (len(missing) > 1)} {', '.join(map(repr, missing))} of the data "
                f"{'are' if len(missing) > 1 else 'is'} in no tower; add each to one tower"
            )
        unknown = [name for name in planned if name not in features]
        if unknown:
            hint = " (blocks of columns are written name[0:8])" if any("[" in name for name in unknown) else ""
            raise UserInputError(
                f"tower plan: the data has no categorical column {', '.join(map(repr, unknown))}{hint}; its columns "
                f"are {', '.join(features)}"
            )

    def save(self, path: str | Path) -> None:
        """Write the plan as YAML."""
        data: dict[str, Any] = {"method": self.method, "towers": [list(tower) for tower in self.towers]}
        if self.record:
            data["record"] = dict(self.record)
        Path(path).write_text(yaml.safe_dump(data, sort_keys=False, default_flow_style=None, width=100))

    @classmethod
    def load(cls, path: str | Path) -> "TowerPlan":
        """Read a plan from a YAML file with a ``towers`` list of lists of feature names.

        Raises:
            UserInputError: the file is missing, is not YAML, or does not hold a plan.
        """
        path = Path(path)
        if not path.is_file():
            raise UserInputError(f"tower plan {path}: no such file; give the path of a TowerPlan YAML file")
        try:
            data = yaml.safe_load(path.read_text())
        except (yaml.YAMLError, ValueError) as error:  # also of text and dates that cannot be read
            reason = str(error).splitlines()[0]
            raise UserInputError(f"tower plan {path}: not a YAML file ({reason}); fix or rewrite it") from error
        towers = data.get("towers") if isinstance(data, dict) else None
        if not isinstance(towers, list) or not all(
            isinstance(tower, list) and all(isinstance(name, str) for name in tower) for tower in towers
        ):
            raise UserInputError(
                f"tower plan {path}: needs a key 'towers' with a list of lists of column names, "
                "for example towers: [[C1, C3], [C2, C4]]"
            )
        unknown = sorted(str(key) for key in set(data) - {"towers", "method", "record"})
        if unknown:
            raise UserInputError(
                f"tower plan {path}: unknown key {unknown[0]!r}; the keys are towers, method and record"
            )
        record = data.get("record")
        try:
            return cls(towers=towers, method=data.get("method", "manual"), record={} if record is None else record)
        except UserInputError as error:
            raise UserInputError(f"{path}: {error}") from error
