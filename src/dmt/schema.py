"""What a data set tells a model about its columns.

A DataModule produces a :class:`FeatureSchema`, a model consumes one, and neither knows the other: that
is why it lives here, below both.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from dmt.errors import UserInputError


@dataclass(frozen=True, kw_only=True)
class CategoricalFeature:
    """One categorical column and the embedding table it needs.

    Args:
        name: column name.
        num_embeddings: number of rows; ids lie in ``[0, num_embeddings)``.
        multi_hot: ``False`` when every sample holds exactly one id, which lets ids travel without their
            lengths; ``True`` when a sample may hold none or several.
        mean_length: expected ids per sample, for cost estimates. 1.0 unless ``multi_hot``.
        table: embedding table; columns that name the same one share its rows. Default: one of the column's own,
            of the same name.
    """

    name: str
    num_embeddings: int
    multi_hot: bool = False
    mean_length: float = 1.0
    table: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "table", self.table or self.name)
        for what, name in (("", self.name), (f" of {self.name!r}", self.table)):
            if not name or "." in name:
                raise UserInputError(
                    f"categorical {'table' if what else 'column'} {name!r}{what}: a name must be non-empty and "
                    "without '.', since it names a module parameter; rename it"
                )
        if self.num_embeddings < 1:
            raise UserInputError(
                f"categorical column {self.name!r}: num_embeddings={self.num_embeddings}; give at least 1"
            )
        if not self.multi_hot and self.mean_length != 1.0:
            raise UserInputError(
                f"categorical column {self.name!r}: mean_length={self.mean_length} needs multi_hot=true"
            )
        if self.mean_length < 0:
            raise UserInputError(
                f"categorical column {self.name!r}: mean_length={self.mean_length}; give a number >= 0"
            )


@dataclass(frozen=True, kw_only=True)
class FeatureSchema:
    """Columns of a click log, in the order in which batches hold them.

    Args:
        categorical: the categorical columns, one embedding table each.
        dense: names of the numeric columns; may be empty.
        weighted: whether every id comes with a weight that its embedding is multiplied by.

    Raises:
        UserInputError: there is no categorical column, a name is repeated, or columns that share a table differ in
            ``num_embeddings``.

    Example:
        >>> schema = FeatureSchema(
        ...     categorical=[CategoricalFeature(name="carrier", num_embeddings=12)], dense=["distance"])
        >>> schema.feature_names
        ('carrier',)
    """

    categorical: Sequence[CategoricalFeature]
    dense: Sequence[str] = field(default=())
    weighted: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "categorical", tuple(self.categorical))
        object.__setattr__(self, "dense", tuple(self.dense))
        if not self.categorical:
            raise UserInputError("no categorical columns: an embedding model needs at least one; name them")
        names = [*self.feature_names, *self.dense]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise UserInputError(f"column {repeated[0]!r} is named more than once; name each column once")
        rows: dict[str, int] = {}
        for feature in self.categorical:
            if feature.num_embeddings != rows.setdefault(feature.table, feature.num_embeddings):
                raise UserInputError(
                    f"categorical column {feature.name!r}: num_embeddings={feature.num_embeddings}, but another column "
                    f"of table {feature.table!r} has {rows[feature.table]}; give both the same, or tables of their own"
                )

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Names of the categorical columns, in batch order."""
        return tuple(feature.name for feature in self.categorical)

    @property
    def single_hot(self) -> bool:
        """Whether every sample holds exactly one id of every feature."""
        return not any(feature.multi_hot for feature in self.categorical)

    def to_dict(self) -> dict[str, object]:
        """Plain data for JSON, YAML and checkpoints; :meth:`from_dict` reads it back."""
        return {
            "categorical": [asdict(feature) for feature in self.categorical],
            "dense": list(self.dense),
            "weighted": self.weighted,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "FeatureSchema":
        """The inverse of :meth:`to_dict`."""
        features = [CategoricalFeature(**feature) for feature in data["categorical"]]
        return cls(categorical=features, dense=data["dense"], weighted=data.get("weighted", False))
