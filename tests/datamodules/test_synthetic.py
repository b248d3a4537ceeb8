import dataclasses
import itertools

import numpy as np
import pytest
import torch

from dmt.datamodules import ClickArrays, SyntheticClicks, synthetic
from dmt.datamodules.synthetic import BLOCK_SIZE
from dmt.datamodules.teacher import draw_groups
from dmt.errors import UserInputError
from dmt.plan import TowerPlan


def make(**options):
    small = {"num_train": 50, "num_valid": 20, "num_test": 20}
    data = SyntheticClicks(**(small | options))
    data.setup()
    return data


def split(data, name="train"):
    arrays = data._splits[name]
    return arrays.dense, arrays.ids, arrays.labels


@pytest.mark.parametrize("seed", range(3))
def test_best_auc_and_rate_are_as_documented(seed):
    data = make(seed=seed, num_test=20_000)
    assert 0.82 < data.best_auc < 0.86
    assert split(data, "test")[2].mean() == pytest.approx(0.25, abs=0.02)


def test_sample_depends_on_seed_split_and_index_only():
    small, large = make(num_train=30), make(num_train=BLOCK_SIZE + 30, global_batch_size=7)
    for few, many in zip(split(small), split(large), strict=True):
        assert np.array_equal(few, many[:30])
    ids = [split(small)[1], split(small, "valid")[1], split(make(seed=1))[1], split(large)[1][BLOCK_SIZE:]]
    for one, other in itertools.combinations(ids, 2):
        assert not np.array_equal(one[:20], other[:20])


def test_schema_is_known_before_samples_are_drawn():
    schema = SyntheticClicks(num_features=3, num_groups=2, num_dense=2, num_embeddings=7).schema
    assert schema.feature_names == ("c0", "c1", "c2")
    assert schema.dense == ("d0", "d1")
    assert {feature.num_embeddings for feature in schema.categorical} == {7}


def test_ids_lie_in_their_tables_and_the_first_are_the_most_frequent():
    data = make(num_train=20_000, num_embeddings=50)
    ids = split(data)[1]
    assert ids.min() == 0
    assert ids.max() < 50
    counts = np.bincount(ids.reshape(-1), minlength=50)
    assert counts[0] > counts[1] > counts[2] > counts[10] > 0
    assert abs(np.corrcoef(ids.T)[~np.eye(16, dtype=bool)]).max() < 0.05  # independent across features


def test_labels_follow_the_pairs_inside_planted_groups():
    data = make(num_train=100_000)
    _, ids, labels = split(data)
    latent = np.stack([data.teacher.latent[f, ids[:, f]] for f in range(16)], axis=1)  # (n, F, K)
    centred = labels - labels.mean()
    strength = {False: [], True: []}
    for one, other in itertools.combinations(range(16), 2):
        dot = (latent[:, one] * latent[:, other]).sum(axis=1)
        is_inside = any({one, other} <= set(group) for group in data.teacher.groups)
        strength[is_inside].append((centred * dot).mean() / (centred.std() * dot.std()))
    assert len(strength[True]) == 24
    # Measured about 0.08 against 0.01; the error of each correlation is about 1 / sqrt(n) = 0.003.
    assert np.mean(strength[True]) > 4 * np.mean(strength[False]) > 0
    assert min(strength[True]) > 0


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("num_features", "num_groups"), [(16, 4), (6, 3), (5, 2), (4, 2)])
def test_planted_groups_are_not_the_naive_ones(num_features, num_groups, seed):
    data = SyntheticClicks(num_features=num_features, num_groups=num_groups, seed=seed)
    names = data.schema.feature_names
    groups = {frozenset(group) for group in data.planted_groups}
    contiguous = [list(names)[part[0] : part[-1] + 1] for part in np.array_split(range(num_features), num_groups)]
    assert groups != {frozenset(tower) for tower in TowerPlan.strided(names, num_towers=num_groups).towers}
    assert groups != {frozenset(group) for group in contiguous}
    TowerPlan(towers=data.planted_groups).check_features(names)
    assert {len(group) for group in groups} <= {num_features // num_groups, num_features // num_groups + 1}


@pytest.mark.parametrize(("num_features", "num_groups"), [(1, 1), (3, 1), (3, 3), (3, 2), (5, 5)])
def test_any_number_of_groups_can_be_drawn(num_features, num_groups):
    groups = draw_groups(np.random.default_rng(0), num_features=num_features, num_groups=num_groups)
    assert sorted(sum(groups, ())) == list(range(num_features))
    assert len(groups) == num_groups


@pytest.mark.parametrize("options", [{"num_dense": 0}, {"num_groups": 1}, {"num_groups": 16}])
def test_parts_of_the_logit_may_be_absent(options):
    data = make(num_test=4000, **options)
    assert data.best_auc > 0.7
    assert next(iter(data.test_dataloader())).dense_features.shape[1] == len(data.schema.dense)


@pytest.mark.parametrize(
    "option",
    ["num_features", "num_dense", "num_embeddings", "num_train", "num_valid", "num_test", "seed", "num_workers"],
)
def test_wrong_numbers(option):
    with pytest.raises(UserInputError, match=f"{option}=-1: give"):
        SyntheticClicks(**{option: -1})


@pytest.mark.parametrize("num_groups", [0, 17])
def test_wrong_number_of_groups(num_groups):
    with pytest.raises(UserInputError, match=f"num_groups={num_groups}: 16 features fill between 1 and 16"):
        SyntheticClicks(num_groups=num_groups)


def test_large_splits_are_drawn_when_asked_for(monkeypatch):
    shape = {"num_features": 5, "num_groups": 2, "num_multi_hot": 2, "num_embeddings": 30, "num_train": 20_000}
    stored = make(**shape)._split("train")
    monkeypatch.setattr(synthetic, "MAX_STORED", 19_999)
    data = make(**shape, global_batch_size=1000)
    drawn = data._split("train")
    assert isinstance(drawn, synthetic.SyntheticSamples) and len(drawn) == 20_000
    rng = np.random.default_rng()
    pieces = [np.arange(8000, 9000), np.arange(0), np.arange(19_990, 20_000), np.sort(rng.choice(20_000, 500))]
    for indices in (*pieces, rng.permutation(20_000)[:300]):
        found, wanted = drawn.batch(indices), stored.batch(indices)
        assert torch.equal(found.dense_features, wanted.dense_features) and torch.equal(found.labels, wanted.labels)
        assert torch.equal(found.sparse_features.values(), wanted.sparse_features.values())
        assert torch.equal(found.sparse_features.lengths(), wanted.sparse_features.lengths())
    # In the order of the log, so that neighbours are drawn together.
    labels = np.concatenate([batch.labels for batch in data.train_dataloader()])
    assert np.array_equal(labels, stored.labels)
    assert isinstance(data._split("valid"), ClickArrays)


def test_multi_hot_features_are_bags_that_the_label_depends_on():
    data = make(num_features=6, num_groups=2, num_multi_hot=3, mean_length=2.5, num_embeddings=40, num_test=20_000)
    assert [feature.multi_hot for feature in data.schema.categorical] == [False] * 3 + [True] * 3
    arrays = data._split("test")
    lengths = np.diff(arrays.bags["c4"].offsets)
    # The error of the mean of 20,000 Poisson numbers is sqrt(2.5 / 20,000) = 0.011; four of them.
    assert lengths.mean() == pytest.approx(2.5, abs=0.045) and lengths.min() == 0
    assert 0.82 < data.best_auc < 0.86
    # The logit of some samples, by loops over ids and pairs.
    teacher, factors = data.teacher, data.teacher.coefficients
    logits, labels = data._samples("test").best_predictions()
    assert np.array_equal(labels, arrays.labels)
    for i in range(20):
        names = data.schema.feature_names
        bags = [
            arrays.bags[name].values[arrays.bags[name].offsets[i] : arrays.bags[name].offsets[i + 1]]
            if f >= 3
            else arrays.ids[i, f : f + 1]
            for f, name in enumerate(names)
        ]
        scales = [1.0 if f < 3 else 2.5**-0.5 for f in range(6)]
        latent = [sum(teacher.latent[f, v] for v in bags[f]) * scales[f] + np.zeros(2) for f in range(6)]
        main = sum(teacher._main[f, v, 0] * scales[f] for f in range(6) for v in bags[f])
        pairs = {True: 0.0, False: 0.0}
        for one, other in itertools.combinations(range(6), 2):
            pairs[any({one, other} <= set(group) for group in teacher.groups)] += latent[one] @ latent[other]
        linear = arrays.dense[i] @ teacher._dense_weights
        wanted = factors.bias + factors.main * main + factors.within * pairs[True] + factors.across * pairs[False]
        # Latent vectors and their sums are float32: 1e-7 of terms of up to some hundred.
        assert logits[i] == pytest.approx(wanted + factors.dense * linear, abs=1e-3)


@pytest.mark.parametrize("num_multi_hot", [0, 2])
def test_a_log_that_drifts_ends_with_another_law(num_multi_hot):
    data = make(num_features=4, num_groups=2, num_dense=0, num_multi_hot=num_multi_hot, drift_samples=1000)
    teacher = data.teacher
    samples = teacher._draw_features(np.random.default_rng(0), np.zeros(20_000, dtype=np.int64))

    def logits(time):
        return teacher.logits(dataclasses.replace(samples, times=np.full(20_000, time)))

    still = make(num_features=4, num_groups=2, num_dense=0, num_multi_hot=num_multi_hot).teacher
    assert np.allclose(logits(0), still.logits(samples))
    similar = [np.corrcoef(logits(0), logits(time))[0, 1] for time in (300, 1000)]
    assert 0.6 < similar[0] < 0.97 and abs(similar[1]) < 0.35
    # After 180 degrees main effects have the other sign, and products of two vectors their own again.
    main = teacher._parts(samples)[0]
    assert np.allclose(logits(0) - logits(2000), 2 * teacher.coefficients.main * main, atol=1e-4)
    # Validation and test come after training.
    assert [data._samples(split)._first_time for split in ("train", "valid", "test")] == [0, 50, 70]


def test_tables_may_differ_in_size():
    data = make(num_features=3, num_groups=2, num_embeddings=[3, 50, 7], num_train=5000)
    assert [feature.num_embeddings for feature in data.schema.categorical] == [3, 50, 7]
    assert (split(data)[1].max(axis=0) < [3, 50, 7]).all() and (split(data)[1].max(axis=0) >= [2, 30, 5]).all()
    for f, size in enumerate((3, 50, 7)):
        frequency = np.arange(1, size + 1) ** -1.5
        assert abs((frequency / frequency.sum()) @ data.teacher._main[f, :size, 0]) < 1e-12


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_embeddings": [5, 5]}, r"num_embeddings=\[5, 5\]: 2 numbers for num_features=16; give one for each"),
        ({"num_multi_hot": 17}, "num_multi_hot=17: there are 16 features; give fewer"),
        ({"num_multi_hot": -1}, "num_multi_hot=-1: give at least 0"),
        ({"mean_length": 0.0}, "mean_length=0.0: give a number above 0"),
        ({"drift_samples": -1}, "drift_samples=-1: give at least 0"),
    ],
)
def test_wrong_shapes_are_named(options, message):
    with pytest.raises(UserInputError, match=message):
        SyntheticClicks(**options)
