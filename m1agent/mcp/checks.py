"""Fields of configurations that are made in code: each of the wanted kind, or an error that names it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

from m1agent.errors import McpError


def texts(where: str, owner: object, *names: str) -> None:
    """Raises McpError unless these fields of `owner` are texts."""
    _check(where, owner, names, str, "text")


def numbers(where: str, owner: object, *names: str) -> None:
    """Raises McpError unless these fields are numbers."""
    _check(where, owner, names, (int, float), "a number")


def whole_numbers(where: str, owner: object, *names: str) -> None:
    """Raises McpError unless these fields are whole numbers."""
    _check(where, owner, names, int, "a whole number")


def flags(where: str, owner: object, *names: str) -> None:
    """Raises McpError unless these fields are true or false."""
    _check(where, owner, names, bool, "True or False")


def paths(where: str, owner: object, *names: str) -> None:
    """Raises McpError unless these fields are paths or None."""
    _check(where, owner, names, (str, Path, type(None)), "a path")


def lists(where: str, owner: object, *names: str, of: str) -> None:
    """Raises McpError unless these fields are tuples, or lists, of texts."""
    for name in names:
        value: Any = getattr(owner, name)
        if not isinstance(value, tuple | list):
            found = "one text" if isinstance(value, str) else type(value).__name__
            raise McpError(f"{where}, {name}: expected a tuple of {of}, not {found}")
        for item in cast("Iterable[Any]", value):
            if not isinstance(item, str):
                raise McpError(f"{where}, {name}: expected a tuple of {of}, not one with {type(item).__name__}")


def mappings(where: str, owner: object, *names: str) -> None:
    """Raises McpError unless these fields are texts by name."""
    for name in names:
        value: Any = getattr(owner, name)
        if not isinstance(value, Mapping):
            raise McpError(f"{where}, {name}: expected a dict of texts, not {type(value).__name__}")
        for key, item in cast("Mapping[Any, Any]", value).items():
            if not isinstance(key, str):
                raise McpError(f"{where}, {name}: expected names that are text, not {type(key).__name__}")
            if not isinstance(item, str):
                raise McpError(f"{where}, {name}.{key}: expected text, not {type(item).__name__}")


def _check(where: str, owner: object, names: Iterable[str], kind: Any, said: str) -> None:
    for name in names:
        value: Any = getattr(owner, name)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise McpError(f"{where}, {name}: expected {said}, not {type(value).__name__}")
