"""Ready toolsets, each found by its name through `load_toolset`; `coding` makes that of a coding agent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from m1tools.workspace import coding

__all__ = ["coding"]


def __getattr__(name: str) -> Any:
    if name == "coding":
        from m1tools.workspace import coding

        return coding
    raise AttributeError(f"module 'm1tools' has no attribute {name!r}")
