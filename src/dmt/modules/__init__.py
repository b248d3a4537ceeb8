"""Models: embeddings, tower modules, interactions, top archs and the LightningModule. All of it unsharded."""

# Before FBGEMM, which gives the root logger a handler: Lightning would say everything twice.
import lightning.pytorch  # noqa: F401

from dmt.modules.click_model import ClickModel
from dmt.modules.dcn import DCN
from dmt.modules.dlrm import DLRM
from dmt.modules.embeddings import EmbeddingOptimizer, FusedEmbeddingBags, deferred_tables
from dmt.modules.factorization_machine import FactorizationMachine
from dmt.modules.interactions import DotInteraction
from dmt.modules.metrics import Calibration, LogLoss, NormalizedEntropy, click_metrics
from dmt.modules.multi_embedding import MultiEmbedding, MultiTower
from dmt.modules.stage import TowerStage
from dmt.modules.top_arch import TopArch
from dmt.modules.towers import DCNTower, DLRMTower, DotTower, GatedTower, PassThrough, TowerModule

__all__ = [
    "DCN",
    "DLRM",
    "Calibration",
    "ClickModel",
    "DCNTower",
    "DLRMTower",
    "DotInteraction",
    "DotTower",
    "EmbeddingOptimizer",
    "FactorizationMachine",
    "FusedEmbeddingBags",
    "GatedTower",
    "LogLoss",
    "MultiEmbedding",
    "MultiTower",
    "NormalizedEntropy",
    "PassThrough",
    "TopArch",
    "TowerModule",
    "TowerStage",
    "click_metrics",
    "deferred_tables",
]
