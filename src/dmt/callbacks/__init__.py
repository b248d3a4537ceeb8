"""Lightning callbacks: meters and what runs leave behind."""

from dmt.callbacks.affinity_probe import AffinityProbe
from dmt.callbacks.interaction_probe import InteractionProbe
from dmt.callbacks.plain_progress import PlainProgress
from dmt.callbacks.predictions import PredictionFile
from dmt.callbacks.run_record import RunRecord, logger_folder, run_folder
from dmt.callbacks.throughput import Throughput
from dmt.callbacks.weight_average import WeightAverage
from dmt.callbacks.wire_traffic import WireTraffic

__all__ = [
    "AffinityProbe",
    "InteractionProbe",
    "PlainProgress",
    "PredictionFile",
    "RunRecord",
    "Throughput",
    "WeightAverage",
    "WireTraffic",
    "logger_folder",
    "run_folder",
]
