"""ClickModel in a single process: build, fit, predict, save, load."""

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss
from torchrec.datasets.utils import Batch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dmt.datamodules import SyntheticClicks
from dmt.errors import UserInputError
from dmt.modules import DLRM, ClickModel, DLRMTower, EmbeddingOptimizer
from dmt.plan import TowerPlan
from dmt.schema import FeatureSchema

FACTORIES: dict[str, Any] = {
    "tower": partial(DLRMTower, c=1, p=1, out_dim=4),
    "top": partial(DLRM, bottom_layers=[8], over_layers=[16]),
    "dense_optimizer": partial(torch.optim.Adam, lr=0.01),
    "embedding_optimizer": EmbeddingOptimizer(name="adagrad", learning_rate=0.1),
}
PLAN = TowerPlan(towers=[["c4", "c0"], ["c2"], ["c1", "c3"]])


def make_model(**options: Any) -> ClickModel:
    return ClickModel(**({"embedding_dim": 8, "plan": PLAN} | FACTORIES | options))


def make_data(**options: Any) -> SyntheticClicks:
    sizes = {"num_train": 2048, "num_valid": 64, "num_test": 128, "global_batch_size": 64}
    shape = {"num_features": 5, "num_groups": 2, "num_dense": 3, "num_embeddings": 30}
    data = SyntheticClicks(**(sizes | shape | options))
    data.setup()
    return data


def make_trainer(**options: Any) -> L.Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    quiet |= {"enable_model_summary": False, "accelerator": "cpu", "num_sanity_val_steps": 0}
    return L.Trainer(**(quiet | {"max_epochs": 1, "limit_val_batches": 0} | options))


def mean_loss(model: ClickModel, data: SyntheticClicks) -> tuple[float, float]:
    """Log loss over the training samples, and that of their mean click rate."""
    with torch.inference_mode():
        batches = [(model.predict_step(batch, 0), batch.labels) for batch in data.train_dataloader()]
    preds, labels = (torch.cat(parts).double().numpy() for parts in zip(*batches, strict=True))
    return log_loss(labels, preds), log_loss(labels, np.full(len(labels), labels.mean()))


@dataclass
class Trained:
    model: ClickModel
    data: SyntheticClicks
    checkpoint: Path


@pytest.fixture
def trained(seed: int, tmp_path: Path) -> Trained:
    model, data, trainer = make_model(), make_data(seed=seed), make_trainer(max_steps=5)
    trainer.fit(model, datamodule=data)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    return Trained(model, data, tmp_path / "last.ckpt")


def predictions(model: ClickModel, data: SyntheticClicks) -> torch.Tensor:
    with torch.inference_mode():
        return torch.cat([model.predict_step(batch, 0) for batch in data.test_dataloader()])


def test_build_needs_no_trainer_and_predicts_probabilities(seed: int) -> None:
    data = make_data(seed=seed)
    model = make_model()
    assert model.build(data.schema) is model.model
    preds = predictions(model, data)
    assert preds.shape == (128,) and preds.dtype == torch.float32
    assert ((preds > 0) & (preds < 1)).all() and preds.std() > 0
    batch = next(iter(data.test_dataloader()))
    # Bit for bit: the same operations on the same numbers.
    assert torch.equal(model.predict_step(batch, 0), torch.sigmoid(model(batch)))


def test_make_leaves_the_model_unbuilt() -> None:
    model = make_model()
    model.make(make_data().schema)
    assert model.model is None and not list(model.parameters())


@pytest.mark.parametrize("num_towers", [1, 2, 5])
@pytest.mark.parametrize("name", ["strided", "contiguous", "random"])
def test_baseline_plans_are_given_by_name(num_towers: int, name: str) -> None:
    L.seed_everything(3, verbose=False)
    model = make_model(plan=name, num_towers=num_towers)
    model.build(make_data().schema)
    seed = {"seed": 3} if name == "random" else {}
    expected = getattr(TowerPlan, name)([f"c{i}" for i in range(5)], num_towers=num_towers, **seed)
    assert model.resolved_plan.towers == expected.towers
    assert model.resolved_plan.method == ("flat" if num_towers == 1 else name)


def test_a_plan_that_is_no_file_and_no_name_is_named() -> None:
    with pytest.raises(
        UserInputError, match=r"plan=stridde: no such file; give the path of .*, or one of strided, contig"
    ):
        make_model(plan="stridde", num_towers=2).build(make_data().schema)


def test_more_towers_than_features_divide_their_columns() -> None:
    model = make_model(plan="strided", num_towers=7, embedding_dim=8)
    model.build(make_data().schema)
    expected = TowerPlan.strided_columns([f"c{i}" for i in range(5)], num_towers=7, embedding_dim=8)
    assert model.resolved_plan == expected


@pytest.mark.parametrize("kind", [str, Path])
def test_a_plan_may_be_a_file(tmp_path: Path, kind: Callable[[Path], Any]) -> None:
    PLAN.save(tmp_path / "plan.yaml")
    model = make_model(plan=kind(tmp_path / "plan.yaml"), num_towers=1)
    model.build(make_data().schema)
    assert model.resolved_plan == PLAN


# Only the training samples are given, on purpose.
@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")
def test_fitting_without_a_datamodule_says_what_to_pass() -> None:
    with pytest.raises(
        UserInputError, match=r"no DataModule with a FeatureSchema .* pass datamodule=.*build\(schema\)"
    ):
        make_trainer().fit(make_model(), train_dataloaders=[0])


# Only the training samples are given, on purpose.
@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")
def test_a_built_model_trains_without_a_datamodule(seed: int) -> None:
    data = make_data(seed=seed, num_train=64)
    model = make_model()
    model.build(data.schema)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    make_trainer().fit(model, train_dataloaders=data.train_dataloader())
    assert any(not torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_training_learns_more_than_the_click_rate(seed: int) -> None:
    data, model = make_data(seed=seed), make_model()
    model.build(data.schema)
    untrained, _ = mean_loss(model, data)
    make_trainer(max_epochs=3).fit(model, datamodule=data)
    loss, of_the_mean = mean_loss(model, data)
    assert loss < 0.95 * of_the_mean < untrained


def test_one_step_moves_everything(seed: int) -> None:
    data, model = make_data(seed=seed), make_model()
    model.build(data.schema)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    make_trainer(max_steps=1).fit(model, datamodule=data)
    assert [key for key, value in model.state_dict().items() if torch.equal(value, before[key])] == []


def test_an_optimizer_that_goes_back_several_times_a_step_is_refused() -> None:
    with pytest.raises(UserInputError, match=r"^dense_optimizer=LBFGS: it runs backward many times a step"):
        make_trainer(max_steps=1).fit(make_model(dense_optimizer=torch.optim.LBFGS), datamodule=make_data())


class Rates(L.Callback):
    """Keeps the embedding rows' learning rate of every step."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *rest: Any) -> None:
        self.seen.append(float(trainer.callback_metrics["learning_rate/embeddings"]))
        assert self.seen[-1] == pytest.approx(module.model.stage.embeddings._kernel[0].get_learning_rate())


def embedding_rates(epochs: int, *, checkpoint: Path | None = None, **options: Any) -> tuple[list[float], L.Trainer]:
    """Those of a fit, 4 steps an epoch, whose configured embedding rate is 0.1."""
    trainer = make_trainer(max_epochs=epochs, callbacks=[rates := Rates()])
    data = make_data(num_train=256)
    trainer.fit(make_model(**options), datamodule=data, ckpt_path=checkpoint, weights_only=checkpoint and False)
    return rates.seen, trainer


def two_rates(parameters: Iterable[torch.nn.Parameter]) -> torch.optim.SGD:
    first, *others = parameters
    return torch.optim.SGD([{"params": [first], "lr": 0.5}, {"params": others}], lr=0.01)


@pytest.mark.parametrize("dense_optimizer", [two_rates, partial(torch.optim.SGD, lr=0.0)], ids=["groups", "zero"])
def test_a_constant_schedule_leaves_the_embedding_rate(dense_optimizer: Callable[..., torch.optim.Optimizer]) -> None:
    schedule = partial(torch.optim.lr_scheduler.ConstantLR, factor=1)
    rates, _ = embedding_rates(1, dense_optimizer=dense_optimizer, lr_scheduler=schedule)
    assert rates == pytest.approx([0.1] * 4)


def test_a_resumed_run_has_the_rates_of_an_uninterrupted_one(tmp_path: Path) -> None:
    # It changes the optimiser's rates when it is made.
    schedule = partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=1.0, total_steps=9, cycle_momentum=False)
    options = {"dense_optimizer": two_rates, "lr_scheduler": schedule}
    at_once, trainer = embedding_rates(2, **options)
    assert len(at_once) == 8 and at_once[0] == pytest.approx(0.1 * (1.0 / 25) / 0.5)  # OneCycleLR's div_factor is 25
    assert max(at_once) > 0.15
    before, trainer = embedding_rates(1, **options)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    after, _ = embedding_rates(2, checkpoint=tmp_path / "half.ckpt", **options)
    assert before + after == pytest.approx(at_once)


@pytest.mark.parametrize(("limits", "steps"), [({"max_epochs": 2}, 8), ({"max_epochs": 2, "max_steps": 7}, 7)])
def test_a_cycle_shorter_than_the_training_is_refused_at_the_start(limits: dict[str, int], steps: int) -> None:
    for total in (steps - 1, steps):
        schedule = partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=1.0, total_steps=total)
        trainer, data = make_trainer(**limits), make_data(num_train=256)
        if total == steps:
            trainer.fit(make_model(lr_scheduler=schedule), datamodule=data)
            assert trainer.global_step == steps
            continue
        told = rf"^lr_scheduler=OneCycleLR total_steps={total}: training takes {steps} steps; give total_steps={steps}$"
        with pytest.raises(UserInputError, match=told):
            trainer.fit(make_model(lr_scheduler=schedule), datamodule=data)
        assert trainer.global_step == 0


def test_a_model_is_saved_and_loaded_as_a_whole(seed: int, tmp_path: Path) -> None:
    data, model = make_data(seed=seed), make_model()
    model.build(data.schema)
    expected = predictions(model, data)
    torch.save(model.model, tmp_path / "model.pt")
    model.model = torch.load(tmp_path / "model.pt", weights_only=False)
    assert torch.equal(predictions(model, data), expected)


def empty_batch(schema: FeatureSchema) -> Batch:
    lengths = torch.empty(0, dtype=torch.int32)
    sparse = KeyedJaggedTensor(list(schema.feature_names), torch.empty(0, dtype=torch.int64), lengths=lengths)
    return Batch(dense_features=torch.empty(0, len(schema.dense)), sparse_features=sparse, labels=torch.empty(0))


def test_the_loss_is_the_mean_over_the_batch_and_zero_for_none(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    data, model = make_data(seed=seed), make_model()
    model.build(data.schema)
    monkeypatch.setattr(model, "log", lambda *args, **options: None)  # there is no Trainer to log to
    batch = next(iter(data.train_dataloader()))
    expected = log_loss(batch.labels.numpy(), model.predict_step(batch, 0).detach().double().numpy())
    # A mean of 64 float32 losses: 1e-6 is ten times their rounding.
    assert model.training_step(batch, 0).item() == pytest.approx(expected, rel=1e-6)

    loss = model.training_step(empty_batch(data.schema), 0)
    loss.backward()
    assert loss.item() == 0
    assert not any(parameter.grad.any() for parameter in model.parameters() if parameter.requires_grad)


def test_a_checkpoint_rebuilds_the_model_without_the_data(trained: Trained) -> None:
    loaded = ClickModel.load_from_checkpoint(trained.checkpoint, weights_only=True, **FACTORIES)
    assert torch.equal(predictions(loaded, trained.data), predictions(trained.model, trained.data))
    for key, value in trained.model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key


def test_a_checkpoint_knows_how_its_rows_were_updated(trained: Trained) -> None:
    given = {name: factory for name, factory in FACTORIES.items() if name != "embedding_optimizer"}
    loaded = ClickModel.load_from_checkpoint(trained.checkpoint, weights_only=True, **given)
    assert loaded.embedding_optimizer == FACTORIES["embedding_optimizer"] == loaded.hparams["embedding_optimizer"]
    assert torch.equal(predictions(loaded, trained.data), predictions(trained.model, trained.data))
    other = EmbeddingOptimizer(name="adagrad", learning_rate=0.3)
    loaded = ClickModel.load_from_checkpoint(trained.checkpoint, **FACTORIES | {"embedding_optimizer": other})
    assert loaded.embedding_optimizer == other


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ([], "lacks its tower and top, made in Python; give load_from_checkpoint tower=, top= as the model had it$"),
        (["top"], "lacks its tower, made in Python; give load_from_checkpoint tower= as the model had it$"),
    ],
)
def test_what_a_checkpoint_cannot_hold_must_be_given(trained: Trained, given: list[str], told: str) -> None:
    with pytest.raises(UserInputError, match=told):
        ClickModel.load_from_checkpoint(trained.checkpoint, weights_only=True, **{n: FACTORIES[n] for n in given})


def test_a_checkpoint_outlives_its_plan_file(seed: int, tmp_path: Path) -> None:
    PLAN.save(tmp_path / "plan.yaml")
    data, trainer = make_data(seed=seed), make_trainer(max_steps=1)
    model = make_model(plan=str(tmp_path / "plan.yaml"))
    trainer.fit(model, datamodule=data)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    (tmp_path / "plan.yaml").unlink()
    loaded = ClickModel.load_from_checkpoint(tmp_path / "last.ckpt", weights_only=True, **FACTORIES)
    assert torch.equal(predictions(loaded, data), predictions(model, data))


def test_a_checkpoint_directory_is_told_how_it_becomes_a_file(tmp_path: Path) -> None:
    # tests/strategies/test_checkpoint.py goes this way.
    with pytest.raises(UserInputError, match=r"a sharded run's directory; make it a file, by io = dmt\.Tower"):
        ClickModel.load_from_checkpoint(tmp_path, **FACTORIES)


def test_weights_alone_cannot_be_resumed_but_tested(trained: Trained, tmp_path: Path) -> None:
    trainer = make_trainer(max_steps=1)
    trainer.fit(trained.model, datamodule=trained.data)
    trainer.save_checkpoint(path := tmp_path / "weights.ckpt", weights_only=True)
    with pytest.raises(UserInputError, match=r"weights\.ckpt: it holds weights alone, .* without save_w") as refused:
        make_trainer().fit(make_model(), datamodule=trained.data, ckpt_path=path)
    assert refused.value.on_every_rank
    make_trainer().test(make_model(), datamodule=trained.data, ckpt_path=path, verbose=False)


def test_a_checkpoint_holds_plain_data_only(trained: Trained) -> None:
    checkpoint = torch.load(trained.checkpoint, weights_only=True)
    assert checkpoint["dmt"] == {
        "schema": trained.data.schema.to_dict(),
        "towers": [list(tower) for tower in PLAN.towers],
        "factories": ["tower", "top"],
    }
    assert FeatureSchema.from_dict(checkpoint["dmt"]["schema"]) == trained.data.schema


def test_a_checkpoint_loads_into_an_unbuilt_model(trained: Trained) -> None:
    checkpoint = torch.load(trained.checkpoint, weights_only=True)
    model = make_model(plan=None)
    model.on_load_checkpoint(checkpoint)
    model.load_state_dict(checkpoint["state_dict"])
    assert model.resolved_plan.towers == PLAN.towers
    assert torch.equal(predictions(model, trained.data), predictions(trained.model, trained.data))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"embedding_dim": 4}, r"has shape \(\d+, 8\), the model's \(\d+, 4\); it belongs to another model"),
        ({"embedding_optimizer": EmbeddingOptimizer(name="sgd")}, "only the checkpoint has 'model.stage.*_momentum'"),
    ],
)
def test_weights_of_another_model_are_refused_by_one_line(
    trained: Trained, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserInputError, match=message) as refused:
        make_trainer().test(make_model(**options), datamodule=trained.data, ckpt_path=trained.checkpoint)
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("plan", "data_options", "message"),
    [
        (PLAN, {"num_embeddings": 31}, "columns or table sizes differ from the data's .* use the data"),
        (PLAN, {"num_dense": 2}, "columns or table sizes differ from the data's .* use the data"),
        (
            TowerPlan(towers=[["c4", "c0"], ["c1", "c3"], ["c2"]]),
            {},
            r"towers \[\['c4', 'c0'\], \['c2'\], .* differ from this model's; give its plan by --model\.plan",
        ),
    ],
)
def test_another_models_checkpoint_is_refused(
    trained: Trained, plan: TowerPlan, data_options: dict[str, int], message: str
) -> None:
    trainer = make_trainer()
    with pytest.raises(UserInputError, match=message):
        trainer.fit(
            make_model(plan=plan),
            datamodule=make_data(**data_options),
            ckpt_path=trained.checkpoint,
            weights_only=True,
        )


@pytest.mark.parametrize("verb", [L.Trainer.validate, L.Trainer.test])
def test_evaluation_reports_every_metric(
    trained: Trained, verb: Callable[..., list[dict[str, float]]], capsys: pytest.CaptureFixture[str]
) -> None:
    [metrics] = verb(make_trainer(limit_val_batches=1.0), trained.model, datamodule=trained.data, verbose=False)
    prefix = "val/" if verb is L.Trainer.validate else "test/"
    assert set(metrics) == {prefix + name for name in ("auroc", "log_loss", "normalized_entropy", "calibration")}
    if prefix == "test/":
        labels = torch.cat([batch.labels for batch in trained.data.test_dataloader()]).numpy()
        expected = log_loss(labels, predictions(trained.model, trained.data).double().numpy())
        assert metrics["test/log_loss"] == pytest.approx(expected, rel=1e-6)  # float32 in the result


def test_a_model_that_has_diverged_is_told(seed: int) -> None:
    data, model = make_data(), make_model()
    make_trainer().fit(model, datamodule=data)
    assert model.model is not None
    with torch.no_grad():
        next(model.model.parameters()).fill_(torch.nan)
    with pytest.warns(UserWarning, match=r"^test/log_loss is nan: .* lower its learning rates$"):
        warnings.filterwarnings("ignore", category=FutureWarning)  # pytest.warns asks for those of Lightning too
        make_trainer().test(model, datamodule=data, verbose=False)
