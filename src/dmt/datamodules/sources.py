"""Finding and reading the files of a user's click log: parquet, Arrow, or CSV with a header line."""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path

import polars as pl
from pyarrow import ArrowInvalid, csv

from dmt.errors import UserInputError

FILE_TYPES = (".parquet", ".arrow", ".csv")
_BLOCK_BYTES = 2**24


def find_files(path: Path, *, names: dict[str, str]) -> dict[str, list[Path]]:
    """The files of every split that has some, in the order of its samples.

    Args:
        path: the folder.
        names: file name of every split, by split. A name with an ending stands for the file of that name, or the files
            in a folder of that name. One without an ending stands for all of these with one of the endings, for the
            files in a folder of that very name, or for NAME-00000-of-00002.parquet, NAME-00001-of-00002.parquet. The
            default name of a split is the split itself, and the files of ``valid`` and ``test`` may be absent under
            their default names.

    Raises:
        UserInputError: no such folder or file, an unsupported ending, a file that is missing among its like, or a name
            that fits several.
    """
    if not path.is_dir():
        found = "is not a folder" if path.exists() else "no such folder"
        raise UserInputError(f"path={path}: {found}; give the folder that holds the train and valid files")
    found_files = {split: _find_split(path, split=split, name=name) for split, name in names.items()}
    return {split: files for split, files in found_files.items() if files}


def _find_split(path: Path, *, split: str, name: str) -> list[Path]:
    option = f"{split}_file={name}"
    ending = Path(name).suffix
    if ending and ending not in FILE_TYPES:
        raise UserInputError(f"{option}: the type {ending} is not supported; give .parquet, .arrow or .csv")
    candidates = [path / name] if ending else [path / f"{name}{ending}" for ending in FILE_TYPES]
    forms = [[file] if file.is_file() else _parts_in(file, endings=[file.suffix]) for file in candidates]
    if not ending:
        forms.append(_parts_in(path / name, endings=FILE_TYPES))
        forms += [_numbered(file, option=option) for file in candidates]
    forms = [files for files in forms if files]
    if len(forms) > 1:
        one, other = (os.path.relpath(files[0], path) for files in forms[:2])
        raise UserInputError(
            f"{option}: {path} holds both {one} and {other}; remove one, or give the name with its ending"
        )
    if forms:
        return forms[0]
    if split != "train" and name == split:
        return []
    for folder in [*candidates, path / name]:
        if folder.is_dir():
            raise UserInputError(f"{option}: the folder {folder} holds no parquet, arrow or csv file; add one")
    wanted = " or ".join(file.name for file in candidates)
    present = ", ".join(sorted(file.name for file in path.iterdir())[:8]) or "nothing"
    raise UserInputError(
        f"{option}: no {wanted} in {path}, which holds {present}; name the {split} file by {split}_file"
    )


def _parts_in(folder: Path, *, endings: Sequence[str]) -> list[Path]:
    """The files of a folder, in the order of their names, but those that its writer keeps for itself."""
    if not folder.is_dir():
        return []
    parts = sorted(
        file
        for file in folder.iterdir()
        if file.suffix in endings and file.is_file() and not file.name.startswith((".", "_"))
    )
    found = sorted({part.suffix for part in parts})
    if len(found) > 1:
        raise UserInputError(f"{folder}: it holds both {found[0]} and {found[1]} files; remove those of one type")
    return parts


def _numbered(file: Path, *, option: str) -> list[Path]:
    """For ``train.parquet`` its parts as Hugging Face names them, ``train-00000-of-00002.parquet`` and so on."""
    if not file.parent.is_dir():
        return []
    pattern = re.compile(re.escape(file.stem) + r"-(\d{5})-of-(\d{5})" + re.escape(file.suffix))
    counts = sorted({match[2] for other in file.parent.iterdir() if (match := pattern.fullmatch(other.name))})
    if not counts:
        return []
    if len(counts) > 1:
        raise UserInputError(
            f"{option}: {file.parent} holds parts of {counts[0]} and of {counts[1]}; remove those of one kind"
        )
    parts = [file.with_name(f"{file.stem}-{number:05}-of-{counts[0]}{file.suffix}") for number in range(int(counts[0]))]
    for part in parts:
        if not part.is_file():
            raise UserInputError(f"{option}: {part.name} is missing in {part.parent}; add it")
    return parts


def read_files(files: Sequence[Path], *, columns: Sequence[str]) -> pl.DataFrame:
    """The named columns of the files of a split, one file's rows after the other's, in that order of columns.

    Columns of a CSV file are text: CSV has no types, and guessing them would drop the zeros of ``007`` in one file and
    keep them in another. Empty cells and the spelling ``NaN`` of missing numbers become null.

    Raises:
        UserInputError: a file is empty, cannot be read, or lacks a column, or files have a column of different types.
    """
    frames = [_read_file(file, columns) for file in files]
    for name in columns:
        # A part whose values are all missing may have no type for them.
        typed = [(file, frame[name].dtype) for file, frame in zip(files, frames, strict=True)]
        typed = [(file, dtype) for file, dtype in typed if dtype != pl.Null]
        for file, dtype in typed[1:]:
            first_file, first = typed[0]
            if dtype != first:
                raise UserInputError(
                    f"{file}: column {name!r} holds {dtype}, but {first} in {first_file.name}; write them alike"
                )
    return frames[0] if len(frames) == 1 else pl.concat(frames, how="vertical_relaxed")


def names_of(files: Sequence[Path]) -> str:
    """What the files of a split are called in messages."""
    return str(files[0]) if len(files) == 1 else f"{files[0]} to {files[-1].name}"


def column_names(file: Path) -> list[str]:
    """Names of the columns of a file.

    Raises:
        UserInputError: the file is empty or cannot be read.
    """
    with reading(file):
        return _column_names(file)


@contextmanager
def reading(file: Path) -> Iterator[None]:
    """Say which file cannot be read, and why."""
    try:
        if file.stat().st_size == 0:
            raise UserInputError(f"{file}: the file is empty (0 bytes); write it again")
        yield
    except (pl.exceptions.PolarsError, ArrowInvalid, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        kind = file.suffix.removeprefix(".")
        raise UserInputError(f"{file}: cannot be read as {kind} ({reason}); write the file again") from error


def _read_file(file: Path, columns: Sequence[str]) -> pl.DataFrame:
    with reading(file):
        present = _column_names(file)
        missing = [column for column in columns if column not in present]
        if missing:
            raise UserInputError(f"{file}: no column {missing[0]!r}; {_suggestion(missing[0], present)}")
        frame = _read(file, columns)
    if frame.is_empty():
        raise UserInputError(f"{file}: the file has no rows; give at least one sample")
    return frame


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
    frame = pl.read_csv(file, infer_schema=False, null_values=["NaN", "nan"])
    if frame[:, -1].has_nulls():
        _check_line_lengths(file, frame)
    return frame.select(columns)


def _check_line_lengths(file: Path, frame: pl.DataFrame) -> None:
    """Raise :class:`UserInputError` for the first line with too few cells: for polars the others are missing values.

    pyarrow counts cells, and takes about as long as polars; a file needs it that has missing values at ends of lines.
    """
    short = []

    def keep(row: csv.InvalidRow) -> str:
        short.append(row)
        return "skip"

    batches = csv.open_csv(
        file,
        csv.ReadOptions(use_threads=False, block_size=_BLOCK_BYTES),  # with threads rows have no numbers
        csv.ParseOptions(newlines_in_values=True, ignore_empty_lines=False, invalid_row_handler=keep),
        csv.ConvertOptions(include_columns=frame.columns[-1:], column_types={frame.columns[-1]: "binary"}),
    )
    for _ in batches:
        if short:
            break
    if short:
        # Its number counts the header, but not the line ends inside cells.
        before = frame.head(short[0].number - 2).select(pl.all().str.count_matches("\n", literal=True).sum())
        line = short[0].number + sum(before.row(0)) + "".join(frame.columns).count("\n")
        raise UserInputError(
            f"{file}: line {line} has {short[0].actual_columns} of {frame.width} cells; complete it, or remove it"
        )


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
