"""Reading a sweep file in W&B's format; wrong ones end in one line that names place and fix."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dmt.errors import UserInputError, nearest
from dmt.sweep.algorithms import violations
from dmt.sweep.parameters import is_real

_METHODS = ("grid", "random", "bayes")
_GOALS = ("minimize", "maximize")
_KEYS = (
    *("method", "parameters", "metric", "program", "command", "run_cap", "early_terminate", "name", "description"),
    *("project", "entity", "controller", "apiVersion", "kind"),
)
_METRIC_KEYS = ("name", "goal", "target", "impute", "impute_while_running")
_HYPERBAND_KEYS = ("type", "min_iter", "max_iter", "s", "eta", "strict")
_PARAMETER_KEYS = (
    *("value", "values", "min", "max", "distribution", "q", "mu", "sigma", "a", "b", "probabilities", "parameters"),
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
    with naming(told):
        _check_keys(config)
        _check_method(config)
        _check_metric(config)
        _check_early_terminate(config)
        _check_parameters(config)
        _check_run_cap(config)
        _check_command(config)
        _check_schema(config)
        return SweepSpec(
            source=told,
            name=str(config.get("name") or ("sweep" if isinstance(source, Mapping) else Path(source).stem)),
            config=config,
            command=_command(config),
        )


@contextmanager
def naming(source: str) -> Iterator[None]:
    """Begin the messages of :class:`UserInputError` with the file that is wrong."""
    try:
        yield
    except UserInputError as error:
        raise UserInputError(f"{source}: {error}") from error


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
            other = ", or write metric, with a name and a goal" if key == "metrics" else ""
            raise UserInputError(f"{key} is work for W&B's servers; remove it, and say in command what to run{other}")
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
    _check_names("metric", metric, _METRIC_KEYS)
    if "goal" not in metric and metric["name"].endswith("auroc"):
        raise UserInputError(f"metric.goal is not given, and W&B would minimise {metric['name']}; write goal: maximize")
    if metric.get("goal", "minimize") not in _GOALS:
        raise UserInputError(f"metric.goal={metric['goal']}: {_choose(metric['goal'], _GOALS)}")


def _check_names(place: str, block: Mapping[str, Any], known: Sequence[str]) -> None:
    for name in block:
        if name not in known:
            raise UserInputError(f"{place}.{name}: no such key; {_choose(name, known)}")


def _check_early_terminate(config: Mapping[str, Any]) -> None:
    """What W&B's package needs of Hyperband: its schema allows more, and tells of one place only, the whole block."""
    if "early_terminate" not in config:
        return
    rule = config["early_terminate"]
    if not isinstance(rule, Mapping):
        raise UserInputError(f"early_terminate={rule}: give it a type and min_iter: {{type: hyperband, min_iter: 2}}")
    _check_names("early_terminate", rule, _HYPERBAND_KEYS)
    if rule.get("type") != "hyperband":
        raise UserInputError(f"early_terminate.type={rule.get('type')}: the only type is hyperband; write that")
    if "min_iter" not in rule and "max_iter" not in rule:
        raise UserInputError("early_terminate: hyperband needs to know when to look; add min_iter, or max_iter and s")
    if "max_iter" in rule and "s" not in rule:
        raise UserInputError("early_terminate: max_iter needs s, how many times to look; add it, or give min_iter only")
    eta = rule.get("eta", 3)
    if not is_real(eta) or eta <= 1:
        raise UserInputError(f"early_terminate.eta={eta}: give a number above 1")
    for name in ("min_iter", "max_iter", "s"):
        # Of max_iter the first look is at max_iter / eta, which has to be a report.
        least = math.ceil(eta) if name == "max_iter" else 1
        value = rule.get(name, least)
        if not isinstance(value, int) or value < least:
            raise UserInputError(f"early_terminate.{name}={value}: give a whole number, at least {least}")
    if not isinstance(rule.get("strict", False), bool):
        raise UserInputError(f"early_terminate.strict={rule['strict']}: give true or false")


def _check_run_cap(config: Mapping[str, Any]) -> None:
    cap = config.get("run_cap", 1)
    if not isinstance(cap, int) or cap < 1:
        raise UserInputError(f"run_cap={cap}: give a whole number, at least 1")


def _check_parameters(config: Mapping[str, Any]) -> None:
    parameters = config.get("parameters")
    if not isinstance(parameters, Mapping) or not parameters:
        raise UserInputError(f"parameters={parameters}: nothing to sweep; name at least one option with its values")
    _check_plain("parameters", parameters)
    points = 1
    entries = list(_parameter_entries("parameters", parameters))
    for place, entry in entries:
        if not isinstance(entry, Mapping):
            raise UserInputError(f"{place}={entry}: give it value, values, or min and max")
        _check_names(place, entry, _PARAMETER_KEYS)
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
    if config["method"] == "bayes" and all("value" in entry for _, entry in entries):
        raise UserInputError(
            "parameters: method=bayes has nothing to search where each has one value; give one of them values, or min "
            "and max"
        )


def _check_plain(place: str, value: object) -> None:
    """Refuse what has no form in JSON: YAML takes ``3:`` for a number and ``2020-01-01`` for a date."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            if not isinstance(name, str):
                raise UserInputError(
                    f"{place}.{name}: the name is read as {type(name).__name__}, not as text; put it in quotes"
                )
            _check_plain(f"{place}.{name}", item)
    elif isinstance(value, list):
        for item in value:
            _check_plain(place, item)
    elif value is not None and not isinstance(value, str | int | float):
        raise UserInputError(
            f"{place}: {value} is read as a {type(value).__name__}, which no option takes; put it in quotes"
        )


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


def _check_command(config: Mapping[str, Any]) -> None:
    command = config.get("command")
    if command is not None and not isinstance(command, list):
        raise UserInputError(
            f"command={command}: give a list of words, such as [${{env}}, dmt, fit, --config=FILE, ${{args}}]"
        )


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
