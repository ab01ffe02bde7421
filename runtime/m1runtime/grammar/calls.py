"""The calls of plain tools as places: line by line, the name first and then that tool's arguments."""

from __future__ import annotations

from collections.abc import Sequence

from m1runtime.grammar.places import Place, Places
from m1runtime.grammar.plain import Node
from m1runtime.grammar.table import Plan
from m1runtime.grammar.writer import call_prefix

LEADING_NEWLINES = ("\n\n", "\n", "")


def calls_plan(
    tools: Sequence[tuple[str, str, Node]],
    *,
    before: str,
    end: str,
    separators: tuple[str, str],
    max_calls: int | None,
    leading_newlines: bool,
    any_order: bool,
) -> Plan:
    """A calls block, as `writer.tool_calls` describes it; `tools`: (name, schema as JSON, its tree)."""
    known = tuple((name, schema) for name, schema, _ in tools)
    heads = [(call_prefix(name, separators).encode(), tree) for name, _, tree in tools]
    most = max(len(head) + tree.most for head, tree in heads)

    def begin(places: Places) -> Place:
        def call(count: int) -> Place:
            rest = places.literal(b"}\n", places.later(("more", count), lambda: more(count)))
            return places.words(
                [(head, places.later((head, count), lambda t=tree: places.value(t, rest))) for head, tree in heads]
            )

        def more(count: int) -> Place:
            close = places.literal(end.encode(), places.end)
            if max_calls is not None and count >= max_calls:
                return close
            following = count + 1 if max_calls is not None else 2
            made = places.fork([places.later(("call", following), lambda: call(following)), close], (close,))
            assert made is not None
            return made

        first = places.literal(b"\n", places.later(("call", 1), lambda: call(1)))
        leads = LEADING_NEWLINES if leading_newlines else ("",)
        made = places.words([((lead + before).encode(), first) for lead in leads]) if before else first
        return made

    key = (before, end, separators, max_calls, leading_newlines, any_order, known)
    return Plan(key, begin, separators, most + len(before.encode()) + len(end.encode()) + 8, any_order)
