"""References within a schema: what they name, and schemas that stand without the one they come from."""

from __future__ import annotations

import json
from typing import Any, cast
from urllib.parse import unquote

from m1runtime.grammar.keywords import LISTS, MAPS, ONES, Node, Schema, below

_ASSERTING = frozenset(
    {"properties", "patternProperties", "additionalProperties", "items", "prefixItems", "allOf", "anyOf", "oneOf"}
)


class Unwritable(Exception):
    """A schema that this writer has no rules for; the reason is its text."""


class References:
    """The references of one schema, resolved within it."""

    def __init__(self, root: Schema) -> None:
        self._root = root
        self._targets: dict[str, Schema] = {}

    def target(self, reference: object) -> Schema:
        """What `#` or `#/...` names. Raises Unwritable for any other reference and for one to nothing."""
        if not isinstance(reference, str) or (reference != "#" and not reference.startswith("#/")):
            raise Unwritable(f"reference {reference!r} is no JSON pointer")
        found = self._targets.get(reference)
        if found is None:
            found = self._targets[reference] = self._walk(reference)
        return found

    def _walk(self, reference: str) -> Schema:
        at = cast("Any", self._root)
        for step in unquote(reference).split("/")[1:]:
            step = step.replace("~1", "/").replace("~0", "~")
            try:
                at = cast("Any", at[int(step)] if isinstance(at, list) else at[step])
            except (KeyError, IndexError, TypeError, ValueError):
                raise Unwritable(f"reference {reference!r} leads nowhere") from None
        if not isinstance(at, (dict, bool)):
            raise Unwritable(f"reference {reference!r} names no schema")
        return cast("Schema", at)

    def resolved(self, node: Schema, path: str) -> tuple[Schema, str]:
        """A schema that is nothing but a reference, followed to what it names, with the place of that."""
        seen: set[str] = set()
        while isinstance(node, dict) and node.keys() == {"$ref"}:
            reference = node["$ref"]
            if reference in seen:
                raise Unwritable(f"reference {reference!r} names itself")
            node = self.target(reference)
            path = reference[1:]
            seen.add(reference)
        return node, path

    def ordered(self, schema: object) -> bool:
        """Whether instances hold an object whose properties llguidance would take in one order only."""
        seen: set[str] = set()
        stack = [schema]
        while stack:
            node = stack.pop()
            if not isinstance(node, dict):
                continue
            node = cast("Node", node)
            if _has_order(node):
                return True
            reference = node.get("$ref")
            if reference is not None and str(reference) not in seen:
                seen.add(str(reference))
                stack.append(self.target(reference))
            stack += [child for steps, child in below(node) if steps[0] in _ASSERTING]
        return False

    def alone(self, schema: Schema) -> Schema:
        """A schema equal to this one that holds all it refers to."""
        names: dict[str, str] = {}
        node = _renamed(schema, names)
        definitions: dict[str, Schema] = {}
        while len(definitions) < len(names):
            reference = list(names)[len(definitions)]
            definitions[names[reference]] = _renamed(self.target(reference), names)
        return {**node, "$defs": definitions} if definitions and isinstance(node, dict) else node


def _renamed(schema: Schema, names: dict[str, str]) -> Schema:
    """A copy without definitions, whose references are to `#/$defs/<n>`, as `names` (extended here) maps them."""
    if not isinstance(schema, dict):
        return schema
    copy: Node = {}
    for keyword, value in schema.items():
        if keyword in ("$defs", "definitions"):
            continue
        if keyword == "$ref":
            value = f"#/$defs/{names.setdefault(value, str(len(names)))}"
        elif keyword in MAPS and isinstance(value, dict):
            value = {name: _renamed(child, names) for name, child in cast("Node", value).items()}
        elif keyword in LISTS and isinstance(value, list):
            value = [_renamed(child, names) for child in cast("list[Schema]", value)]
        elif keyword in ONES:
            value = _renamed(value, names)
        copy[keyword] = value
    return copy


def ordered_constants(node: Node) -> bool | None:
    """Whether one of its constants holds an object of several keys; None if it has no constants."""
    constants = [*cast("list[object]", node.get("enum", [])), *([node["const"]] if "const" in node else [])]
    return any(map(_several_keys, constants)) if constants else None


def _has_order(node: Node) -> bool:
    constants = ordered_constants(node)
    if constants is not None:
        return constants
    types = node.get("type", "object")
    if "object" not in (cast("list[object]", types) if isinstance(types, list) else [types]):
        return False
    declared = {*node.get("properties", ()), *node.get("required", ())}
    return len(declared) > 1 or (len(declared) == 1 and _opens(node))


def _opens(node: Node) -> bool:
    return node.get("additionalProperties", True) is not False or bool(node.get("patternProperties"))


def _several_keys(value: object) -> bool:
    if isinstance(value, dict):
        return len(cast("Node", value)) > 1 or any(map(_several_keys, cast("Node", value).values()))
    return isinstance(value, list) and any(map(_several_keys, cast("list[object]", value)))


def canonical(schema: object) -> str:
    """A text that equal schemas share."""
    return json.dumps(schema, sort_keys=True)
