import os
import pty
import shlex
import subprocess
import sys
from importlib import metadata

import pytest

import dmt.lightning_cli  # noqa: F401  # Lightning's log handler keeps the standard error of its first import
from dmt.brief_help import DESCRIPTIONS
from dmt.cli import main
from dmt.lightning_cli import NamedCLI


def help_of(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code in (0, None)
    return capsys.readouterr().out


def test_help_groups_options_with_a_short_text_for_each(capsys: pytest.CaptureFixture[str]) -> None:
    printed = help_of(["fit", "--help"], capsys)
    first, *_ = printed.splitlines()
    assert first == "usage: dmt fit [--config FILE] [--OPTION VALUE ...]"
    sections = [line for line in printed.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert [section.split()[0] for section in sections[:6]] == [
        "examples:",
        "options:",
        "model",
        "optimiser",
        "data:",
        "trainer",
    ]
    told = " ".join(printed.split())
    # Our options whole, with the default and the classes to choose from.
    assert "tower module by class path. PassThrough is the flat model: no tower modules. (default:" in told
    assert "dmt.GatedTower" in told and "dmt.CriteoDataModule" in told
    assert "sgd,adagrad,rowwise_adagrad,adam" in told
    # Lightning's by a sentence: neither its markup nor lists of whatever is imported.
    assert "How often to check the validation set." in told
    assert ":class:" not in told and ":paramref:" not in told and "torch.optim.Adamax" not in told
    assert len(printed.splitlines()) < 300


@pytest.mark.parametrize("verb", ["validate", "test", "predict", "describe"])
def test_every_verb_introduces_itself(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    printed = help_of([verb, "--help"], capsys)
    assert printed.startswith(f"usage: dmt {verb} [--config FILE] [--OPTION VALUE ...]\n\n{DESCRIPTIONS[verb]}")
    assert ("\ncheckpoint:\n" in printed) == (verb != "describe")


def test_preprocess_tells_of_both_kinds(capsys: pytest.CaptureFixture[str]) -> None:
    main(["preprocess", "--help"])
    printed = capsys.readouterr().out
    assert "dmt preprocess criteo INPUT" in printed and "dmt preprocess tabular PATH --infer-schema FILE" in printed


def test_the_options_of_a_class_are_explained(capsys: pytest.CaptureFixture[str]) -> None:
    told = " ".join(help_of(["fit", "--model.tower.help", "dmt.modules.DLRMTower"], capsys).split())
    assert "output vectors per feature" in told and "--model.tower.out_dim" in told


def test_the_examples_of_the_help_can_be_parsed() -> None:
    for verb, text in DESCRIPTIONS.items():
        for line in text.splitlines():
            command = line.strip().partition("   ")[0]
            if not command.startswith("dmt ") or "help" in command or "print_config" in command or "RUN" in command:
                continue
            arguments = shlex.split(command)[1:]
            assert arguments[0] == verb
            NamedCLI([a for a in arguments if a != "--json"], run=False)


def test_a_terminal_is_told_while_a_verb_is_loaded(capfd: pytest.CaptureFixture[str]) -> None:
    command = [sys.executable, "-m", "dmt.cli", "preprocess"]
    terminal, screen = pty.openpty()
    subprocess.run(command, stderr=screen, check=True, env={**os.environ, "TERM": "xterm"}, timeout=120)
    os.close(screen)
    shown = os.read(terminal, 10_000).decode()
    os.close(terminal)
    # Said, and gone when it is over: the line is erased.
    assert "dmt preprocess: loading" in shown and shown.rstrip().endswith("\x1b[2K")
    subprocess.run(command, check=True, timeout=120)
    printed = capfd.readouterr()
    assert "loading" not in printed.out + printed.err


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--version"])
    assert capsys.readouterr().out == f"dmt {metadata.version('dmt')}\n"


@pytest.mark.parametrize("verb", ["sweep", "report", "partition", "explain", "preprocess criteo", "preprocess tabular"])
def test_prose_is_as_wide_as_the_terminal(
    verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for columns in (60, 200):
        monkeypatch.setenv("COLUMNS", str(columns))
        prose = [line for line in help_of([*verb.split(), "--help"], capsys).splitlines() if line[:1].isupper()]
        assert max(map(len, prose)) <= min(columns, 118)
        assert columns < 200 or max(map(len, prose)) > 60  # it is no narrower than need be
