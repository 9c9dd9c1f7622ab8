"""A trained model in Python: ``from src.checkpoint import load_model``."""

from src.rundir.checkpoint import load_model

__all__ = ["load_model"]
