"""Lark alternatives of an array whose items have rules of their own."""

from __future__ import annotations

from collections.abc import Callable

from m1runtime.grammar.conjunction import ArrayParts
from m1runtime.grammar.keywords import Schema
from m1runtime.grammar.writer import literal


def array_options(parts: ArrayParts, rule: Callable[[Schema], str | None], separators: tuple[str, str]) -> list[str]:
    """`rule`: the rule of an item, None if there is no such value. No alternatives if there is no such array."""
    between, most = literal(separators[0]), parts.most
    prefix = list[str]()
    for schema in parts.prefix[:most]:
        item = rule(schema)
        if item is None:
            most = len(prefix)
            break
        prefix.append(item)
    item = rule(parts.items) if most is None or most > len(prefix) else None
    if item is None:
        most = len(prefix)
    if most is not None and most < parts.least:
        return []
    empty = ['"[" "]"'] if parts.least == 0 else []
    if most == 0:
        return empty
    rest = _repeated(
        f"{between} {item}", parts.least - max(1, len(prefix)), None if most is None else most - max(1, len(prefix))
    )
    for i in range(len(prefix) - 1, 0, -1):
        rest = f"{between} {prefix[i]} {rest}".rstrip()
        rest = rest if i < parts.least else f"({rest})?"
    return [*empty, f'"[" {[*prefix, item][0]} {rest} "]"']


def _repeated(text: str, least: int, most: int | None) -> str:
    least = max(0, least)
    if most is None:
        return f"({text})*" if least == 0 else f"({text}){{{least},}}"
    return f"({text}){{{least},{most}}}" if most > 0 else ""
