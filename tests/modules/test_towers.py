"""Tower modules against the paper's listing 1, written out."""

import random
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from dmt.errors import UserInputError
from dmt.modules import DCNTower, DLRMTower, DotTower, GatedTower, MultiTower, PassThrough
from dmt.modules.towers import ProjectedTower, TowerFactory, check_tower, orthogonal_linear

# Dot products of up to 7 * 12 = 84 float32 values of order 1 in another order: rounding of about
# sqrt(84) * 6e-8 = 6e-7; 1e-5 leaves a factor ten.
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}
# Up to three cross layers, each a product with values of order up to 10: errors of the one before are multiplied.
CROSSED_TOLERANCE = {"rtol": 1e-4, "atol": 1e-3}


def listing_1(tower: DLRMTower, embeddings: Tensor) -> Tensor:
    """o1 = Linear(F_t*N -> p*D) of all features, o2 = Linear(N -> c*D) of each; p vectors, then c a feature."""
    num_features, dim = embeddings.shape[1:]
    outputs = []
    if tower.p:
        weight = tower.mix.weight.view(tower.p, tower.out_dim, num_features, dim)
        bias = tower.mix.bias.view(tower.p, tower.out_dim)
        outputs.append(torch.einsum("pdfn,bfn->bpd", weight, embeddings) + bias)
    if tower.c:
        weight = tower.project.weight.view(tower.c, tower.out_dim, dim)
        bias = tower.project.bias.view(tower.c, tower.out_dim)
        each = torch.einsum("cdn,bfn->bfcd", weight, embeddings) + bias
        outputs += [each[:, feature] for feature in range(num_features)]
    return torch.cat(outputs, dim=1)


@pytest.mark.parametrize(("c", "p"), [(1, 0), (0, 1), (0, 3), (2, 0), (1, 1), (3, 2)])
def test_dlrm_tower_equals_the_papers_listing(seed: int, rng: random.Random, c: int, p: int) -> None:
    num_features, dim, out_dim = rng.randint(1, 7), rng.choice([4, 8, 12]), rng.randint(1, 9)
    tower = DLRMTower(num_features, dim, c=c, p=p, out_dim=out_dim)
    embeddings = torch.randn(5, num_features, dim)
    output = tower(embeddings)
    assert output.shape == (5, c * num_features + p, out_dim) == (5, tower.out_features, tower.out_dim)
    torch.testing.assert_close(output, listing_1(tower, embeddings), **TOLERANCE)


def test_mixes_see_every_feature_and_projections_one() -> None:
    tower = DLRMTower(3, 4, c=2, p=1, out_dim=5)
    embeddings = torch.randn(1, 3, 4, requires_grad=True)
    output = tower(embeddings)[0]  # (1 + 3 * 2, 5)
    sources = []
    for vector in output:
        [gradient] = torch.autograd.grad(vector.sum(), embeddings, retain_graph=True)
        sources.append(gradient[0].any(dim=1).nonzero().flatten().tolist())
    assert sources == [[0, 1, 2], [0], [0], [1], [1], [2], [2]]


def listing_2(tower: DCNTower, embeddings: Tensor) -> Tensor:
    """Cross layers x_(l+1) = x_0 * (W V x_l + b) + x_l over all of a tower's columns, then a linear layer."""
    start = crossed = embeddings.flatten(1)
    net = tower.cross
    for down, up, bias in zip(net.V_kernels, net.W_kernels, net.bias, strict=True):
        crossed = start * (torch.einsum("nr,rm,bm->bn", up, down, crossed) + bias) + crossed
    if tower.project is not None:
        crossed = torch.einsum("on,bn->bo", tower.project.weight, crossed) + tower.project.bias
    return crossed.reshape(len(embeddings), tower.out_features, tower.out_dim)


@pytest.mark.parametrize("num_outputs", [None, 1, 3])
def test_dcn_tower_equals_the_papers_listing(seed: int, rng: random.Random, num_outputs: int | None) -> None:
    num_features, dim, out_dim = rng.randint(1, 7), rng.choice([4, 8, 12]), rng.randint(1, 9)
    options = {"num_layers": rng.randint(1, 3), "low_rank": rng.randint(1, 5)}
    tower = DCNTower(num_features, dim, out_dim=out_dim, num_outputs=num_outputs, **options)
    for bias in tower.cross.bias:
        torch.nn.init.normal_(bias)  # TorchRec's are zero at first
    output = tower(embeddings := torch.randn(5, num_features, dim))
    assert output.shape == (5, num_outputs or num_features, out_dim) == (5, tower.out_features, tower.out_dim)
    torch.testing.assert_close(output, listing_2(tower, embeddings), **CROSSED_TOLERANCE)


def test_a_dcn_tower_of_one_feature_may_go_without_projection(seed: int) -> None:
    tower = DCNTower(1, 8, out_dim=8, num_outputs=3, low_rank=2, project_singletons=False)
    assert tower.project is None and tower.out_features == 1
    torch.testing.assert_close(tower(embeddings := torch.randn(5, 1, 8)), listing_2(tower, embeddings))
    assert DCNTower(2, 8, out_dim=8, low_rank=2, project_singletons=False).project is not None


@pytest.mark.parametrize("num_outputs", [None, 1, 3])
def test_gated_tower_adds_products_of_mixes_to_mixes(seed: int, rng: random.Random, num_outputs: int | None) -> None:
    num_features, dim, out_dim, hidden = rng.randint(1, 7), rng.choice([4, 8]), rng.randint(1, 9), rng.randint(1, 6)
    tower = GatedTower(num_features, dim, out_dim=out_dim, num_outputs=num_outputs, hidden=hidden)
    output = tower(embeddings := torch.randn(5, num_features, dim))
    assert output.shape == (5, num_outputs or num_features, out_dim) == (5, tower.out_features, tower.out_dim)
    flat = embeddings.flatten(1)
    mixes = torch.einsum("hn,bn->bh", tower.factors.weight, flat) + tower.factors.bias
    products = mixes[:, :hidden] * mixes[:, hidden:]
    expected = torch.einsum("on,bn->bo", tower.skip.weight, flat) + tower.skip.bias
    expected += torch.einsum("oh,bh->bo", tower.project.weight, products)
    torch.testing.assert_close(output.flatten(1), expected, **TOLERANCE)


@pytest.mark.parametrize("num_features", [1, 2, 5])
def test_dot_tower_mixes_products_of_its_features_into_their_projections(seed: int, num_features: int) -> None:
    tower = DotTower(num_features, 8, out_dim=3)
    output = tower(embeddings := torch.randn(5, num_features, 8))
    assert output.shape == (5, num_features, 3) == (5, tower.out_features, tower.out_dim)
    linear = tower.project.project
    expected = torch.einsum("dn,bfn->bfd", linear.weight, embeddings) + linear.bias
    pairs = [(i, j) for i in range(num_features) for j in range(i + 1, num_features)]
    for pair, (i, j) in enumerate(pairs):
        products = (embeddings[:, i] * embeddings[:, j]).sum(dim=1)
        expected += torch.einsum("o,b->bo", tower.mix.weight[:, pair], products).view_as(expected)
    assert len(pairs) == (0 if tower.mix is None else tower.mix.in_features)
    torch.testing.assert_close(output, expected, **TOLERANCE)


@pytest.mark.parametrize(("in_features", "out_features"), [(8, 8), (64, 8), (3, 7)])
def test_a_linear_layer_is_orthonormal_at_first(seed: int, in_features: int, out_features: int) -> None:
    layer = orthogonal_linear(in_features, out_features)
    weight = layer.weight.detach()
    gram = weight @ weight.T if out_features <= in_features else weight.T @ weight
    torch.testing.assert_close(gram, torch.eye(len(gram)), **TOLERANCE)
    assert not layer.bias.any()
    # What is left of squared lengths: all, or the part of the dimensions that there is room for.
    kept = weight.square().sum() / in_features
    torch.testing.assert_close(kept, torch.tensor(min(1.0, out_features / in_features)), **TOLERANCE)


@pytest.mark.parametrize(
    "layers",
    [
        lambda: (tower := DLRMTower(3, 8, c=1, p=1, out_dim=4)) and [tower.mix, tower.project],
        lambda: [DCNTower(3, 8, out_dim=4, low_rank=2).project],
        lambda: [GatedTower(3, 8, out_dim=4).skip],
        lambda: [DotTower(3, 8, out_dim=4).project.project],
        lambda: list(ProjectedTower([4, 8], 8, PassThrough(2, 8)).projections.values()),
    ],
    ids=["dlrm", "dcn", "gated", "dot", "projected"],
)
def test_towers_start_from_orthonormal_layers(seed: int, layers: Callable[[], list[nn.Linear]]) -> None:
    for layer in layers():
        singular = torch.linalg.svdvals(layer.weight.detach())
        torch.testing.assert_close(singular, torch.ones_like(singular), **TOLERANCE)


def test_paper_settings_compress_as_the_paper_says() -> None:
    # Section 3.2, N = 128: c=1, p=0, D=64 halves the elements that cross hosts, whatever the tower's size.
    for num_features in (1, 3, 13):
        tower = DLRMTower(num_features, 128, c=1, p=0, out_dim=64)
        assert num_features * 128 / (tower.out_features * tower.out_dim) == 2
    # c=0, p=1, D=128 makes one vector of the whole tower: a ratio of F_t.
    tower = DLRMTower(2, 128, c=0, p=1, out_dim=128)
    assert 2 * 128 / (tower.out_features * tower.out_dim) == 2
    assert tower(torch.zeros(3, 2, 128)).shape == (3, 1, 128)


@pytest.mark.parametrize(
    "factory",
    [
        partial(DLRMTower, c=2, p=1, out_dim=5),
        partial(DCNTower, low_rank=3, out_dim=5),
        partial(GatedTower, hidden=3, out_dim=5),
        partial(DotTower, out_dim=5),
        partial(MultiTower, num_sets=2, tower=partial(DLRMTower, out_dim=5)),
        PassThrough,
    ],
    ids=["dlrm", "dcn", "gated", "dot", "multi", "pass"],
)
def test_samples_are_independent_and_may_be_none(seed: int, factory: TowerFactory) -> None:
    tower = factory(3, 4)
    embeddings = torch.randn(6, 3, 4)
    together = tower(embeddings)
    torch.testing.assert_close(torch.cat([tower(part) for part in embeddings.split([1, 5])]), together, **TOLERANCE)
    assert tower(embeddings[:0]).shape == (0, tower.out_features, tower.out_dim)


def test_pass_through_changes_nothing(seed: int) -> None:
    tower = PassThrough(3, 4)
    embeddings = torch.randn(2, 3, 4)
    assert torch.equal(tower(embeddings), embeddings)
    assert (tower.out_features, tower.out_dim, list(tower.parameters())) == (3, 4, [])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"c": -1, "p": 2, "out_dim": 4}, "DLRMTower c=-1, p=2: give numbers >= 0, not both 0"),
        ({"c": 1, "p": -3, "out_dim": 4}, "DLRMTower c=1, p=-3: give numbers >= 0, not both 0"),
        ({"c": 0, "p": 0, "out_dim": 4}, "DLRMTower c=0, p=0: give numbers >= 0, not both 0"),
        ({"out_dim": 0}, "DLRMTower out_dim=0: give a positive number"),
        ({"out_dim": -8}, "DLRMTower out_dim=-8: give a positive number"),
    ],
)
def test_wrong_sizes_are_named(options: dict, message: str) -> None:
    with pytest.raises(UserInputError, match=f"^{message}$"):
        DLRMTower(3, 4, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"out_dim": 0}, "DCNTower out_dim=0: give a positive number"),
        ({"out_dim": 4, "num_outputs": 0}, "DCNTower num_outputs=0: give a positive number"),
        ({"out_dim": 4, "num_layers": 0}, "DCNTower num_layers=0: give a positive number"),
        ({"out_dim": 4, "low_rank": -2}, "DCNTower low_rank=-2: give a positive number"),
        (
            {"out_dim": 8, "project_singletons": False},
            "DCNTower out_dim=8: with project_singletons=False a tower of one feature keeps its width 4; give "
            "out_dim=4, or project_singletons=True",
        ),
    ],
)
def test_wrong_sizes_of_a_dcn_tower_are_named(options: dict, message: str) -> None:
    with pytest.raises(UserInputError, match=f"^{message}$"):
        DCNTower(1, 4, **options)


@pytest.mark.parametrize("option", ["out_dim", "num_outputs", "hidden"])
def test_wrong_sizes_of_a_gated_tower_are_named(option: str) -> None:
    with pytest.raises(UserInputError, match=f"^GatedTower {option}=0: give a positive number$"):
        GatedTower(3, 4, **{"out_dim": 4, option: 0})


def test_a_wrong_width_of_a_dot_tower_is_named() -> None:
    with pytest.raises(UserInputError, match=r"^DotTower out_dim=0: give a positive number$"):
        DotTower(3, 4, out_dim=0)


class _Counting(nn.Linear):
    def get_extra_state(self) -> dict[str, int]:
        return {"calls": 3}


def test_a_tower_that_keeps_more_than_tensors_is_refused() -> None:
    check_tower(tower := GatedTower(3, 4, out_dim=4))
    tower.skip = _Counting(12, 12)
    with pytest.raises(UserInputError, match=r"^tower GatedTower: _Counting defines get_extra_state.* in buffers$"):
        check_tower(tower)
