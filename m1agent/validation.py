"""Holds a call's arguments against a JSON Schema: coerces what is certain and says so, tells what is wrong."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, cast

from jsonschema import Draft202012Validator, FormatChecker
from jsonschema.exceptions import SchemaError as InvalidSchema
from jsonschema.exceptions import ValidationError
from jsonschema.validators import extend, validator_for  # pyright: ignore[reportUnknownVariableType]
from referencing import Registry, Resource
from referencing.exceptions import Unresolvable
from referencing.jsonschema import DRAFT202012, specification_with

from m1agent.bounded import CHECK_SECONDS, Allowance, bounded_keywords
from m1agent.errors import SchemaError
from m1agent.messages import JsonSchema
from m1agent.patterns import BadPattern, TooSlow, compiled
from m1agent.problems import LISTED, Leaf, Path, cap, dotted, expectation, problem_lines, shown, type_names

ROUNDS = 6
TOO_SLOW = f"arguments: they could not be checked within {CHECK_SECONDS:g} seconds; the tool's schema is too complex."


class _Validator(Protocol):
    def iter_errors(self, instance: Any) -> Iterator[ValidationError]: ...


@dataclass(frozen=True, slots=True)
class Checked:
    """Arguments after coercion, one line for each coercion, one line for each problem left; `places`: where each
    problem is, as far as that is known."""

    arguments: dict[str, Any]
    coercions: tuple[str, ...]
    problems: tuple[str, ...]
    places: tuple[Path, ...] = ()


class ArgumentsSchema:
    """The schema of a tool's arguments, ready to check calls. The schema is never changed, nor anything remote fetched.

    Args:
        schema: an object schema of any JSON Schema draft; `$schema` says which (default 2020-12).
        closed: refuse arguments the schema does not name, even where it leaves that open.

    Raises:
        SchemaError: no valid schema, not of an object, or it refers to something outside itself.
    """

    def __init__(self, schema: JsonSchema, *, closed: bool = False) -> None:
        self._schema: JsonSchema = schema if not closed else {**schema, "additionalProperties": False}
        self._allowance = Allowance()
        try:
            self._validator = _validator(self._schema, self._allowance)
        except RecursionError:
            raise SchemaError("the schema is nested too deeply") from None

    def check(self, arguments: Mapping[str, Any]) -> Checked:
        """Coerce what can safely be coerced and tell every problem left, up to a cap."""
        try:
            self._allowance.start()
            return self._check(arguments)
        except RecursionError:
            return Checked({}, (), ("arguments: nested too deeply.",))
        except TooSlow:
            return Checked({}, (), (TOO_SLOW,))

    def _check(self, arguments: Mapping[str, Any]) -> Checked:
        value = copy.deepcopy(dict(arguments))
        coercions: list[str] = []
        leaves: list[Leaf] = []
        for _ in range(ROUNDS):
            leaves = [leaf for error in self._validator.iter_errors(value) for leaf in _leaves(error)]
            made = [done for leaf in leaves if (done := _coerce(value, leaf)) is not None]
            coercions += made
            if not made:
                break
        problems = cap(line for leaf in leaves for line in problem_lines(leaf))
        return Checked(value, tuple(coercions), problems, tuple(_place(leaf) for leaf in leaves))


class AnswerSchema:
    """The schema of an answer in JSON, which may be any value.

    Raises:
        SchemaError: no valid schema, or it refers to something outside itself.
    """

    def __init__(self, schema: JsonSchema) -> None:
        self._allowance = Allowance()
        try:
            self._validator = _validator(schema, self._allowance, any_value=True)
        except RecursionError:
            raise SchemaError("the schema is nested too deeply") from None

    def problem(self, text: str) -> str | None:
        """What is wrong with an answer, up to a cap; None where it fits."""
        try:
            self._allowance.start()
            value = json.loads(text)
            leaves = [leaf for error in self._validator.iter_errors(value) for leaf in _leaves(error)]
            return "\n".join(cap(line for leaf in leaves for line in problem_lines(leaf))) or None
        except ValueError as error:
            return f"The answer is not valid JSON: {error}"
        except RecursionError:
            return "The answer is nested too deeply."
        except TooSlow:
            return "The answer could not be checked in time: its schema is too complex."


# Schemas


def _validator(schema: JsonSchema, allowance: Allowance, *, any_value: bool = False) -> _Validator:
    kind = validator_for(schema, default=Draft202012Validator)
    try:
        cast("Any", kind).check_schema(schema, format_checker=_patterns())
    except InvalidSchema as error:
        raise SchemaError(
            f"not a JSON Schema: at {dotted(tuple(error.absolute_path)) or 'the top'}: {error.message[:200]}"
        ) from error
    if not any_value and "object" not in type_names(schema.get("type", "object")):
        raise SchemaError(f"the arguments of a tool are an object, not {shown(schema['type'])}")
    schema = _of_one_dialect(schema)
    _check_references(schema)
    # JSON Schema counts 7.0 as an integer, typed handlers do not: it fails here, and coercion makes it 7.
    strict = kind.TYPE_CHECKER.redefine("integer", _is_integer)
    keywords = bounded_keywords(kind.VALIDATORS, allowance)
    bounded = cast("Any", extend(kind, keywords, type_checker=strict))
    return cast("_Validator", bounded(schema, registry=Registry[Any]()))


def _is_integer(_: Any, value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _patterns() -> FormatChecker:
    """Checks that patterns are regular expressions of the engines that will search for them."""
    checker = FormatChecker(formats=())

    @checker.checks("regex", raises=BadPattern)
    def readable(pattern: object) -> bool:
        return not isinstance(pattern, str) or compiled(pattern) is not None

    return checker


def _of_one_dialect(schema: JsonSchema) -> JsonSchema:
    """The schema without the `$schema` of its parts, which would have them checked by other rules than ours.

    Raises SchemaError where a part is of another draft than the whole.
    """
    if not _mentions({key: value for key, value in schema.items() if key != "$schema"}, "$schema"):
        return schema
    whole = copy.deepcopy(schema)
    (root, _), *parts = _walk(whole)
    for part, _ in parts:
        if part.pop("$schema", root.get("$schema")) != root.get("$schema"):
            raise SchemaError("its parts are of different drafts; use one $schema, at the top")
    return whole


def _mentions(schema: JsonSchema, word: str) -> bool:
    return f'"{word}"' in json.dumps(schema, default=str)


def _walk(schema: JsonSchema) -> Iterator[tuple[JsonSchema, Any]]:
    """The schema and all its parts, each with what resolves its references."""
    dialect = specification_with(str(schema.get("$schema", "")), default=DRAFT202012)
    root: Resource[Any] = Resource(contents=schema, specification=dialect)
    registry = Registry[Any]().with_resource(root.id() or "", root).crawl()
    yield from _parts(root, registry.resolver(root.id() or ""))


def _check_references(schema: JsonSchema) -> None:
    """Refuse references that lead outside the schema now, rather than in the middle of a call."""
    unbounded = _mentions(schema, "unevaluatedProperties") and _mentions(schema, "patternProperties")
    for part, scope in _walk(schema):
        if unbounded and "unevaluatedProperties" in part:
            raise SchemaError("unevaluatedProperties together with patternProperties cannot be checked in bounded time")
        for keyword in ("$ref", "$dynamicRef"):
            if isinstance(reference := part.get(keyword), str):
                try:
                    scope.lookup(reference)
                except Unresolvable as error:
                    raise SchemaError(
                        f"reference {shown(reference, LISTED)} leads outside the schema; only local ones are followed"
                    ) from error


def _parts(resource: Any, resolver: Any) -> Iterator[tuple[JsonSchema, Any]]:
    contents: Any = resource.contents
    if isinstance(contents, dict):
        yield cast("JsonSchema", contents), resolver
    for sub in resource.subresources():
        yield from _parts(sub, resolver.in_subresource(sub))


# Failures


def _leaves(error: ValidationError) -> Iterator[Leaf]:
    """The failures a reader can act on: of alternatives, those of the one that was meant, if that can be told."""
    if error.validator in ("anyOf", "oneOf") and error.context:
        branches = _branches(error)
        meant = [errors for errors in branches if not any(_rules_out(item) for item in errors)]
        if len(meant) == 1:
            for item in meant[0]:
                yield from _leaves(item)
            return
        if not meant:
            kinds = [kind for errors in branches for item in errors if _rules_out(item) for kind in _kinds(item)]
            yield _leaf(error, "type", list(dict.fromkeys(kinds)))
            return
    yield _leaf(error, str(error.validator), error.validator_value)


def _branches(error: ValidationError) -> list[list[ValidationError]]:
    found: dict[Any, list[ValidationError]] = {}
    for item in error.context or ():
        found.setdefault(item.schema_path[0], []).append(item)
    return list(found.values())


def _rules_out(error: ValidationError) -> bool:
    return not error.path and error.validator in ("type", "const", "enum")


def _kinds(error: ValidationError) -> list[Any]:
    if error.validator != "type":
        return [expectation(_leaf(error, str(error.validator), error.validator_value))]
    return type_names(error.validator_value)


def _place(leaf: Leaf) -> Path:
    """Where the problem is: of items that must differ, the first that came before."""
    if leaf.keyword != "uniqueItems":
        return leaf.path
    texts = [json.dumps(item, sort_keys=True) for item in leaf.instance]
    again = (index for index, text in enumerate(texts) if text in texts[:index])
    return (*leaf.path, *(index for index in list(again)[:1]))


def _leaf(error: ValidationError, keyword: str, demand: Any) -> Leaf:
    schema = error.schema if isinstance(error.schema, dict) else {}
    return Leaf(tuple(error.absolute_path), keyword, demand, error.instance, schema)


# Coercions


def _coerce(arguments: dict[str, Any], leaf: Leaf) -> str | None:
    """Replace a value of the wrong type where its meaning is certain; returns the line that says so."""
    if leaf.keyword != "type" or not leaf.path:
        return None
    holder: Any = arguments
    try:
        for part in leaf.path[:-1]:
            holder = holder[part]
        if holder[leaf.path[-1]] is not leaf.instance:
            return None
    except (KeyError, IndexError, TypeError):
        return None
    for kind in type_names(leaf.demand):
        value = _converted(leaf.instance, kind)
        if value is not None:
            holder[leaf.path[-1]] = value.value
            return f"{dotted(leaf.path)}: {shown(leaf.instance)} read as {shown(value.value)}"
    return None


@dataclass(frozen=True, slots=True)
class _Value:
    value: Any


def _converted(value: Any, kind: Any) -> _Value | None:
    if kind == "integer" and isinstance(value, float) and value.is_integer():
        return _Value(int(value))
    if not isinstance(value, str) or kind not in READERS:
        return None
    return READERS[kind](value.strip())


def _read_number(text: str) -> _Value | None:
    if not re.fullmatch(r"-?[0-9]{1,17}(\.[0-9]{1,17})?([eE][+-]?[0-9]{1,2})?", text):
        return None
    return _Value(float(text) if re.search(r"[.eE]", text) else int(text))


def _read_integer(text: str) -> _Value | None:
    number = _read_number(text)
    if number is None or not float(number.value).is_integer():
        return None
    return _Value(int(number.value))


def _read_word(words: Mapping[str, Any]) -> Callable[[str], _Value | None]:
    return lambda text: _Value(words[text.lower()]) if text.lower() in words else None


def _read_json(kind: type) -> Callable[[str], _Value | None]:
    def read(text: str) -> _Value | None:
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return None
        return _Value(value) if isinstance(value, kind) else None

    return read


READERS: dict[str, Callable[[str], _Value | None]] = {
    "integer": _read_integer,
    "number": _read_number,
    "boolean": _read_word({"true": True, "false": False}),
    "null": _read_word({"null": None}),
    "object": _read_json(dict),
    "array": _read_json(list),
}
