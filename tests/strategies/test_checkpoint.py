"""Checkpoints of tensors that lie in blocks on several ranks."""

import random
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint import CheckpointException

from dmt.modules.shards import TensorShard
from dmt.strategies.checkpoint import CheckpointDirectory, TowerCheckpointIO, find_checkpoint
from tests.distributed.harness import run_ranks
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
        assert alone == cases.REST | {"optimizer_states": []}


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
    assert find_checkpoint(tmp_path / "other.ckpt") == tmp_path / "other.ckpt"

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
