"""JSON Schema → a schema llguidance compiles, and the list of what it then does not enforce.

Two readings. *Spec*: as JSON Schema says, objects are open unless closed (`Grammar.from_json_schema`). *Tool*: the
arguments of a tool are an object, and an object that declares `properties` without saying anything of
`additionalProperties` (or patternProperties, unevaluatedProperties) takes the declared ones only, at every depth where
no combinator could declare more beside it; `"properties": {}` declares none. A closed reading admits only instances
that the original schema admits too.

Annotations (title, description, default, examples, an unknown `format`) constrain nothing, in JSON Schema as here.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias, cast

from llguidance import LLMatcher

from m1runtime.grammar.bound import bound
from m1runtime.grammar.effort import Effort
from m1runtime.grammar.names import PLAIN_ESCAPES, needs_u, open_objects, respelled
from m1runtime.grammar.names import pointer as _escape
from m1runtime.grammar.reach import Reach, reach

Schema: TypeAlias = "dict[str, Any] | bool"

MAX_DEPTH = 100
"""Nested JSON levels; llguidance's own reader stops at 128."""
MAX_NODES = 100_000
MAX_KEYS = 1000
MAX_WEIGHT = 4 * MAX_KEYS**2
"""Compile time grows with the square of the keys of one object: 0.2 s for MAX_KEYS of them."""
MAX_COUNT = 2**31 - 1
MAX_LEAST = 1000
"""A minLength or minItems above this is left to validation; shorter ones must be searchable within a budget."""

MAX_REMEMBERED = 100_000
"""Characters of a schema whose compiled form is kept for the next grammar."""

SECONDS = 1.0
"""Of CPU, to look at the patterns of one schema; half of it to find an instance, and for each of both once more where
none is found. A schema of a hundred arguments needs a hundredth."""

FORMATS = frozenset({"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uri", "uuid"})
TYPES = frozenset({"null", "boolean", "object", "array", "number", "integer", "string"})
_ANNOTATIONS = frozenset(
    {"title", "description", "default", "examples", "example", "deprecated", "readOnly", "writeOnly"}
)
_DROPPED = _ANNOTATIONS | {"$comment", "$schema", "$id", "x-guidance"}
_ONE = (
    "additionalProperties",
    "items",
    "contains",
    "propertyNames",
    "not",
    "if",
    "then",
    "else",
    "unevaluatedProperties",
)
_ONE_MORE = ("unevaluatedItems", "additionalItems", "contentSchema")
_LIST = ("allOf", "anyOf", "oneOf", "prefixItems")
_MAP = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
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


@dataclass(frozen=True, slots=True)
class Unenforced:
    """One keyword the mask does not enforce: JSON pointer of its schema, the keyword (`*` for all of it), and why."""

    path: str
    keyword: str
    why: str


@dataclass(frozen=True, slots=True)
class ToolSchemaReport:
    """What the grammar enforces of one schema; `enforced` when nothing is left to validate afterwards."""

    name: str
    unenforced: tuple[Unenforced, ...] = ()

    @property
    def enforced(self) -> bool:
        """Every assertion of the schema is in the mask."""
        return not self.unenforced


@dataclass(frozen=True, slots=True)
class CompiledSchema:
    """A schema llguidance takes, as the text after `%json`, and its report.

    `names`: an instance may hold names the schema does not declare, so the constraint must remember them; `instance`:
    one that the grammar accepts; `bound`: bytes that finish an instance from any place, None if no bound is known.
    """

    text: str
    report: ToolSchemaReport
    names: bool
    instance: bytes
    bound: int | None


def compile_schema(
    name: str,
    schema: object,
    *,
    separators: tuple[str, str],
    tool: bool,
    clock: Callable[[], float] = time.thread_time,
) -> CompiledSchema | None:
    """`schema` as llguidance can enforce it, strictly if possible, otherwise leniently with everything lost listed.

    Where no instance is found, the patterns that no text is found for are left to validation too, and so is all that
    takes longer than its share of SECONDS on `clock`.
    None when llguidance can neither; `tool=True` then never happens: a free JSON object is the last resort.
    """
    try:
        text = json.dumps(schema)
    except (TypeError, ValueError, RecursionError):
        text = ""
    if text and len(text) <= MAX_REMEMBERED and clock is time.thread_time:
        return _remembered(name, text, separators, tool)
    return _compile_schema(name, schema, separators, tool, clock)


@lru_cache(512)
def _remembered(name: str, text: str, separators: tuple[str, str], tool: bool) -> CompiledSchema | None:
    return _compile_schema(name, json.loads(text), separators, tool, time.thread_time)


def _compile_schema(
    name: str, schema: object, separators: tuple[str, str], tool: bool, clock: Callable[[], float]
) -> CompiledSchema | None:
    reason = _too_big(schema)
    if reason is None and isinstance(schema, (dict, bool)):
        for search in (False, True):
            lost: list[Unenforced] = []
            effort = Effort(SECONDS / 2 if search else SECONDS, clock)
            reduced = _Reducer(lost, tool=tool, search=search, effort=effort).root(cast("Schema", schema))
            found = _compile(name, reduced, lost, separators, Effort(SECONDS / 2, clock))
            if isinstance(found, CompiledSchema):
                return found
            reason = found
    elif reason is None:
        reason = f"a schema is an object or a boolean, not {type(schema).__name__}"
    return free_object(name, separators, reason or "unknown") if tool else None


def _compile(
    name: str, reduced: Schema, lost: list[Unenforced], separators: tuple[str, str], effort: Effort
) -> CompiledSchema | str:
    """The reduced schema compiled, or why not."""
    escapes = _escapes(reduced, lost)
    found, messages = Reach(), list[str]()
    for lenient in (False, True):
        text = _with_options(reduced, separators, lenient=lenient, escapes=escapes)
        if lenient:
            failed, messages = _validate(_lark(text))
            if failed:
                return messages[0].split("\n")[0]
        found = reach(_lark(text), effort)
        if found.why is None:
            unenforced = (*lost, *_blame(reduced, messages))
            report = ToolSchemaReport(name, tuple(dict.fromkeys(unenforced)))
            return CompiledSchema(text, report, open_objects(reduced), found.text, bound(reduced))
        if not found.refused:
            break
    return (found.why or "unknown").split("\n")[0]


def free_object(name: str, separators: tuple[str, str], why: str) -> CompiledSchema:
    """Any JSON object: the reading of a tool whose schema cannot be compiled at all."""
    report = ToolSchemaReport(name, (Unenforced("", "*", why),))
    return CompiledSchema(_with_options({"type": "object"}, separators, lenient=False), report, True, b"{}", None)


def refusal(schema: object, *, separators: tuple[str, str]) -> str:
    """Why `compile_schema(..., tool=False)` returned None."""
    return free_object_reason(compile_schema("", schema, separators=separators, tool=True))


def free_object_reason(compiled: CompiledSchema | None) -> str:
    """The reason of the last resort, for an error message."""
    return "; ".join(item.why for item in compiled.report.unenforced) if compiled else "unknown"


def _lark(text: str) -> str:
    return f"start: %json {text}\n"


def _validate(lark: str) -> tuple[bool, list[str]]:
    try:
        grammar = LLMatcher.grammar_from_lark(lark)
        return LLMatcher.validate_grammar_with_warnings(grammar)
    except (ValueError, UnicodeEncodeError) as error:
        return True, [str(error)]


def _escapes(schema: Schema, lost: list[Unenforced]) -> str | None:
    """The escapes strings may use (None: all), so that no escaped spelling of a name slips past its declaration."""
    mixed = respelled(schema)
    if mixed and needs_u(json.dumps(schema)):
        lost += [
            Unenforced(path, "properties", "an escaped spelling of a name passes as another one") for path in mixed
        ]
        return None
    return PLAIN_ESCAPES if mixed else None


def _with_options(schema: Schema, separators: tuple[str, str], *, lenient: bool, escapes: str | None = None) -> str:
    item, key = separators
    options: dict[str, Any] = {"item_separator": item, "key_separator": key}
    options |= {"whitespace_flexible": False, "lenient": lenient}
    options |= {"json_allowed_escapes": escapes} if escapes else {}
    body: dict[str, Any] = schema if isinstance(schema, dict) else {} if schema else {"not": {}}
    return json.dumps({**body, "x-guidance": options}, ensure_ascii=True)


def _too_big(schema: object) -> str | None:
    """Measured without recursion: the schema may come from an untrusted server."""
    level: list[object] = [schema]
    nodes = weight = 0
    for _ in range(MAX_DEPTH):
        if any(isinstance(node, dict) and len(cast("dict[str, Any]", node)) > MAX_KEYS for node in level):
            return f"more than {MAX_KEYS} keys in one object"
        weight += _weight(level)
        if weight > MAX_WEIGHT:
            return "too many keys in all"
        level = [child for node in level for child in _children(node)]
        nodes += len(level)
        if nodes > MAX_NODES:
            return f"more than {MAX_NODES} values in one schema"
        if not level:
            return None
    return f"nested deeper than {MAX_DEPTH} levels"


def weight(schema: object) -> int:
    """What compiling costs, in squared keys of objects; for a schema that compiled."""
    level, total = [schema], 0
    for _ in range(MAX_DEPTH):
        total += _weight(level)
        level = [child for node in level for child in _children(node)]
    return total


def _weight(level: list[object]) -> int:
    return sum(len(cast("dict[str, Any]", node)) ** 2 for node in level if isinstance(node, dict))


def _children(node: object) -> Iterator[object]:
    if isinstance(node, Mapping):
        yield from cast("Mapping[str, object]", node).values()
    elif isinstance(node, (list, tuple)):
        yield from cast("Sequence[object]", node)


class _Reducer:
    """Copies a schema without annotations and without the keywords that stop llguidance, which it lists."""

    def __init__(self, lost: list[Unenforced], *, tool: bool, search: bool, effort: Effort) -> None:
        """`search`: also list patterns that no matching text is found for."""
        self._lost = lost
        self._tool = tool
        self._search = search
        self._effort = effort

    def root(self, schema: Schema) -> Schema:
        reduced = self._node(schema, "", may_close=self._tool)
        if not self._tool:
            return reduced
        body: dict[str, Any] = dict(reduced) if isinstance(reduced, dict) else {}
        if reduced is False:
            self._lose("", "*", "a schema that admits nothing")
        if "object" not in _names(body.get("type", "object")):
            self._lose("", "type", "arguments are always an object")
        return {**body, "type": "object"}

    def _lose(self, path: str, keyword: str, why: str) -> None:
        self._lost.append(Unenforced(path, keyword, why))

    def _node(self, schema: object, path: str, *, may_close: bool) -> Schema:
        if not isinstance(schema, dict):
            return cast("Schema", schema)
        node = cast("dict[str, Any]", schema)
        closes = may_close and isinstance(node.get("properties"), dict) and not _DECLARES_MORE & node.keys()
        closes = closes and set(_names(node.get("required"))) <= node["properties"].keys()
        reduced: dict[str, Any] = {}
        for keyword, value in node.items():
            if keyword in _DROPPED or (keyword == "format" and value not in FORMATS):
                continue
            why = self._no_pattern(value) if keyword == "pattern" else _unusable(keyword, value)
            if why is not None:
                self._lose(path, keyword, why)
                continue
            if keyword == "minProperties" and value > 1:
                self._lose(path, keyword, "a name written twice counts twice")
            reduced[keyword] = self._value(keyword, value, f"{path}/{_escape(keyword)}", may_close=may_close)
        if closes:
            reduced["additionalProperties"] = False
        return reduced

    def _no_pattern(self, pattern: object) -> str | None:
        """Why a pattern cannot be enforced, or is not looked at: there are too many."""
        if self._effort.over:
            return "the schema takes too long to compile"
        lark = _lark(json.dumps({"type": "string", "pattern": pattern}))
        if self._search:
            found = reach(lark, self._effort)
            return _short(found.why) if found.why else None
        failed, messages = _validate(lark)
        return _short(messages[0]) if failed else None

    def _value(self, keyword: str, value: Any, path: str, *, may_close: bool) -> Any:
        deeper = may_close and keyword not in ("allOf", "not", "if", "then", "else", "dependentSchemas", "contains")
        if keyword in _MAP and isinstance(value, dict):
            children = cast("dict[str, Any]", value)
            closable = deeper and keyword not in ("$defs", "definitions")
            return {k: self._node(v, f"{path}/{_escape(k)}", may_close=closable) for k, v in children.items()}
        if keyword in _LIST and isinstance(value, list):
            items = cast("list[Any]", value)
            return [self._node(v, f"{path}/{i}", may_close=deeper) for i, v in enumerate(items)]
        if keyword in _ONE or keyword in _ONE_MORE:
            return self._node(value, path, may_close=deeper)
        return value


def _names(value: object) -> list[str]:
    """The strings of a list, or the one string."""
    items = cast("list[object]", value) if isinstance(value, list) else [value]
    return [v for v in items if isinstance(v, str)]


def _unusable(keyword: str, value: Any) -> str | None:
    """Why llguidance would refuse the whole schema for this one keyword; None if it would not."""
    if keyword == "type":
        unknown = [n for n in _names(value) if n not in TYPES]
        return f"unknown type {unknown[0]!r}" if unknown else None
    if keyword == "$ref" and not (isinstance(value, str) and value.startswith("#")):
        return "only references within the schema can be resolved"
    if keyword in _COUNTS:
        most = MAX_LEAST if keyword in ("minLength", "minItems") else MAX_COUNT
        usable = isinstance(value, (int, float)) and value == value // 1 and 0 <= value <= most
        return None if usable else f"not a count up to {most}"
    if keyword in _BOUNDS:
        usable = isinstance(value, (int, float)) and not isinstance(value, bool) and _is_finite(value)
        return None if usable else "not a finite number"
    return None


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(float(value))
    except OverflowError:
        return False


def _short(message: str) -> str:
    lines = [line.removeprefix("error: ") for line in message.split("\n") if line.startswith("error: ")]
    return lines[0] if lines else message.split("\n")[0].split("failed to compile JSON schema: ")[-1][:200]


def _blame(schema: Schema, warnings: Sequence[str]) -> list[Unenforced]:
    """llguidance's lenient warnings, each turned into the places its keywords stand at."""
    found: list[Unenforced] = []
    for warning in (line for text in warnings for line in text.splitlines()):
        keywords = _keywords_of(warning)
        places = [Unenforced(p, k, _short(warning)) for p, k in _places(schema, "") if k in keywords]
        found += places or [Unenforced("", "*", warning)]
    return found


def _keywords_of(warning: str) -> set[str]:
    if warning.startswith("Unimplemented keys: "):
        return set(re.findall(r'"([^"]+)"', warning))
    if warning.startswith("oneOf"):
        return {"oneOf"}
    if warning.startswith("min/maxProperties"):
        return {"minProperties", "maxProperties"}
    return set()


def _places(schema: object, path: str) -> Iterator[tuple[str, str]]:
    if not isinstance(schema, dict):
        return
    for keyword, value in cast("dict[str, Any]", schema).items():
        yield path, keyword
        below = f"{path}/{_escape(keyword)}"
        if keyword in _MAP and isinstance(value, dict):
            for name, child in cast("dict[str, Any]", value).items():
                yield from _places(child, f"{below}/{_escape(name)}")
        elif keyword in _LIST and isinstance(value, list):
            for i, child in enumerate(cast("list[Any]", value)):
                yield from _places(child, f"{below}/{i}")
        elif keyword in _ONE or keyword in _ONE_MORE:
            yield from _places(value, below)
