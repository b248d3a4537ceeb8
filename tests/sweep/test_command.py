"""`dmt sweep`: its help, its listing, its refusals."""

from collections.abc import Callable
from pathlib import Path

import pytest

from dmt.cli import main

Write = Callable[..., Path]


def test_help_tells_the_folder_and_what_a_program_leaves(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["sweep", "--help"])
    told = " ".join(capsys.readouterr().out.split())
    assert "(default runs/sweeps/ and the file's name without its suffix)" in told
    assert "one summary.json below the folder $DMT_SAVE_DIR" in told and '{"metrics": {NAME: NUMBER, ...}' in told


def test_dry_run_starts_nothing(write_sweep: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["sweep", str(write_sweep()), "--output", str(tmp_path / "out"), "--dry-run"])
    told = capsys.readouterr().out
    assert told.count("--x=") == 3 and "3 trials, 0 of them ended" in told
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("method", ["grid", "bayes"])
def test_dry_run_tells_what_retry_failed_will_run(
    method: str, write_sweep: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    space = {"x": {"values": [1, 2]}, "fail": {"value": "1"}}
    command = ["sweep", str(write_sweep(method=method, run_cap=2, parameters=space)), "--output", str(tmp_path / "out")]
    with pytest.raises(SystemExit):
        main(command)
    capsys.readouterr()
    main([*command, "--dry-run"])
    told = capsys.readouterr().out
    assert "run again" not in told and ("2 started;" in told or "2 trials, 2 of them ended" in told)
    main([*command, "--dry-run", "--retry_failed"])
    told = capsys.readouterr().out
    assert "2 started, 2 failed to be run again" in told or told.count(" failed, to be run again: ") == 2
    assert "2 started" in told or "2 trials, 0 of them ended" in told
    assert len(list((tmp_path / "out").glob("*/result.json"))) == 2


def test_wrong_command_lines_end_in_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    missing, wrong, misspelt = [], ["a.yaml", "--workers", "x"], ["a.yaml", "--wrkers", "2"]
    for arguments, fix in (
        (missing, "see dmt sweep --help"),
        (wrong, "see dmt sweep --help"),
        (misspelt, "--workers?"),
    ):
        with pytest.raises(SystemExit) as exit_info:
            main(["sweep", *arguments])
        assert exit_info.value.code == 2
        [line] = capfd.readouterr().err.splitlines()
        assert line.startswith("dmt: error: ") and line.endswith(fix)
