"""How much of JSON Schema the mask holds: every instance of two suites, ours beside its peers.

Run with `python -m benchmarks.schemas --suite FILE --bench FILE [--peers] [--sets NAME,NAME]`. Both files hold lines
`{"id", "set", "schema", "tests": [{"valid": bool, "data": ...}]}`: `--suite` groups of the JSON-Schema-Test-Suite, of
which each is exact when every instance is told rightly, and `--bench` schemas of jsonschemabench.

An instance is written with the separators `", "` and `": "` and read byte by byte. It is accepted when every byte and
the end stand in the mask. A valid one that is refused is tried again with its keys in the order the schema declares,
since that is the order of the default grammar. What is accepted under a report that lists anything is then validated
against the original schema: *delivered* is what passes both. *Silent* is an invalid instance accepted under an empty
report.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from jsonschema import Draft202012Validator
from jsonschema.validators import validator_for

from benchmarks import report, schema_peers
from benchmarks.bytewise import BYTES
from benchmarks.schema_peers import Accepts, Refused
from m1runtime import Grammar
from m1runtime.errors import SchemaError

Case: TypeAlias = "dict[str, Any]"
Compile = Callable[[Any], "tuple[Accepts, bool]"]
"""A schema to what reads its instances, and whether it says that something is left to validate."""

BUDGET = 200_000


@dataclass(slots=True)
class Tally:
    """Counts of one engine on one file, and the cases that were not told rightly."""

    schemas: Counter[str] = field(default_factory=Counter[str])
    instances: Counter[str] = field(default_factory=Counter[str])
    sets: defaultdict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    failing: list[str] = field(default_factory=list[str])

    def figures(self) -> dict[str, Any]:
        """Counts and the shares that are aimed at."""
        schemas, instances = self.schemas, self.instances
        valid = max(1, instances["valid"])
        return {
            "schemas": dict(schemas),
            "instances": dict(instances),
            "usable %": _share(schemas["usable"], schemas["all"]),
            "exact in the mask %": _share(schemas["exact"], schemas["all"]),
            "valid rejected % of all instances": _share(instances["valid rejected"], instances["all"]),
            "valid rejected % of valid": _share(instances["valid rejected"], valid),
        }


def main() -> None:
    """Measures ours, and with `--peers` the others, on both files."""
    arguments = _arguments()
    torch.set_num_threads(1)
    engines: dict[str, Compile] = {"m1runtime": ours, "m1runtime, any order": lambda schema: ours(schema, "any")}
    if arguments.peers:
        engines |= schema_peers.engines()
    figures: dict[str, Any] = {}
    for kind, path in (("suite", arguments.suite), ("bench", arguments.bench)):
        if path is None:
            continue
        cases = list(_cases(path, arguments.sets))
        for name, compile_ in engines.items():
            print(f"{kind}: {name} ...", file=sys.stderr, flush=True)
            tally = measure(cases, compile_)
            figures[f"{kind}: {name}"] = tally.figures()
            if not name.startswith("m1runtime"):
                continue
            print("\n".join(f"{kind}, {name}: {line}" for line in tally.failing))
            for group, counts in sorted(tally.sets.items()):
                print(f"{kind}, {name}: {group} {counts['exact']}/{counts['all']}")
    if arguments.sets:
        print(json.dumps(figures, indent=1))
    else:
        report.save("schemas", figures)


def ours(schema: Any, order: Literal["schema", "any"] = "schema") -> tuple[Accepts, bool]:
    """Our grammar, read through its constraint, and whether its report lists anything."""
    try:
        grammar = Grammar.from_json_schema(schema, order=order)
    except SchemaError as error:
        raise Refused(str(error)) from error
    told = grammar.reports[0]
    return lambda text: takes(grammar, text), bool(told.unenforced or told.annotations)


def takes(grammar: Grammar, text: str) -> bool:
    """Whether every byte of `text`, and the end after it, stand in the mask."""
    constraint = grammar.start(BYTES, max_new_tokens=BUDGET)
    for token in (*text.encode(), 256):
        mask = constraint.mask()
        if mask is not None and not int(mask[token >> 5]) >> (token & 31) & 1:
            return False
        if not constraint.try_accept(token, BUDGET - 1):
            return False
    return True


def measure(cases: list[Case], compile_: Compile) -> Tally:
    """One engine on all cases of a file."""
    tally = Tally()
    for case in cases:
        tally.schemas["all"] += 1
        tally.sets[case["set"]]["all"] += 1
        try:
            accepts, flagged = compile_(case["schema"])
        except Refused as why:
            tally.schemas["refused"] += 1
            tally.failing.append(f"{case['id']}: refused: {str(why)[:160]}")
            continue
        tally.schemas["usable"] += 1
        tally.schemas["flagged"] += flagged
        _judge(case, accepts, flagged, tally)
    return tally


def _judge(case: Case, accepts: Accepts, flagged: bool, tally: Tally) -> None:
    schema = case["schema"]
    wrong: Counter[str] = Counter()
    for test in case["tests"]:
        data, valid = test["data"], test["valid"]
        tally.instances.update(("all", "valid" if valid else "invalid"))
        accepted = accepts(_text(data)) or (valid and accepts(_text(_ordered(data, schema, schema))))
        if accepted == valid:
            continue
        wrong["valid rejected" if valid else "invalid accepted"] += 1
        if accepted and (not flagged or _validates(schema, data)):
            wrong["invalid delivered"] += 1
        if accepted and not flagged:
            wrong["silent"] += 1
    tally.instances.update(wrong)
    if not wrong:
        tally.schemas["exact"] += 1
        tally.sets[case["set"]]["exact"] += 1
        return
    kind = "silent" if wrong["silent"] else "flagged" if flagged else "over-constrained only"
    tally.schemas[f"not exact: {kind}"] += 1
    tally.failing.append(f"{case['id']}: {kind}: {dict(wrong)}")


def _validates(schema: Any, data: Any) -> bool:
    kind = validator_for(schema, default=Draft202012Validator)
    try:
        return kind(schema).is_valid(data)
    except Exception:  # a schema that cannot be checked delivers nothing
        return False


def _text(data: Any) -> str:
    return json.dumps(data, ensure_ascii=False)


def _ordered(data: Any, schema: Any, root: Any) -> Any:
    """`data` with the keys of its objects in the order the schema declares them."""
    parts = list(_parts(schema, root, 0))
    if isinstance(data, dict):
        declared = [name for part in parts for name in part.get("properties", {})]
        declared += [name for part in parts for name in part.get("required", ()) if isinstance(name, str)]
        names = [name for name in dict.fromkeys(declared) if name in data]
        names += [name for name in data if name not in names]
        return {name: _ordered(data[name], _all_of(_members(parts, name)), root) for name in names}
    if isinstance(data, list):
        return [_ordered(item, _all_of(_elements(parts, i)), root) for i, item in enumerate(data)]
    return data


def _all_of(schemas: list[Any]) -> Any:
    return schemas[0] if len(schemas) == 1 else {"allOf": schemas}


def _parts(schema: Any, root: Any, depth: int) -> Iterator[Case]:
    """The schema and what it applies to the same value."""
    if not isinstance(schema, dict) or depth > 12:
        return
    yield schema
    reference = schema.get("$ref")
    if isinstance(reference, str) and reference.startswith("#"):
        yield from _parts(_at(root, reference[1:]), root, depth + 1)
    for keyword in ("allOf", "anyOf", "oneOf"):
        for part in schema.get(keyword, ()):
            yield from _parts(part, root, depth + 1)
    for keyword in ("if", "then", "else"):
        yield from _parts(schema.get(keyword), root, depth + 1)
    for keyword in ("dependentSchemas", "dependencies"):
        for part in schema.get(keyword, {}).values():
            yield from _parts(part, root, depth + 1)


def _at(root: Any, pointer: str) -> Any:
    node = root
    for step in pointer.split("/")[1:]:
        step = step.replace("~1", "/").replace("~0", "~")
        node = node.get(step) if isinstance(node, dict) else node[int(step)] if step.isdigit() else None
        if node is None:
            return None
    return node


def _members(parts: list[Case], name: str) -> list[Any]:
    found = [part["properties"][name] for part in parts if name in part.get("properties", {})]
    return found or [part["additionalProperties"] for part in parts if "additionalProperties" in part] + [
        value for part in parts for value in part.get("patternProperties", {}).values()
    ]


def _elements(parts: list[Case], i: int) -> list[Any]:
    found: list[Any] = []
    for part in parts:
        prefix = part.get("prefixItems") or (part["items"] if isinstance(part.get("items"), list) else [])
        found.append(prefix[i] if i < len(prefix) else part.get("items") if prefix is not part.get("items") else {})
    return [schema for schema in found if isinstance(schema, dict)]


def _share(part: int, whole: int) -> float:
    return round(100 * part / max(1, whole), 1)


def _cases(path: Path, sets: str) -> Iterator[Case]:
    wanted = set(sets.split(",")) if sets else set[str]()
    for line in path.read_text(encoding="utf-8").rstrip("\n").split("\n"):
        case = json.loads(line)
        if not wanted or case["set"] in wanted or case["id"] in wanted:
            yield case


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--suite", type=Path)
    parser.add_argument("--bench", type=Path)
    parser.add_argument("--peers", action="store_true", help="the others beside ours")
    parser.add_argument("--sets", default="", help="only these sets or ids, with commas between; nothing is saved")
    return parser.parse_args()


if __name__ == "__main__":
    main()
