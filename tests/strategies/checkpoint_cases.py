"""Random blocks of random tensors, written and read by several ranks.

Every rank draws the same tensors and the same cuts from the same seed, so that each knows what all others hold.
"""

import itertools
import os
import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from dmt.errors import UserInputError
from dmt.modules.shards import TensorShard
from dmt.strategies import TowerCheckpointIO
from dmt.strategies.agreement import succeed_together
from dmt.strategies.checkpoint import CheckpointDirectory, Entry
from tests.distributed.harness import join_world
from tests.distributed.training_cases import Run, make_data, make_model, make_trainer

Block = tuple[tuple[int, int], ...]  # first index and the one after the last, by dimension

REST = {"epoch": 3, "loops": {"anything": [1, "two"]}}


def draw_tensors(rng: random.Random) -> dict[str, Tensor]:
    """Weights, accumulators of rows, a step count, and something narrow."""
    generator = torch.Generator().manual_seed(rng.randrange(2**31))
    tensors: dict[str, Tensor] = {"stage.embeddings.step": torch.tensor(rng.randrange(1000))}
    for index in range(rng.randint(1, 4)):
        rows, columns = rng.randint(1, 30), rng.randint(1, 12)
        weight = torch.randn(rows, columns, generator=generator)
        tensors[f"stage.embeddings.t{index}_weight"] = weight.bfloat16() if rng.random() < 0.2 else weight
        tensors[f"stage.embeddings.t{index}_momentum"] = torch.rand(rows, generator=generator)
    return tensors


def draw_grid(shape: Sequence[int], rng: random.Random) -> list[Block]:
    """Blocks that together are a tensor of this shape: whole, rows, columns or a grid."""
    bounds = []
    for size in shape:
        cuts = sorted(rng.sample(range(1, size), rng.randint(0, min(3, size - 1))))
        bounds.append(list(itertools.pairwise([0, *cuts, size])))
    return list(itertools.product(*bounds))


def view(whole: Tensor, block: Block) -> Tensor:
    for dim, (start, stop) in enumerate(block):
        whole = whole.narrow(dim, start, stop - start)
    return whole


def shard_of(tensor: Tensor, block: Block, whole: Tensor) -> TensorShard:
    return TensorShard(tensor=tensor, offsets=tuple(start for start, _ in block), shape=tuple(whole.shape))


def empty_block(whole: Tensor) -> TensorShard:
    """What TorchRec gives a rank for which no rows are left: none, from the first row on."""
    return TensorShard(tensor=whole[:0].clone(), offsets=(0,) * whole.dim(), shape=tuple(whole.shape))


def draw_layout(tensors: dict[str, Tensor], rng: random.Random) -> dict[str, list[TensorShard]]:
    """This rank's blocks of the tensors. Each block lies on one rank or on several."""
    ranks = range(dist.get_world_size())
    mine: dict[str, list[TensorShard]] = {}
    for name, whole in tensors.items():
        for block in draw_grid(whole.shape, rng):
            holders = rng.sample(ranks, rng.choice([1, 1, len(ranks)]))
            contiguous = rng.random() < 0.5
            if dist.get_rank() in holders:
                # Half of them as views with strides: what a kernel shows of its storage.
                part = view(whole, block).clone() if contiguous else view(whole.clone(), block)
                mine.setdefault(name, []).append(shard_of(part, block, whole))
        if whole.dim() and rng.random() < 0.3:
            mine.setdefault(name, []).insert(0, empty_block(whole))
    return mine


def write_and_read(path: str, seed: int, num_cases: int) -> int:
    """Write random layouts and read each as another one, and as whole tensors; all bit for bit."""
    join_world()
    for index in range(num_cases):
        rng = random.Random(seed + index)
        tensors = draw_tensors(rng)
        written: dict[str, Entry] = dict(draw_layout(tensors, rng))
        written |= {"top.weight": torch.full((2, 3), 0.5), "stage.extra_state": {"nested": {"list": [1, 2]}}}
        directory = CheckpointDirectory(Path(path) / f"{index}.ckpt")
        directory.save({**REST, "state_dict": written})

        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        assert directory.tensor_shapes() == shapes | {"top.weight": (2, 3)}
        read = draw_layout({name: torch.zeros_like(tensor) for name, tensor in tensors.items()}, rng)
        top = torch.zeros(2, 3)
        directory.load_tensors({**read, "top.weight": top})
        torch.testing.assert_close(top, torch.full((2, 3), 0.5), rtol=0, atol=0)
        for name, shards in read.items():
            for shard in shards:
                torch.testing.assert_close(shard.tensor, shard.of(tensors[name]), rtol=0, atol=0)
        whole = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
        directory.load_tensors(whole)
        torch.testing.assert_close(whole, tensors, rtol=0, atol=0)
        dist.barrier()
    return num_cases


def write_what_all_ranks_hold(path: str, num_floats: int) -> None:
    join_world()
    tower = torch.arange(float(num_floats)).requires_grad_()  # a parameter, as tower modules have
    CheckpointDirectory(Path(path)).save({"state_dict": {"tower": [TensorShard.whole(tower)], "dense": tower}})


def write_incomplete(path: str) -> None:
    """Blocks that leave a gap, or overlap, are refused, and leave no checkpoint behind."""
    join_world()
    whole, rank = torch.arange(8.0).view(4, 2), dist.get_rank()
    for rows in [(rank, rank + 1), (rank, rank + 3)]:
        block = (rows, (0, 2))
        with pytest.raises(dist.checkpoint.CheckpointException, match=r"w has overlapping|w invalid fill"):
            CheckpointDirectory(Path(path)).save({"state_dict": {"w": [shard_of(view(whole, block), block, whole)]}})
    assert not Path(path).exists()


def overwrite_and_die(path: str) -> None:
    """Killed between the two renames of an overwritten checkpoint; then another run overwrites it again."""
    join_world()
    directory = CheckpointDirectory(Path(path))
    directory.save({**REST, "state_dict": {"w": torch.ones(3)}})
    rename = Path.rename

    def last_never_comes(source: Path, target: Path) -> Path:
        if target == directory.path:
            raise KeyboardInterrupt
        return rename(source, target)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "rename", last_never_comes)
        directory.save({**REST, "state_dict": {"w": torch.full((3,), 2.0)}})


def overwrite(path: str, value: float) -> None:
    join_world()
    CheckpointDirectory(Path(path)).save({**REST, "state_dict": {"w": torch.full((3,), value)}})


DAMAGES = {
    "__0_0.distcp": {"cut": "the end of __0_0.distcp is missing", "remove": "it has no __0_0.distcp"},
    "rest.pt": {"cut": "the end of rest.pt is missing", "remove": "it has no rest.pt"},
    ".metadata": {"cut": r"\.metadata cannot be read \(pickle data was truncated\)", "remove": r"it has no \.metadata"},
}
"""What is told of each file of a checkpoint, by what happened to it."""


def damage(file: Path, how: str) -> None:
    if how == "cut":
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    else:
        file.unlink()


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (str(self.folder),)


def write_trap(path: str, folder: str) -> None:
    join_world()
    CheckpointDirectory(Path(path)).save({"state_dict": {"stage.extra_state": Trap(Path(folder))}})


def fail_on_one_rank() -> tuple[str, str, bool]:
    join_world()

    def read() -> str:
        if dist.get_rank() == 1:
            raise UserInputError("the file is bad")
        return "read"

    done = succeed_together(lambda: "done")
    with pytest.raises(UserInputError) as refused:
        succeed_together(read)
    return done, str(refused.value), refused.value.on_every_rank


class OwnCheckpointIO(TowerCheckpointIO):
    """A user's."""


REFUSALS = {
    "no shard": "shard.ckpt: it has no __1_0.distcp; give the path of a whole checkpoint",
    "a broken shard": "garbled.ckpt: it cannot be read (it is not as torch writes it); give a whole one",
    "nothing": "nothing.ckpt: no such checkpoint; give the path of one",
    "a broken file": "file.ckpt: it cannot be read (",
    "an object": "it holds posix.mkdir, which",
    "weights alone": "weights.ckpt: it holds weights alone, which can be tested or predicted from and not resumed",
    "storage options": "storage_options={'a': 1}: sptt writes checkpoints into folders",
    "a plugin": "plugin OwnCheckpointIO: all ranks write a checkpoint together",
}
"""What :func:`use_checkpoints` is told."""


def use_checkpoints(path: str) -> dict[str, str]:
    """What becomes of checkpoints that are broken, a stranger's, or hold too little; by their names."""
    folder = Path(path)
    run = Run(strategy="sptt", max_steps=1, save=folder / "trained.ckpt")
    trainer = make_trainer(run, 2)
    trainer.fit(make_model(run), datamodule=make_data())
    trainer.save_checkpoint(run.save)
    trainer.save_checkpoint(folder / "weights.ckpt", weights_only=True)
    if trainer.is_global_zero:
        for name in ("shard", "garbled", "object", "trusted", "killed"):
            shutil.copytree(run.save, folder / f"{name}.ckpt")
        damage(folder / "shard.ckpt" / "__1_0.distcp", "remove")
        garbled = folder / "garbled.ckpt" / "__0_0.distcp"
        garbled.write_bytes(b"no tensor" * garbled.stat().st_size)
        rest = torch.load(run.save / "rest.pt", weights_only=True)
        torch.save(rest | {"x": Trap(folder / "sprung")}, folder / "object.ckpt" / "rest.pt")
        torch.save(rest | {"x": Run(strategy="auto", max_steps=1, save=folder)}, folder / "trusted.ckpt" / "rest.pt")
        (folder / "killed.ckpt").rename(folder / "killed.ckpt.previous")
        torch.save({"state_dict": {"w": torch.ones(1000)}}, folder / "file.ckpt")
        damage(folder / "file.ckpt", "cut")
    trainer.strategy.barrier()

    def test(name: str, **options: Any) -> str:
        fresh = make_trainer(run, 2)
        return told(lambda: fresh.test(make_model(run), make_data(), ckpt_path=folder / name, verbose=False, **options))

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
        trusted = test("trusted.ckpt")
    plugin = Run(strategy="sptt", max_steps=1, save=run.save, options={"checkpoint_io": OwnCheckpointIO()})
    return {
        "no shard": test("shard.ckpt"),
        "a broken shard": test("garbled.ckpt"),
        "nothing": test("nothing.ckpt"),
        "a broken file": test("file.ckpt"),
        "an object": test("object.ckpt", weights_only=True),
        "an object that is trusted": trusted,
        "weights alone": told(
            lambda: make_trainer(run, 2).fit(make_model(run), make_data(), ckpt_path=folder / "weights.ckpt")
        ),
        "weights alone are tested": test("weights.ckpt"),
        "killed while replaced": test("killed.ckpt"),
        "storage options": told(lambda: trainer.save_checkpoint(folder / "b.ckpt", storage_options={"a": 1})),
        "a plugin": told(lambda: make_trainer(plugin, 2).fit(make_model(run), make_data())),
    }


def told(action: Callable[[], Any]) -> str:
    """What an action is refused with, alike on all ranks."""
    try:
        action()
    except UserInputError as error:
        assert error.on_every_rank, error
        return str(error)
    return "accepted"
