"""Lines in place of a progress bar."""

import re

import lightning.pytorch as pl
import pytest

from dmt.callbacks import PlainProgress
from tests.modules.test_click_model import make_data, make_model


def trainer(every_s: float) -> pl.Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False, "accelerator": "cpu"}
    return pl.Trainer(max_epochs=2, callbacks=[PlainProgress(every_s)], **quiet)


def test_steps_validations_and_batches_have_lines(capsys: pytest.CaptureFixture[str]) -> None:
    data, model, shown = make_data(num_train=256), make_model(), trainer(0.0)
    shown.fit(model, datamodule=data)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch")]
    pattern = re.compile(
        r"epoch (\d) of 2(?:, step (\d) of 4: [\d.]+ a second, [\d:]+ left, train/loss [\d.]+| validated)"
    )
    found = [pattern.match(line) for line in lines]
    assert [match and match.groups() for match in found] == [
        (epoch, step) for epoch in ("1", "2") for step in ("1", "2", "3", "4", None)
    ]
    assert all("val/auroc 0." in line for line in lines if "validated" in line)
    shown.test(model, datamodule=data, verbose=False)
    assert re.fullmatch(r"test, batch 1 of 2: .* left\ntest, batch 2 of 2: .* left\n", capsys.readouterr().out)


def test_few_seconds_have_none_but_that_of_a_validation(capsys: pytest.CaptureFixture[str]) -> None:
    trainer(60.0).fit(make_model(), datamodule=make_data(num_train=256))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("epoch", "test"))]
    assert len(lines) == 2 and all(" validated, val/" in line for line in lines)
