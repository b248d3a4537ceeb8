"""The record of a sweep on disk: a folder for the sweep, one for each trial, and results.csv.

    DIR/sweep.json             what must stay as it is for results to belong together
    DIR/results.csv            a row for each trial, rewritten after each
    DIR/TRIAL/trial.json       parameters, and digests of the files that they and the command name
    DIR/TRIAL/result.json      how the trial ended; without it, it has not
    DIR/TRIAL/log.txt          what it printed, beside all that the run itself leaves

Files appear whole or not at all, so that a kill at any moment leaves a record that can be gone on with.
"""

import csv
import fcntl
import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, Any, Literal, TypeVar, get_args

from dmt.errors import UserInputError
from dmt.sweep.parameters import flatten
from dmt.whole_files import whole, write_whole

State = Literal["running", "interrupted", "finished", "failed", "stopped"]
Record = TypeVar("Record", "Trial", "Result")


@dataclass(frozen=True, kw_only=True)
class Result:
    """How a trial ended.

    Args:
        state: ``finished``, ``failed``, or ``stopped`` early as the sweep file says.
        reason: of a failure; else ``""``.
        seconds: from start to end of the process.
        metrics: by name: final ones, of a stopped trial those last reported.
        samples_per_second: median over training steps, where the run tells.
        history: values of the sweep's metric in the order in which they were reported.
        run: the folder of the run that it was, from the trial's; None where none has finished.

    Raises:
        TypeError: a field is of another type, as in a file that something else has written.
    """

    state: State
    reason: str = ""
    seconds: float
    metrics: dict[str, float] = field(default_factory=dict)
    samples_per_second: float | None = None
    history: list[float] = field(default_factory=list)
    run: str | None = None

    def __post_init__(self) -> None:
        if self.state not in get_args(State) or not isinstance(self.reason, str):
            raise TypeError("state and reason tell how a trial ended")
        if not isinstance(self.run, str | None):
            raise TypeError("run is no folder")
        _check_types({"metrics": dict, "history": list}, self)
        numbers = [self.seconds, *self.metrics.values(), *self.history]
        if self.samples_per_second is not None:
            numbers.append(self.samples_per_second)
        if not all(isinstance(number, int | float) for number in numbers):
            raise TypeError("seconds, samples_per_second, metrics and history are numbers")


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A trial that was started at least once.

    Args:
        id: its name, and its folder's.
        number: how many trials were started before it.
        parameters: as proposed.
        files: digests of the files that decide its numbers, by path.
        folder: where all of it is.
        state: ``interrupted`` where it neither ended nor runs.
        result: how it ended, or None.

    Raises:
        TypeError: a field is of another type, as in a file that something else has written.
    """

    id: str
    number: int
    parameters: dict[str, Any]
    files: dict[str, str]
    folder: Path
    state: State
    result: Result | None

    def __post_init__(self) -> None:
        _check_types({"number": int, "parameters": dict, "files": dict}, self)


class Ledger:
    """The trials of one sweep, in memory and on disk.

    Args:
        folder: the sweep's; it need not exist.
        identity: of the sweep, in plain JSON types.

    Raises:
        UserInputError: the folder holds something else.
    """

    def __init__(self, *, folder: Path, identity: Mapping[str, Any]) -> None:
        self.folder = folder.absolute()
        self.trials: dict[str, Trial] = {}
        self._identity = json.loads(json.dumps(identity, default=str))
        self._lock: IO[str] | None = None
        self._check_folder()
        self._read()

    def open(self) -> None:
        """Take the folder for this process, until :meth:`close` or its end.

        Raises:
            UserInputError: another process has it.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = (self.folder / ".lock").open("w")
        except OSError as error:
            raise UserInputError(f"output={self.folder}: {error.strerror}; give another --output") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserInputError(
                f"output={self.folder}: another dmt sweep is at work there; wait for it, or give another --output"
            ) from error
        self._check_folder()
        self._read()
        write_whole(self.folder / "sweep.json", json.dumps(self._identity, indent=2) + "\n")

    def close(self) -> None:
        """Let go of the folder."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def start(self, *, id: str, parameters: dict[str, Any], files: dict[str, str]) -> Trial:
        """Note that a trial starts, in an empty folder of its own."""
        before = self.trials.get(id)
        number = len(self.trials) if before is None else before.number
        folder = self.folder / id
        (folder / "result.json").unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        content = {"number": number, "parameters": parameters, "files": files}
        write_whole(folder / "trial.json", json.dumps(content, indent=2) + "\n")
        trial = Trial(
            id=id, number=number, parameters=parameters, files=files, folder=folder, state="running", result=None
        )
        self.trials[id] = trial
        return trial

    def end(self, trial: Trial, result: Result | None) -> Trial:
        """Note how a trial ended; None where it was interrupted and is to start anew."""
        if result is not None:
            write_whole(trial.folder / "result.json", json.dumps(asdict(result), indent=2) + "\n")
        ended = replace(trial, result=result, state=result.state if result else "interrupted")
        self.trials[trial.id] = ended
        self.write_results()
        return ended

    def forget(self, trials: Iterable[Trial]) -> None:
        """Take trials that have ended for interrupted ones: they are started anew."""
        for trial in trials:
            (trial.folder / "result.json").unlink()
            self.trials[trial.id] = replace(trial, result=None, state="interrupted")

    def write_results(self) -> None:
        """Rewrite results.csv."""
        trials = sorted(self.trials.values(), key=lambda trial: trial.number)
        flat = [flatten(trial.parameters) for trial in trials]
        results = [trial.result for trial in trials]
        options = list(dict.fromkeys(name for parameters in flat for name in parameters))
        metrics = sorted({name for result in results if result for name in result.metrics})
        rows: list[list[object]] = [["trial", "state", *options, "seconds", "samples_per_second", *metrics, "reason"]]
        for trial, parameters, result in zip(trials, flat, results, strict=True):
            told = result or Result(state=trial.state, seconds=float("nan"))
            rows.append(
                [
                    *(trial.id, trial.state),
                    *(_cell(parameters[name]) if name in parameters else "" for name in options),
                    f"{told.seconds:.1f}" if result else "",
                    "" if told.samples_per_second is None else f"{told.samples_per_second:.0f}",
                    *(told.metrics.get(name, "") for name in metrics),
                    told.reason,
                ]
            )
        with whole(self.folder / "results.csv") as path, path.open("w", newline="") as file:
            csv.writer(file).writerows(rows)

    def _check_folder(self) -> None:
        path = self.folder / "sweep.json"
        if not self.folder.exists():
            return
        if not self.folder.is_dir():
            raise UserInputError(f"output={self.folder}: not a folder; give another --output")
        if not path.exists():
            if any(not entry.name.startswith(".") for entry in self.folder.iterdir()):
                raise UserInputError(
                    f"output={self.folder}: holds files and no sweep; give an empty or a new folder as --output"
                )
            return
        found = _load(path)
        differing = [key for key in {**found, **self._identity} if found.get(key) != self._identity.get(key)]
        if differing:
            key = differing[0]
            raise UserInputError(
                f"output={self.folder}: belongs to another sweep, whose {key} is {json.dumps(found.get(key))} and not "
                f"{json.dumps(self._identity.get(key))}; give another --output"
            )

    def _read(self) -> None:
        self.trials = {}
        for path in sorted(self.folder.glob("*/trial.json")):
            own = {"id": path.parent.name, "folder": path.parent, "state": "interrupted", "result": None}
            trial = _record(Trial, path, **own)
            result = path.parent / "result.json"
            if result.exists():
                ended = _record(Result, result)
                trial = replace(trial, result=ended, state=ended.state)
            self.trials[trial.id] = trial


def check_files(trials: Sequence[Trial], current: Mapping[str, Mapping[str, str]]) -> None:
    """Refuse to mix results of a configuration with those of a changed one.

    Args:
        trials: that ended.
        current: by trial, digests of the files that it would read now.

    Raises:
        UserInputError: a file has changed, or is not there now.
    """
    for trial in trials:
        # First, since what a missing file names is not looked at either.
        missing = next((name for name in trial.files if not os.path.isfile(name)), None)
        if missing is not None:
            raise UserInputError(
                f"{missing}, with which trial {trial.id} in {trial.folder.parent} was run, is not there; start from "
                "the directory of the first run, or restore it"
            )
        files = current[trial.id]
        for name in {**trial.files, **files}:
            if trial.files.get(name) != files.get(name):
                raise UserInputError(
                    f"{name} has changed since trial {trial.id} in {trial.folder.parent} was run; restore it, or give "
                    "another --output"
                )


def _record(kind: type[Record], path: Path, **own: Any) -> Record:
    """What a file tells of a trial, with fields that it does not hold."""
    try:
        return kind(**_load(path), **own)
    except TypeError as error:
        raise _damaged(path, error) from error


def _load(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise _damaged(path, error) from error
    if not isinstance(content, dict):
        raise _damaged(path, "not a mapping")
    return content


def _damaged(path: Path, reason: object) -> UserInputError:
    return UserInputError(f"{path}: damaged ({reason}); delete the folder {path.parent}")


def _check_types(types: Mapping[str, type], record: object) -> None:
    for name, kind in types.items():
        if not isinstance(getattr(record, name), kind):
            raise TypeError(f"{name} is no {kind.__name__}")


def _cell(value: Any) -> Any:
    return value if isinstance(value, str) else json.dumps(value)
