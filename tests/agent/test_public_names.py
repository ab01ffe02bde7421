"""Every public name has its docstring, and the names of the package itself are few, sorted and cheap."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any, get_type_hints

import pytest

import m1agent


def modules() -> list[str]:
    found = pkgutil.walk_packages(m1agent.__path__, "m1agent.")
    return ["m1agent", *(one.name for one in found if not any(part.startswith("_") for part in one.name.split(".")))]


def public(module: ModuleType) -> Iterator[tuple[str, Any]]:
    """Functions and classes that the module defines, and the methods of its classes; enums and protocols included."""
    for name, value in vars(module).items():
        if name.startswith("_") or getattr(value, "__module__", None) != module.__name__:
            continue
        if inspect.isfunction(value):
            yield name, value
        elif inspect.isclass(value):
            yield name, value
            yield from methods(name, value)


def methods(owner: str, kind: type) -> Iterator[tuple[str, Any]]:
    for name, value in vars(kind).items():
        inner = value.__func__ if isinstance(value, classmethod | staticmethod) else value
        if not name.startswith("_") and (inspect.isfunction(inner) or isinstance(inner, property)):
            yield f"{owner}.{name}", inner


def documented(value: Any, name: str) -> bool:
    if inspect.isclass(value) and dataclasses.is_dataclass(value):
        # Without one of its own, a dataclass shows its signature.
        return bool(value.__doc__) and not value.__doc__.startswith(f"{value.__name__}(")
    return bool(inspect.getdoc(value))


@pytest.mark.parametrize("name", modules())
def test_every_public_name_is_documented(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__doc__ or not list(public(module)), f"{name} has no docstring"
    bare = [key for key, value in public(module) if not documented(value, key) and not of_a_protocol(key)]
    assert bare == []


def of_a_protocol(key: str) -> bool:
    _, dot, method = key.partition(".")
    return bool(dot) and method in PROTOCOL_METHODS


def _protocol_methods() -> set[str]:
    from m1agent.conversation import Journal
    from m1agent.models.base import Model, Thread
    from m1agent.observe import Observer, RunObserver

    return {name for kind in (Journal, Model, Thread, Observer, RunObserver) for name in vars(kind) if name[0] != "_"}


PROTOCOL_METHODS = _protocol_methods()


def test_the_names_of_the_package_are_sorted_few_and_what_they_say() -> None:
    assert m1agent.__all__ == sorted(m1agent.__all__) and len(set(m1agent.__all__)) == len(m1agent.__all__) <= 35
    assert set(m1agent.__all__) <= set(dir(m1agent))
    for name in m1agent.__all__:
        assert getattr(m1agent, name).__name__ == name and getattr(m1agent, name).__doc__


def test_no_name_of_the_package_is_also_a_module() -> None:
    """Importing the module would put it in the place of the name."""
    assert not {name.rpartition(".")[2] for name in modules()} & set(m1agent.__all__)


def test_each_name_can_be_imported_without_the_heavy_packages() -> None:
    code = """
import sys
for heavy in ("torch", "transformers", "mcp", "starlette", "m1runtime", "opentelemetry"):
    sys.modules[heavy] = None
from m1agent import *
import m1agent
assert all(name in globals() for name in m1agent.__all__)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_annotations_of_the_public_names_can_be_read() -> None:
    for name in m1agent.__all__:
        value = getattr(m1agent, name)
        if inspect.isclass(value) and dataclasses.is_dataclass(value):
            home = vars(sys.modules[value.__module__])
            assert get_type_hints(value, {**home, "Model": Any}), name
