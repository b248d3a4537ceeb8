"""What a Strategy needs to know of a sharded tower stage, however it is sharded."""

import math
from abc import abstractmethod
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dmt.modules.shards import ShardedState
from dmt.modules.stage import Pending, Stage, TowerStage
from dmt.strategies.meter import WireMeter
from dmt.strategies.placement import TableCost
from dmt.strategies.topology import Topology


@dataclass(frozen=True)
class Distributed:
    """A batch whose ids are where they are looked up.

    Args:
        batch_sizes: B of every rank, by rank.
    """

    batch_sizes: list[int]


Distribution = Generator[None, None, Distributed]
"""Steps of sending ids; each yields with collectives under way that the next step waits for."""


class _Underway:
    """A distribution that has begun.

    Args:
        features: the batch it is of.
        steps: its steps; the first one runs at once.
        loader: what the batch was drawn from ahead of time; ``None`` for a batch that is computed at once.
    """

    def __init__(self, features: KeyedJaggedTensor, steps: Distribution, loader: object = None) -> None:
        self.features, self.loader = features, loader
        self._versions = [_version(tensor) for tensor in _tensors(features)]
        self._steps = steps
        self._result: Distributed | None = None
        self._failed = False
        self.advance()

    def is_of(self, features: KeyedJaggedTensor) -> bool:
        """Whether it is of this very batch, and nothing in it has been written to since."""
        # A batch that is moved to the device it is on becomes another object with the same tensors.
        pairs = zip(_tensors(self.features), _tensors(features), strict=True)
        same = all(mine is theirs for mine, theirs in pairs) and self.features.keys() == features.keys()
        return same and self._versions == [_version(tensor) for tensor in _tensors(features)]

    def advance(self) -> None:
        """Run the next step, if there is one."""
        if self._result is not None or self._failed:
            return
        # Ids need no gradient, but the lookup saves them for its own: they must not be inference tensors, also
        # where a validation batch's forward pass moves a training batch's ids along.
        with torch.inference_mode(False), torch.no_grad():
            try:
                next(self._steps)
            except StopIteration as end:
                self._result = end.value
            except BaseException:
                self._failed = True
                raise

    def finish(self) -> Distributed | None:
        """Run all steps that are left; ``None`` if one of them has failed before."""
        while self._result is None and not self._failed:
            self.advance()
        return self._result


def _tensors(features: KeyedJaggedTensor) -> list[Tensor | None]:
    """What a batch consists of."""
    return [features.values(), features.weights_or_none(), features.lengths()]


def _version(tensor: Tensor | None) -> int:
    # Counted by torch for autograd, which has no public name for it. A tensor made in inference mode has none.
    return 0 if tensor is None or tensor.is_inference() else tensor._version


class ShardedStage(Stage):
    """Another way to evaluate a :class:`~dmt.modules.stage.TowerStage`, over many ranks.

    Its parameters' gradients come out on the contract's scale, the gradient of the mean loss over the
    global batch, if :class:`~dmt.strategies.strategy.TowerStrategy` weights the ranks' losses.
    """

    strategy_name: str
    topology: Topology
    meter: WireMeter
    feature_keys: list[str]

    def __init__(self) -> None:
        super().__init__()
        self._ahead: list[_Underway] = []
        self._can_prefetch = True
        self._trained_shares: set[tuple[int, ...]] = set()
        self._seen_shares: set[tuple[int, ...]] = set()

    @abstractmethod
    def distribute(self, features: KeyedJaggedTensor) -> Distribution:
        """Send a batch's ids to the ranks that look them up."""

    @abstractmethod
    def compute(self, distributed: Any) -> Pending:
        """Look up what :meth:`distribute` returned, run the towers, and send the outputs to their samples."""

    def prefetch(self, features: KeyedJaggedTensor, *, loader: object) -> None:
        """Begin to distribute a batch that a later forward pass will have; every rank calls it at the same point.

        Args:
            features: the batch.
            loader: what it was drawn from.
        """
        if not self._can_prefetch:
            return
        if sum(underway.loader is loader for underway in self._ahead) > 2:
            # Two batches before this one never came. (One may still: the Trainer itself draws ahead of a loader that
            # does not know its length.)
            self._can_prefetch = False
            self._drop(self._ahead)
            rank_zero_warn(
                "overlap: batches reach the tower stage changed, so their ids cannot be sent ahead of time; leave "
                "batch.sparse_features as the loader made it, or give the strategy overlap=False"
            )
            return
        self._ahead.append(_Underway(features, self.distribute(features), loader))

    def advance(self) -> None:
        """Move prefetched batches one step on; every rank calls it at the same points."""
        for underway in self._ahead:
            underway.advance()

    def forget_prefetched(self, loader: object | None = None) -> None:
        """Drop a loader's batches, or all, that no forward pass will have; every rank calls it at the same point."""
        self._drop([underway for underway in self._ahead if loader is None or underway.loader is loader])

    def _drop(self, unwanted: list[_Underway]) -> None:
        for underway in unwanted:
            underway.finish()  # a message that nobody takes delivery of would block those behind it
        self._ahead = [underway for underway in self._ahead if underway not in unwanted]

    @torch.compiler.disable
    def start(self, features: KeyedJaggedTensor) -> Pending:
        distributed = self._take(features).finish()
        assert distributed is not None, "a step that fails raises"
        self._note_shares(distributed.batch_sizes)
        self.advance()
        pending = self.compute(distributed)
        self.advance()
        return pending

    def _take(self, features: KeyedJaggedTensor) -> _Underway:
        """The prefetched distribution of this very batch, or a new one."""
        for underway in self._ahead:
            if underway.is_of(features):
                self._ahead.remove(underway)
                return underway
        return _Underway(features, self.distribute(features))

    def begin_step(self) -> None:
        """Forget the ranks' shares of earlier batches: a training step begins."""
        self._trained_shares.clear()
        self._seen_shares.clear()

    def _note_shares(self, batch_sizes: list[int]) -> None:
        unit = math.gcd(*batch_sizes)
        if unit:  # no loss has a part in a batch without samples
            shares = self._trained_shares if torch.is_grad_enabled() else self._seen_shares
            shares.add(tuple(size // unit for size in batch_sizes))

    def rank_shares(self) -> set[tuple[int, ...]]:
        """How the batches of this step's forward passes were shared among ranks: B of each, divided by a common factor.

        Of the passes that recorded gradients, where there are any: others may look at something else, as well as be
        what a head alone is trained on.
        """
        return self._trained_shares or self._seen_shares

    @abstractmethod
    def reduce_gradients(self) -> None:
        """After backward: reduce the gradients that DistributedDataParallel does not."""

    @abstractmethod
    def rank_local_names(self) -> list[str]:
        """Names of the parameters and buffers that are not the same on every rank."""

    @abstractmethod
    def stage_state(self) -> ShardedState:
        """The live tensors this rank holds, under the names the plain stage's ``state_dict`` has for them."""


def table_costs(stage: TowerStage) -> list[TableCost]:
    """What each table costs the ranks that hold it."""
    lengths = {feature.name: feature.mean_length for feature in stage.schema.categorical}
    optimizer = stage.embeddings.optimizer
    return [
        TableCost(
            table=table,
            lookups=sum(lengths[name] for name in table.feature_names),
            row_floats=table.embedding_dim + optimizer.state_floats(table.embedding_dim),
            can_split_columns=optimizer.can_split_columns,
        )
        for table in stage.tables
    ]


def wire_id_dtype(stage: TowerStage) -> torch.dtype:
    """The narrowest type SPTT sends ids in: int32 unless a table has more rows than it can name."""
    largest = max(table.num_embeddings for table in stage.tables)
    return torch.int32 if largest - 1 <= torch.iinfo(torch.int32).max else torch.int64
