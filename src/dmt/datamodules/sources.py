"""Finding and reading the files of a user's click log: parquet, Arrow, or CSV with a header line."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path

import polars as pl

from dmt.errors import UserInputError

FILE_TYPES = (".parquet", ".arrow", ".csv")


def find_files(path: Path, *, names: dict[str, str]) -> dict[str, Path]:
    """The file of every split that has one.

    Args:
        path: the folder.
        names: file name of every split, by split. A name without an ending stands for the file of that name
            with one of the endings. The default name of a split is the split itself, and the files of ``valid``
            and ``test`` may be absent under their default names.

    Raises:
        UserInputError: no such folder or file, an unsupported ending, or a name that fits two files.
    """
    if not path.is_dir():
        found = "is not a folder" if path.exists() else "no such folder"
        raise UserInputError(f"path={path}: {found}; give the folder that holds the train and valid files")
    files = {split: _find_file(path, split=split, name=name) for split, name in names.items()}
    return {split: file for split, file in files.items() if file is not None}


def _find_file(path: Path, *, split: str, name: str) -> Path | None:
    option = f"{split}_file={name}"
    ending = Path(name).suffix
    if ending and ending not in FILE_TYPES:
        raise UserInputError(f"{option}: the type {ending} is not supported; give .parquet, .arrow or .csv")
    candidates = [path / name] if ending else [path / f"{name}{ending}" for ending in FILE_TYPES]
    files = [file for file in candidates if file.is_file()]
    if len(files) > 1:
        raise UserInputError(
            f"{option}: {path} holds both {files[0].name} and {files[1].name}; give the name with its ending"
        )
    if files:
        return files[0]
    if split != "train" and name == split:
        return None
    wanted = " or ".join(file.name for file in candidates)
    present = ", ".join(sorted(file.name for file in path.iterdir())[:8]) or "nothing"
    raise UserInputError(
        f"{option}: no {wanted} in {path}, which holds {present}; name the {split} file by {split}_file"
    )


def read_file(file: Path, *, columns: Sequence[str]) -> pl.DataFrame:
    """The named columns of a file, in that order; columns of a CSV file are text.

    CSV has no types, and guessing them would drop the zeros of ``007`` in one file and keep them in
    another. Empty cells and the spelling ``NaN`` of missing numbers become null.

    Raises:
        UserInputError: the file is empty, cannot be read, or lacks a column.
    """
    with _reading(file):
        present = _column_names(file)
        missing = [column for column in columns if column not in present]
        if missing:
            raise UserInputError(f"{file}: no column {missing[0]!r}; {_suggestion(missing[0], present)}")
        frame = _read(file, columns)
    if frame.is_empty():
        raise UserInputError(f"{file}: the file has no rows; give at least one sample")
    return frame


def column_names(file: Path) -> list[str]:
    """Names of the columns of a file.

    Raises:
        UserInputError: the file is empty or cannot be read.
    """
    with _reading(file):
        return _column_names(file)


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    """Say which file cannot be read, and why."""
    if file.stat().st_size == 0:
        raise UserInputError(f"{file}: the file is empty (0 bytes); write it again")
    try:
        yield
    except (pl.exceptions.PolarsError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        kind = file.suffix.removeprefix(".")
        raise UserInputError(f"{file}: cannot be read as {kind} ({reason}); write the file again") from error


def _column_names(file: Path) -> list[str]:
    if file.suffix == ".parquet":
        return list(pl.read_parquet_schema(file))
    if file.suffix == ".arrow":
        return _read_arrow(file, num_rows=0).columns
    return pl.read_csv(file, n_rows=0, infer_schema=False).columns


def _read(file: Path, columns: Sequence[str]) -> pl.DataFrame:
    if file.suffix == ".parquet":
        return pl.read_parquet(file, columns=list(columns))
    if file.suffix == ".arrow":
        return _read_arrow(file, columns)
    # All columns: given some, polars does not notice lines with too many cells.
    return pl.read_csv(file, infer_schema=False, null_values=["NaN", "nan"]).select(columns)


def _read_arrow(file: Path, columns: Sequence[str] | None = None, *, num_rows: int | None = None) -> pl.DataFrame:
    """An Arrow file, or a stream of Arrow record batches, as `datasets` writes them."""
    with file.open("rb") as content:
        is_stream = content.read(6) != b"ARROW1"
    read = pl.read_ipc_stream if is_stream else pl.read_ipc
    return read(file, columns=None if columns is None else list(columns), n_rows=num_rows)


def _suggestion(name: str, present: Sequence[str]) -> str:
    close = get_close_matches(name, present, n=1)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"the columns are {', '.join(present)}"
