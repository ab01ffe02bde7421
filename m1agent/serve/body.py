"""A request's body: read within bounds, and checked against the shape it must have."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, TypeVar, cast

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json
from starlette.requests import ClientDisconnect, Request

from m1agent.problems import close_match
from m1agent.serve.refused import Refused

T = TypeVar("T", bound=BaseModel)
REMEDIES = {
    "presence_penalty": "this server has no penalties: leave it out",
    "frequency_penalty": "this server has no penalties: leave it out",
    "logit_bias": "this server has none: leave it out",
    "verbosity": "this server cannot follow it: leave it out",
    "best_of": "this server writes one: leave it out",
    "suffix": "this server cannot fill in: leave it out",
}
MESSAGES = {"missing": "it is missing", "union_tag_invalid": "{msg}; this server reads text and calls functions"}


async def read_body(request: Request, most: int, seconds: float) -> bytes:
    """The body of a request that says it is JSON.

    Raises:
        Refused: 408, 413 or 415.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Refused(415, f"the body must be JSON: send Content-Type: application/json, not {kind or 'none'!r}")
    size = request.headers.get("content-length", "")
    if size.isdecimal() and int(size) > most:
        raise _too_large(most)
    parts: list[bytes] = []
    length = 0
    try:
        async with asyncio.timeout(seconds):
            async for part in request.stream():
                length += len(part)
                if length > most:
                    raise _too_large(most)
                parts.append(part)
    except TimeoutError:
        raise Refused(408, f"the body did not arrive within {seconds:g} s", headers={"Connection": "close"}) from None
    except ClientDisconnect:
        raise Refused(400, "the client left before its request was complete") from None
    return b"".join(parts)


def parse(body: bytes, kind: type[T]) -> T:
    """The request in a body. Raises Refused (400) that names the field which is wrong."""
    try:
        data = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise Refused(400, f"the body is not valid JSON: {error}", code="invalid_json") from None
    if not isinstance(data, dict):
        raise Refused(400, "the body must be a JSON object", code="invalid_json")
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)
        raise _refused([(item["type"], item["loc"], item["msg"]) for item in found], data, kind) from None
    except RecursionError:
        raise Refused(400, "the body is nested too deeply", code="invalid_json") from None


def _refused(found: Sequence[tuple[str, tuple[int | str, ...], str]], data: Any, kind: type[BaseModel]) -> Refused:
    """Of several problems (each form of a field that may have several has its own) the one that lies deepest."""
    places = [_place(loc, data, missing=problem == "missing") for problem, loc, _ in found]
    deepest = max(range(len(found)), key=lambda index: (len(places[index]), -index))
    problem, place, message = found[deepest][0], places[deepest], found[deepest][2]
    param = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).lstrip(".")
    param = param[:200]
    if problem == "extra_forbidden":
        hint = close_match(str(place[-1]), kind.model_fields) if len(place) == 1 else ""
        told = f"this server does not know it{f'; {hint}' if hint else ''}; leave it out"
    else:
        told = MESSAGES.get(problem, "{msg}").format(msg=message[:1].lower() + message[1:])
    if problem == "literal_error" and param.endswith(".type"):
        told += "; this server reads text and calls functions"
    remedy = REMEDIES.get(param)
    return Refused(400, f"{param}: {remedy or told}", param=param or None, code=_code(problem))


def _code(problem: str) -> str:
    return {"missing": "missing_field", "extra_forbidden": "unknown_field"}.get(problem, "invalid_value")


def _place(loc: Sequence[int | str], data: Any, *, missing: bool) -> tuple[int | str, ...]:
    """Where in the data a problem is: pydantic's places also name the members of unions."""
    place: list[int | str] = []
    for number, part in enumerate(loc):
        if isinstance(part, int) and isinstance(data, list):
            items = cast("list[Any]", data)
            data = items[part] if part < len(items) else None
            place.append(part)
        elif isinstance(data, dict) and (part in data or (missing and number == len(loc) - 1)):
            data = cast("dict[Any, Any]", data).get(part)
            place.append(part)
    return tuple(place)


def _too_large(most: int) -> Refused:
    return Refused(
        413,
        f"the body is larger than {most} bytes; shorten the conversation, or ask the server's owner for --max-body",
        code="request_too_large",
        headers={"Connection": "close"},
    )
