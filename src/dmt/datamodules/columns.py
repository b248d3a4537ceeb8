"""Raw columns of any file to one form: categories as text, numbers as float64, labels as 0 and 1."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import polars as pl

from dmt.errors import UserInputError
from dmt.schema import CategoricalFeature, FeatureSchema

TEXT_TYPES = (pl.String, pl.Categorical, pl.Enum)
# Beyond this, a float64 is always whole, and its digits are no longer those of an int64.
LARGEST_WHOLE = 2.0**53


@dataclass(frozen=True, kw_only=True)
class ColumnNames:
    """Which columns of a file are what.

    Args:
        categorical: categories, or lists of them.
        numeric: numbers.
        label: 0 or 1.
        weights: for columns of lists, the column that has a list of weights as long.

    Raises:
        UserInputError: a column is named twice, no categorical column is named, one has a name that cannot name an
            embedding table, or an option is of another type.
    """

    categorical: Sequence[str]
    numeric: Sequence[str]
    label: str
    weights: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for option, names in (("categorical", self.categorical), ("numeric", self.numeric)):
            if isinstance(names, str):
                raise UserInputError(f"{option}={names}: give a list of column names, for example [{names}]")
            if not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
                raise UserInputError(f"{option}={names}: give a list of column names")
        if not isinstance(self.weights, Mapping):
            raise UserInputError(f"weights={self.weights}: give the column of weights by name of column, {{a: b}}")
        # A schema of any size says what is wrong with the names, before any file is read.
        FeatureSchema(
            categorical=[CategoricalFeature(name=name, num_embeddings=1) for name in self.categorical],
            dense=self.numeric,
        )
        if self.label in [*self.categorical, *self.numeric]:
            raise UserInputError(f"label={self.label}: also listed as a feature; remove it from the features")
        for name, weights in self.weights.items():
            if name not in self.categorical:
                raise UserInputError(f"weights={name}: not a categorical column; give weights for those alone")
            if weights in [*self.categorical, *self.numeric, self.label]:
                raise UserInputError(f"weights={weights}: it is a feature or the label as well; remove it there")

    @property
    def all(self) -> list[str]:
        """Every column to read."""
        return list(dict.fromkeys([*self.categorical, *self.numeric, *self.weights.values(), self.label]))


def is_list(column: pl.Series) -> bool:
    """Whether each row holds a list."""
    return isinstance(column.dtype, pl.List | pl.Array)


def flatten(column: pl.Series) -> tuple[pl.Series, np.ndarray]:
    """The elements of a column of lists, one after the other.

    Returns:
        the elements, and how many each row has, int64 (n,). A missing list counts as a list of one missing element, an
        empty one has none. A column of anything else counts as lists of one.
    """
    if not is_list(column):
        return column, np.ones(len(column), np.int64)
    # (polars explodes arrays of width 0 and lists of none to a missing element.)
    lists = column.arr.to_list() if isinstance(column.dtype, pl.Array) else column
    lengths = lists.list.len().fill_null(1)
    return lists.filter(lengths > 0).explode(), lengths.cast(pl.Int64).to_numpy()


def count_values(column: pl.Series) -> pl.DataFrame:
    """The distinct values of a column: a frame of ``value`` and ``count``.

    Raises:
        UserInputError: the column is neither text nor integer, float or boolean.
    """
    dtype = column.dtype
    is_plain = dtype in TEXT_TYPES or dtype.is_numeric() or dtype in (pl.Boolean, pl.Null)
    if not is_plain:
        raise UserInputError(_unsupported_type(column, "text, integer, float or boolean"))
    # polars counts in 32 bits, and the counts of many parts are added up.
    return column.alias("value").value_counts(name="count").cast({"count": pl.UInt64})


def categories_of(counts: pl.DataFrame) -> pl.DataFrame:
    """The distinct values of a column with their categories.

    The same category has the same text whatever the type of the column: whole floats lose their ``.0``, also
    when they are text already, as in a CSV file, and ``true`` and ``false`` are in lower case. Text is made of the
    distinct values alone: of all rows it would take most of the time of a preparation.

    Args:
        counts: as :func:`count_values` gives them.

    Returns:
        The frame and a column ``category`` (text; null if missing: null, NaN, empty text). Several values may be of
        one category.
    """
    return counts.with_columns(_category(pl.col("value"), counts["value"].dtype).alias("category"))


def _category(value: pl.Expr, dtype: pl.DataType) -> pl.Expr:
    """The text that a value of any type has as a category."""
    if dtype in TEXT_TYPES:
        text = value.cast(pl.String)
        lower = text.str.to_lowercase()
        whole = text.str.replace(r"^(-?\d+)\.0+$", "${1}")
        return pl.when(text == "").then(None).when(lower.is_in(["true", "false"])).then(lower).otherwise(whole)
    if dtype.is_float() or dtype.is_decimal():
        # (polars rounds no number of 16 bits)
        number = value.cast(pl.Float64) if dtype.is_decimal() or dtype == pl.Float16 else value
        is_whole = (number == number.floor()) & (number.abs() < LARGEST_WHOLE)
        whole = number.cast(pl.Int64, strict=False).cast(pl.String)
        return pl.when(number.is_nan()).then(None).when(is_whole).then(whole).otherwise(number.cast(pl.String))
    return value.cast(pl.String)


def to_number(column: pl.Series) -> pl.Series:
    """A column as float64, null where missing (null, NaN, infinite, empty text).

    Raises:
        UserInputError: the column is not of numbers, or is text and a value is not a number.
    """
    dtype = column.dtype
    if dtype in TEXT_TYPES:
        text = column.cast(pl.String).str.strip_chars().replace("", None)
        plain = text.str.to_lowercase().replace({"true": "1", "false": "0"})
        number = plain.cast(pl.Float64, strict=False)
        is_bad = number.is_null() & text.is_not_null()
        if is_bad.any():
            bad = text.filter(is_bad)[0]
            raise UserInputError(f"column {column.name!r}: {bad!r} is not a number; correct it")
    elif dtype.is_numeric() or dtype in (pl.Boolean, pl.Null):
        number = column.cast(pl.Float64)
    else:
        raise UserInputError(_unsupported_type(column, "numbers"))
    return number.set(~number.is_finite(), None)


def to_label(column: pl.Series, *, rows_before: int = 0) -> pl.Series:
    """A column of labels as uint8.

    Args:
        column: of some of the rows.
        rows_before: how many rows come before these, for messages.

    Raises:
        UserInputError: a label is missing or is neither 0 nor 1.
    """
    number = to_number(column)
    is_good = number.is_in([0.0, 1.0]).fill_null(False)
    if not is_good.all():
        row = (~is_good).arg_true()[0]
        found = "is missing" if column[row] is None else f"is {column[row]}"
        raise UserInputError(
            f"column {column.name!r}: the label of row {rows_before + row + 1} {found}; labels must be 0 or 1"
        )
    return number.cast(pl.UInt8)


def _unsupported_type(column: pl.Series, wanted: str) -> str:
    return f"column {column.name!r}: holds {column.dtype}, needs {wanted}; convert the column"
