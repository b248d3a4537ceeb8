"""Low-rank cross layers (Wang et al. 2021, "DCN V2", section 3.3), TorchRec's, with their sizes checked."""

from torchrec.modules.crossnet import LowRankCrossNet

from dmt.errors import check_positive


def make_cross_net(owner: str, in_features: int, *, num_layers: int, low_rank: int) -> LowRankCrossNet:
    """x_0 -> x_L of the same width W, by ``x_(l+1) = x_0 * (W_l (V_l x_l) + b_l) + x_l``.

    Args:
        owner: whose it is, for messages.
        in_features: W.
        num_layers: L.
        low_rank: columns of each W_l, rows of each V_l.

    Raises:
        UserInputError: a size is not positive.
    """
    check_positive(owner, num_layers=num_layers, low_rank=low_rank)
    return LowRankCrossNet(in_features, num_layers, low_rank)
