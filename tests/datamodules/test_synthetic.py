import itertools

import numpy as np
import pytest

from dmt.datamodules import SyntheticClicks
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
    "option", ["num_features", "num_dense", "num_embeddings", "num_train", "num_valid", "num_test", "seed"]
)
def test_wrong_numbers(option):
    with pytest.raises(UserInputError, match=f"{option}=-1: give"):
        SyntheticClicks(**{option: -1})


@pytest.mark.parametrize("num_groups", [0, 17])
def test_wrong_number_of_groups(num_groups):
    with pytest.raises(UserInputError, match=f"num_groups={num_groups}: 16 features fill between 1 and 16"):
        SyntheticClicks(num_groups=num_groups)
