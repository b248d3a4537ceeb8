"""Finding the files of a user's click log: parquet, Arrow, or CSV with a header line."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from dmt.errors import UserInputError

FILE_TYPES = (".parquet", ".arrow", ".csv")


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


def names_of(files: Sequence[Path]) -> str:
    """What the files of a split are called in messages."""
    return str(files[0]) if len(files) == 1 else f"{files[0]} to {files[-1].name}"
