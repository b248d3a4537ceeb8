"""Click logs as Lightning DataModules, in global batches that do not depend on the number of ranks."""

# Before FBGEMM, which gives the root logger a handler: Lightning would say everything twice.
import lightning.pytorch  # noqa: F401

from dmt.datamodules.arrays import ClickArrays
from dmt.datamodules.criteo import CriteoDataModule
from dmt.datamodules.encoder import TabularEncoder
from dmt.datamodules.loader import ClickLoader, EvaluationLoader, GlobalBatchSampler
from dmt.datamodules.module import ClickDataModule
from dmt.datamodules.random_clicks import RandomClicks
from dmt.datamodules.rows import TabularRows
from dmt.datamodules.synthetic import SyntheticClicks
from dmt.datamodules.tabular import TabularClicks

__all__ = [
    "ClickArrays",
    "ClickDataModule",
    "ClickLoader",
    "CriteoDataModule",
    "EvaluationLoader",
    "GlobalBatchSampler",
    "RandomClicks",
    "SyntheticClicks",
    "TabularClicks",
    "TabularEncoder",
    "TabularRows",
]
