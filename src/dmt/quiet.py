"""Silence where libraries talk to their own developers."""

import logging
import warnings


def quiet_libraries() -> None:
    """Drop messages of the libraries that a user can do nothing about; the command calls it, a notebook may."""
    # Lightning 2.6 uses a class that torch 2.13 has deprecated.
    warnings.filterwarnings("ignore", message=".*treespec, LeafSpec.*")
    # It warns that arguments are given twice; they are the same ones.
    warnings.filterwarnings("ignore", message="LightningCLI's args parameter is intended")
    # Our loaders keep the data's order, so predictions need no indices.
    warnings.filterwarnings("ignore", message=".*infer the batch indices.*")
    # Lightning says of a test that the folder of its checkpoint is not that of the run.
    warnings.filterwarnings("ignore", message="The dirpath has changed")
    logging.getLogger("torchrec.distributed.comm").setLevel(logging.ERROR)  # lists its process groups as warnings
    # TorchRec's row-wise sharding calls torch 2.13's collectives by their old names.
    warnings.filterwarnings("ignore", message=r".torch\.distributed\.\w+_tensor. is deprecated")
    # torch 2.13's compiler calls what torch 2.13 has deprecated.
    warnings.filterwarnings("ignore", message=r".torch\._prims_common\.check. is deprecated")
    # torchrec asks torch a question in a way that torch comments on, once a process.
    logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)
    # What the configuration says, and what each rank says of itself.
    logging.getLogger("lightning.fabric.utilities.seed").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric.utilities.distributed").setLevel(logging.WARNING)
    adverts = ("💡 Tip", "GPU available", "TPU available")
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero"):
        logging.getLogger(name).addFilter(lambda record: not record.getMessage().startswith(adverts))
