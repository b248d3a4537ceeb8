"""torch.compile and bf16-mixed agree with eager float32, on top archs with towers."""

import shutil
from functools import partial, partialmethod
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from dmt.errors import UserInputError
from dmt.modules import DCN, DLRM, ClickModel, DCNTower, GatedTower, MultiEmbedding, MultiTower
from dmt.plan import TowerPlan
from tests.modules.test_click_model import make_data, make_model, make_trainer

# torch 2.13's compiler calls what torch 2.13 has deprecated, and looks for gradients where there are none.
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning:torch", "ignore::FutureWarning:torch", "ignore:The .grad attribute of a Tensor"
)

MODELS: dict[str, dict[str, Any]] = {
    "DLRM": {},
    "DCN": {
        "tower": partial(DCNTower, out_dim=4, num_outputs=2, low_rank=3),
        "top": partial(DCN, bottom_layers=[8], low_rank=4, over_layers=[16]),
    },
}
COMPILED_MODELS = MODELS | {
    "MultiEmbedding": {
        "tower": partial(MultiTower, num_sets=2, tower=partial(GatedTower, out_dim=2, num_outputs=2, hidden=3)),
        "top": partial(MultiEmbedding, num_sets=2, top=partial(DLRM, bottom_layers=[8], over_layers=[16])),
    }
}
# The same operations, fused: sums of up to some hundred float32 values in another order.
FUSED_TOLERANCE = {"rtol": 1e-4, "atol": 1e-6}
# bfloat16 keeps 8 bits: each of some ten layers and products rounds by 2**-9. Of gradients, which also add such errors
# up over the batch, the direction counts.
BF16_LOSS_TOLERANCE = 10 * 2**-9
BF16_COSINE = 0.99

needs_compiler = pytest.mark.skipif(
    not any(shutil.which(name) for name in ("g++", "clang++")), reason="torch.compile needs a C++ compiler on the CPU"
)


def first_step(
    options: dict[str, Any], *, precision: str, compile_layers: bool = False, accelerator: str = "cpu"
) -> tuple[float, Tensor]:
    """Loss of the first batch of a fit, and the gradients of all dense layers, end to end."""
    L.seed_everything(3, verbose=False)
    model, data = make_model(compile_layers=compile_layers, **options), make_data()
    found: dict[str, Any] = {}

    class Recorder(L.Callback):
        def on_before_optimizer_step(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
            gradients = [p.grad.flatten() for p in module.parameters() if p.grad is not None]
            found["gradients"] = torch.cat(gradients).clone()

    trainer = make_trainer(precision=precision, max_steps=1, callbacks=[Recorder()], accelerator=accelerator)
    trainer.fit(model, datamodule=data)
    return float(trainer.callback_metrics["train/loss"]), found["gradients"]


@needs_compiler
@pytest.mark.parametrize("name", COMPILED_MODELS)
def test_compiled_layers_compute_the_same(name: str) -> None:
    counters.clear()
    loss, gradients = first_step(COMPILED_MODELS[name], precision="32-true")
    assert not counters["stats"]
    fused_loss, fused_gradients = first_step(COMPILED_MODELS[name], precision="32-true", compile_layers=True)
    assert counters["stats"]["unique_graphs"] >= 1
    assert fused_loss == pytest.approx(loss, rel=FUSED_TOLERANCE["rtol"])
    torch.testing.assert_close(fused_gradients, gradients, **FUSED_TOLERANCE)


@needs_compiler
def test_towers_of_many_sizes_are_all_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    # Without Inductor: what is compiled, and how often, is for Dynamo to say.
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend="eager"))
    sizes = range(1, 7)
    towers = [[f"c{sum(range(size)) + index:02}" for index in range(size)] for size in sizes]
    data = make_data(num_features=sum(sizes), num_groups=3, num_train=200)  # the last batch of its own size
    losses = []
    torch._dynamo.reset()
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        for compile_layers in (False, True):
            L.seed_everything(3, verbose=False)
            model, trainer = make_model(plan=TowerPlan(towers=towers), compile_layers=compile_layers), make_trainer()
            trainer.fit(model, datamodule=data)
            [metrics] = trainer.test(model, datamodule=data, verbose=False)
            losses.append(metrics["test/log_loss"])
    assert losses[1] == pytest.approx(losses[0], rel=FUSED_TOLERANCE["rtol"])


@pytest.mark.parametrize("compile_layers", [False, pytest.param(True, marks=needs_compiler)], ids=["eager", "compiled"])
@pytest.mark.parametrize("name", MODELS)
def test_bf16_mixed_agrees_with_float32(name: str, compile_layers: bool) -> None:
    loss, gradients = first_step(MODELS[name], precision="32-true")
    narrow_loss, narrow_gradients = first_step(MODELS[name], precision="bf16-mixed", compile_layers=compile_layers)
    assert narrow_loss == pytest.approx(loss, rel=BF16_LOSS_TOLERANCE) and narrow_loss != loss
    assert torch.cosine_similarity(narrow_gradients, gradients, dim=0) > BF16_COSINE


@needs_compiler
def test_a_module_that_lightning_compiles_trains_alike() -> None:
    metrics = []
    for wrap in (lambda model: model, torch.compile):
        L.seed_everything(3, verbose=False)
        model, data, trainer = make_model(), make_data(), make_trainer(max_steps=10)
        trainer.fit(wrap(model), datamodule=data)
        trainer.test(model, datamodule=data, verbose=False)
        metrics.append({metric: float(value) for metric, value in trainer.callback_metrics.items()})
    # Ten steps of Adam carry the rounding of the first ones along.
    assert metrics[1] == pytest.approx(metrics[0], rel=1e-3)


@pytest.mark.parametrize(("on_gpu", "language"), [(False, r"C\+\+"), (True, "C")])
def test_without_a_compiler_it_is_refused(monkeypatch: pytest.MonkeyPatch, on_gpu: bool, language: str) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: on_gpu)
    message = rf"^compile_layers=True: torch.compile needs a {language} compiler .* install one"
    with pytest.raises(UserInputError, match=message):
        ClickModel(compile_layers=True)
