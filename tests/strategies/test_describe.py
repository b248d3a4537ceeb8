"""describe(): parameters, FLOPs and bytes against built models, hand counts and the paper."""

import itertools
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dmt.describe import Layout, describe, print_description
from dmt.errors import UserInputError
from dmt.modules import DLRM, ClickModel, DLRMTower, EmbeddingOptimizer, PassThrough, TopArch, TowerModule
from dmt.modules.stage import Stage
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


def layout(
    strategy: str = "sptt", *, world_size: int = 2, ranks_per_host: int = 1, hosts_per_group: int = 1, **options: Any
) -> Layout:
    topology = Topology(world_size=world_size, ranks_per_host=ranks_per_host, hosts_per_group=hosts_per_group)
    options.setdefault("sharding", "table_wise" if strategy == "torchrec" else "auto")
    return Layout(strategy=strategy, topology=topology, global_batch_size=64, **options)


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
    description = describe(make_model(), SCHEMA, layout())
    assert description["mflops_per_sample"] * 1e6 == pytest.approx(expected, rel=1e-12)
    # What runs has one product less, since the gradient of a symmetric matrix is symmetric.
    assert description["mflops_executed"] * 1e6 == pytest.approx(expected - 2 * interaction, rel=1e-12)


def test_flops_without_numeric_columns_and_tower_modules_equal_a_hand_count() -> None:
    expected = 6 * (5**2 * 8 + chain(5 * 4 // 2, 16, 6, 1))
    description = describe(make_model(tower=PassThrough), NO_DENSE, layout())
    assert description["mflops_per_sample"] * 1e6 == pytest.approx(expected, rel=1e-12)


class Asking(TowerModule):
    """Asks for a value, makes a tensor without a device, works in place, and draws."""

    def __init__(self, num_features: int, embedding_dim: int) -> None:
        super().__init__()
        self.out_features, self.out_dim = num_features, embedding_dim
        self.steps = torch.linspace(0, 1, embedding_dim)
        self.layer = nn.Linear(embedding_dim, embedding_dim)

    def forward(self, embeddings: Tensor) -> Tensor:
        embeddings *= 2
        if embeddings.abs().max() > 1e6 or len(embeddings.unique()) == 1:
            raise ValueError("these are no embeddings")
        noise = torch.rand(embeddings.shape[-1]) * self.steps + torch.linspace(0, 1, embeddings.shape[-1])
        return self.layer(embeddings) + noise


class Wide(TopArch):
    """A linear layer, and a weight for each id of the first feature."""

    def __init__(self, stage: Stage, num_dense: int) -> None:
        super().__init__()
        self.stage = stage
        self.layer = nn.Linear(stage.out_features * stage.out_dim + num_dense, 1)
        self.wide = nn.Embedding(3, 1)

    def forward(self, dense_features: Tensor, sparse_features: KeyedJaggedTensor) -> Tensor:
        ids = sparse_features[sparse_features.keys()[0]]
        assert (ids.lengths() == 1).all() and sparse_features.stride() == len(dense_features)
        read = torch.cat([self.stage(sparse_features).flatten(1), dense_features], dim=1)
        return (self.layer(read) + self.wide(ids.values())).squeeze(1)


@pytest.mark.parametrize("weighted", [True, False])
def test_modules_may_ask_for_values_and_ids(weighted: bool) -> None:
    schema = FeatureSchema(categorical=SCHEMA.categorical, dense=SCHEMA.dense, weighted=weighted)
    before = torch.get_rng_state()
    description = describe(make_model(tower=Asking, top=Wide), schema, layout())
    assert torch.equal(torch.get_rng_state(), before)
    expected = 6 * (5 * chain(8, 8) + chain(5 * 8 + 3, 1))  # all read a layer's output, numeric columns too
    assert description["mflops_per_sample"] * 1e6 == pytest.approx(expected, rel=1e-12)


class Attention(PassThrough):
    def forward(self, embeddings: Tensor) -> Tensor:
        return nn.functional.scaled_dot_product_attention(embeddings, embeddings, embeddings)


class Recurrent(TowerModule):
    def __init__(self, num_features: int, embedding_dim: int) -> None:
        super().__init__()
        self.out_features, self.out_dim = num_features, embedding_dim
        self.layer = nn.LSTM(embedding_dim, embedding_dim, batch_first=True)

    def forward(self, embeddings: Tensor) -> Tensor:
        output: Tensor = self.layer(embeddings)[0]
        return output


@pytest.mark.parametrize(
    ("tower", "multiply_adds"), [(Attention, 2 * (9 + 4) * 8), (Recurrent, 5 * (4 * 8 * 8 + 4 * 8 * 8))]
)
def test_kernels_that_torch_does_not_count_are_counted(tower: type[TowerModule], multiply_adds: int) -> None:
    with_it, without = (
        describe(make_model(tower=t), NO_DENSE, layout())["mflops_executed"] for t in (tower, PassThrough)
    )
    # The gradient of a first step's state is not needed; torch may leave it out.
    assert (with_it - without) * 1e6 == pytest.approx(6 * multiply_adds, rel=0.2)


class Failing(PassThrough):
    def forward(self, embeddings: Tensor) -> Tensor:
        return embeddings @ torch.zeros(3, 3)


def test_a_module_that_fails_is_named_with_the_reason_and_the_line() -> None:
    told = r"^tower Failing: it fails on 4 samples \(.*test_describe.py, line \d+\): RuntimeError: .*; mend Failing"
    for options in ({}, {"table_dims": {"a": 4}}):
        with pytest.raises(UserInputError, match=told):
            describe(make_model(tower=Failing, **options), SCHEMA, layout())


class Listed(PassThrough):
    """Keeps a layer where torch does not see it."""

    def __init__(self, num_features: int, embedding_dim: int) -> None:
        super().__init__(num_features, embedding_dim)
        self.layers = [nn.Linear(embedding_dim, embedding_dim)]

    def forward(self, embeddings: Tensor) -> Tensor:
        output: Tensor = self.layers[0](embeddings)
        return output


class Scaled(DLRM):
    """Has a weight that is no parameter."""

    def __init__(self, stage: Stage, num_dense: int) -> None:
        super().__init__(stage, num_dense, over_layers=[4])
        self.scale = torch.ones(1, requires_grad=True)

    def forward(self, dense_features: Tensor, sparse_features: KeyedJaggedTensor) -> Tensor:
        return super().forward(dense_features, sparse_features) * self.scale


def test_weights_that_torch_does_not_know_are_told() -> None:
    for options in ({}, {"table_dims": {"a": 4}}):
        with pytest.raises(UserInputError, match=r"^tower Listed: .* shape \(8,.* keep layers in nn.ModuleList"):
            describe(make_model(tower=Listed, **options), SCHEMA, layout())
    with pytest.raises(UserInputError, match=r"^top Scaled: it uses weights of shape \(1,\) .* as nn.Parameter$"):
        describe(make_model(top=Scaled), SCHEMA, layout())


class Blind(DLRMTower):
    def __init__(self, num_features: int, embedding_dim: int) -> None:
        super().__init__(num_features, embedding_dim, out_dim=4)

    @torch.no_grad()
    def forward(self, embeddings: Tensor) -> Tensor:
        return super().forward(embeddings)


class Dropped(PassThrough):
    """Leaves its features out, as an ablation may: there is nothing in it to train."""

    def forward(self, embeddings: Tensor) -> Tensor:
        return torch.zeros_like(embeddings)


class BlindTop(Scaled):
    def forward(self, dense_features: Tensor, sparse_features: KeyedJaggedTensor) -> Tensor:
        return super().forward(dense_features, sparse_features).detach()


class Detached(Scaled):
    """Trains its own layers, and nothing before them."""

    def forward(self, dense_features: Tensor, sparse_features: KeyedJaggedTensor) -> Tensor:
        return self.over(self.interaction(self.stage(sparse_features).detach(), None)).squeeze(1)


class Unused(DLRM):
    def __init__(self, stage: Stage, num_dense: int) -> None:
        super().__init__(stage, num_dense, over_layers=[4])
        self.spare = nn.Linear(2, 2)


class UnusedInTower(DLRMTower):
    def __init__(self, num_features: int, embedding_dim: int) -> None:
        super().__init__(num_features, embedding_dim, out_dim=4)
        self.spare = nn.Linear(2, 2, bias=False)


def test_modules_that_no_gradient_reaches_are_told() -> None:
    with pytest.raises(UserInputError, match=r"^top Detached: no gradient goes back from its logits to the towers, so"):
        describe(make_model(top=Detached), NO_DENSE, layout())
    for options in ({}, {"table_dims": {"a": 4}}):
        with pytest.raises(UserInputError, match=r"^tower Blind: no gradient goes back .* leave torch.no_grad\(\)"):
            describe(make_model(tower=Blind, **options), SCHEMA, layout())
    with pytest.raises(UserInputError, match=r"^top BlindTop: no gradient goes back .* out of forward$"):
        describe(make_model(top=BlindTop), SCHEMA, layout())
    describe(make_model(tower=Dropped), SCHEMA, layout())


@pytest.mark.parametrize("strategy", ["sptt", "torchrec"])
def test_weights_that_no_logit_depends_on_are_told_where_ranks_average_gradients(strategy: str) -> None:
    for options in ({"top": Unused}, {"tower": UnusedInTower}):
        describe(make_model(**options), SCHEMA, layout("single", world_size=1))
    with pytest.raises(UserInputError, match=r"^top Unused: no logit depends on its spare.weight and 1 more, and .*"):
        describe(make_model(top=Unused), SCHEMA, layout(strategy))
    with pytest.raises(UserInputError, match=r"^top DLRM: no logit depends on its stage.towers.0.* and 1 more, and .*"):
        describe(make_model(tower=UnusedInTower), SCHEMA, layout(strategy))


class Normed(DLRMTower):
    def __init__(self, num_features: int, embedding_dim: int, norm: type[nn.Module]) -> None:
        super().__init__(num_features, embedding_dim, c=0, p=2, out_dim=4)
        self.norm = norm(2 * 4)

    def forward(self, embeddings: Tensor) -> Tensor:
        output: Tensor = self.norm(super().forward(embeddings).flatten(1)).square()
        return output.view(-1, 2, 4)


class NormedTop(DLRM):
    def __init__(self, stage: Stage, num_dense: int, norm: type[nn.Module]) -> None:
        super().__init__(stage, num_dense, over_layers=[4])
        self.norm = norm(num_dense)

    def forward(self, dense_features: Tensor, sparse_features: KeyedJaggedTensor) -> Tensor:
        return super().forward(self.norm(dense_features), sparse_features)


@pytest.mark.parametrize("strategy", ["sptt", "torchrec"])
def test_samples_that_mix_are_told_where_ranks_share_a_batch(strategy: str) -> None:
    for table_dims in ({}, {"a": 4}):
        mixing = make_model(tower=partial(Normed, norm=nn.BatchNorm1d), table_dims=table_dims)
        describe(mixing, SCHEMA, layout("single", world_size=1))
        with pytest.raises(UserInputError, match=r"^tower Normed: .* for a sample depends on .* nn.LayerNorm in place"):
            describe(mixing, SCHEMA, layout(strategy))
        describe(make_model(tower=partial(Normed, norm=nn.LayerNorm), table_dims=table_dims), SCHEMA, layout(strategy))
    with pytest.raises(UserInputError, match=r"^top NormedTop: .* for a sample depends on .* or use one rank$"):
        describe(make_model(top=partial(NormedTop, norm=nn.BatchNorm1d)), SCHEMA, layout(strategy))
    describe(make_model(top=partial(NormedTop, norm=nn.LayerNorm)), SCHEMA, layout(strategy))


def test_bytes_across_two_hosts_of_one_rank_equal_a_hand_count() -> None:
    description = describe(make_model(), SCHEMA, layout())
    batch = 32  # of one rank; half of everything is the other host's
    ids = 1 * batch * 5 / 2  # tables of 3 to 7 rows: a byte names them
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


SHARED = FeatureSchema(
    categorical=[
        CategoricalFeature(name="a", num_embeddings=8, table="city"),
        CategoricalFeature(name="b", num_embeddings=8, table="city"),
        CategoricalFeature(name="c", num_embeddings=20, multi_hot=True, mean_length=3.0),
        CategoricalFeature(name="d", num_embeddings=6),
    ]
)


def shared_model(**options: Any) -> ClickModel:
    """Two towers; a and b share a table of 16 columns, d has 4, c the model's 8."""
    plan = TowerPlan(towers=[["a", "b", "d"], ["c"]])
    return make_model(**({"plan": plan, "table_dims": {"city": 16, "d": 4}} | options))


def test_shared_tables_and_tables_of_other_widths_equal_hand_counts() -> None:
    model = shared_model(embedding_optimizer=EmbeddingOptimizer(name="rowwise_adagrad"))
    description = describe(model, SHARED, layout())
    assert description["parameters"] == sum(parameter.numel() for parameter in model.build(SHARED).parameters())
    assert description["embedding_parameters"] == 8 * 16 + 20 * 8 + 6 * 4
    # Elements entering: 16 + 16 + 4 + 8; leaving: (1*3 + 2) + (1*1 + 2) vectors of 4.
    assert description["compression_ratio"] == 44 / 32
    first, second = description["towers"]
    assert (first["in_features"], first["table_dims"], first["module"]) == (3, [16, 16, 4], "DLRMTower")
    assert (second["table_dims"], second["out_features"], second["out_dim"]) == ([8], 3, 4)
    # Tower 0's rank holds city and d, tower 1's rank c, which is the larger one; a row has one accumulator.
    assert description["memory_bytes_per_rank"]["embedding_tables"] == 4 * max(8 * 17 + 6 * 5, 20 * 9)
    # B = 32; of each rank's ids and lengths those of the other rank's tower: a mean of half of all.
    sent = description["bytes_per_iteration"]["by_purpose"]
    assert sent["ids_peer"]["cross_host"] == 1 * 32 * (1 + 1 + 3 + 1) / 2
    assert sent["lengths_peer"]["cross_host"] == 4 * 32 * 1 / 2
    # Linear layers without bias bring a, b (16) and d (4) to 8 columns.
    towers = 16 * 8 * 2 + 4 * 8 + chain(3 * 8, 2 * 4) + 3 * chain(8, 4) + chain(8, 2 * 4) + chain(8, 4)
    over = chain(8 * 7 // 2, 16, 6, 1)
    assert description["mflops_per_sample"] * 1e6 == pytest.approx(6 * (towers + 8**2 * 4 + over), rel=1e-12)


def test_tables_say_how_they_are_cut_and_where_they_are() -> None:
    cut = {"city": "column_wise", "c": "row_wise", "d": "table_wise"}
    model = shared_model(embedding_optimizer=EmbeddingOptimizer(name="sgd"))
    description = describe(model, SHARED, layout(world_size=4, ranks_per_host=2, sharding=cut))
    told = {table["name"]: (table["sharding"], table["ranks"]) for table in description["tables"]}
    assert {"city": ("column_wise", [0, 1]), "c": ("row_wise", [2, 3])}.items() <= told.items()
    assert told["d"][0] == "table_wise" and len(told["d"][1]) == 1
    assert [table["features"] for table in description["tables"]] == [["a", "b"], ["d"], ["c"]]
    # Ids of a column-wise table go to every seat, those of a row-wise table to one.
    plain = describe(model, SHARED, layout(world_size=4, ranks_per_host=2, sharding="table_wise"))
    extra, whole = (d["bytes_per_iteration"]["by_purpose"]["ids_group"]["intra_host"] for d in (description, plain))
    assert extra - whole == 4 * 16 * (2 - 1) / 2 * 2  # B = 16, (S-1)/S of two more lookups a sample


def test_a_kind_that_the_optimizer_cannot_have_is_refused_as_in_a_run() -> None:
    model = make_model(embedding_optimizer=EmbeddingOptimizer(name="rowwise_adagrad"))
    with pytest.raises(UserInputError, match=r"^sharding=column_wise: rowwise_adagrad"):
        describe(model, SCHEMA, layout(world_size=2, ranks_per_host=2, sharding="column_wise"))


@pytest.mark.parametrize(
    ("precisions", "sizes"), [(("bf16", "fp32"), (2 * 4, 4 * 4)), (("int8", "fp16"), (4 + 8, 2 * 4))]
)
def test_lower_precision_narrows_what_crosses_hosts(precisions: tuple[str, str], sizes: tuple[int, int]) -> None:
    options = dict(zip(("forward_precision", "backward_precision"), precisions, strict=True))
    description = describe(make_model(), SCHEMA, layout(**options))
    sent = description["bytes_per_iteration"]["by_purpose"]
    # 9 outputs of 4 columns, B = 32, half of them the other host's.
    assert sent["embeddings_peer"]["cross_host"] == 32 * 9 * sizes[0] / 2
    assert sent["embeddings_peer_backward"]["cross_host"] == 32 * 9 * sizes[1] / 2
    assert (description["layout"]["forward_precision"], description["layout"]["backward_precision"]) == precisions


def test_a_group_of_two_hosts_holds_all_towers_and_sends_inside_itself() -> None:
    description = describe(make_model(), SCHEMA, layout(world_size=4, ranks_per_host=2, hosts_per_group=2))
    assert {tower["host_group"] for tower in description["towers"]} == {0}
    sent = description["bytes_per_iteration"]["by_purpose"]
    assert "embeddings_peer" not in sent and "ids_peer" not in sent
    # Of three mates two are on the other host; B = 16 samples' 5 embeddings of 8 floats, looked up on four ranks.
    assert sent["embeddings_group"]["cross_host"] == 4 * 16 * 5 * 8 * 2 / 4
    assert sent["embeddings_group"]["intra_host"] == 4 * 16 * 5 * 8 * 1 / 4
    assert description["layout"]["hosts_per_group"] == 2


def test_the_printed_tables_say_what_the_json_says(capsys: pytest.CaptureFixture[str]) -> None:
    options = {"sharding": {"c": "row_wise"}, "forward_precision": "bf16"}
    description = describe(shared_model(), SHARED, layout(world_size=4, ranks_per_host=2, **options))
    print_description(description)
    shown = " ".join(capsys.readouterr().out.split())  # lines are wrapped to the terminal
    cross = description["bytes_per_iteration"]["cross_host"]
    for words in ("16 + 16 + 4", "1 x 8", "row_wise", "bf16 forward and fp32 backward", f"{cross / 1e6:,.3f} MB"):
        assert words in shown, words


def test_names_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    names = ["[/x]", ":smile:"]
    schema = FeatureSchema(categorical=[CategoricalFeature(name=name, num_embeddings=3) for name in names])
    model = make_model(plan=TowerPlan(towers=[names]), top=DLRM)
    print_description(describe(model, schema, layout("single", world_size=1)))
    assert "[/x] :smile:" in capsys.readouterr().out


@pytest.mark.parametrize(("device_type", "size"), [("cpu", 1 + 2), ("cuda", 4 + 4)])
def test_ids_between_hosts_are_as_narrow_as_their_tables_let_them_be(device_type: str, size: int) -> None:
    schema = FeatureSchema(
        categorical=[
            CategoricalFeature(name="a", num_embeddings=256),
            CategoricalFeature(name="b", num_embeddings=257),
        ]
    )
    model = make_model(plan=TowerPlan(towers=[["a"], ["b"]]))
    sent = describe(model, schema, layout(device_type=device_type))["bytes_per_iteration"]["by_purpose"]
    assert sent["ids_peer"]["cross_host"] == 32 * size / 2
