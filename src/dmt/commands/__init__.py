"""Verbs of the ``dmt`` command that look at trained models."""
