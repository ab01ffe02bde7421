"""JSON Schema → a schema llguidance compiles, and the list of what it then does not enforce.

Two readings. *Spec*: as JSON Schema says, objects are open unless closed (`Grammar.from_json_schema`). *Tool*: the
arguments of a tool are an object, and an object that declares `properties` without saying anything of
`additionalProperties` (or patternProperties, unevaluatedProperties) takes the declared ones only, at every depth where
no combinator could declare more beside it; `"properties": {}` declares none. What a combinator declares is merged first
where the schema has to be rewritten (`normalise`), and then each alternative takes what it declares. A closed reading
admits only instances that the original schema admits too.

Annotations (title, description, default, examples, an unknown `format`) constrain nothing, in JSON Schema as here.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache, partial
from typing import Literal, TypeAlias, cast

from m1runtime.grammar.anyorder import any_order
from m1runtime.grammar.bound import bound
from m1runtime.grammar.effort import Effort
from m1runtime.grammar.keywords import Schema
from m1runtime.grammar.names import PLAIN_ESCAPES, needs_u, open_objects, respelled
from m1runtime.grammar.normalise import Normal, normalise, plain
from m1runtime.grammar.reach import Reach, Seek, compiles, reach
from m1runtime.grammar.reduce import Reducer
from m1runtime.grammar.report import CompiledSchema, ToolSchemaReport, Unenforced, blame, loose_formats
from m1runtime.grammar.size import no_json, too_big
from m1runtime.grammar.writer import json_value, with_options

Order: TypeAlias = Literal["schema", "any"]

MAX_REMEMBERED = 100_000
"""Characters of a schema whose compiled form is kept for the next grammar."""

SECONDS = 1.0
"""Of CPU, to look at the patterns of one schema; half of it to rewrite it, and half to find an instance. A schema of a
hundred arguments needs a hundredth."""

RESPELLED = "an escaped spelling of a name passes as another one"


def compile_schema(
    name: str,
    schema: object,
    *,
    separators: tuple[str, str],
    tool: bool,
    order: Order = "schema",
    clock: Callable[[], float] = time.thread_time,
) -> CompiledSchema | None:
    """`schema` as llguidance can enforce it, strictly if possible, otherwise leniently with everything lost listed.

    Patterns that no text is found for are left to validation too, and so is all that takes longer than its share of
    SECONDS on `clock`. `order`: that of properties, the schema's or any.
    None when llguidance can neither; `tool=True` then never happens: a free JSON object is the last resort.
    """
    try:
        text = json.dumps(schema)
    except (TypeError, ValueError, RecursionError):
        text = ""
    if text and len(text) <= MAX_REMEMBERED and clock is time.thread_time:
        found = _remembered(name, text, separators, tool, order)
    else:
        found = _compile_schema(name, schema, separators, tool, order, clock)
    if isinstance(found, str):
        return free_object(name, separators, found) if tool else None
    return found


@lru_cache(512)
def _remembered(name: str, text: str, separators: tuple[str, str], tool: bool, order: Order) -> CompiledSchema | str:
    return _compile_schema(name, json.loads(text), separators, tool, order, time.thread_time)


def _compile_schema(
    name: str, schema: object, separators: tuple[str, str], tool: bool, order: Order, clock: Callable[[], float]
) -> CompiledSchema | str:
    """The schema compiled, or why not."""
    reason = too_big(schema) or no_json(schema)
    if reason is None and isinstance(schema, (dict, bool)):
        total = Effort(2 * SECONDS, clock)
        for normal in _attempts(cast("Schema", schema), tool, clock):
            if total.over:
                break
            if normal.schema is False and not tool:
                return "it admits nothing"
            lost: list[Unenforced] = []
            reducer = Reducer(lost, tool=tool, effort=Effort(SECONDS, clock))
            reduced = reducer.root(normal.schema)
            seek = partial(reach, effort=Effort(SECONDS / 2, clock), texts=reducer.texts)
            compiled = _compile if order == "schema" else _compile_any_order
            found = compiled(name, reduced, lost, separators, seek)
            if isinstance(found, CompiledSchema):
                told = replace(normal.reported(found.report), annotations=loose_formats(cast("Schema", schema)))
                return replace(found, report=told, texts=reducer.texts)
            reason = found
    elif reason is None:
        reason = f"a schema is an object or a boolean, not {type(schema).__name__}"
    return reason or "unknown"


def _attempts(schema: Schema, tool: bool, clock: Callable[[], float]) -> Iterator[Normal]:
    """What to try in turn: what llguidance refuses to combine is combined here, and in the end it gets the original."""
    normal = normalise(schema, Effort(SECONDS / 2, clock), tool=tool)
    yield normal
    if normal.rewritten or (isinstance(schema, dict) and not plain(schema)):
        yield normalise(schema, Effort(SECONDS / 2, clock), tool=tool, merge=True)
        yield Normal(schema)


def _compile(
    name: str, reduced: Schema, lost: list[Unenforced], separators: tuple[str, str], seek: Seek
) -> CompiledSchema | str:
    """The reduced schema compiled, or why not."""
    escapes = _escapes(reduced, lost)
    found, messages = Reach(), list[str]()
    for lenient in (False, True):
        text = with_options(reduced, separators, lenient=lenient, escapes=escapes)
        if lenient:
            failed, messages = compiles(json_value(text))
            if failed:
                return messages[0].split("\n")[0]
        found = seek(json_value(text))
        if found.why is None:
            unenforced = (*lost, *blame(reduced, messages))
            report = ToolSchemaReport(name, tuple(dict.fromkeys(unenforced)))
            return CompiledSchema(text, reduced, report, open_objects(reduced), found.text, bound(reduced))
        if not found.refused:
            break
    return (found.why or "unknown").split("\n")[0]


def _compile_any_order(
    name: str, reduced: Schema, lost: list[Unenforced], separators: tuple[str, str], seek: Seek
) -> CompiledSchema | str:
    """The same with properties in any order; in the schema's where there are no rules for that."""
    for lenient in (False, True):
        text = with_options(reduced, separators, lenient=lenient)
        messages = compiles(json_value(text))[1] if lenient else list[str]()
        written = any_order(reduced, separators, lenient=lenient, seek=seek)
        if written is not None and written.found.why is None:
            unenforced = [*lost, *blame(reduced, _not_counts(messages) if not written.in_order else messages)]
            unenforced += [Unenforced(path, "properties", RESPELLED) for path in written.respelled]
            report = ToolSchemaReport(name, tuple(dict.fromkeys(unenforced)), written.in_order)
            names = written.watched or open_objects(reduced)
            limit = None if written.watched else bound(reduced)
            return CompiledSchema(text, reduced, report, names, written.found.text, limit, written.value)
    found = _compile(name, reduced, lost, separators, seek)
    if isinstance(found, str):
        return found
    return replace(found, report=replace(found.report, in_order=("",)))


def _not_counts(warnings: list[str]) -> list[str]:
    """Without the warning that llguidance does not count properties: the rules for any order do."""
    lines = [line for text in warnings for line in text.splitlines()]
    return [line for line in lines if not line.startswith("min/maxProperties")]


def free_object(name: str, separators: tuple[str, str], why: str) -> CompiledSchema:
    """Any JSON object: the reading of a tool whose schema cannot be compiled at all."""
    report = ToolSchemaReport(name, (Unenforced("", "*", why),))
    schema: Schema = {"type": "object"}
    return CompiledSchema(with_options(schema, separators, lenient=False), schema, report, True, b"{}", None)


def refusal(schema: object, *, separators: tuple[str, str]) -> str:
    """Why `compile_schema(..., tool=False)` returned None."""
    found = _compile_schema("", schema, separators, False, "schema", time.thread_time)
    return found if isinstance(found, str) else "unknown"


def _escapes(schema: Schema, lost: list[Unenforced]) -> str | None:
    """The escapes strings may use (None: all), so that no escaped spelling of a name slips past its declaration."""
    mixed = respelled(schema)
    if mixed and needs_u(json.dumps(schema)):
        lost += [Unenforced(path, "properties", RESPELLED) for path in mixed]
        return None
    return PLAIN_ESCAPES if mixed else None
