"""Whether calls are the accepted ones, by the leaderboard's published rules of comparing syntax trees.

A ground truth maps a function to its parameters, and each parameter to the list of values that are accepted; an empty
text in that list says that the parameter may be left out. The rules are followed where they are odd, too, because
figures are for comparing: tests hold a table of such cases.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

from m1agent.problems import shown

JsonObject: TypeAlias = Mapping[str, Any]
TYPES: dict[str, type] = {
    "string": str,
    "any": str,
    "integer": int,
    "float": float,
    "boolean": bool,
    "array": list,
    "tuple": list,
    "dict": dict,
}
SHOWN = 60
IGNORED = re.compile(r"[ ,./\-_*^]")


@dataclass(frozen=True, slots=True)
class Call:
    """A call as it is compared: the function's name in the data, and the arguments."""

    name: str
    arguments: JsonObject


@dataclass(frozen=True, slots=True)
class Failure:
    """Why calls are not the accepted ones: a kind to count, and one line."""

    kind: str
    why: str


def judge(
    category: str, functions: Sequence[JsonObject], answers: Sequence[JsonObject], calls: Sequence[Call]
) -> Failure | None:
    """None where the calls of one reply are accepted.

    Args:
        category: the item's, such as `live_multiple`; its words decide how calls are matched.
        functions: what the model was offered, as in the data.
        answers: the ground truth, one accepted call each; none for categories about relevance.
        calls: those of the reply, in their order.
    """
    if category.endswith("irrelevance"):
        return Failure("called", f"no function fits, and {calls[0].name} was called") if calls else None
    if category.endswith("relevance"):
        return None if calls else Failure("no_call", "a function fits, and none was called")
    if len(calls) != len(answers):
        return Failure("wrong_count", f"{len(answers)} calls were expected, not {len(calls)}")
    if "parallel" in category:
        return _unordered(functions, answers, calls)
    return _compare(functions, answers[0], calls[0])


def _unordered(functions: Sequence[JsonObject], answers: Sequence[JsonObject], calls: Sequence[Call]) -> Failure | None:
    """Each accepted call in turn takes the first call that is left and fits it; a choice is not taken back."""
    left = list(calls)
    for answer in answers:
        failures = [_compare(functions, answer, call) for call in left]
        if None not in failures:
            (name,) = answer
            why = next((f.why for f, call in zip(failures, left, strict=True) if f and call.name == name), "")
            return Failure("no_match", f"no call is the accepted {name}" + (f": {why}" if why else ""))
        del left[failures.index(None)]
    return None


def _compare(functions: Sequence[JsonObject], answer: JsonObject, call: Call) -> Failure | None:
    """One call with one accepted call."""
    ((name, accepted),) = answer.items()
    if call.name != name:
        return Failure("wrong_name", f"{name} was expected, not {call.name}")
    declared = next(function for function in functions if function["name"] == name)["parameters"]
    for parameter in declared.get("required", ()):
        if parameter not in call.arguments:
            return Failure("missing_required", f"{parameter} is required and missing")
    for parameter, value in call.arguments.items():
        schema = declared["properties"].get(parameter)
        if schema is None or parameter not in accepted:
            return Failure("unexpected_parameter", f"{parameter} is not expected")
        if failure := _value(parameter, value, schema, accepted[parameter]):
            return failure
    for parameter, values in accepted.items():
        if parameter not in call.arguments and "" not in values:
            return Failure("missing_optional", f"{parameter} may not be left out here")
    return None


def _value(name: str, value: Any, schema: JsonObject, accepted: list[Any]) -> Failure | None:
    wanted = TYPES.get(schema["type"])
    if schema["type"] == "float" and type(value) is int:
        value = float(value)
    # An accepted value of another type than the declared one stands for a variable: it is compared as it is written.
    example = _type_of_first(accepted)
    if type(value) is wanted:
        literal = example in (None, wanted)
    elif type(value) is example:
        literal = False
    else:
        return Failure("type", f"{name} should be {schema['type']}, not {shown(value, SHOWN)}")
    inner = TYPES.get(schema["items"].get("type", "")) if wanted is list and "items" in schema else None
    if isinstance(value, list) and inner and not _items_fit(cast("list[Any]", value), inner, accepted):
        return Failure("type", f"{name} should hold {schema['items']['type']} only: {shown(value, SHOWN)}")
    if (_is_accepted(value, inner, accepted) if literal else value in accepted) is False:
        return Failure("value", f"{name} is {shown(value, SHOWN)}, accepted are {shown(accepted, SHOWN)}")
    return None


def _type_of_first(accepted: Sequence[Any]) -> type | None:
    return next((value.__class__ for value in accepted if value != ""), None)


def _items_fit(value: Sequence[Any], inner: type, accepted: Sequence[Any]) -> bool:
    """Whether some accepted value allows the types of all items, one level deep; what is no list allows any."""
    for one in accepted:
        if not isinstance(one, list):
            return True
        example = _type_of_first(cast("list[Any]", one))
        if all(type(item) in (inner, example) for item in value):
            return True
    return False


def _is_accepted(value: Any, inner: type | None, accepted: list[Any]) -> bool:
    if isinstance(value, dict):
        return any(_same_dict(cast("JsonObject", value), one) for one in accepted)
    if isinstance(value, list):
        items = cast("list[Any]", value)
        return any(_same_dicts(items, one) if inner is dict else _same_list(items, one) for one in accepted)
    if isinstance(value, str):
        return _plain(value) in [_plain(one) for one in accepted if isinstance(one, str)]
    return value in accepted


def _same_list(value: list[Any], accepted: Any) -> bool:
    if accepted == "":  # An empty list says as much as leaving the parameter out.
        return not value
    return isinstance(accepted, list) and [*map(_plain, value)] == [*map(_plain, cast("list[Any]", accepted))]


def _same_dicts(value: list[Any], accepted: Any) -> bool:
    """In this order, each like the one in its place."""
    if accepted == "":
        return not value
    if not isinstance(accepted, list):
        return False
    places = cast("list[Any]", accepted)
    return len(value) == len(places) and all(map(_same_dict, value, places))


def _same_dict(value: Any, accepted: Any) -> bool:
    """Keys and values of one level; an accepted dict lists, for each key, the values that are."""
    if not isinstance(value, dict) or not isinstance(accepted, dict):
        return False
    said, wanted = cast("JsonObject", value), cast("dict[str, Sequence[Any]]", accepted)
    for key, item in said.items():
        if key not in wanted or _plain(item) not in [*map(_plain, wanted[key])]:
            return False
    return all(key in said or "" in values for key, values in wanted.items())


def _plain(value: Any) -> Any:
    """A text without case, spaces and punctuation that says nothing; anything else as it is."""
    return IGNORED.sub("", value).lower().replace("'", '"') if isinstance(value, str) else value
