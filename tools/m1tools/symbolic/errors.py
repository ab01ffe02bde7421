"""The one error of this package: its text names the problem and the remedy, ready for a model to read."""

from __future__ import annotations


class MathsError(ValueError):
    """An expression that cannot be read, is too large, takes too long, or has no answer."""
