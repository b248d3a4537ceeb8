"""Lightning callbacks: meters and what runs leave behind."""

from dmt.callbacks.predictions import PredictionFile
from dmt.callbacks.throughput import Throughput

__all__ = ["PredictionFile", "Throughput"]
