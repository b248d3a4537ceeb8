"""match_by_name: a saved optimiser fits another order of the parameters, and a subset of them."""

import copy

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, Optimizer

from dmt.errors import UserInputError
from dmt.modules.optimizers import match_by_name

NAMES = ["bottom.weight", "bottom.bias", "tower.weight", "tower.bias", "over.weight", "over.bias"]


def make_model() -> nn.Module:
    # All weights have one shape, so that a state matched to the wrong one does not show by its size.
    return nn.ModuleDict({name: nn.Linear(3, 3) for name in ("bottom", "tower", "over")})


def make_optimizer(model: nn.Module, *groups: list[str]) -> Optimizer:
    """Adam with one parameter group for each list of names, of its own learning rate."""
    optimizer = Adam([{"params": [model.get_parameter(n) for n in names]} for names in groups], lr=0.1)
    match_by_name(optimizer, model)
    return optimizer


def step(model: nn.Module, optimizer: Optimizer, seed: int) -> None:
    """One step on gradients that depend on the seed and the parameter's name only."""
    for index, name in enumerate(NAMES):
        parameter = model.get_parameter(name)
        generator = torch.Generator().manual_seed(seed + index)
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    optimizer.step()


def trained(seed: int, *groups: list[str]) -> tuple[nn.Module, Optimizer]:
    model = make_model()
    optimizer = make_optimizer(model, *groups)
    for index in range(3):
        step(model, optimizer, seed + 100 * index)
    return model, optimizer


def moments(model: nn.Module, optimizer: Optimizer, name: str) -> torch.Tensor:
    return optimizer.state[model.get_parameter(name)]["exp_avg"]


def test_state_survives_another_order_and_training_goes_on_alike(seed: int) -> None:
    model, optimizer = trained(seed, NAMES)
    other = copy.deepcopy(model)
    other_optimizer = make_optimizer(other, NAMES[::-1])
    # A copy, as a file would be: torch's load_state_dict keeps the very tensors it is given.
    other_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for name in NAMES:
        assert torch.equal(moments(other, other_optimizer, name), moments(model, optimizer, name))
    step(model, optimizer, seed + 7)
    step(other, other_optimizer, seed + 7)
    for name in NAMES:  # bit for bit: every parameter is updated on its own
        assert torch.equal(other.get_parameter(name), model.get_parameter(name)), name


def test_a_subset_takes_its_own_state(seed: int) -> None:
    """A rank under SPTT has some of the towers only."""
    model, optimizer = trained(seed, NAMES)
    subset = ["over.weight", "tower.bias", "tower.weight"]
    part = make_optimizer(other := make_model(), subset)
    part.load_state_dict(optimizer.state_dict())
    for name in subset:
        assert torch.equal(moments(other, part, name), moments(model, optimizer, name))
    assert len(part.state) == len(subset)


def test_what_was_loaded_can_be_saved_and_loaded_again(seed: int) -> None:
    model, optimizer = trained(seed, NAMES)
    middle = make_optimizer(make_model(), NAMES[::-1])
    middle.load_state_dict(optimizer.state_dict())
    last = make_optimizer(other := make_model(), NAMES)
    last.load_state_dict(middle.state_dict())
    for name in NAMES:
        assert torch.equal(moments(other, last, name), moments(model, optimizer, name))


def test_groups_keep_their_settings_and_may_share_parameters_out_anew(seed: int) -> None:
    model, optimizer = trained(seed, NAMES[:2], NAMES[2:])
    optimizer.param_groups[0]["lr"], optimizer.param_groups[1]["lr"] = 0.5, 0.25
    anew = make_optimizer(other := make_model(), NAMES[3:], NAMES[:3])
    anew.load_state_dict(optimizer.state_dict())
    assert [group["lr"] for group in anew.param_groups] == [0.5, 0.25]
    assert [group["param_names"] for group in anew.state_dict()["param_groups"]] == [NAMES[3:], NAMES[:3]]
    for name in NAMES:
        assert torch.equal(moments(other, anew, name), moments(model, optimizer, name))


def test_parameters_without_state_stay_without(seed: int) -> None:
    model = make_model()
    optimizer = make_optimizer(model, NAMES)
    other = make_optimizer(make_model(), NAMES[::-1])
    other.load_state_dict(optimizer.state_dict())  # not a step yet
    assert not other.state
    model.get_parameter("over.bias").grad = torch.ones(3)
    optimizer.step()
    last = make_model()
    other = make_optimizer(last, NAMES[::-1])
    other.load_state_dict(optimizer.state_dict())
    assert list(other.state) == [last.get_parameter("over.bias")]


def test_a_group_may_be_added_later_and_finds_its_state_by_name(seed: int) -> None:
    """As Lightning's BaseFinetuning adds what it unfreezes."""

    def extended(model: nn.Module, order: list[str], learning_rate: float) -> Optimizer:
        optimizer = make_optimizer(model, order[:4])
        match_by_name(optimizer, model)  # once by the model, and once by the Strategy
        optimizer.add_param_group({"params": [model.get_parameter(n) for n in order[4:]], "lr": learning_rate})
        return optimizer

    optimizer = extended(model := make_model(), NAMES, 0.2)
    step(model, optimizer, seed)
    anew = extended(other := make_model(), NAMES[::-1], 0.3)
    anew.load_state_dict(optimizer.state_dict())
    assert [group["lr"] for group in anew.param_groups] == [0.1, 0.2]
    assert [group["param_names"] for group in anew.state_dict()["param_groups"]] == [NAMES[:1:-1], NAMES[1::-1]]
    for name in NAMES:
        assert torch.equal(moments(other, anew, name), moments(model, optimizer, name))


def test_an_unknown_name_is_refused(seed: int) -> None:
    _, optimizer = trained(seed, NAMES[:4])
    with pytest.raises(UserInputError, match=r"no state of 'over\.weight'; it belongs to another model"):
        make_optimizer(make_model(), NAMES[2:]).load_state_dict(optimizer.state_dict())


def test_another_number_of_groups_is_refused(seed: int) -> None:
    _, optimizer = trained(seed, NAMES)
    with pytest.raises(UserInputError, match="1 parameter groups, this run's has 2; resume with the optimizer"):
        make_optimizer(make_model(), NAMES[:1], NAMES[1:]).load_state_dict(optimizer.state_dict())


def test_a_state_without_names_is_matched_by_position(seed: int) -> None:
    model = make_model()
    plain = SGD(model.parameters(), lr=0.1, momentum=0.9)
    step(model, plain, seed)
    named = SGD(model.parameters(), lr=0.1, momentum=0.9)
    match_by_name(named, model)
    named.load_state_dict(plain.state_dict())
    for parameter in model.parameters():
        assert torch.equal(named.state[parameter]["momentum_buffer"], plain.state[parameter]["momentum_buffer"])
