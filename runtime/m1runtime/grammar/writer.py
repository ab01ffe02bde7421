"""Grammar texts in llguidance's Lark dialect."""

from __future__ import annotations

import json
from collections.abc import Sequence

from llguidance import regex_to_lark

MAX_LEADING_NEWLINES = 2


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
    tools: Sequence[tuple[str, str]],
    *,
    before: str,
    end: str,
    separators: tuple[str, str],
    max_calls: int | None,
    leading_newlines: bool,
    answer: str | None = None,
) -> str:
    """Lark text of a calls block, `before` "\\n" call "\\n" [call "\\n" ...] `end`, or of the answer in its place.

    `tools`: (name, schema text with its options); `before`: what stands in front of the body (the trigger, or nothing
    when it has been written already); `max_calls`: None for any number; `answer`: the schema text of a JSON value.
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
        lines.append(f"answer: %json {answer}")
    if tools:
        lines.append("call: " + " | ".join(f"call_{i}" for i in range(len(tools))))
    for i, (name, schema) in enumerate(tools):
        lines.append(f'call_{i}: {literal(call_prefix(name, separators))} args_{i} "}}"')
        lines.append(f"args_{i}: %json {schema}")
    return "\n".join(lines) + "\n"


def json_value(schema: str) -> str:
    """Lark text of one JSON value; `schema` carries its options."""
    return f"start: %json {schema}\n"


def regex(pattern: str) -> str:
    """Lark text of a whole-text match of `pattern`."""
    return f"start: /{regex_to_lark(pattern)}/\n"
