"""The pins, the set-up files and the import rule: what nobody notices until a fresh machine does."""

import ast
import importlib.metadata as metadata
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import yaml
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "dmt"
TESTED_PYTHON = "3.11"

# requirements/torchrec.txt and sweeps.txt say why these needs are left unmet.
EXCUSED = {("torchrec", "fbgemm-gpu"), ("torchrec", "torchmetrics"), ("sweeps", "numpy")}


# -- pins --


def read_pins(name: str) -> dict[str, Version]:
    """Package to version of one file in requirements/, with the files it includes."""
    pins: dict[str, Version] = {}
    for line in (ROOT / "requirements" / name).read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        if line.startswith("-r "):
            found = read_pins(line.removeprefix("-r "))
        else:
            match = re.fullmatch(r"([a-z0-9-]+)==([0-9][0-9a-z.]*)", line)
            assert match, f"requirements/{name}: {line!r} is not a plain pin, name==version"
            found = {match[1]: Version(match[2])}
        assert not pins.keys() & found.keys(), f"requirements/{name} pins {pins.keys() & found.keys()} twice"
        pins |= found
    return pins


def installed(name: str) -> bool:
    """Whether a distribution of this name is in the running environment."""
    return any(True for _ in metadata.distributions(name=name))


def device() -> str:
    """The set that the running environment was made from."""
    return "cuda" if installed("fbgemm-gpu") else "cpu"


def all_pins() -> dict[str, Version]:
    """What `make` installs here."""
    names = (f"{device()}.txt", "torchrec.txt", "sweeps.txt", "dev.txt")
    return {package: version for name in names for package, version in read_pins(name).items()}


def project() -> dict:
    """The [project] table of pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def declared() -> list[Requirement]:
    """What pyproject.toml asks for, extras included."""
    extras = project()["optional-dependencies"].values()
    return [Requirement(line) for line in project()["dependencies"] + [line for e in extras for line in e]]


@pytest.mark.parametrize("name", ["base.txt", "cpu.txt", "cuda.txt", "dev.txt"])
def test_pins_are_sorted(name):
    lines = (ROOT / "requirements" / name).read_text().splitlines()
    pins = [line.partition("==")[0] for line in lines if not line.startswith(("#", "-r"))]
    assert pins == sorted(pins)


def test_cpu_and_cuda_differ_only_in_what_they_must():
    cpu, cuda = read_pins("cpu.txt"), read_pins("cuda.txt")
    assert {name for name in cpu if cuda.get(name) != cpu[name]} == {"fbgemm-gpu-cpu"}
    only_cuda = {name for name in cuda if name not in cpu}
    others = {name for name in only_cuda if not name.startswith(("nvidia-", "cuda-"))}
    assert others == {"fbgemm-gpu", "triton"}
    assert cpu["fbgemm-gpu-cpu"] == cuda["fbgemm-gpu"] == read_pins("torchrec.txt")["torchrec"]


def test_no_file_pins_what_another_does():
    for device_set in ("cpu.txt", "cuda.txt"):
        sets = [set(read_pins(name)) for name in (device_set, "torchrec.txt", "sweeps.txt", "dev.txt")]
        assert sum(map(len, sets)) == len(set.union(*sets))


def test_pyproject_allows_the_pins():
    pins = read_pins("cpu.txt") | read_pins("dev.txt")
    for requirement in declared():
        version = pins.get(canonicalize_name(requirement.name))
        assert version is not None, f"{requirement} is in pyproject.toml and in no file of requirements/"
        assert version in requirement.specifier, f"pyproject.toml says {requirement}, requirements/ {version}"


def test_the_environment_is_the_pinned_one():
    """What passes here should pass elsewhere, so the tests run on the pins and on nothing near them."""
    pins = all_pins()
    found = {name: Version(metadata.version(name)).public for name in pins if installed(name)}
    wrong = {name: (found.get(name), str(pin)) for name, pin in pins.items() if found.get(name) != pin.public}
    assert not wrong, f"(installed, pinned) differ; `make setup` repairs it: {wrong}"


@cache
def needs(name: str, extras: frozenset[str]) -> list[Requirement]:
    """The dependencies of an installed package that apply here."""
    requirements = [Requirement(line) for line in metadata.requires(name) or []]
    environments = [default_environment() | {"extra": extra} for extra in extras | {""}]
    return [r for r in requirements if not r.marker or any(r.marker.evaluate(e) for e in environments)]


def test_pins_are_complete_and_free_of_strays():
    """Following every dependency from pyproject.toml, torchrec and sweeps gives the pins: none missing, none more."""
    pins = all_pins()
    fbgemm = "fbgemm-gpu" if device() == "cuda" else "fbgemm-gpu-cpu"
    apart = [Requirement(name) for name in ("torchrec", "sweeps", fbgemm)]
    todo = [("pyproject.toml", r) for r in [*declared(), *apart]]
    done = set()
    while todo:
        parent, requirement = todo.pop()
        name, extras = canonicalize_name(requirement.name), frozenset(requirement.extras)
        if (parent, name) in EXCUSED:
            continue
        assert name in pins, f"{parent} needs {requirement}, which no file of requirements/ pins"
        assert requirement.specifier.contains(pins[name], prereleases=True), f"{parent} needs {requirement}"
        if (name, extras) not in done:
            done.add((name, extras))
            todo += [(name, need) for need in needs(name, extras)]
    if default_environment()["python_version"] == TESTED_PYTHON:  # another Python may need fewer
        assert pins.keys() == {name for name, _ in done}


def test_environment_yml_is_built_on_the_same_pins():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["dependencies"] == [
        f"python={TESTED_PYTHON}",
        "pip",
        {"pip": ["-r requirements/cpu.txt", "-r requirements/dev.txt"]},
    ]
    assert f"Programming Language :: Python :: {TESTED_PYTHON}" in project()["classifiers"]


# -- imports --


def imported_names(path: Path) -> Iterator[str]:
    """Every dotted name that a file imports, or reaches as an attribute of an imported package, absolute."""
    package = ["dmt", *path.relative_to(SOURCE).parent.parts]
    for node in ast.walk(ast.parse(path.read_text(), filename=str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*parts, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) in {"torch", "torchrec"}:
            yield ast.unparse(node)


def sources() -> list[Path]:
    """The files of the package."""
    return sorted(SOURCE.rglob("*.py"))


def test_every_import_is_declared_and_pinned():
    """Whatever src/dmt imports comes with a distribution that pyproject.toml, torchrec.txt or sweeps.txt names."""
    stated = {canonicalize_name(Requirement(line).name) for line in project()["dependencies"]}
    stated |= {"torchrec", "fbgemm-gpu", "fbgemm-gpu-cpu", "sweeps"}
    distributions = metadata.packages_distributions()
    ours = sys.stdlib_module_names | {"dmt", "triton"}  # Triton is there with torch's build for GPUs, and in cuda.txt
    for path in sources():
        for top in {name.partition(".")[0] for name in imported_names(path)} - ours:
            owners = {canonicalize_name(owner) for owner in distributions.get(top, [])}
            assert owners & stated, f"{path.relative_to(ROOT)} imports {top}, which pyproject.toml lacks"


NOUNS = {"errors", "schema", "plan", "waiting", "open_files", "whole_files"}  # what every layer talks about, and shows
LOWER = {"simulate", "partition", "modules", "datamodules"}
ALLOWED = (
    {"errors": set(), "waiting": set(), "whole_files": set(), "open_files": {"errors"}}
    | {"schema": {"errors"}, "plan": {"errors", "schema"}}
    | dict.fromkeys(LOWER, NOUNS)
    | dict.fromkeys(["strategies", "emulate"], NOUNS | LOWER)
    | {"callbacks": NOUNS | LOWER | {"strategies"}}  # a meter reads what a strategy counts
    | {
        "preprocess": {"errors", "schema", "open_files", "whole_files"},
        "datamodules": NOUNS | {"preprocess"},
    }  # what it writes, a DataModule reads
    | {"sweep": {"errors", "whole_files"}}  # runs `dmt fit` as a process, and starts without torch
)


def layer(name: str) -> str:
    """The part of dmt that a dotted name belongs to: modules for dmt.modules.dlrm."""
    return name.split(".")[1] if "." in name else ""


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_point_one_way(path):
    """cli, verbs -> callbacks -> strategies, emulate -> simulate, partition, modules, datamodules -> nouns.

    Files beside cli.py that the table does not name are verbs: free to import, out of reach for the rest.
    """
    here = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    if here not in ALLOWED:
        return
    used = {layer(name) for name in imported_names(path) if name.partition(".")[0] == "dmt"}
    wrong = used - ALLOWED[here] - {here, ""}
    assert not wrong, f"{here} may import {sorted(ALLOWED[here])} of dmt, not {sorted(wrong)}"


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(SOURCE)))
def test_models_and_data_know_nothing_of_processes(path):
    """Whether and how a model is distributed is the Strategy's choice alone."""
    if path.relative_to(SOURCE).parts[0] not in LOWER:
        return
    banned = re.compile(r"(torch|torchrec)\.distributed\b")
    wrong = {name for name in imported_names(path) if banned.match(name)}
    assert not wrong, f"only strategies/, callbacks/ and emulate/ may use {sorted(wrong)}"


# -- files --


@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
def test_make_help_lists_the_targets():
    shown = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True).stdout
    makefile = (ROOT / "Makefile").read_text()
    targets = re.search(r"^\.PHONY: (.+)$", makefile, re.MULTILINE)[1].split()
    assert {"help", "train", "test", "lint", "clean"} <= set(targets)
    for target in targets:
        assert re.search(rf"^  make {target} +\S", shown, re.MULTILINE), f"make help does not list {target}"


def kept_files() -> list[Path]:
    """The files that git tracks or would track."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


@pytest.mark.skipif(not shutil.which("git"), reason="needs git")
def test_no_file_names_a_package_host_or_a_machine_path():
    """An install must follow the user's own pip settings, and nothing may depend on where it was written."""
    dot = r"\."
    hosts = [("pypi", "org"), ("pythonhosted", "org"), ("download", "pytorch", "org"), ("anaconda", "org")]
    host = "|".join(dot.join(parts) for parts in hosts)
    home = r"(?<![\w.~}\])-])/(?:root|work|home|Users|opt)/"
    for path in kept_files():
        content = path.read_bytes()
        if b"\0" in content:
            continue
        for number, line in enumerate(content.decode(errors="replace").splitlines(), start=1):
            found = re.search(f"{host}|{home}", line)
            assert not found, f"{path.relative_to(ROOT)}:{number} has {found[0]!r}"


def test_ci_runs_make_test():
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111, ".ci/run is not executable"
    assert script.read_text().rstrip().endswith("make test")
