"""A known way to the end of a text."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Path:
    """A known completion: its tokens including eos, its bytes, and whether nothing shorter exists."""

    tokens: tuple[int, ...]
    text: bytes
    shortest: bool
