"""Servers' questions, asked of the person at the terminal."""

from __future__ import annotations

import asyncio
import sys
import webbrowser
from collections.abc import Mapping
from typing import Any, cast

from m1agent.errors import SchemaError
from m1agent.mcp.client_side import Accepted, Answer, Cancelled, Declined, Elicitation
from m1agent.messages import JsonSchema
from m1agent.problems import type_names
from m1agent.threads import in_thread
from m1agent.validation import ArgumentsSchema

YES, NO = ("y", "yes"), ("n", "no")


class Terminal:
    """Asks on stderr and reads stdin, one question at a time; where stdin is no terminal, every question is declined.

    An `Elicit`: `Agent(..., elicit=Terminal())`.
    """

    def __init__(self) -> None:
        self._turn = asyncio.Lock()

    async def __call__(self, question: Elicitation) -> Answer:
        if not sys.stdin.isatty():
            return Declined()
        async with self._turn:
            try:
                _tell(f"\nThe MCP server '{question.server}' asks: {question.message}")
                return await (_visit(question.url) if question.url is not None else _form(question.schema))
            except EOFError:
                return Cancelled()


async def _visit(url: str) -> Answer:
    if (await _line(f"Open {url} in the browser? [y/N] ")).lower() not in YES:
        return Declined()
    await in_thread(lambda: webbrowser.open(url))
    return Accepted()


async def _form(schema: JsonSchema) -> Answer:
    if (await _line("Answer? [Y/n] ")).lower() in NO:
        return Declined()
    properties: Mapping[str, Any] = schema.get("properties", {})
    required: Any = schema.get("required", [])
    values: dict[str, Any] = {}
    for name, field in properties.items():
        values |= await _field(name, field, needed=name in required)
    return Accepted(values)


async def _field(name: str, schema: JsonSchema, *, needed: bool) -> dict[str, Any]:
    """The value of one field, asked for until it fits; empty where it may be left out."""
    try:
        checker = ArgumentsSchema({"type": "object", "properties": {name: schema}, "required": [name]})
    except SchemaError as error:
        _tell(f"  {name} cannot be asked for: {error}")
        return {}
    while True:
        text = await _line(f"  {_label(name, schema, needed)}: ")
        if not text and "default" in schema:
            return {name: schema["default"]}
        if not text and not needed:
            return {}
        many = "array" in type_names(schema.get("type"))
        given = [part.strip() for part in text.split(",") if part.strip()] if many else text
        checked = checker.check({name: given})
        if not checked.problems:
            return checked.arguments
        _tell("\n".join(f"  {problem}" for problem in checked.problems))


def _label(name: str, schema: JsonSchema, needed: bool) -> str:
    about = [str(schema.get("description") or schema.get("title") or "")]
    if choices := _choices(schema):
        about.append("one of " + ", ".join(map(str, choices)))
    else:
        about.append(" or ".join(map(str, type_names(schema.get("type", "text")))))
    if "default" in schema:
        about.append(f"default {schema['default']}")
    elif not needed:
        about.append("may be left empty")
    return f"{name} ({'; '.join(part for part in about if part)})"


def _choices(schema: JsonSchema) -> list[Any]:
    items: Any = schema.get("items")
    source = cast("JsonSchema", items) if isinstance(items, dict) else schema
    named: list[Any] = source.get("oneOf") or source.get("anyOf") or []
    return source.get("enum") or [one["const"] for one in named if isinstance(one, dict) and "const" in one]


async def _line(prompt: str) -> str:
    """A line without its end. Raises EOFError where there is none."""
    sys.stderr.write(_plain(prompt))
    sys.stderr.flush()
    line = await in_thread(sys.stdin.readline)
    if not line:
        raise EOFError
    return line.strip()


def _tell(text: str) -> None:
    sys.stderr.write(_plain(text) + "\n")
    sys.stderr.flush()


def _plain(text: str) -> str:
    """Without control characters: a server must not move the cursor or rewrite what stands on the screen."""
    return "".join(letter if letter.isprintable() or letter == "\n" else " " for letter in text)
