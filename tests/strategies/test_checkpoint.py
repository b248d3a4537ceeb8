"""Checkpoints of tensors that lie in blocks on several ranks."""

import pickle
import random
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint import CheckpointException

from dmt.errors import UserInputError
from dmt.modules import ClickModel
from dmt.modules.shards import TensorShard
from dmt.strategies.checkpoint import CheckpointDirectory, TowerCheckpointIO
from dmt.whole_files import find_whole
from tests.distributed.harness import run_ranks
from tests.distributed.training_cases import Run, load_state, make_model
from tests.strategies import checkpoint_cases as cases


def load(path: Path) -> dict:
    return TowerCheckpointIO().load_checkpoint(path, weights_only=False)


@pytest.mark.parametrize("world_size", [1, 4])
def test_any_layout_reads_what_any_other_wrote(world_size: int, seed: int, tmp_path: Path) -> None:
    assert run_ranks(cases.write_and_read, world_size=world_size, args=(str(tmp_path), seed, 5)) == [5] * world_size
    for index in range(5):
        alone = load(tmp_path / f"{index}.ckpt")  # a single process, without torch.distributed
        expected = cases.draw_tensors(random.Random(seed + index))
        extra = alone["state_dict"].pop("stage.extra_state")
        assert extra == {"nested": {"list": [1, 2]}}
        torch.testing.assert_close(
            alone.pop("state_dict"), expected | {"top.weight": torch.full((2, 3), 0.5)}, rtol=0, atol=0
        )
        assert alone == cases.REST


def test_what_several_ranks_hold_is_written_once(tmp_path: Path) -> None:
    path, num_floats = tmp_path / "a.ckpt", 50_000
    run_ranks(cases.write_what_all_ranks_hold, world_size=4, args=(str(path), num_floats))
    state = load(path)["state_dict"]
    for name in ("tower", "dense"):
        torch.testing.assert_close(state[name], torch.arange(float(num_floats)), rtol=0, atol=0)
    size = sum(file.stat().st_size for file in path.iterdir())
    # Once each, 4 bytes a float; what the format adds is some kB a file, a second copy would be 200 kB.
    assert 8 * num_floats <= size < 8 * num_floats + 50_000


def test_blocks_must_be_the_whole_tensor(tmp_path: Path) -> None:
    run_ranks(cases.write_incomplete, world_size=2, args=(str(tmp_path / "a.ckpt"),))


def test_a_run_killed_while_it_replaces_a_checkpoint_leaves_one(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    run_ranks(cases.overwrite_and_die, world_size=1, args=(str(path),))
    assert not path.exists()
    torch.testing.assert_close(load(path)["state_dict"]["w"], torch.ones(3), rtol=0, atol=0)
    assert find_whole(tmp_path / "other.ckpt") == tmp_path / "other.ckpt"

    run_ranks(cases.overwrite, world_size=1, args=(str(path), 3.0))
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.ckpt"]
    torch.testing.assert_close(load(path)["state_dict"]["w"], torch.full((3,), 3.0), rtol=0, atol=0)


def test_a_directory_replaces_a_single_process_file_of_its_name(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    path.write_text("a checkpoint")
    run_ranks(cases.overwrite, world_size=1, args=(str(path), 3.0))
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.ckpt"]
    assert path.is_dir()


def test_a_block_of_something_else_is_not_filled(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    run_ranks(cases.overwrite, world_size=1, args=(str(path), 3.0))
    block = torch.zeros(2)
    with pytest.raises(CheckpointException, match=r"'state_dict.w' has shape \(4,\), in the checkpoint \(3,\)"):
        CheckpointDirectory(path).load_tensors({"w": [TensorShard(tensor=block, offsets=(1,), shape=(4,))]})
    with pytest.raises(CheckpointException, match=r"no tensor 'state_dict.v'"):
        CheckpointDirectory(path).load_tensors({"v": [TensorShard.whole(block)]})
    assert not block.any()


def written(path: Path) -> Path:
    """A small checkpoint directory of one rank."""
    run_ranks(cases.overwrite, world_size=1, args=(str(path), 3.0))
    return path


@pytest.mark.parametrize("file", list(cases.DAMAGES))
def test_what_is_broken_is_named_in_one_line(file: str, tmp_path: Path) -> None:
    path = written(tmp_path / "a.ckpt")
    for damage, told in cases.DAMAGES[file].items():
        cases.damage(path / file, damage)
        with pytest.raises(UserInputError, match=told) as refused:
            load(path)
        assert f"checkpoint {path}" in str(refused.value) and len(str(refused.value).splitlines()) == 1


def test_a_broken_file_and_none_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    with pytest.raises(UserInputError, match=r"checkpoint .*a.ckpt: no such checkpoint"):
        load(path)
    torch.save({"state_dict": {"w": torch.ones(1000)}}, path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(UserInputError, match=r"a.ckpt: it cannot be read \(PytorchStreamReader.*; give") as refused:
        load(path)
    assert len(str(refused.value).splitlines()) == 1


def test_objects_of_a_stranger_are_not_made(tmp_path: Path) -> None:
    """Neither by default nor under weights_only: from what is beside the tensors, or from an extra state among them."""
    path, trap = written(tmp_path / "a.ckpt"), tmp_path / "sprung"
    rest = torch.load(path / "rest.pt", weights_only=True)
    torch.save(rest | {"x": cases.Trap(trap)}, path / "rest.pt")
    run_ranks(cases.write_trap, world_size=1, args=(str(tmp_path / "b.ckpt"), str(trap)))
    for checkpoint in (path, tmp_path / "b.ckpt"):
        for weights_only in (True, None):
            with pytest.raises(UserInputError, match=r"it holds \w+.mkdir, which .*; if you trust"):
                TowerCheckpointIO().load_checkpoint(checkpoint, weights_only=weights_only)
        assert not trap.exists()
        load(checkpoint)
        trap.rmdir()

    (path / ".metadata").write_bytes(pickle.dumps(cases.Trap(trap)))  # which no writer puts there
    with pytest.raises(UserInputError, match=r"\.metadata cannot be read \(\w+.mkdir has no place in it\)"):
        load(path)
    assert not trap.exists()


def test_ranks_fail_together_with_what_one_of_them_found() -> None:
    found = run_ranks(cases.fail_on_one_rank, world_size=2)
    assert found == [("done", "rank 1: the file is bad", True)] * 2


def test_checkpoints_through_the_strategy(tmp_path: Path) -> None:
    [found, other] = run_ranks(cases.use_checkpoints, world_size=2, args=(str(tmp_path),))
    for name, told in cases.REFUSALS.items():
        assert found[name] == other[name] and told in found[name], found[name]
        assert len(found[name].splitlines()) == 1
    for name in found.keys() - cases.REFUSALS.keys():
        assert found[name] == other[name] == "accepted", found[name]
    assert not (tmp_path / "sprung").exists()

    # The sharded checkpoint as a file, from which a model is made.
    io, directory = TowerCheckpointIO(), tmp_path / "trained.ckpt"
    io.save_checkpoint(io.load_checkpoint(directory), tmp_path / "model.ckpt")
    given = make_model(Run(strategy="auto", max_steps=1, save=tmp_path))
    factories = {name: getattr(given, name) for name in ("tower", "top", "embedding_optimizer")}
    state = ClickModel.load_from_checkpoint(tmp_path / "model.ckpt", **factories).state_dict()
    torch.testing.assert_close(dict(state), load_state(directory), rtol=0, atol=0)
