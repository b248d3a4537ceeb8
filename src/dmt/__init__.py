"""Disaggregated Multi-Tower (DMT) training for recommendation models, on PyTorch Lightning and TorchRec.

Names are imported on first use, so that ``import dmt`` costs nothing.

Example:
    >>> import dmt
    >>> dmt.TowerPlan.strided(["user", "item", "hour"], num_towers=2).towers
    (('user', 'hour'), ('item',))
"""

from importlib import import_module

_HOME = {
    "CategoricalFeature": "dmt.schema",
    "FeatureSchema": "dmt.schema",
    "TowerPlan": "dmt.plan",
    "TowerPartitioner": "dmt.partition",
    "Affinity": "dmt.partition",
    "UserInputError": "dmt.errors",
    "quiet_libraries": "dmt.quiet",
    "reuse_host_memory": "dmt.host_memory",
    "ClickModel": "dmt.modules",
    "DCN": "dmt.modules",
    "DCNTower": "dmt.modules",
    "DLRM": "dmt.modules",
    "DLRMTower": "dmt.modules",
    "DotTower": "dmt.modules",
    "EmbeddingOptimizer": "dmt.modules",
    "FactorizationMachine": "dmt.modules",
    "GatedTower": "dmt.modules",
    "MultiEmbedding": "dmt.modules",
    "MultiTower": "dmt.modules",
    "PassThrough": "dmt.modules",
    "TopArch": "dmt.modules",
    "TowerModule": "dmt.modules",
    "TowerStage": "dmt.modules",
    "CriteoDataModule": "dmt.datamodules",
    "RandomClicks": "dmt.datamodules",
    "SyntheticClicks": "dmt.datamodules",
    "TabularClicks": "dmt.datamodules",
    "TabularRows": "dmt.datamodules",
    "preprocess_criteo": "dmt.preprocess.api",
    "SpttStrategy": "dmt.strategies",
    "TorchRecStrategy": "dmt.strategies",
    "TowerCheckpointIO": "dmt.strategies",
}

__all__ = list(_HOME)


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'dmt' has no attribute {name!r}")
    home = _HOME[name]
    if home == "dmt.modules":
        # Who builds a model may train it by strategy="sptt", a name that this import registers.
        import_module("dmt.strategies")
    return getattr(import_module(home), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
