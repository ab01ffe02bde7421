"""Random JSON Schemas, and instances that satisfy them or just miss: what `benchmarks/fuzz.py` and its tests judge.

Every choice comes from the `random.Random` that is passed in, so a seed names a pair and hypothesis can shrink one.
Declared names stand in one order everywhere, that of NAMES, so an instance written in it is in the schema's order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from random import Random
from typing import Any, TypeAlias

Schema: TypeAlias = "dict[str, Any] | bool"
Node: TypeAlias = "dict[str, Any]"

NAMES = ("a", "b", "c", "ab", "d e", "é")
MADE_UP = ("x", "xy", "a\n", 'q"', "ä")
PATTERNS: Mapping[str, tuple[str, ...]] = {
    "^[a-z]+$": ("a", "abc", "", "A", "ab1"),
    "^a": ("a", "ab", "ba", ""),
    "b$": ("b", "ab", "ba"),
    "^[0-9]{2,3}$": ("12", "123", "1", "1234"),
    "^(foo|bar)$": ("foo", "bar", "fo", "foobar"),
    "^[A-Z][a-z]*$": ("A", "Abc", "a", "AB"),
    "^.{2,3}$": ("ab", "éé", "abc", "a", "abcd"),
    "^[0-9]{3}-[0-9]{2}$": ("123-45", "12-45"),
    "^$": ("", "a"),
    "^(?=a)": ("a", "b"),
    "[0-9]": ("a1b", "1", "ab"),
}
FORMATS: Mapping[str, tuple[str, ...]] = {
    "date": ("2024-02-29", "2024-1-1", "today"),
    "uuid": ("123e4567-e89b-12d3-a456-426614174000", "123"),
    "ipv4": ("10.0.0.1", "10.0.0.256", "ten"),
    "email": ("a@b.cd", "a"),
    "color": ("red",),
}
STRINGS = ("", "a", "ab", "abc", "foo", "é", "🙂", 'q"\\', "\n", "a\tb", "\x7f", "\x01", "a" * 12)
NUMBERS = (0, 1, -1, 2, 3, 5, 7, 10, 100, 1.0, 0.5, -0.5, 2.5, 1e3, 1e-3, -0.0, 3.25, 10**9, 1e22)
REFS = ("#/$defs/leaf", "#/$defs/list", "#/$defs/tree")


def pair_schema(random: Random) -> Schema:
    """A schema; the root of it holds the `$defs` that its references need."""
    schema = _schema(random, 0)
    if isinstance(schema, dict) and _uses_refs(schema):
        definitions: Node = {
            "leaf": _schema(random, 3),
            "list": {"type": "array", "items": {"$ref": "#/$defs/leaf"}, "maxItems": 2},
            "tree": {
                "type": "object",
                "properties": {"a": {"$ref": "#/$defs/leaf"}, "b": {"$ref": "#/$defs/tree"}},
                "required": ["a"],
                "additionalProperties": False,
            },
        }
        schema = {**schema, "$defs": definitions}
    return schema


def instances(schema: Schema, random: Random, count: int) -> list[Any]:
    """`count` instances near the schema: half as it says, half with a change or two."""
    found: list[Any] = []
    for i in range(count):
        value = in_order(_near(schema, schema, random, 0))
        for _ in range(0 if i % 2 == 0 else random.randint(1, 2)):
            value = _mutated(value, random)
        found.append(value)
    return found


def in_order(value: Any) -> Any:
    """`value` with its keys in the order of NAMES, made-up ones last."""
    if isinstance(value, dict):
        ranked = sorted(value, key=lambda name: NAMES.index(name) if name in NAMES else len(NAMES))
        return {name: in_order(value[name]) for name in ranked}
    return [in_order(item) for item in value] if isinstance(value, list) else value


def shuffled(value: Any, random: Random) -> Any:
    """`value` with the keys of each object in a random order."""
    if isinstance(value, dict):
        return {name: shuffled(value[name], random) for name in random.sample(list(value), len(value))}
    return [shuffled(item, random) for item in value] if isinstance(value, list) else value


def _uses_refs(node: Any) -> bool:
    if isinstance(node, dict):
        return "$ref" in node or any(_uses_refs(child) for child in node.values())
    return isinstance(node, list) and any(_uses_refs(child) for child in node)


def _chance(random: Random, share: float) -> bool:
    return random.random() < share


def _schema(random: Random, depth: int) -> Schema:
    makers: list[Callable[[Random, int], Schema]] = [_string, _integer, _number, _plain, _values]
    if depth < 3:
        makers += [_object, _object, _object, _array, _union, _mixed, _reference]
    schema = random.choice(makers)(random, depth)
    if isinstance(schema, dict) and depth < 3 and _chance(random, 0.15):
        schema = {**schema, **_combination(random, depth)}
    return schema


def _plain(random: Random, depth: int) -> Schema:
    kinds = ("null", "boolean", "string", "integer", "number", "array", "object")
    if _chance(random, 0.1):
        return random.choice([True, {}, {"description": "anything"}])
    if _chance(random, 0.3):
        return {"type": random.sample(kinds, random.randint(1, 3))}
    return {"type": random.choice(kinds[:5] if depth > 1 else kinds)}


def _string(random: Random, depth: int) -> Schema:
    node: Node = {"type": "string"}
    if _chance(random, 0.4):
        node["minLength"] = random.randint(0, 3)
    if _chance(random, 0.4):
        node["maxLength"] = node.get("minLength", 0) + random.randint(0, 3)
    if _chance(random, 0.3):
        node["pattern"] = random.choice(list(PATTERNS))
    elif _chance(random, 0.15):
        node["format"] = random.choice(list(FORMATS))
    return node


def _integer(random: Random, depth: int) -> Schema:
    return {"type": "integer", **_limits(random, lambda: random.randint(-12, 120), (2, 3, 5, 0.5))}


def _number(random: Random, depth: int) -> Schema:
    return {"type": "number", **_limits(random, lambda: random.choice(NUMBERS[:17]), (0.5, 0.01, 2, 1.5))}


def _limits(random: Random, value: Callable[[], float], steps: tuple[float, ...]) -> Node:
    node: Node = {}
    if _chance(random, 0.4):
        node[random.choice(["minimum", "exclusiveMinimum"])] = value()
    if _chance(random, 0.4):
        node[random.choice(["maximum", "exclusiveMaximum"])] = value()
    if _chance(random, 0.15):
        node["multipleOf"] = random.choice(steps)
    return node


def _values(random: Random, depth: int) -> Schema:
    if _chance(random, 0.3):
        return {"const": _value(random, 1)}
    return {"enum": [_value(random, 1) for _ in range(random.randint(1, 4))]}


def _object(random: Random, depth: int) -> Schema:
    names = [name for name in NAMES if _chance(random, 0.4)]
    node: Node = {"type": "object", "properties": {name: _schema(random, depth + 1) for name in names}}
    if names and _chance(random, 0.05):
        node["properties"][random.choice(names)] = {"$ref": "#"}
    if _chance(random, 0.8):
        node["required"] = [name for name in names if _chance(random, 0.5)]
    if _chance(random, 0.08):
        node["required"] = [*node.get("required", []), random.choice(MADE_UP)]
    if _chance(random, 0.6):
        node["additionalProperties"] = False if _chance(random, 0.6) else _schema(random, depth + 1)
    if _chance(random, 0.08):
        node["patternProperties"] = {random.choice(["^x", "y$", "^[a-c]"]): _schema(random, depth + 2)}
    if _chance(random, 0.08):
        node["minProperties"] = random.randint(0, 2)
    if _chance(random, 0.08):
        node["maxProperties"] = random.randint(0, 3)
    if _chance(random, 0.05):
        node["propertyNames"] = {"pattern": random.choice(["^[a-c]", "^[a-z]+$"])}
    if names and _chance(random, 0.1):
        node["dependentRequired"] = {random.choice(names): [random.choice(names)]}
    if names and _chance(random, 0.05):
        node["dependentSchemas"] = {random.choice(names): {"required": [random.choice(names)]}}
    if _chance(random, 0.05):
        node["unevaluatedProperties"] = False
    return node


def _array(random: Random, depth: int) -> Schema:
    node: Node = {"type": "array"}
    if _chance(random, 0.3):
        node["prefixItems"] = [_schema(random, depth + 1) for _ in range(random.randint(1, 2))]
    if _chance(random, 0.7):
        node["items"] = False if _chance(random, 0.1) else _schema(random, depth + 1)
    if _chance(random, 0.3):
        node["minItems"] = random.randint(0, 2)
    if _chance(random, 0.3):
        node["maxItems"] = node.get("minItems", 0) + random.randint(0, 2)
    if _chance(random, 0.08):
        node["uniqueItems"] = True
    if _chance(random, 0.06):
        node["contains"] = _schema(random, 3)
        if _chance(random, 0.5):
            node[random.choice(["minContains", "maxContains"])] = random.randint(0, 2)
    return node


def _union(random: Random, depth: int) -> Schema:
    keyword = random.choice(["anyOf", "anyOf", "oneOf"])
    return {keyword: [_schema(random, depth + 1) for _ in range(random.randint(1, 3))]}


def _mixed(random: Random, depth: int) -> Schema:
    return {"type": "object", **_combination(random, depth)}


def _reference(random: Random, depth: int) -> Schema:
    return {"$ref": random.choice(REFS)}


def _combination(random: Random, depth: int) -> Node:
    """Keywords that combine schemas, to stand beside others."""
    match random.randint(0, 5):
        case 0:
            return {"allOf": [_schema(random, depth + 1) for _ in range(random.randint(1, 2))]}
        case 1:
            return {"not": _schema(random, 3)}
        case 2:
            return {"anyOf": [{"required": [name]} for name in random.sample(NAMES, 2)]}
        case 3:
            condition = {"properties": {"a": {"const": random.choice([0, "a", True])}}}
            branches = {key: _part(random, depth) for key in ("then", "else") if _chance(random, 0.7)}
            return {"if": {**condition, "required": ["a"]}, **branches}
        case 4:
            return {"oneOf": [_part(random, depth) for _ in range(2)]}
        case _:
            return {"allOf": [_part(random, depth), {"$ref": "#/$defs/tree"}]}


def _part(random: Random, depth: int) -> Node:
    name = random.choice(NAMES)
    return {"properties": {name: _schema(random, depth + 1)}, "required": [name] if _chance(random, 0.6) else []}


def _value(random: Random, depth: int) -> Any:
    kind = random.randint(0, 6 if depth < 3 else 4)
    if kind == 5:
        return [_value(random, depth + 1) for _ in range(random.randint(0, 2))]
    if kind == 6:
        names = random.sample((*NAMES, *MADE_UP), random.randint(0, 2))
        return in_order({name: _value(random, depth + 1) for name in names})
    if kind == 0:
        return random.choice([None, True, False])
    return random.choice(STRINGS) if kind < 3 else random.choice(NUMBERS)


def _near(schema: Any, root: Schema, random: Random, depth: int) -> Any:
    """An instance made by reading the schema naively: most satisfy it, none is promised to."""
    if not isinstance(schema, dict) or depth > 6:
        return _value(random, 2)
    node = _flat(schema, root, random, 0)
    if "const" in node:
        return deepcopy(node["const"])
    if "enum" in node:
        return deepcopy(random.choice(node["enum"]))
    kind = node.get("type", "object" if {"properties", "required"} & node.keys() else None)
    if isinstance(kind, list):
        kind = random.choice(kind)
    match kind:
        case "null":
            return None
        case "boolean":
            return _chance(random, 0.5)
        case "string":
            return _near_string(node, random)
        case "integer" | "number":
            return _near_number(node, random, whole=kind == "integer")
        case "array":
            return list(_near_items(node, root, random, depth))
        case "object":
            return _near_object(node, root, random, depth)
        case _:
            return _value(random, 1)


def _flat(node: Node, root: Schema, random: Random, rounds: int) -> Node:
    """References followed, a branch of each union taken, and all parts laid over each other."""
    parts: list[Any] = []
    if "$ref" in node and isinstance(root, dict):
        target: Any = root
        for step in node["$ref"].split("/")[1:]:
            target = target.get(step, {})
        parts.append(target)
    parts += [random.choice(node[key]) for key in ("anyOf", "oneOf") if key in node]
    parts += node.get("allOf", [])
    if "if" in node:
        parts += [node["if"], node.get("then", {})] if _chance(random, 0.6) else [node.get("else", {})]
    merged = {key: value for key, value in node.items() if key not in ("$ref", "anyOf", "oneOf", "allOf", "if")}
    for part in parts:
        if isinstance(part, dict) and rounds < 5:
            merged = _laid_over(merged, _flat(part, root, random, rounds + 1))
    return merged


def _laid_over(under: Node, over: Node) -> Node:
    merged = {**under, **over}
    if "properties" in under and "properties" in over:
        merged["properties"] = {**under["properties"], **over["properties"]}
    if "required" in under and "required" in over:
        merged["required"] = [*under["required"], *over["required"]]
    return merged


def _near_string(node: Node, random: Random) -> str:
    if "pattern" in node:
        examples = PATTERNS.get(node["pattern"], STRINGS)
        return examples[0] if _chance(random, 0.6) else random.choice(examples)
    if "format" in node:
        return random.choice(FORMATS[node["format"]])
    least = node.get("minLength", 0)
    length = random.randint(least, node.get("maxLength", least + 3))
    return "".join(random.choice('aabz019 é🙂"\\/\n\x7f') for _ in range(length))


def _near_number(node: Node, random: Random, *, whole: bool) -> float:
    limits = [node[key] for key in ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum") if key in node]
    value = random.choice([*limits, *limits, random.choice(NUMBERS)]) + random.choice([0, 0, 1, -1, 10, -10, 0.5])
    step = node.get("multipleOf")
    if step:
        value = round(value / step) * step
    return int(value) if whole and _chance(random, 0.9) else value


def _near_items(node: Node, root: Schema, random: Random, depth: int) -> Iterator[Any]:
    prefix = node.get("prefixItems", [])
    least = max(node.get("minItems", 0), 1 if "contains" in node else 0)
    for i in range(random.randint(least, max(least, node.get("maxItems", least + 2)))):
        fallback = node.get("contains", True) if i == len(prefix) else True
        yield _near(prefix[i] if i < len(prefix) else node.get("items", fallback), root, random, depth + 1)


def _near_object(node: Node, root: Schema, random: Random, depth: int) -> Node:
    properties, required = node.get("properties", {}), node.get("required", [])
    names = [name for name in properties if name in required or _chance(random, 0.4)]
    made = {name: _near(properties[name], root, random, depth + 1) for name in names}
    more = node.get("additionalProperties", True)
    for name in required:
        made.setdefault(name, _near(more, root, random, depth + 1))
    if more is not False and _chance(random, 0.3):
        made.setdefault(random.choice((*MADE_UP, *NAMES)), _near(more, root, random, depth + 1))
    return made


def _mutated(value: Any, random: Random) -> Any:
    """`value` with one change: to itself or to a part of it."""
    if isinstance(value, dict) and value and _chance(random, 0.8):
        name = random.choice(list(value))
        match random.randint(0, 4):
            case 0:
                return {key: item for key, item in value.items() if key != name}
            case 1:
                return in_order({**value, random.choice((*NAMES, *MADE_UP)): _value(random, 2)})
            case _:
                return {**value, name: _mutated(value[name], random)}
    if isinstance(value, list) and value and _chance(random, 0.8):
        i = random.randrange(len(value))
        match random.randint(0, 3):
            case 0:
                return value[:i] + value[i + 1 :]
            case 1:
                return [*value, deepcopy(value[i])]
            case _:
                return [*value[:i], _mutated(value[i], random), *value[i + 1 :]]
    if isinstance(value, str) and _chance(random, 0.6):
        return random.choice([value + "a", value[:-1], value.upper(), value + "\n", value + "🙂"])
    if isinstance(value, (int, float)) and not isinstance(value, bool) and _chance(random, 0.6):
        return random.choice([value + 1, value - 1, -value, value * 10, float(value), value + 0.5])
    return _value(random, 2)
