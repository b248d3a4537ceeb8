"""What WeightAverage leaves in the model, in checkpoints and in metrics, against averages taken by hand."""

from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor

from dmt.callbacks import WeightAverage
from dmt.datamodules import SyntheticClicks
from dmt.errors import UserInputError
from dmt.modules import ClickModel, EmbeddingOptimizer

DECAY = 0.6


class Recorder(L.Callback):
    """Keeps the weights after every training step, and those that validation sees."""

    def __init__(self) -> None:
        self.trained: list[dict[str, Tensor]] = []
        self.validated: list[dict[str, Tensor]] = []

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *rest: Any) -> None:
        self.trained.append(copy_of(module))

    def on_validation_batch_start(self, trainer: L.Trainer, module: L.LightningModule, *rest: Any) -> None:
        if not trainer.sanity_checking:
            self.validated.append(copy_of(module))


def copy_of(module: L.LightningModule) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def average(history: list[Tensor]) -> Tensor:
    """Mean of the first two, then exponential with decay 0.6: the shares are 1, 1/2, 0.4, 0.4, ..."""
    result = history[0]
    for index, tensor in enumerate(history[1:], start=2):
        share = max(1 - DECAY, 1 / index)
        result = (1 - share) * result + share * tensor
    return result


def without_averages(trainer: L.Trainer) -> L.Trainer:
    trainer.callbacks = [c for c in trainer.callbacks if not isinstance(c, WeightAverage)]
    return trainer


def make(**options: Any) -> tuple[L.Trainer, ClickModel, SyntheticClicks, Recorder]:
    recorder = Recorder()
    trainer = L.Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing="default_root_dir" in options,
        callbacks=[WeightAverage(decay=DECAY, every_n_steps=2), recorder],
        **options,
    )
    data = SyntheticClicks(
        num_features=4, num_groups=2, num_embeddings=20, num_train=240, num_valid=40, num_test=40, global_batch_size=24
    )
    model = ClickModel(
        embedding_dim=4,
        dense_optimizer=partial(torch.optim.SGD, lr=0.1),  # it has no state, which a second fit would lose
        embedding_optimizer=EmbeddingOptimizer(name="adagrad", learning_rate=0.1),
    )
    return trainer, model, data, recorder


def assert_averages(state: dict[str, Tensor], history: list[dict[str, Tensor]]) -> None:
    for name, tensor in state.items():
        # Optimiser state of the rows goes with training, not with the average.
        is_row_state = name.endswith("_momentum")
        wanted = history[-1][name] if is_row_state else average([weights[name] for weights in history[1::2]])
        torch.testing.assert_close(tensor, wanted, msg=lambda m, n=name: f"{n}: {m}")
        assert is_row_state or not torch.equal(tensor, history[-1][name]), name


def test_validation_checkpoint_and_model_have_averages_and_training_goes_on_without(tmp_path: Path) -> None:
    L.seed_everything(1, verbose=False)
    trainer, model, data, recorder = make(max_epochs=2, default_root_dir=tmp_path)
    trainer.fit(model, data)
    assert len(recorder.trained) == 20 and len(recorder.validated) == 4
    assert_averages(recorder.validated[0], recorder.trained[:10])
    assert_averages(copy_of(model), recorder.trained)
    [path] = tmp_path.glob("**/*.ckpt")
    checkpoint = torch.load(path, weights_only=False)
    assert_averages(checkpoint["state_dict"], recorder.trained)
    for name, tensor in checkpoint["current_model_state"].items():
        assert torch.equal(tensor, recorder.trained[-1][name]), name

    L.seed_everything(1, verbose=False)
    trainer, model, data, alone = make(max_epochs=2)
    without_averages(trainer).fit(model, data)
    for name, tensor in alone.trained[-1].items():
        assert torch.equal(tensor, recorder.trained[-1][name]), name


def test_a_second_fit_goes_on_from_the_weights_of_training() -> None:
    L.seed_everything(1, verbose=False)
    trainer, model, data, recorder = make(max_epochs=1)
    trainer.fit(model, data)
    trainer.fit_loop.max_epochs = 2
    trainer.fit(model, data)
    assert_averages(copy_of(model), recorder.trained)
    L.seed_everything(1, verbose=False)
    trainer, model, data, at_once = make(max_epochs=2)
    trainer.fit(model, data)
    for name, tensor in at_once.trained[10].items():
        assert torch.equal(tensor, recorder.trained[10][name]), name


def test_a_checkpoint_without_averages_starts_them(tmp_path: Path) -> None:
    trainer, model, data, _ = make(max_epochs=1)
    without_averages(trainer).fit(model, data)
    trainer.save_checkpoint(path := tmp_path / "plain.ckpt", weights_only=False)
    trainer, model, data, recorder = make(max_epochs=2)
    trainer.fit(model, data, ckpt_path=path, weights_only=False)
    assert len(recorder.trained) == 10
    assert_averages(copy_of(model), recorder.trained)


def sharing(callback: WeightAverage, **options: Any) -> tuple[L.Trainer, ClickModel, SyntheticClicks, Recorder]:
    """:func:`make` with the callback in place of its own."""
    trainer, *rest = make(**options)
    trainer.callbacks = [callback if isinstance(c, WeightAverage) else c for c in trainer.callbacks]
    return trainer, *rest


def test_another_model_begins_its_own_averages() -> None:
    callback = WeightAverage(decay=DECAY, every_n_steps=2)
    models = []  # alive, or not: the second is dropped before the third is made
    for seed in (1, 2, 3):
        L.seed_everything(seed, verbose=False)
        trainer, model, data, recorder = sharing(callback, max_epochs=1)
        trainer.fit(model, data)
        assert_averages(copy_of(model), recorder.trained)
        models = [*models, model][:1]
        del trainer, model


def test_another_model_resumes_from_a_checkpoint(tmp_path: Path) -> None:
    callback = WeightAverage(decay=DECAY, every_n_steps=2)
    trainer, model, data, first = sharing(callback, max_epochs=1)
    trainer.fit(model, data)
    trainer.save_checkpoint(path := tmp_path / "half.ckpt", weights_only=False)
    trainer, model, data, second = sharing(callback, max_epochs=2)
    trainer.fit(model, data, ckpt_path=path, weights_only=False)
    assert len(second.trained) == 10
    assert_averages(copy_of(model), first.trained + second.trained)


@pytest.mark.parametrize("kept", [{}, {"current_model_state": {}}], ids=["now", "once"])  # by earlier versions
def test_a_checkpoint_from_before_the_first_average_starts_them(tmp_path: Path, kept: dict[str, Any]) -> None:
    trainer, model, data, first = make(max_steps=1)
    trainer.fit(model, data)
    trainer.save_checkpoint(path := tmp_path / "early.ckpt", weights_only=False)
    checkpoint = torch.load(path, weights_only=True)
    assert "current_model_state" not in checkpoint
    torch.save(checkpoint | kept, path)
    trainer, model, data, recorder = make(max_steps=5)
    trainer.fit(model, data, ckpt_path=path)
    assert len(recorder.trained) == 4
    assert_averages(copy_of(model), first.trained + recorder.trained)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decay": 1.0}, "WeightAverage decay=1.0: give a number from 0 to below 1"),
        ({"decay": -0.1}, "WeightAverage decay=-0.1: give a number from 0 to below 1"),
        ({"every_n_steps": 0}, "WeightAverage every_n_steps=0: give at least 1"),
    ],
)
def test_wrong_numbers_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserInputError, match=f"^{message}$"):
        WeightAverage(**options)
