"""describe(): parameters, FLOPs and bytes against built models, hand counts and the paper."""

import itertools
from functools import partial
from typing import Any

import pytest
import torch

from dmt.describe import Layout, describe
from dmt.modules import DLRM, ClickModel, DLRMTower, EmbeddingOptimizer, PassThrough
from dmt.plan import TowerPlan
from dmt.schema import CategoricalFeature, FeatureSchema
from dmt.strategies.topology import Topology

PLAN = TowerPlan(towers=[["a", "d", "b"], ["c", "e"]])
SCHEMA = FeatureSchema(
    categorical=[CategoricalFeature(name=name, num_embeddings=3 + i) for i, name in enumerate("abcde")],
    dense=["x", "y", "z"],
)
NO_DENSE = FeatureSchema(categorical=SCHEMA.categorical)


def make_model(**options: Any) -> ClickModel:
    return ClickModel(
        **{
            "embedding_dim": 8,
            "plan": PLAN,
            "tower": partial(DLRMTower, c=1, p=2, out_dim=4),
            "top": partial(DLRM, bottom_layers=[10], over_layers=[16, 6]),
        }
        | options
    )


def layout(strategy: str = "sptt", *, world_size: int = 2, ranks_per_host: int = 1) -> Layout:
    topology = Topology(world_size=world_size, ranks_per_host=ranks_per_host)
    return Layout(strategy=strategy, topology=topology, global_batch_size=64)


def chain(*sizes: int) -> int:
    """Multiply-adds per sample of linear layers one after the other."""
    return sum(a * b for a, b in itertools.pairwise(sizes))


@pytest.mark.parametrize("schema", [SCHEMA, NO_DENSE], ids=["dense", "no_dense"])
@pytest.mark.parametrize("tower", [PassThrough, partial(DLRMTower, c=1, p=2, out_dim=4)], ids=["pass", "dlrm"])
def test_parameters_are_those_of_the_built_model(tower: Any, schema: FeatureSchema) -> None:
    model = make_model(tower=tower)
    description = describe(model, schema, layout())
    built = model.build(schema)
    assert description["parameters"] == sum(parameter.numel() for parameter in built.parameters())
    assert description["embedding_parameters"] == (3 + 4 + 5 + 6 + 7) * 8
    assert description["tower_parameters"] == sum(p.numel() for p in built.stage.towers.parameters())
    parts = ("embedding_parameters", "tower_parameters", "dense_parameters")
    assert description["parameters"] == sum(description[part] for part in parts)


def test_describing_leaves_the_model_and_random_numbers_alone() -> None:
    model, before = make_model(), torch.get_rng_state()
    describe(model, SCHEMA, layout())
    assert model.model is None and not list(model.parameters())
    assert torch.equal(torch.get_rng_state(), before)
    assert model.build(SCHEMA).stage.embeddings.state_dict()  # tables are no longer deferred


def test_towers_and_compression() -> None:
    description = describe(make_model(), SCHEMA, layout())
    keys = ("features", "in_features", "out_features", "out_dim")
    assert [{key: tower[key] for key in keys} for tower in description["towers"]] == [
        {"features": ["a", "d", "b"], "in_features": 3, "out_features": 5, "out_dim": 4},
        {"features": ["c", "e"], "in_features": 2, "out_features": 4, "out_dim": 4},
    ]
    # Elements entering the towers over elements leaving them.
    assert description["compression_ratio"] == 5 * 8 / (9 * 4)
    assert describe(make_model(tower=PassThrough), SCHEMA, layout())["compression_ratio"] == 1


def test_flops_equal_a_hand_count() -> None:
    # DLRMTower c=1, p=2, D=4, N=8: mixes F_t*N -> 2*4 once, projections 8 -> 4 for each feature.
    towers = sum(chain(features * 8, 2 * 4) + features * chain(8, 4) for features in (3, 2))
    num_vectors = 5 + 4 + 1  # outputs of both towers, and the bottom arch's
    interaction = num_vectors**2 * 4  # the full n*n*D product
    over = chain(4 + num_vectors * (num_vectors - 1) // 2, 16, 6, 1)
    multiply_adds = chain(3, 10, 4) + towers + interaction + over
    # A multiply-add is 2 FLOPs, and each has two more for its gradients; none for that of the numeric columns.
    expected = 6 * multiply_adds - 2 * chain(3, 10)
    assert describe(make_model(), SCHEMA, layout())["mflops_per_sample"] * 1e6 == pytest.approx(expected, rel=1e-12)


def test_flops_without_numeric_columns_and_tower_modules_equal_a_hand_count() -> None:
    expected = 6 * (5**2 * 8 + chain(5 * 4 // 2, 16, 6, 1))
    description = describe(make_model(tower=PassThrough), NO_DENSE, layout())
    assert description["mflops_per_sample"] * 1e6 == pytest.approx(expected, rel=1e-12)


CRITEO = FeatureSchema(
    categorical=[CategoricalFeature(name=f"C{i}", num_embeddings=177_944_275 // 26) for i in range(26)],
    dense=[f"I{i}" for i in range(13)],
)


@pytest.mark.parametrize(
    ("options", "mflops"),
    [
        ({"top": partial(DLRM, bottom_layers=[512, 256], over_layers=[1024, 1024, 512, 256])}, 14.74),
        (
            {
                "num_towers": 8,
                "tower": partial(DLRMTower, c=1, p=0, out_dim=64),
                "top": partial(DLRM, bottom_layers=[512, 256], over_layers=[1024, 512, 256]),
            },
            8.95,
        ),
    ],
    ids=["DLRM", "DMT 8T-DLRM"],
)
def test_the_papers_models_cost_what_table_4_says(options: dict[str, Any], mflops: float) -> None:
    model = ClickModel(**({"embedding_dim": 128, "tower": PassThrough} | options))
    description = describe(model, CRITEO, layout("torchrec", world_size=16, ranks_per_host=8))
    # Table 4 prints three or four digits.
    assert description["mflops_per_sample"] == pytest.approx(mflops, rel=1e-3)
    assert description["parameters"] / 1e9 == pytest.approx(22.78, rel=1e-3)
    assert description["compression_ratio"] == (2 if "tower" in options else 1)


def test_bytes_across_two_hosts_of_one_rank_equal_a_hand_count() -> None:
    description = describe(make_model(), SCHEMA, layout())
    batch = 32  # of one rank; half of everything is the other host's
    ids = 4 * batch * 5 / 2
    outputs = 4 * batch * 9 * 4 / 2
    ring = 2 * (2 - 1) / 2 * 4 * description["dense_parameters"]
    sent = description["bytes_per_iteration"]
    assert sent["cross_host"] == ids + 2 * outputs + ring
    assert sent["intra_host"] == 0
    assert sent["by_purpose"]["embeddings_peer"] == {"intra_host": 0, "cross_host": outputs}


def test_sptt_keeps_inside_hosts_what_flat_sends_across() -> None:
    sptt, flat = (
        describe(make_model(), SCHEMA, layout(strategy, world_size=4, ranks_per_host=2))["bytes_per_iteration"]
        for strategy in ("sptt", "torchrec")
    )
    assert sptt["intra_host"] > 0
    # Flat: (G-L)/G of B=16 samples' 5 embeddings of 8 floats. SPTT: (P-1)/P of 9 outputs of 4 floats.
    assert flat["by_purpose"]["embeddings"]["cross_host"] == 16 * 5 * 8 * 4 / 2
    assert sptt["by_purpose"]["embeddings_peer"]["cross_host"] == 16 * 9 * 4 * 4 / 2


def test_a_single_process_sends_nothing() -> None:
    description = describe(make_model(), SCHEMA, layout("single", world_size=1))
    assert description["bytes_per_iteration"] == {"intra_host": 0, "cross_host": 0, "by_purpose": {}}


@pytest.mark.parametrize(("name", "state"), [("sgd", 0), ("rowwise_adagrad", 1), ("adagrad", 8)])
def test_memory_is_the_largest_ranks(name: Any, state: int) -> None:
    model = make_model(embedding_optimizer=EmbeddingOptimizer(name=name))
    description = describe(model, SCHEMA, layout())
    memory = description["memory_bytes_per_rank"]
    # Tower 0 has tables of 3, 6 and 4 rows, tower 1 of 5 and 7; weights and the optimiser's state, float32.
    assert memory["embedding_tables"] == max(13, 12) * (8 + state) * 4
    # Weights and gradients of the dense layers and of tower 0, the larger one: 3*8 -> 8 and 8 -> 4, with biases.
    tower = 24 * 8 + 8 + 8 * 4 + 4
    assert memory["dense_layers"] == 2 * 4 * (description["dense_parameters"] + tower)
