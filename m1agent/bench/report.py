"""What a run found, as figures and as the table that is printed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from textwrap import shorten
from typing import Any

from m1agent.bench.figures import mean, shares, table, wilson

WIDTH = 160
HEAD = ("category", "items", "right", "accuracy", "95 % interval", "s each", "tokens read", "written")


def figures(results: Iterable[Mapping[str, Any]], categories: Sequence[str]) -> dict[str, Any]:
    """Figures of each category, and of all items together; failures counted by kind."""
    seen = list(results)
    parts = {name: [one for one in seen if one["category"] == name] for name in categories}
    return {
        "categories": {name: _of(part) for name, part in parts.items() if part},
        "all": _of(seen) if seen else None,
        "failures": dict(Counter(one["kind"] for one in seen if one["kind"]).most_common()),
    }


def text(results: Iterable[Mapping[str, Any]], categories: Sequence[str]) -> str:
    """The table by category, and the failures by kind with an example each."""
    seen = list(results)
    found = figures(seen, categories)
    if found["all"] is None:
        return "nothing was asked"
    rows = [_row(name, part) for name, part in found["categories"].items()]
    if len(rows) > 1:
        rows.append(_row("all items", found["all"]))
    lines = [table(HEAD, rows)]
    for kind, count in found["failures"].items():
        first = next(one for one in seen if one["kind"] == kind)
        lines.append(f"{count:5}  {kind}: " + shorten(f"{first['id']}: {first['why']}", WIDTH, placeholder=" ..."))
    return "\n".join(lines)


def _of(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    right = sum(one["passed"] for one in results)
    return {
        "items": len(results),
        "right": right,
        "accuracy": right / len(results),
        "interval": wilson(right, len(results)),
        "seconds": mean(one["seconds"] for one in results),
        "input_tokens": mean(one["usage"]["input_tokens"] for one in results),
        "output_tokens": mean(one["usage"]["output_tokens"] for one in results),
    }


def _row(name: str, part: Mapping[str, Any]) -> list[str]:
    cost = (f"{part['seconds']:.2f} s", f"{part['input_tokens']:.0f}", f"{part['output_tokens']:.0f}")
    return [name, str(part["items"]), str(part["right"]), *shares(part["right"], part["items"]), *cost]
