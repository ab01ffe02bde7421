"""Grammar texts in llguidance's Lark dialect."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llguidance import regex_to_lark

from m1runtime.grammar.keywords import Schema

MAX_LEADING_NEWLINES = 2


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


def tool_calls(
    tools: Sequence[tuple[str, Value]],
    *,
    before: str,
    end: str,
    separators: tuple[str, str],
    max_calls: int | None,
    leading_newlines: bool,
    answer: Value | None = None,
    closing: bool = False,
) -> str:
    """Lark text of a calls block, `before` "\\n" call "\\n" [call "\\n" ...] `end`, or of the answer in its place.

    `tools`: (name, value of its arguments); `before`: what stands in front of the body (the trigger, or nothing
    when it has been written already); `max_calls`: None for any number; `answer`: a JSON value; `closing`: the text
    that completions are searched in.
    """
    opened = f"{literal(before)} " if before else ""
    more = "" if max_calls == 1 else ' (call "\\n")*' if max_calls is None else f' (call "\\n"){{0,{max_calls - 1}}}'
    block = f'{opened}"\\n" call "\\n"{more} {literal(end)}'
    kinds = [block] if tools else []
    kinds += ["answer"] if answer is not None else []
    lines = [f"start: {'LEAD? ' if leading_newlines else ''}({' | '.join(kinds)})"]
    if leading_newlines:
        lines.append(f"LEAD: /\\n{{1,{MAX_LEADING_NEWLINES}}}/")
    if answer is not None:
        lines.append(f"answer: {answer.root}")
    if tools:
        lines.append("call: " + " | ".join(f"call_{i}" for i in range(len(tools))))
    for i, (name, arguments) in enumerate(tools):
        lines.append(f'call_{i}: {literal(call_prefix(name, separators))} args_{i} "}}"')
        lines.append(f"args_{i}: {arguments.root}")
    values = [value for _, value in tools] + ([answer] if answer is not None else [])
    lines += dict.fromkeys(line for value in values for line in value.lines(closing=closing))
    return "\n".join(lines) + "\n"


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
