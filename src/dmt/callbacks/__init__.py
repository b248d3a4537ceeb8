"""Lightning callbacks: meters."""

from dmt.callbacks.throughput import Throughput

__all__ = ["Throughput"]
