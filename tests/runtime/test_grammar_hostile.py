"""Schemas meant to hurt: each is compiled and used in a process of its own, within limits of time and memory.

A case passes when both readings end: compiled with a report, or refused with SchemaError. What is compiled must give
masks, and its good sibling tool must work whatever stands beside it.
"""

from __future__ import annotations

import json
import math
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

from benchmarks.bytewise import BYTES, ROOMY, draw, takes, tokens_in
from m1runtime.engine import BUNDLED
from m1runtime.errors import SchemaError
from m1runtime.grammar import Grammar, ToolGrammar
from m1runtime.tokenizer import Tokenizer

CPU_SECONDS = 40
MEMORY = 4 << 30


def object_of(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


def nested(depth: int, key: str = "a") -> Any:
    schema: Any = {"type": "string"}
    for _ in range(depth):
        schema = object_of(**{key: schema})
    return schema


def nested_items(depth: int) -> Any:
    schema: Any = {}
    for _ in range(depth):
        schema = {"type": "array", "items": schema, "minItems": 1}
    return schema


def nested_unions(depth: int) -> Any:
    schema: Any = {"type": "string"}
    for i in range(depth):
        schema = {"anyOf": [schema, object_of(**{f"k{i}": schema})]}
    return schema


def doubling(levels: int, combine: str) -> Any:
    definitions: dict[str, Any] = {"d0": {"type": "integer"}}
    for i in range(1, levels + 1):
        below = {"$ref": f"#/$defs/d{i - 1}"}
        both = {"allOf": [below, below], "anyOf": [below, below], "properties": {"l": below, "r": below}}
        definitions[f"d{i}"] = {combine: both[combine]}
    return {"$defs": definitions, **object_of(a={"$ref": f"#/$defs/d{levels}"})}


def cyclic() -> Any:
    schema: dict[str, Any] = {"type": "object", "properties": {}}
    schema["properties"]["again"] = schema
    return schema


def cyclic_list() -> Any:
    branches: list[Any] = [{"type": "string"}]
    branches.append({"anyOf": branches})
    return object_of(a={"anyOf": branches})


def pattern(text: Any) -> Any:
    return object_of(a={"type": "string", "pattern": text})


WIDE = {f"property_{i}": {"type": "string", "description": "x" * 20} for i in range(5000)}
ODD_NAMES = ("", '"', "\\", "\n", "\x00", "a\u0301", "á", "\u202e", "😀", "%json", "{{", "x-guidance")
HOSTILE: dict[str, Callable[[], Any]] = {
    "40 objects deep": lambda: nested(40),
    "99 objects deep": lambda: nested(33),
    "5000 objects deep": lambda: nested(5000),
    "300 arrays deep": lambda: nested_items(300),
    "unions doubled 16 times": lambda: nested_unions(16),
    "references doubled 30 times in allOf": lambda: doubling(30, "allOf"),
    "references doubled 30 times in anyOf": lambda: doubling(30, "anyOf"),
    "references doubled 30 times in properties": lambda: doubling(30, "properties"),
    "recursion without a base": lambda: {"$ref": "#/$defs/n", "$defs": {"n": object_of(n={"$ref": "#/$defs/n"})}},
    "a reference to itself": lambda: {"$ref": "#"},
    "references in a circle": lambda: {
        "$ref": "#/$defs/a",
        "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}},
    },
    "a reference to nowhere": lambda: object_of(a={"$ref": "#/$defs/none"}),
    "a reference out of this file": lambda: object_of(a={"$ref": "file:///etc/passwd"}),
    "a reference of another type": lambda: object_of(a={"$ref": 7}),
    "an enum of 10,000": lambda: object_of(a={"enum": [f"entry number {i}" for i in range(10_000)]}),
    "an enum of 10,000 numbers": lambda: object_of(a={"enum": [i * 7919 for i in range(10_000)]}),
    "an enum of one huge string": lambda: object_of(a={"enum": ["x" * 200_000]}),
    "a constant of nested values": lambda: object_of(a={"const": [[[[{"a": [1, 2, {"b": None}]}]]]] * 50}),
    "pattern (a+)+": lambda: pattern("^(a+)+$"),
    "pattern (a|a)*b": lambda: pattern("^(a|a)*b$"),
    "pattern x{1000}{1000}": lambda: pattern("^(x{1000}){1000}$"),
    "pattern of 60 optional parts": lambda: pattern("^" + "a?" * 60 + "a" * 60 + "$"),
    "pattern of counted alternations": lambda: pattern("^((a|b|c|d){1,90}[0-9]{1,90}){1,90}$"),
    "pattern that looks ahead": lambda: pattern("^(?=.*[A-Z])(?!.*foo).{8,}$"),
    "pattern that looks behind": lambda: pattern("(?<=a)b"),
    "pattern with a back reference": lambda: pattern(r"^(a|b)\1$"),
    "pattern of 5000 words": lambda: pattern("^(" + "|".join(f"word{i}" for i in range(5000)) + ")$"),
    "pattern that is none": lambda: pattern("("),
    "pattern of another type": lambda: pattern({"a": 1}),
    "pattern of lone surrogates": lambda: pattern("\ud800"),
    "pattern of one character of any kind": lambda: pattern(r"^[\s\S]{500}$"),
    "pattern of unicode classes": lambda: pattern(r"^\p{L}{1,300}$"),
    "50 patterns": lambda: object_of(
        **{f"p{i}": {"type": "string", "pattern": f"^(a|b{i})*c{{{i}}}$"} for i in range(50)}
    ),
    "a name pattern that grows": lambda: {"type": "object", "patternProperties": {"^(a+)+$": {}, "^a{500}$": {}}},
    "5000 properties": lambda: {"type": "object", "properties": WIDE},
    "5000 required properties": lambda: {"type": "object", "properties": WIDE, "required": list(WIDE)},
    "900 optional properties": lambda: {"type": "object", "properties": dict(list(WIDE.items())[:900])},
    "minItems 10**9": lambda: object_of(a={"type": "array", "minItems": 10**9}),
    "maxItems 10**9": lambda: object_of(a={"type": "array", "maxItems": 10**9}),
    "items counted in items": lambda: object_of(
        a={"type": "array", "minItems": 900, "items": {"type": "array", "minItems": 900}}
    ),
    "maxLength 10**7": lambda: object_of(a={"type": "string", "maxLength": 10**7}),
    "minLength 10**7": lambda: object_of(a={"type": "string", "minLength": 10**7}),
    "minLength above maxLength": lambda: object_of(a={"type": "string", "minLength": 5, "maxLength": 2}),
    "minProperties 10**9": lambda: {"type": "object", "minProperties": 10**9},
    "lengths of the wrong sign": lambda: object_of(a={"type": "string", "minLength": -5, "maxLength": -1}),
    "lengths of broken numbers": lambda: object_of(a={"type": "string", "minLength": 1.5, "maxLength": math.inf}),
    "allOf that contradicts itself": lambda: object_of(a={"allOf": [{"type": "string"}, {"type": "integer"}]}),
    "bounds that contradict": lambda: object_of(a={"allOf": [{"minimum": 5}, {"maximum": 4}], "type": "number"}),
    "a product of unions": lambda: {
        "allOf": [{"anyOf": [object_of(**{f"a{i}{j}": {}}) for j in range(6)]} for i in range(8)]
    },
    "oneOf of 500": lambda: object_of(
        a={"oneOf": [{"type": "string", "pattern": f"^x{i}[a-z]*$"} for i in range(500)]}
    ),
    "not of not of not": lambda: object_of(a={"not": {"not": {"not": {"type": "string"}}}}),
    "if in if in if": lambda: object_of(
        a={"if": {"if": {"if": {}}}, "then": {"if": {}, "then": {"if": {}, "else": {}}}}
    ),
    "dependents in a circle": lambda: {
        **object_of(a={}, b={}),
        "dependentRequired": {"a": ["b"], "b": ["a"], "c": ["d"]},
    },
    "arguments that are strings": lambda: {"enum": ["A", "B"]},
    "arguments of a type and a constant that differ": lambda: {"type": "object", "const": "A"},
    "keywords of wrong types": lambda: {
        "type": 7,
        "properties": [],
        "required": "a",
        "enum": 5,
        "anyOf": {},
        "items": 3,
        "allOf": None,
    },
    "keywords of null": lambda: object_of(a=dict.fromkeys(("type", "minimum", "enum", "items", "format", "$ref"))),
    "types of wrong types": lambda: object_of(a={"type": [None, 3, "string", {}]}),
    "nan and infinite bounds": lambda: object_of(
        a={"type": "number", "minimum": math.nan, "maximum": math.inf, "multipleOf": 0}
    ),
    "huge and tiny bounds": lambda: object_of(a={"type": "number", "minimum": 10**400, "multipleOf": 1e-300}),
    "bounds of many digits": lambda: object_of(
        a={"type": "number", "minimum": 1e-320, "exclusiveMaximum": 1.7976931348623157e308}
    ),
    "multiples of a prime": lambda: object_of(a={"type": "integer", "multipleOf": 999_999_937, "minimum": 1}),
    "names that are no strings": lambda: {"type": "object", "properties": {1: {}, None: {}, 2.5: {}}},
    "names that are tuples": lambda: {"type": "object", "properties": {(1, 2): {}}},
    "required that are no strings": lambda: {"type": "object", "properties": {"1": {}}, "required": [1, None, "1"]},
    "names of every kind": lambda: object_of(**{name: {} for name in ODD_NAMES}),
    "names of lone surrogates": lambda: object_of(**{name: {} for name in ("\ud83d", "\udc00")}),
    "a null byte in a constant": lambda: object_of(a={"const": "a\x00b\x7f\u2028\ufeff"}),
    "values that are no json": lambda: object_of(a={"enum": [{1, 2}, b"x", object()]}),
    "a property that is a class": lambda: object_of(a=int),
    "a schema of bytes": lambda: b"{}",
    "a schema of a list": lambda: [object_of(a={})],
    "a cyclic object": cyclic,
    "a cyclic list": cyclic_list,
    "options of the grammar's own": lambda: {
        **object_of(a={}),
        "x-guidance": {"lenient": True, "item_separator": "\n"},
    },
    "an identifier that moves references": lambda: {"$id": "https://example.org/a", **object_of(a={"$ref": "b"})},
    "a dialect of its own": lambda: {"$schema": "urn:nothing", **object_of(a={"type": "string"})},
    "dynamic references": lambda: {
        "$dynamicAnchor": "n",
        **object_of(a={"anyOf": [{"$dynamicRef": "#n"}, {"type": "null"}]}),
    },
}

GOOD = ToolGrammar("good", object_of(x={"type": "integer"}))
CALL = b'\n{"name": "good", "arguments": {"x": 7}}\n</tool_calls>'
TRIGGER = b"<tool_calls>"


def judge(name: str) -> dict[str, Any]:
    """What became of a case; seconds are of CPU."""
    began, schema = time.process_time(), HOSTILE[name]()
    found: dict[str, Any] = {}
    try:
        value = Grammar.from_json_schema(schema)
        found["value"] = used(value)
        found["told"] = [item.why for item in value.reports[0].unenforced]
    except SchemaError as error:
        found |= {"value": "refused", "told": [str(error)]}
    tools = Grammar.tool_calls([ToolGrammar("odd", schema), GOOD], mode="required", skip=("", ""))
    found["tool"] = used(tools)
    found["reported"] = [item.why for item in tools.reports[0].unenforced]
    found["sibling"] = tools.reports[1].enforced and takes(tools, TRIGGER + CALL)
    return {**found, "seconds": time.process_time() - began}


def judge_together(names: list[str]) -> dict[str, Any]:
    """Many hostile tools beside a good one."""
    began = time.process_time()
    odd = [ToolGrammar(f"odd_{i}", HOSTILE[name]()) for i, name in enumerate(names)]
    tools = Grammar.tool_calls([*odd, GOOD], mode="required", skip=("", ""))
    good = tools.reports[-1].enforced and takes(tools, TRIGGER + CALL)
    return {"tool": used(tools), "sibling": good, "seconds": time.process_time() - began}


def used(grammar: Grammar) -> str:
    """Masks of the grammar, through to the end where that is near."""
    constraint = grammar.start(BYTES, max_new_tokens=ROOMY)
    if constraint.min_tokens < 500:
        text = draw(grammar, constraint.min_tokens + 20, Random(0))
        return "drawn" if text is not None else "cut"
    for left in range(ROOMY, ROOMY - 30, -1):
        allowed = tokens_in(constraint.mask())
        if not any(constraint.try_accept(token, left - 1) for token in allowed):
            return "stuck"
    return "begun"


def judge_within_limits(name: str) -> None:
    """`judge` in a process of its own, its outcome printed as a line; what kills it is told as its status."""
    if child := os.fork():
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status:
            print(json.dumps({"name": name, "status": status}), flush=True)
        return
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    spent = int(time.process_time())
    resource.setrlimit(resource.RLIMIT_CPU, (spent + CPU_SECONDS, spent + CPU_SECONDS + 5))
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY,) * 2)
    try:
        found = judge_together(name.split("; ")) if "; " in name else judge(name)
        print(json.dumps({"name": name, "status": 0, **found}), flush=True)
    except BaseException as error:
        print(json.dumps({"name": name, "status": f"{type(error).__name__}: {str(error)[:300]}"}), flush=True)
    os._exit(0)


def outcomes(names: list[str]) -> dict[str, dict[str, Any]]:
    run = [sys.executable, __file__, *names]
    done = subprocess.run(run, stdout=subprocess.PIPE, text=True, check=True, timeout=170)
    found = {outcome["name"]: outcome for outcome in map(json.loads, done.stdout.splitlines())}
    assert list(found) == names
    return found


@pytest.mark.parametrize("part", range(4))
def test_hostile_schemas_are_compiled_or_refused_within_limits(part: int) -> None:
    found = outcomes(list(HOSTILE)[part::4])
    assert {name: one["status"] for name, one in found.items() if one["status"]} == {}
    for name, one in found.items():
        assert one["value"] in ("drawn", "begun", "refused"), (name, one)
        assert one["tool"] in ("drawn", "begun"), (name, one)
        assert one["sibling"], (name, one)
        assert all(one["told"]) and all(one["reported"]), (name, one)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("names that are tuples", "a name in /properties is a tuple; JSON names are strings"),
        ("values that are no json", "/properties/a/enum/2 is a object; JSON has no such values"),
        ("a property that is a class", "/properties/a is a type; JSON has no such values"),
    ],
)
def test_what_is_no_json_is_named(name: str, told: str) -> None:
    one = outcomes([name])[name]
    assert one["value"] == "refused" and told in one["told"][0]
    assert one["reported"] == [told] and one["tool"] == "drawn"


def test_twenty_hostile_tools_at_once() -> None:
    names = list(HOSTILE)
    together = ["; ".join(names[start::3][:20]) for start in range(3)]
    for one in outcomes(together).values():
        assert one["status"] == 0, one
        assert one["sibling"] and one["tool"] in ("drawn", "begun"), one


@pytest.mark.parametrize("entries", [10_000])
def test_a_huge_enum_gives_masks_of_a_real_vocabulary(entries: int) -> None:
    tokenizer = Tokenizer.from_file(BUNDLED["m1-nano"])
    schema = object_of(a={"enum": [f"entry number {i}" for i in range(entries)]})
    grammar = Grammar.tool_calls([ToolGrammar("f", schema)], mode="required", skip=("", ""))
    assert grammar.reports[0].enforced
    text = f'<tool_calls>\n{{"name": "f", "arguments": {{"a": "entry number {entries - 1}"}}}}\n</tool_calls>'
    constraint, left = grammar.start(tokenizer, max_new_tokens=500), 500
    for token in tokenizer.encode(text, special=False):
        assert constraint.mask() is not None
        left -= 1
        assert constraint.try_accept(token, left)
    assert constraint.done


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in sys.argv[1:]:
        judge_within_limits(name)
