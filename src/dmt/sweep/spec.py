"""Reading a sweep file in W&B's format; wrong ones end in one line that names place and fix."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dmt.errors import UserInputError, nearest
from dmt.sweep.algorithms import violations

_METHODS = ("grid", "random", "bayes")
_GOALS = ("minimize", "maximize")
_KEYS = (
    *("method", "parameters", "metric", "program", "command", "run_cap", "early_terminate", "name", "description"),
    *("project", "entity", "controller", "apiVersion", "kind"),
)
# Of W&B's schema, but work for its servers.
_SERVER_KEYS = ("scheduler", "metrics", "job", "image_uri")
_DEFAULT_COMMAND = ("${env}", "${interpreter}", "${program}", "${args}")
_MAX_GRID = 100_000


@dataclass(frozen=True, kw_only=True)
class SweepSpec:
    """A sweep file that W&B and ``dmt sweep`` can run.

    Args:
        source: the file, for messages.
        name: of the sweep; the file's stem where the file gives none.
        config: the whole file, checked.
        command: its words, with macros such as ``${args}``, the program filled in.
    """

    source: str
    name: str
    config: Mapping[str, Any]
    command: tuple[str, ...]

    @property
    def method(self) -> str:
        return str(self.config["method"])

    @property
    def metric(self) -> str | None:
        """Name of the metric, or None."""
        return self.config["metric"]["name"] if "metric" in self.config else None

    @property
    def maximize(self) -> bool:
        return self.config.get("metric", {}).get("goal", "minimize") == "maximize"

    @property
    def stops_early(self) -> bool:
        return "early_terminate" in self.config

    def reached_target(self, value: float) -> bool:
        """Whether ``metric.target`` is given and this value as good."""
        target = self.config.get("metric", {}).get("target")
        return target is not None and (value >= target if self.maximize else value <= target)

    def identity(self) -> dict[str, Any]:
        """What must stay as it is for results to go on belonging to the sweep.

        A grid's lists may change: its points stand for themselves. The points of the other methods follow from all
        that the file says of parameters.
        """
        parameters = self.config["parameters"]
        same: dict[str, Any] = {
            "method": self.method,
            "command": list(self.command),
            "parameters": sorted(parameters) if self.method == "grid" else parameters,
        }
        if self.stops_early:
            same |= {"early_terminate": self.config["early_terminate"], "metric": self.config["metric"]}
        return same


def read_spec(source: str | Path | Mapping[str, Any]) -> SweepSpec:
    """A sweep file, or its content as a mapping, checked against W&B's schema and for what runs here.

    Raises:
        UserInputError: it cannot be read, or run.
    """
    config = dict(source) if isinstance(source, Mapping) else _load(Path(source))
    told = "the sweep" if isinstance(source, Mapping) else str(source)
    try:
        _check_keys(config)
        _check_method(config)
        _check_metric(config)
        _check_parameters(config)
        _check_schema(config)
        return SweepSpec(
            source=told,
            name=str(config.get("name") or ("sweep" if isinstance(source, Mapping) else Path(source).stem)),
            config=config,
            command=_command(config),
        )
    except UserInputError as error:
        raise UserInputError(f"{told}: {error}") from error


def _load(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise UserInputError(f"sweep file {path}: {error.strerror}; give the path of a sweep in YAML") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserInputError(f"sweep file {path}: not YAML: {error}") from error
    if not isinstance(content, dict):
        raise UserInputError(f"sweep file {path}: not a sweep; it needs method, parameters and command")
    return content


def _choose(value: object, known: Sequence[str]) -> str:
    return nearest(str(value), known, otherwise=f"choose {', '.join(known[:-1])} or {known[-1]}")


def _check_keys(config: Mapping[str, Any]) -> None:
    for key in config:
        if key in _SERVER_KEYS:
            raise UserInputError(f"{key} is work for W&B's servers; remove it, and say in command what to run")
        if key not in _KEYS:
            raise UserInputError(f"{key!r} is no key of a sweep; {_choose(key, _KEYS)}")


def _check_method(config: Mapping[str, Any]) -> None:
    method = config.get("method")
    if method not in _METHODS:
        raise UserInputError(f"method={method}: {_choose(method, _METHODS)}")


def _check_metric(config: Mapping[str, Any]) -> None:
    metric = config.get("metric")
    if metric is None:
        needs = "method=bayes" if config["method"] == "bayes" else "early_terminate"
        if config["method"] == "bayes" or "early_terminate" in config:
            raise UserInputError(f"{needs} needs a metric; add metric with name and goal")
        return
    if not isinstance(metric, Mapping) or not isinstance(metric.get("name"), str):
        raise UserInputError(f"metric={metric}: give it a name and a goal")
    if metric.get("goal", "minimize") not in _GOALS:
        raise UserInputError(f"metric.goal={metric['goal']}: {_choose(metric['goal'], _GOALS)}")


def _check_parameters(config: Mapping[str, Any]) -> None:
    parameters = config.get("parameters")
    if not isinstance(parameters, Mapping) or not parameters:
        raise UserInputError(f"parameters={parameters}: nothing to sweep; name at least one option with its values")
    points = 1
    for place, entry in _parameter_entries("parameters", parameters):
        if not isinstance(entry, Mapping):
            raise UserInputError(f"{place}={entry}: give it value, values, or min and max")
        if entry.get("values") == []:
            raise UserInputError(f"{place}: values is empty, so there is no point to run; list at least one")
        for bound in ("min", "max"):
            if isinstance(entry.get(bound), str) and _is_number(entry[bound]):
                # YAML 1.1, which W&B reads too.
                raise UserInputError(
                    f"{place}.{bound}={entry[bound]}: YAML takes this for text; write {float(entry[bound])}"
                )
        points *= len(entry["values"]) if isinstance(entry.get("values"), list) else 1
    if config["method"] == "grid" and points > _MAX_GRID:
        raise UserInputError(f"parameters: a grid of {points:,} points; shorten its lists, or choose method random")


def _parameter_entries(place: str, parameters: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, entry in parameters.items():
        if isinstance(entry, Mapping) and isinstance(entry.get("parameters"), Mapping):
            yield from _parameter_entries(f"{place}.{name}", entry["parameters"])
        else:
            yield f"{place}.{name}", entry


def _is_number(value: str) -> bool:
    try:
        return math.isfinite(float(value))
    except ValueError:
        return False


def _check_schema(config: Mapping[str, Any]) -> None:
    for place, message in violations(config):
        if place.startswith("parameters.") and "any of the given schemas" in message:
            message = (
                f"no form of a parameter that W&B knows: {message.partition(' is not valid')[0]}; give value, values, "
                "or min and max, and for other than uniform ones a distribution"
            )
        raise UserInputError(f"{place}: {message}" if place else message)


def _command(config: Mapping[str, Any]) -> tuple[str, ...]:
    words = [str(word) for word in config.get("command") or _DEFAULT_COMMAND]
    if "${program}" in words and not config.get("program"):
        raise UserInputError(
            "program is missing: nothing says what to run; give a command such as "
            "[${env}, dmt, fit, --config, FILE, ${args}]"
        )
    if not any(word.startswith("${args") for word in words):
        raise UserInputError("command has no ${args}: the parameters would not reach the program; add it")
    return tuple(str(config["program"]) if word == "${program}" else word for word in words)
