"""Finished runs, found in the folders of runs and sweeps, and put together to points of equal options and towers."""

import json
import math
import re
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from scipy.stats import PermutationMethod, mannwhitneyu

from dmt.errors import UserInputError
from dmt.finished_run import RECORD_FILE, SUMMARY_FILE, Run, RunSummary, load_object
from dmt.waiting import waiting

__all__ = ["Found", "Point", "Run", "RunSummary", "find_runs", "group", "holm", "p_text", "p_value", "read_runs"]

_MAX_TOLD = 40  # characters of an option in a label
_MIN_DIGITS = 4  # of a float in a label; 17 tell any two apart
_MAX_SPLITS = 100_000  # of the values into two sides: nine and nine have 48,620


def p_value(values: Sequence[float], reference: Sequence[float]) -> float:
    """Of the two-sided Mann-Whitney U test, exact; of many values with equal ones among them, approximately.

    The normal approximation, which scipy takes from nine values a side or for equal ones, is off where it matters: for
    nine that all lie above nine others, ten times too large, and for three, half of what it can be.

    Example:
        >>> f"{p_value(range(9), range(10, 19)):.5f}"
        '0.00004'
        >>> p_value([1, 1, 1], [2, 2, 2])
        0.1
    """
    both = [*values, *reference]
    if len(set(both)) == len(both):
        return float(mannwhitneyu(values, reference, method="exact").pvalue)
    is_few = math.comb(len(both), len(values)) <= _MAX_SPLITS
    method = PermutationMethod(n_resamples=_MAX_SPLITS) if is_few else "asymptotic"
    return float(mannwhitneyu(values, reference, method=method).pvalue)


def least_p(num_values: int, num_reference: int) -> float:
    """The smallest :func:`p_value` that so many values can have: all of one side above those of the other.

    Example:
        >>> least_p(3, 3)
        0.1
    """
    return 2 / math.comb(num_values + num_reference, num_values)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction for so many comparisons (1979)."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    corrected, highest = [0.0] * len(p_values), 0.0
    for place, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - place) * p_values[index]))
        corrected[index] = highest
    return corrected


def p_text(p: float) -> str:
    """A p-value to three digits."""
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"


@dataclass(frozen=True, kw_only=True)
class Found:
    """What there is to compare.

    Args:
        runs: finished ones, each once.
        left_out: a sentence for each sweep some of whose trials are not among them, or have been repeated in their
            folders, and for each run of which there is a newer version that has not finished.
    """

    runs: list[Run]
    left_out: list[str] = field(default_factory=list)


def find_runs(paths: Sequence[Path]) -> list[Run]:
    """The runs of :func:`read_runs`."""
    return read_runs(paths).runs


def read_runs(paths: Sequence[Path]) -> Found:
    """The runs of folders: of a run, the newest of its versions; of a sweep, all trials that have finished.

    Of a trial it is the run that its result is of, whatever else is in its folder: its configuration keeps a run there.

    Raises:
        UserInputError: a folder is of neither or of several, or runs are of different data.
    """
    found = [_found_at(path) for path in paths]
    once: dict[Path, Run] = {}
    for run in (run for one in found for run in one.runs):
        once.setdefault(run.folder.resolve(), run)
    runs = _with_own_names(list(once.values()))
    for run in runs:
        _check_samples(run, runs[0])
    left_out = [sentence for one in found for sentence in one.left_out]
    return Found(runs=runs, left_out=list(dict.fromkeys(left_out)))


def _check_samples(run: Run, first: Run) -> None:
    own, others = run.samples, first.samples
    for name in {**own, **others}:
        if own.get(name) != others.get(name) and not _is_one_place(name, own.get(name), others.get(name)):
            raise UserInputError(
                f"run {run.folder}: its {name} is {json.dumps(own.get(name))}, that of {first.folder} "
                f"{json.dumps(others.get(name))}; compare runs on the same data"
            )


def _is_one_place(name: str, one: object, other: object) -> bool:
    is_path = name == "data.init_args.path" and isinstance(one, str) and isinstance(other, str)
    return is_path and Path(str(one)).resolve() == Path(str(other)).resolve()


def _with_own_names(runs: Sequence[Run]) -> list[Run]:
    """Those of one name by as much of their folders as tells them apart."""
    by_name: dict[str, list[Run]] = {}
    for run in runs:
        by_name.setdefault(run.name, []).append(run)
    return [
        run if len(namesakes := by_name[run.name]) == 1 else replace(run, name=_own_end(run, namesakes)) for run in runs
    ]


def _own_end(run: Run, namesakes: Sequence[Run]) -> str:
    """The last parts of a run's folder, two or more, that no other one's ends in."""
    parts = [other.folder.resolve().parts for other in namesakes]
    own = run.folder.resolve().parts
    ends = (own[-number:] for number in range(2, len(own) + 1))
    return "/".join(next(end for end in ends if [other[-len(end) :] for other in parts].count(end) == 1))


def _found_at(path: Path) -> Found:
    if (path / "sweep.json").is_file():
        return _sweep(path)
    if (path / "trial.json").is_file():
        run = _trial(path)
        if isinstance(run, str):
            raise UserInputError(f"run {path}: this trial does not count, {run}; give one that has finished")
        return Found(runs=[run], left_out=_repeated(path, [path]))
    if not path.is_dir():
        found = "it is no folder" if path.exists() else "there is no such folder"
        raise UserInputError(f"run {path}: {found}; give that of a finished `dmt fit` or of a sweep")
    file = _summary_of(path)
    if file is None:
        begun = any(path.rglob(RECORD_FILE))
        reason = "it has not finished" if begun else f"no {SUMMARY_FILE} there, which `dmt fit` writes at its end"
        raise UserInputError(f"run {path}: {reason}; give the folder of a finished `dmt fit` or of a sweep")
    name = _without_version(path.resolve()).name
    # Other commands leave versions too, without a record.
    newer = [folder.parent for folder in path.glob(f"version_*/{RECORD_FILE}")]
    newer = sorted((folder for folder in newer if _version(folder) > _version(file.parent)), key=_version)
    told = f"{', '.join(folder.name for folder in newer)} {'has' if len(newer) == 1 else 'have'}"
    left_out = [f"{path}: {told} not finished; {file.parent.name} is compared."] if newer else []
    return Found(runs=[Run(name=name, folder=file.parent, summary=RunSummary.load(file))], left_out=left_out)


def _sweep(path: Path) -> Found:
    trials = sorted(path.glob("*/trial.json"), key=_number)
    found = [_trial(file.parent) for file in waiting(trials, f"reading {path}")]
    runs = [run for run in found if isinstance(run, Run)]
    states = Counter(state for state in found if isinstance(state, str))
    told = ", ".join(f"{number} {state}" for state, number in states.items())
    if not runs:
        raise UserInputError(f"sweep {path}: no trial has finished{f' ({told})' if told else ''}; wait for one")
    left_out = [f"{path}: {len(runs)} of {len(found)} trials are compared; left out: {told}."] if told else []
    return Found(runs=runs, left_out=left_out + _repeated(path, [path / run.name for run in runs]))


def _repeated(path: Path, trials: Sequence[Path]) -> list[str]:
    """A sentence on the trials in whose folders there are finished runs beside their own."""
    names = [trial.name for trial in trials if len(list(trial.rglob(SUMMARY_FILE))) > 1]
    told = ", ".join(names[:3]) + " ..." * (len(names) > 3)
    return [f"{path}: a trial's own run is compared; there are others beside it in {told}."] if names else []


def _number(trial: Path) -> int:
    number = load_object(trial).get("number")
    if not isinstance(number, int):
        raise UserInputError(f"{trial}: not of `dmt sweep`; restore it, or remove the folder {trial.parent}")
    return number


def _trial(folder: Path) -> Run | str:
    """A sweep's trial that has finished, or else what has become of it."""
    file = folder / "result.json"
    result = load_object(file) if file.is_file() else {"state": "unfinished"}
    state = str(result.get("state"))
    if state != "finished":
        return {"stopped": "stopped early"}.get(state, state)
    try:
        own = _own_run(folder, result)
        if (own / SUMMARY_FILE).is_file():
            run = Run(name=folder.name, folder=own, summary=RunSummary.load(own / SUMMARY_FILE), is_trial=True)
            _ = run.options  # read while a bar is shown
            return run
    except UserInputError:
        pass
    return f"without a {SUMMARY_FILE} and config.yaml that can be read"


def _own_run(trial: Path, result: Mapping[str, Any]) -> Path:
    """The folder of the run that a trial's result is of."""
    if isinstance(result.get("run"), str):
        return trial / result["run"]
    # Of a sweep that did not note it. Its own run was alone there when it finished.
    return min(trial.rglob(SUMMARY_FILE), key=_age, default=trial / SUMMARY_FILE).parent


def _summary_of(path: Path) -> Path | None:
    """The summary in a folder, or of the versions of one run below it that of the newest.

    Raises:
        UserInputError: more than one run is below it.
    """
    if (path / SUMMARY_FILE).is_file():
        return path / SUMMARY_FILE
    found = sorted(path.rglob(SUMMARY_FILE), key=_age)
    folders = list(dict.fromkeys(_asked_for(file, path) for file in found))
    if len(folders) > 1:
        raise UserInputError(
            f"run {path}: {len(folders)} runs and sweeps are in it, {', '.join(map(str, sorted(folders)[:3]))}"
            f"{' ...' * (len(folders) > 3)}; give some of them"
        )
    return found[-1] if found else None


def _asked_for(file: Path, path: Path) -> Path:
    """The folder by which a summary below a path would be asked for: its sweep's, or that of the run's versions."""
    sweeps = [parent for parent in file.parents if path in parent.parents and (parent / "sweep.json").is_file()]
    if sweeps:
        return sweeps[-1]
    return file.parent if file.parent == path else _without_version(file.parent)


def _without_version(folder: Path) -> Path:
    """The folder that holds all versions of a run."""
    return folder.parent if folder.name.startswith("version_") else folder


def _age(file: Path) -> tuple[int, float]:
    """By version, where the folder is called by it; else by time."""
    return _version(file.parent), file.stat().st_mtime


def _version(folder: Path) -> int:
    """-1 where a folder is not called by one."""
    version = re.fullmatch(r"version_(\d+)", folder.name)
    return int(version[1]) if version else -1


@dataclass(frozen=True, kw_only=True)
class Point:
    """Runs that differ by their seed alone.

    Args:
        label: what tells it from the other points.
        runs: they, one of each seed.
        repeated: runs that repeat the seed of one of them, which would count twice what was drawn once.
    """

    label: str
    runs: Sequence[Run] = field(default_factory=list)
    repeated: Sequence[Run] = field(default_factory=list)

    def values(self, metric: str) -> list[float]:
        """The final metric of each run that has it as a finite number."""
        return [value for value in self._final(metric) if math.isfinite(value)]

    def num_diverged(self, metric: str) -> int:
        """How many runs have it as another one, nan or infinite."""
        return len(self._final(metric)) - len(self.values(metric))

    @property
    def parts(self) -> set[str]:
        """Its options in short, as labels have them, but for floats, which are whole: ``{"num_towers=1", ...}``."""
        return {f"{path.rpartition('.')[2]}={value}" for path, value in _told(self.runs[0]).items()}

    def _final(self, metric: str) -> list[float]:
        return [value for run in self.runs if (value := run.final(metric)) is not None]

    @property
    def description(self) -> dict[str, Any]:
        """As of ``dmt describe``; the same for all its runs, but for the features of random towers."""
        return self.runs[0].summary.description


def group(runs: Sequence[Run]) -> list[Point]:
    """Points in the order of their first runs; a run without a configuration is a point of its own.

    Towers tell points apart too: a plan's file may have changed between runs of one configuration. Of runs of one seed
    the newest counts.
    """
    found: dict[object, list[Run]] = {}
    for run in runs:
        key = (run.towers, *sorted(run.options.items(), key=lambda item: item[0])) if run.options else run.folder
        found.setdefault(key, []).append(run)
    points = [_one_of_each_seed(own) for own in found.values()]
    labels = _labels([own for own, _ in points])
    return [Point(label=label, runs=own, repeated=more) for label, (own, more) in zip(labels, points, strict=True)]


def _one_of_each_seed(runs: Sequence[Run]) -> tuple[list[Run], list[Run]]:
    """The newest run of each seed, and the others; without a seed a run is one of its own."""
    newest: dict[object, Run] = {}
    for run in sorted(runs, key=lambda run: _age(run.folder / SUMMARY_FILE)):
        newest[run.folder if run.seed is None else run.seed] = run
    counted = {run.folder for run in newest.values()}
    return [run for run in runs if run.folder in counted], [run for run in runs if run.folder not in counted]


def _labels(points: Sequence[Sequence[Run]]) -> list[str]:
    """The name of a single run that was asked for by it; else the options in which points differ, in short."""
    options = _told_apart([own[0] for own in points])
    names = _differing(options)
    labels = [_words(own, names) for own in options]
    with_towers = [own | {"towers": runs[0].towers} for own, runs in zip(options, points, strict=True)]
    for label in [label for label, number in Counter(labels).items() if number > 1 or not label]:
        # What sets these apart from each other, or one without any words from the rest.
        tied = [index for index, other in enumerate(labels) if other == label]
        among = [with_towers[index] for index in tied] if len(tied) > 1 else with_towers
        every = {name for own in among for name in own}
        more = names | _differing(among) | {name for name in every if any(name not in own for own in among)}
        for index in tied:
            labels[index] = _words(with_towers[index], more)
    numbers = Counter(labels)
    for index, (label, [first, *others]) in enumerate(zip(labels, points, strict=True)):
        if not label or not (others or first.is_trial):
            labels[index] = first.name + (f" and {len(others)} more" if others else "")
        elif numbers[label] > 1:  # files of one name in different folders, say
            labels[index] += f", {first.name}"
    return labels


def _told(run: Run) -> dict[str, str]:
    """Options in short, a class by the option that it is the value of."""
    told = {}
    for name, value in run.options.items():
        path, text = name.removesuffix(".class_path"), "null" if value is None else str(value)
        told[path] = text.rpartition(".")[2] if path != name else Path(text).stem if text.endswith(".yaml") else text
    return told


def _told_apart(runs: Sequence[Run]) -> list[dict[str, str]]:
    """:func:`_told` of each, with as few digits of floats as tell them apart."""
    floats: dict[str, set[float]] = {}
    for run in runs:
        for name, value in _floats(run).items():
            floats.setdefault(name, set()).add(value)
    short = {name: _short(values) for name, values in floats.items()}
    return [_told(run) | {name: short[name][value] for name, value in _floats(run).items()} for run in runs]


def _floats(run: Run) -> dict[str, float]:
    return {name: value for name, value in run.options.items() if isinstance(value, float)}


def _short(values: set[float]) -> dict[float, str]:
    """Each with four significant digits, or as many more as tell it from the others.

    Example:
        >>> sorted(_short({1 / 3, 0.12341, 0.12342, 0.123}).values())
        ['0.123', '0.12341', '0.12342', '0.3333']
    """
    told: dict[float, str] = {}
    for digits in range(_MIN_DIGITS, 18):
        texts = {value: f"{value:.{digits}g}" for value in values if value not in told}
        numbers = Counter(texts.values())
        told |= {v: str(v) if float(text) == v else text for v, text in texts.items() if numbers[text] == 1}
    return {value: told.get(value, str(value)) for value in values}


def _differing(options: Sequence[Mapping[str, str]]) -> set[str]:
    """Those of which there are two values or more; a class's own options, say, are not all points'."""
    names = {name for own in options for name in own}
    return {name for name in names if len({own[name] for own in options if name in own}) > 1}


def _words(options: Mapping[str, str], names: set[str]) -> str:
    words = []
    for path, value in options.items():
        if path in names:
            # A list; by its checksum it is still another one.
            is_long = len(value) > _MAX_TOLD
            told = f"{value[: _MAX_TOLD // 2]}...{zlib.crc32(value.encode()):08x}" if is_long else value
            words.append(f"{path.rpartition('.')[2]}={told}")
    return ", ".join(words)
