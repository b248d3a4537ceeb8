"""The affinity that a fit leaves behind, against cosines taken by hand, and under other strategies."""

import os
import re
import subprocess
import sys
from functools import partial
from itertools import combinations
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
from tests.callbacks.probe_cases import Spoil, fit, told_by_probe

ROOT = Path(__file__).parents[2]


def make(mean_length: float = 1.0, **options: Any) -> tuple[SyntheticClicks, ClickModel]:
    data = SyntheticClicks(
        num_features=5,
        num_groups=2,
        num_multi_hot=2,
        mean_length=mean_length,
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


def others_mean(affinity: Affinity, unmeasured: set[tuple[int, int]]) -> float:
    """Mean of the pairs that are not among those."""
    pairs = [pair for pair in combinations(range(len(affinity.features)), 2) if pair not in unmeasured]
    return float(np.mean([affinity.matrix[pair] for pair in pairs]))


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (0.0, "feature 'c1' had no embedding but zeros in the samples looked at, .*; look at more batches, or .*"),
        (0.5, "feature 'c1' had the same direction in every sample .* look at more batches, or leave the feature out"),
        (float("nan"), "feature 'c1' had embeddings that are not finite, .*; lower its learning rates"),
    ],
)
def test_a_feature_without_directions_is_named_and_the_others_are_measured(
    tmp_path: Path, value: float, told: str, recwarn: pytest.WarningsRecorder
) -> None:
    data, model = make()
    fit(tmp_path, data, model, AffinityProbe(num_batches=2))
    whole = Affinity.load(tmp_path / "affinity.npz").matrix
    fit(tmp_path, data, model, Spoil({"c1": (slice(None), value)}), AffinityProbe(num_batches=2), max_steps=0)
    warned = told_by_probe(recwarn)
    assert re.fullmatch(f"AffinityProbe: {told}; what was not measured is taken as the mean of the other pairs", warned)
    affinity = Affinity.load(tmp_path / "affinity.npz")
    others = np.ix_([0, 2, 3, 4], [0, 2, 3, 4])
    assert (affinity.matrix[others] == whole[others]).all()
    mean = others_mean(affinity, {(0, 1), (1, 2), (1, 3), (1, 4)})
    np.testing.assert_allclose(affinity.matrix[1, [0, 2, 3, 4]], mean)


def test_a_single_embedding_that_is_not_finite_spoils_no_other_feature(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    spoiled = {"c0": (slice(3, 4), float("nan")), "c1": (slice(0, 9), float("inf"))}
    fit(tmp_path, *make(), Spoil(spoiled), AffinityProbe(num_batches=2))
    assert "features 'c0', 'c1' had embeddings that are not finite" in told_by_probe(recwarn)
    assert Affinity.load(tmp_path / "affinity.npz").matrix[2, 3] > 0


def test_pairs_that_never_meet_are_named_and_are_no_unlike_ones(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    fit(tmp_path, *make(mean_length=0.05), AffinityProbe(num_batches=2))
    assert "AffinityProbe: 'c3' and 'c4' were never in one sample; look at more batches" in told_by_probe(recwarn)
    affinity = Affinity.load(tmp_path / "affinity.npz")
    assert affinity.matrix[3, 4] == affinity.matrix[4, 3] > 0.05
    assert affinity.matrix[3, 4] == pytest.approx(others_mean(affinity, {(3, 4)}))


def test_nothing_is_written_where_no_pair_is_measured(tmp_path: Path) -> None:
    rows = {f"c{index}": (slice(None), float("nan")) for index in range(5)}
    with pytest.raises(UserInputError, match="'c4' had embeddings that are not finite"):
        fit(tmp_path, *make(), Spoil(rows), AffinityProbe(num_batches=2))


@pytest.mark.parametrize("options", [{"max_steps": 0}, {"limit_train_batches": 0}, {"finished": True}])
def test_a_run_with_nothing_left_to_train_is_probed(
    tmp_path: Path, options: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    data, model = make()
    if options.pop("finished", False):
        fit(tmp_path, data, model).save_checkpoint(tmp_path / "end.ckpt")
        options["ckpt_path"] = tmp_path / "end.ckpt"
    fit(tmp_path, data, model, AffinityProbe(), **options)
    assert re.search(r"over 100 samples, in \d+\.\d s$", capsys.readouterr().out, re.MULTILINE)
    assert Affinity.load(tmp_path / "affinity.npz").num_samples == 100


def test_models_with_towers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserInputError, match="AffinityProbe: the model has tower modules"):
        fit(tmp_path, *make(tower=partial(DLRMTower, c=1, p=0, out_dim=8)), AffinityProbe())
    with pytest.raises(UserInputError, match="AffinityProbe num_batches=0: give"):
        AffinityProbe(num_batches=0)
    with pytest.raises(UserInputError, match="AffinityProbe kind=dot: give cosine or signed_cosine"):
        AffinityProbe(kind="dot")
