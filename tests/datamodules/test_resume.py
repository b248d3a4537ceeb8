"""Interrupted training goes on with the very next batch, as Lightning itself saves and resumes."""

import pytest
import torch
from lightning.pytorch import Callback, LightningModule

from dmt.errors import UserInputError

from .conftest import NumberedClicks, numbers

STEPS_PER_EPOCH = 4  # 10 samples in batches of 3


class Recorder(LightningModule):
    """Learns nothing and remembers what it saw."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen = []

    def training_step(self, batch, batch_idx):
        self.seen.append(numbers(batch))
        return self.weight.sum()

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class SaveOnce(Callback):
    """Save a checkpoint at the first call of a hook after ``step`` steps."""

    def __init__(self, *, hook, step, path):
        self.path = path
        self.steps_done = None
        setattr(self, hook, lambda trainer, *args: self._save(trainer, step))

    def _save(self, trainer, step):
        if self.steps_done is None and trainer.global_step >= step:
            self.steps_done = trainer.global_step
            trainer.save_checkpoint(self.path)


@pytest.fixture
def fit(tiny_trainer):
    def run(*, callbacks=(), ckpt_path=None, data=None, **options):
        model = Recorder()
        trainer = tiny_trainer(callbacks=list(callbacks), **options)
        trainer.fit(model, datamodule=data or NumberedClicks(), ckpt_path=ckpt_path, weights_only=False)
        return model.seen, trainer

    return run


@pytest.mark.parametrize("limit", [{}, {"limit_train_batches": 3}], ids=["whole", "limited"])
@pytest.mark.parametrize("end", [{"max_steps": 11, "max_epochs": -1}, {"max_epochs": 3}])
@pytest.mark.parametrize(
    ("hook", "validation"),
    [
        ("on_train_batch_end", {"limit_val_batches": 0}),
        ("on_train_batch_end", {"val_check_interval": 2}),
        ("on_train_epoch_end", {"limit_val_batches": 0}),
        ("on_train_epoch_end", {"val_check_interval": 2}),
        ("on_train_epoch_end", {}),
        ("on_validation_end", {"val_check_interval": 2}),
        ("on_validation_end", {}),
    ],
)
@pytest.mark.parametrize("step", [1, 4, 6])
def test_resumes_from_a_checkpoint_of_any_hook(fit, tmp_path, limit, validation, end, hook, step):
    options = limit | validation | end
    save = SaveOnce(hook=hook, step=step, path=tmp_path / "some.ckpt")
    uninterrupted, _ = fit(callbacks=[save], **options)
    resumed, _ = fit(ckpt_path=save.path, **options)
    assert resumed == uninterrupted[save.steps_done :]


@pytest.mark.parametrize("validation", [{"limit_val_batches": 0}, {}], ids=["no validation", "validation"])
@pytest.mark.parametrize("step", range(1, 2 * STEPS_PER_EPOCH + 1))
def test_resumes_after_max_steps(fit, tmp_path, validation, step):
    uninterrupted, _ = fit(max_steps=11, **validation)
    first, trainer = fit(max_steps=step, **validation)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    second, _ = fit(max_steps=11, ckpt_path=tmp_path / "last.ckpt", **validation)
    assert first + second == uninterrupted


def test_goes_on_by_epochs_after_max_steps(fit, tmp_path):
    # Lightning counts the epoch that max_steps cut as a whole one; still no sample is skipped or repeated.
    uninterrupted, _ = fit(max_epochs=4)
    first, trainer = fit(max_steps=6)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    second, _ = fit(max_epochs=4, ckpt_path=tmp_path / "last.ckpt")
    assert len(second) > STEPS_PER_EPOCH
    assert first + second == uninterrupted[: len(first + second)]


def test_refuses_to_resume_inside_an_epoch_with_another_batch_size(fit, tmp_path):
    _, trainer = fit(max_steps=2)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    with pytest.raises(UserInputError, match=r"global_batch_size=5: .* global_batch_size=3; resume with"):
        fit(max_steps=8, data=NumberedClicks(global_batch_size=5), ckpt_path=tmp_path / "last.ckpt")


def test_a_validated_checkpoint_does_not_move_later_training(fit, tiny_trainer, tmp_path):
    whole, _ = fit(max_epochs=1)
    _, trainer = fit(max_steps=2)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    data = NumberedClicks()
    tiny_trainer().validate(Recorder(), datamodule=data, ckpt_path=tmp_path / "last.ckpt", weights_only=False)
    seen, _ = fit(max_epochs=1, data=data)
    assert seen == whole


@pytest.mark.filterwarnings("ignore:You requested to overfit:UserWarning")  # what is asked for here
def test_overfit_batches_repeats_the_same_batches(fit):
    seen, _ = fit(max_epochs=3, overfit_batches=2)
    assert seen == 3 * [[0, 1, 2], [3, 4, 5]]
