"""How much pairs of features act together on a trained model's prediction, for the tower partitioner.

Shapes: B samples, F features.
"""

from collections.abc import Collection

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torchrec.datasets.utils import Batch
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor

from dmt.callbacks.affinity_probe import check_validates, click_model, save_affinity, validation_batches
from dmt.errors import check_positive
from dmt.modules.click_model import ClickModel
from dmt.partition.affinity import Affinity

FILE = "interaction.npz"


class InteractionProbe(Callback):
    """Writes ``interaction.npz`` into the run's folder: how much each pair of features acts together on the prediction.

    When ``fit`` has ended, a pair's features take the values of other validation samples: one of them, the other, and
    both. Where the two act apart, the changes of the logit add up; what they lack to that, as the root of its mean
    square over the samples, is the pair's interaction, here relative to the largest one. (It is the second mixed
    difference of the logit; Friedman and Popescu 2008 compare partial dependences in the same way.) It asks nothing of
    the model: towers and any top arch may be in it.

    A batch costs 1 + F (F + 1) / 2 predictions of its samples: 352 for Criteo's 26 features, 20,101 for 200.

    Args:
        num_batches: batches of all ranks together to look at. Each rank takes other values from its own samples.
        seed: of which sample's values are taken.

    Raises:
        UserInputError: there are no validation batches, or the number is not positive.
    """

    def __init__(self, num_batches: int = 2, seed: int = 0) -> None:
        check_positive("InteractionProbe", num_batches=num_batches)
        self.num_batches = num_batches
        self.seed = seed

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        click_model(pl_module)
        check_validates(trainer)

    @torch.no_grad()
    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        model = click_model(pl_module)
        names = model.schema.feature_names
        squares = torch.zeros(len(names), len(names), dtype=torch.float64, device=pl_module.device)
        num_samples = torch.zeros(1, dtype=torch.float64, device=pl_module.device)
        random = torch.Generator().manual_seed(self.seed)
        was_training = pl_module.training
        pl_module.eval()
        for batch in validation_batches(trainer, self.num_batches):
            squares += _squared_differences(model, batch, random)
            num_samples += len(batch.labels)
        pl_module.train(was_training)
        squares, num_samples = (trainer.strategy.reduce(tensor, reduce_op="sum") for tensor in (squares, num_samples))
        interactions = (squares / num_samples).sqrt()
        affinity = Affinity(
            features=names,
            matrix=(interactions / interactions.max().clamp(min=1e-12)).cpu().numpy(),
            kind="interaction",
            num_samples=int(num_samples.item()),
        )
        save_affinity(affinity, trainer, file=FILE)


def _squared_differences(model: ClickModel, batch: Batch, random: torch.Generator) -> Tensor:
    """Sums (F, F) over samples of the squared second mixed differences of the logit."""
    sparse = batch.sparse_features
    keys = sparse.keys()
    own = sparse.to_dict()
    order = torch.randperm(sparse.stride(), generator=random).to(batch.labels.device)
    others = {name: _permute(column, order) for name, column in own.items()}

    def predict(changed: Collection[str]) -> Tensor:
        columns = [others[name] if name in changed else own[name] for name in keys]
        features = _join(keys, columns, stride=sparse.stride())
        logits: Tensor = model(Batch(batch.dense_features, features, batch.labels))
        return logits.double()

    names = model.schema.feature_names
    neither, one = predict(()), [predict((name,)) for name in names]
    sums = torch.zeros(len(names), len(names), dtype=torch.float64, device=batch.labels.device)
    for i in range(len(names)):
        for j in range(i):
            difference = predict((names[i], names[j])) - one[i] - one[j] + neither
            sums[i, j] = sums[j, i] = difference.square().sum()
    return sums


def _permute(column: JaggedTensor, order: Tensor) -> JaggedTensor:
    """The bags of a feature in another order of the samples."""
    lengths, values, weights = torch.ops.fbgemm.permute_1D_sparse_data(
        order.int(), column.lengths(), column.values(), column.weights_or_none(), None
    )
    return JaggedTensor(values, lengths=lengths, weights=weights)


def _join(keys: list[str], columns: list[JaggedTensor], *, stride: int) -> KeyedJaggedTensor:
    weights = [column.weights_or_none() for column in columns]
    return KeyedJaggedTensor(
        keys=keys,
        values=torch.cat([column.values() for column in columns]),
        lengths=torch.cat([column.lengths() for column in columns]),
        weights=torch.cat([w for w in weights if w is not None]) if weights[0] is not None else None,
        stride=stride,
    )
