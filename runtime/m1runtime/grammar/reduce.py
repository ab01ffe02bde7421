"""A schema without what constrains nothing and without the keywords that stop llguidance, which are listed."""

from __future__ import annotations

import json
import math
from fractions import Fraction
from typing import Any, cast

from m1runtime.grammar.effort import Effort
from m1runtime.grammar.endings import MAX_ENDINGS, shortest_text
from m1runtime.grammar.keywords import ANNOTATIONS, FORMATS, LISTS, MAPS, ONES, TYPES, Schema, pointer
from m1runtime.grammar.reach import compiles, ending
from m1runtime.grammar.report import Unenforced, short
from m1runtime.grammar.spaces import agreed_spaces
from m1runtime.grammar.writer import json_value

MAX_COUNT = 2**31 - 1
MAX_EXACT = 2**53
MAX_LEAST = 1000
"""A minLength or minItems above this is left to validation; shorter ones must be searchable within a budget."""

_DROPPED = ANNOTATIONS | {"$comment", "$schema", "$id", "x-guidance"}
_COUNTS = frozenset({"minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"})
_BOUNDS = frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"})
_DECLARES_MORE = frozenset(
    {
        "additionalProperties",
        "patternProperties",
        "unevaluatedProperties",
        "allOf",
        "anyOf",
        "oneOf",
        "$ref",
        "$dynamicRef",
    }
    | {"if", "then", "else", "dependentSchemas", "dependencies", "not", "propertyNames"}
)


class Reducer:
    """Copies a schema without annotations and without the keywords that stop llguidance, which it lists."""

    def __init__(self, lost: list[Unenforced], *, tool: bool, effort: Effort) -> None:
        self._lost = lost
        self._tool = tool
        self._effort = effort
        self._texts: dict[str, bytes] = {}

    @property
    def texts(self) -> tuple[bytes, ...]:
        """Strings that match the patterns a search by bytes finds no text of."""
        return tuple(dict.fromkeys(self._texts.values()))

    def root(self, schema: Schema) -> Schema:
        reduced = self._node(schema, "", may_close=self._tool)
        if not self._tool:
            return reduced
        body: dict[str, Any] = dict(reduced) if isinstance(reduced, dict) else {}
        if reduced is False:
            self._lose("", "*", "a schema that admits nothing")
        if "object" not in names_in(body.get("type", "object")):
            self._lose("", "type", "arguments are always an object")
        return {**body, "type": "object"}

    def _lose(self, path: str, keyword: str, why: str) -> None:
        self._lost.append(Unenforced(path, keyword, why))

    def _node(self, schema: object, path: str, *, may_close: bool) -> Schema:
        if not isinstance(schema, dict):
            return cast("Schema", schema)
        node = cast("dict[str, Any]", schema)
        closes = may_close and isinstance(node.get("properties"), dict) and not _DECLARES_MORE & node.keys()
        closes = closes and set(names_in(node.get("required"))) <= node["properties"].keys()
        node = self._with_names_found(node, path)
        reduced: dict[str, Any] = {}
        for keyword, value in node.items():
            if keyword in _DROPPED or (keyword == "format" and not (isinstance(value, str) and value in FORMATS)):
                continue
            if keyword == "pattern" and isinstance(value, str):
                value = agreed_spaces(value)
            why = self._no_pattern(value) if keyword == "pattern" else _unusable(keyword, value)
            if why is not None:
                self._lose(path, keyword, why)
                continue
            if keyword == "multipleOf" and _rounded(value):
                self._lose(path, keyword, "validators divide in binary fractions, and may refuse a multiple")
            reduced[keyword] = self._value(keyword, value, f"{path}/{pointer(keyword)}", may_close=may_close)
        if closes:
            reduced["additionalProperties"] = False
        return reduced

    def _with_names_found(self, node: dict[str, Any], path: str) -> dict[str, Any]:
        """The node without patterns of names that cannot be enforced; any other name is then taken in their place."""
        patterns = node.get("patternProperties")
        if not isinstance(patterns, dict):
            return node
        named = cast("dict[str, Any]", patterns)
        whys = {pattern: why for pattern in named if (why := self._no_pattern(pattern)) is not None}
        if not whys:
            return node
        self._lose(path, "patternProperties", next(iter(whys.values())))
        kept = {**node, "patternProperties": {p: value for p, value in named.items() if p not in whys}}
        if kept.pop("additionalProperties", True) is not True:
            self._lose(path, "additionalProperties", "names that match a pattern cannot be told from the rest")
        return kept

    def _no_pattern(self, pattern: object) -> str | None:
        """Why a pattern cannot be enforced, or is not looked at: there are too many.

        A text must be findable: where it is optional, a member that could not be finished could not be begun either.
        """
        if self._effort.over:
            return "the schema takes too long to compile"
        lark = json_value(json.dumps({"type": "string", "pattern": pattern}))
        failed, messages = compiles(lark)
        if failed:
            return short(messages[0])
        if ending(lark) is not None or cast("str", pattern) in self._texts:
            return None
        found = shortest_text(cast("str", pattern), self._effort) if len(self._texts) < MAX_ENDINGS else None
        if found is None:
            return "no text that matches it could be found"
        self._texts[cast("str", pattern)] = found
        return None

    def _value(self, keyword: str, value: Any, path: str, *, may_close: bool) -> Any:
        deeper = may_close and keyword not in ("allOf", "not", "if", "then", "else", "dependentSchemas", "contains")
        if keyword in MAPS and isinstance(value, dict):
            children = cast("dict[str, Any]", value)
            closable = deeper and keyword not in ("$defs", "definitions")
            return {k: self._node(v, f"{path}/{pointer(k)}", may_close=closable) for k, v in children.items()}
        if keyword in LISTS and isinstance(value, list):
            items = cast("list[Any]", value)
            return [self._node(v, f"{path}/{i}", may_close=deeper) for i, v in enumerate(items)]
        if keyword in ONES:
            return self._node(value, path, may_close=deeper)
        return value


def names_in(value: object) -> list[str]:
    """The strings of a list, or the one string."""
    items = cast("list[object]", value) if isinstance(value, list) else [value]
    return [v for v in items if isinstance(v, str)]


def _unusable(keyword: str, value: Any) -> str | None:
    """Why llguidance would refuse the whole schema for this one keyword; None if it would not."""
    if keyword == "type":
        unknown = [n for n in names_in(value) if n not in TYPES]
        return f"unknown type {unknown[0]!r}" if unknown else None
    if keyword == "$ref" and not (isinstance(value, str) and value.startswith("#")):
        return "only references within the schema can be resolved"
    if keyword in _COUNTS:
        most = MAX_LEAST if keyword in ("minLength", "minItems") else MAX_COUNT
        usable = isinstance(value, (int, float)) and value == value // 1 and 0 <= value <= most
        return None if usable else f"not a count up to {most}"
    if keyword in _BOUNDS:
        usable = isinstance(value, (int, float)) and not isinstance(value, bool) and _is_finite(value)
        return _no_bound(keyword, value) if usable else "not a finite number"
    return None


def _no_bound(keyword: str, value: Any) -> str | None:
    """Why llguidance cannot enforce a bound; asked only where it might not."""
    if abs(value) < MAX_EXACT and (keyword != "multipleOf" or isinstance(value, int)):
        return None
    failed, messages = compiles(json_value(json.dumps({"type": "number", keyword: value})))
    return short(messages[0]) if failed else None


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(float(value))
    except OverflowError:
        return False


def _rounded(step: object) -> bool:
    """Whether a step, as written, is no binary fraction."""
    return isinstance(step, float) and Fraction(str(step)) != Fraction(step)
