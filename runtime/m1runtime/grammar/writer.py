"""Grammar texts in llguidance's Lark dialect."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from llguidance import regex_to_lark

from m1runtime.grammar.keywords import Schema


@dataclass(frozen=True, slots=True)
class Value:
    """A JSON value in Lark: what stands for it in a rule, and the lines of the rules that this needs.

    `closing`: these lines in the text that completions are searched in.
    """

    root: str
    rules: tuple[str, ...] = ()
    closing: tuple[str, ...] = ()

    @classmethod
    def in_order(cls, schema: str) -> Value:
        """The value of a schema text that carries its options, properties in its order."""
        return cls(f"%json {schema}")

    def lines(self, *, closing: bool) -> tuple[str, ...]:
        """The lines of its rules."""
        return self.closing if closing else self.rules

    def text(self, *, closing: bool = False) -> str:
        """Lark text of this value alone."""
        return "\n".join([f"start: {self.root}", *self.lines(closing=closing)]) + "\n"


def call_prefix(name: str, separators: tuple[str, str]) -> str:
    """`{"name": "f", "arguments": ` with the name as JSON writes it."""
    item, key = separators
    return f'{{"name"{key}{json_text(name)}{item}"arguments"{key}'


def json_text(text: str) -> str:
    """A JSON string, readable where UTF-8 can carry it."""
    plain = json.dumps(text, ensure_ascii=False)
    try:
        plain.encode()
    except UnicodeEncodeError:
        return json.dumps(text)
    return plain


def literal(text: str) -> str:
    """A Lark literal that matches `text`."""
    return json.dumps(text, ensure_ascii=False)


def json_value(schema: str) -> str:
    """Lark text of one JSON value; `schema` carries its options."""
    return f"start: %json {schema}\n"


def with_options(schema: Schema, separators: tuple[str, str], *, lenient: bool, escapes: str | None = None) -> str:
    """A schema as `%json` takes it, with its options; `escapes`: those that strings may use, None for all."""
    item, key = separators
    options: dict[str, Any] = {"item_separator": item, "key_separator": key}
    options |= {"whitespace_flexible": False, "lenient": lenient}
    options |= {"json_allowed_escapes": escapes} if escapes else {}
    body: dict[str, Any] = schema if isinstance(schema, dict) else {} if schema else {"not": {}}
    return json.dumps({**body, "x-guidance": options}, ensure_ascii=True)


def regex(pattern: str) -> str:
    """Lark text of a whole-text match of `pattern`."""
    return f"start: /{regex_to_lark(pattern)}/\n"
