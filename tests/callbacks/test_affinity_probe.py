"""The affinity that a fit leaves behind, against cosines taken by hand, and under other strategies."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dmt.callbacks import AffinityProbe
from dmt.cli import main
from dmt.datamodules import SyntheticClicks
from dmt.errors import UserInputError
from dmt.modules import DLRM, ClickModel, DLRMTower
from dmt.partition import Affinity
from tests.callbacks.probe_cases import fit

ROOT = Path(__file__).parents[2]


def make(**options: Any) -> tuple[SyntheticClicks, ClickModel]:
    data = SyntheticClicks(
        num_features=5,
        num_groups=2,
        num_multi_hot=2,
        mean_length=1.0,
        num_embeddings=20,
        num_train=640,
        num_valid=100,
        num_test=10,
        global_batch_size=32,
    )
    return data, ClickModel(embedding_dim=8, top=partial(DLRM, bottom_layers=[8], over_layers=[8]), **options)


@pytest.mark.parametrize(("num_towers", "kind"), [(1, "cosine"), (2, "cosine"), (1, "signed_cosine")])
def test_it_is_the_mean_over_samples_of_the_cosines(tmp_path: Path, num_towers: int, kind: Any) -> None:
    data, model = make(num_towers=num_towers)
    fit(tmp_path, data, model, AffinityProbe(num_batches=2, kind=kind))
    affinity = Affinity.load(tmp_path / "affinity.npz")
    assert (affinity.features, affinity.kind) == (data.schema.feature_names, kind)
    assert affinity.num_samples == 64
    weights = {name: t.numpy() for name, t in model.state_dict().items() if "embeddings" in name}
    tables = {f: next(w for n, w in weights.items() if f in n and w.ndim == 2) for f in affinity.features}
    sparse = data._split("valid").batch(np.arange(64)).sparse_features
    pooled = {f: [tables[f][bag.numpy()].sum(axis=0) for bag in sparse[f].to_dense()] for f in affinity.features}
    for i, one in enumerate(affinity.features):
        for j, other in enumerate(affinity.features):
            cosines = [
                (a @ b if kind == "signed_cosine" else abs(a @ b)) / (np.linalg.norm(a) * np.linalg.norm(b))
                for a, b in zip(pooled[one], pooled[other], strict=True)
                if a.any() and b.any()
            ]
            assert (len(cosines) < 64) == bool({one, other} & {"c3", "c4"})
            # A mean of float32 numbers of up to 1.
            assert affinity.matrix[i, j] == pytest.approx(np.mean(cosines), abs=1e-6)


def test_any_strategy_measures_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, interactions = {}, {}
    for name, num_ranks in {"auto": 1, "sptt": 2, "torchrec": 2}.items():
        words = [
            "--config=configs/quickstart.yaml",
            "--model.tower=PassThrough",
            "--data.num_train=2000",
            "--data.num_valid=700",
            "--data.num_test=100",
            "--trainer.max_epochs=1",
            "--trainer.log_every_n_steps=1",
            "--trainer.accelerator=cpu",
            "--trainer.callbacks+=dmt.callbacks.AffinityProbe",
            "--trainer.callbacks+=dmt.callbacks.InteractionProbe",
            f"--trainer.strategy={name}",
            f"--trainer.devices={num_ranks}",
            "--ranks_per_host=1",
        ]
        if num_ranks == 1:
            monkeypatch.setenv("DMT_SAVE_DIR", str(tmp_path / name))
            main(["fit", *words])
        else:
            done = subprocess.run(
                [sys.executable, "-m", "dmt.cli", "fit", *words],
                cwd=ROOT,
                env=os.environ | {"DMT_SAVE_DIR": str(tmp_path / name), "OMP_NUM_THREADS": "1"},
                capture_output=True,
                text=True,
                check=False,
                timeout=120,
            )
            assert done.returncode == 0, done.stderr[-2000:]
        [file] = (tmp_path / name).rglob("affinity.npz")
        found[name] = Affinity.load(file)
        [file] = (tmp_path / name).rglob("interaction.npz")
        interactions[name] = Affinity.load(file)
    pairs = np.triu_indices(16, 1)
    for name in ("sptt", "torchrec"):
        assert found[name].num_samples == found["auto"].num_samples == interactions[name].num_samples == 700
        assert found[name].features == found["auto"].features
        # Two steps of training in float32, whose sums are in another order.
        np.testing.assert_allclose(found[name].matrix, found["auto"].matrix, rtol=1e-3, atol=1e-5)
        # Each rank takes other values from its own samples, so interactions are alike, not equal.
        assert np.corrcoef(interactions[name].matrix[pairs], interactions["auto"].matrix[pairs])[0, 1] > 0.8


def test_features_without_an_embedding_are_named(tmp_path: Path) -> None:
    _, model = make()
    data = SyntheticClicks(
        num_features=5,
        num_groups=1,
        num_multi_hot=1,
        mean_length=1e-9,
        num_embeddings=20,
        num_train=64,
        num_valid=100,
        num_test=10,
        global_batch_size=32,
    )
    with pytest.raises(UserInputError, match="AffinityProbe: feature 'c4' had no embedding but zeros"):
        fit(tmp_path, data, model, AffinityProbe(num_batches=2))


def test_models_with_towers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserInputError, match="AffinityProbe: the model has tower modules"):
        fit(tmp_path, *make(tower=partial(DLRMTower, c=1, p=0, out_dim=8)), AffinityProbe())
    with pytest.raises(UserInputError, match="AffinityProbe num_batches=0: give"):
        AffinityProbe(num_batches=0)
    with pytest.raises(UserInputError, match="AffinityProbe kind=dot: give cosine or signed_cosine"):
        AffinityProbe(kind="dot")
