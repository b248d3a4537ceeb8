"""Reading the files of a click log, some rows at a time."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from functools import cache
from pathlib import Path

import polars as pl
import pyarrow as pa
from polars.selectors import by_name
from pyarrow import csv

from dmt.errors import UserInputError

# 30 columns take some 30 MB as arrays, and a few times as much while they are encoded.
ROWS_AT_A_TIME = 2**17
_BLOCK_BYTES = 2**24


def read_pieces(
    files: Sequence[Path], *, columns: Sequence[str], rows_at_a_time: int = ROWS_AT_A_TIME
) -> Iterator[pl.DataFrame]:
    """The rows of the files of a split, one file's after the other's.

    Columns of a CSV file are text: CSV has no types, and guessing them would drop the zeros of ``007`` in one file and
    keep them in another. Empty cells and the spelling ``NaN`` of missing numbers become null.

    Args:
        files: parquet, Arrow or CSV with a header line.
        columns: the columns to read.
        rows_at_a_time: rows that are in memory together, about.

    Yields:
        the columns in that order, exactly so many rows but in the last piece: what is learned from pieces depends
        neither on the machine nor on how the rows are spread over files.

    Raises:
        UserInputError: a file is empty, cannot be read, or lacks a column, or files have a column of different types.
    """
    types = _common_types(files, columns)
    frames = (
        pl.DataFrame([frame[name].cast(dtype) for name, dtype in types.items()])
        for file in files
        for frame in _read(file, columns, rows_at_a_time)
    )
    return _regrouped(frames, rows_at_a_time)


def column_names(file: Path) -> list[str]:
    """Names of the columns of a file.

    Raises:
        UserInputError: the file is empty or cannot be read.
    """
    return list(_schema(file))


@contextmanager
def reading(file: Path) -> Iterator[None]:
    """Say which file cannot be read, and why."""
    try:
        if file.stat().st_size == 0:
            raise UserInputError(f"{file}: the file is empty (0 bytes); write it again")
        yield
    except (pl.exceptions.PolarsError, pa.ArrowException, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        kind = file.suffix.removeprefix(".")
        raise UserInputError(f"{file}: cannot be read as {kind} ({reason}); write the file again") from error


def _common_types(files: Sequence[Path], columns: Sequence[str]) -> pl.Schema:
    schemas = [_schema(file) for file in files]
    for file, schema in zip(files, schemas, strict=True):
        missing = [column for column in columns if column not in schema]
        if missing:
            raise UserInputError(f"{file}: no column {missing[0]!r}; {_suggestion(missing[0], list(schema))}")
    types = pl.Schema()
    for name in columns:
        found = [(file, schema[name]) for file, schema in zip(files, schemas, strict=True)]
        first_file, first = next(((file, dtype) for file, dtype in found if not _is_untyped(dtype)), found[0])
        for file, dtype in found:
            # Lists stay lists, and all else may be missing altogether.
            is_missing = _is_untyped(dtype) and (dtype == pl.Null or first.is_nested())
            if dtype != first and not is_missing:
                raise UserInputError(
                    f"{file}: column {name!r} holds {dtype}, but {first} in {first_file.name}; write them alike"
                )
        types[name] = first
    return types


def _is_untyped(dtype: pl.DataType) -> bool:
    """Whether it is that of a part where all values are missing, or all elements of lists."""
    return dtype == pl.Null or (isinstance(dtype, pl.List | pl.Array) and dtype.inner == pl.Null)


def _schema(file: Path) -> pl.Schema:
    with reading(file):
        return pl.read_ipc_stream(file, n_rows=0).schema if _is_stream(file) else _scan(file).collect_schema()


def _read(file: Path, columns: Sequence[str], rows_at_a_time: int) -> Iterator[pl.DataFrame]:
    """The rows of a file, at most so many at a time, with these columns and maybe others."""
    num_rows = 0
    with reading(file):
        if file.suffix == ".csv":
            frames = _read_csv(file, rows_at_a_time)
        elif _is_stream(file):
            frames = _read_stream(file, columns, rows_at_a_time)
        else:
            frames = _read_slices(file, columns, rows_at_a_time)
        for frame in frames:
            num_rows += len(frame)
            yield frame
    if not num_rows:
        raise UserInputError(f"{file}: the file has no rows; give at least one sample")


def _regrouped(frames: Iterable[pl.DataFrame], num_rows: int) -> Iterator[pl.DataFrame]:
    """The same rows, exactly so many at a time."""
    kept: list[pl.DataFrame] = []
    for frame in frames:
        kept.append(frame)
        while sum(map(len, kept)) >= num_rows:
            joined = pl.concat(kept)
            yield joined.head(num_rows)
            kept = [joined.slice(num_rows)]
    if any(map(len, kept)):
        yield pl.concat(kept)


def _scan(file: Path) -> pl.LazyFrame:
    if file.suffix == ".csv":
        return pl.scan_csv(file, infer_schema=False, null_values=["NaN", "nan"], glob=False)
    return (pl.scan_parquet if file.suffix == ".parquet" else pl.scan_ipc)(file, glob=False)


def _read_slices(file: Path, columns: Sequence[str], rows_at_a_time: int) -> Iterator[pl.DataFrame]:
    # Reading on in batches would be a little faster, but polars then decodes whole row groups, and as many of them
    # together as the machine has cores: a file may be a single one.
    rows = _scan(file)
    for start in range(0, rows.select(pl.len()).collect().item(), rows_at_a_time):
        yield rows.select(by_name(*columns)).slice(start, rows_at_a_time).collect()


def _is_stream(file: Path) -> bool:
    """Whether it has Arrow record batches as `datasets` writes them, a stream that cannot be read from the middle."""
    if file.suffix != ".arrow":
        return False
    with file.open("rb") as content:
        return content.read(6) != b"ARROW1"


def _read_stream(file: Path, columns: Sequence[str], rows_at_a_time: int) -> Iterator[pl.DataFrame]:
    # Mapped, since the writer may have made all rows one batch.
    with pa.memory_map(str(file)) as source, pa.ipc.open_stream(source) as batches:
        for batch in batches:
            for start in range(0, len(batch), rows_at_a_time):
                frame = pl.from_arrow(batch.select(columns).slice(start, rows_at_a_time))
                assert isinstance(frame, pl.DataFrame)
                yield frame


def _read_csv(file: Path, rows_at_a_time: int) -> Iterator[pl.DataFrame]:
    # All columns: given some, polars does not notice lines with too many cells.
    for frame in _scan(file).collect_batches(chunk_size=rows_at_a_time, lazy=True):
        if frame[:, -1].has_nulls():
            _check_line_lengths(file, file.stat().st_mtime_ns)
        yield frame


@cache
def _check_line_lengths(file: Path, modified_ns: int) -> None:
    """Raise :class:`UserInputError` for the first line with too few cells: for polars the others are missing values.

    pyarrow counts cells, and takes about as long as polars; a file needs it that has missing values at ends of lines,
    once, though it is read twice to prepare it: unless it was modified.
    """
    short = []

    def keep(row: csv.InvalidRow) -> str:
        short.append(row)
        return "skip"

    rows = _scan(file)
    names = rows.collect_schema().names()
    batches = csv.open_csv(
        file,
        csv.ReadOptions(use_threads=False, block_size=_BLOCK_BYTES),  # with threads rows have no numbers
        csv.ParseOptions(newlines_in_values=True, ignore_empty_lines=False, invalid_row_handler=keep),
        csv.ConvertOptions(include_columns=names[-1:], column_types={names[-1]: "binary"}),
    )
    for _ in batches:
        if short:
            break
    if short:
        # Its number counts the header, but not the line ends inside cells.
        line_ends = pl.all().str.count_matches("\n", literal=True).cast(pl.Int64).sum()
        before = rows.head(short[0].number - 2).select(line_ends).collect()
        line = short[0].number + sum(before.row(0)) + "".join(names).count("\n")
        raise UserInputError(
            f"{file}: line {line} has {short[0].actual_columns} of {len(names)} cells; complete it, or remove it"
        )


def _suggestion(name: str, present: Sequence[str]) -> str:
    close = get_close_matches(name, present, n=1)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"the columns are {', '.join(present)}"
