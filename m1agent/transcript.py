"""Messages as JSON values and back: what a store keeps, a recording holds, and another program can read.

    json.dumps(to_json(result.messages))
    conversation = Conversation(from_json(json.loads(text)))

A message is an object with its `role` (`system`, `user`, `assistant`, `tool`) and the fields of its class; those that
are at their default are left out. Bytes are base64, a part says its `type` (`image`, `file`), and lone surrogates,
which neither JSON in UTF-8 nor tokens can hold, become U+FFFD.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import functools
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from m1agent.errors import TranscriptError
from m1agent.messages import (
    AssistantMessage,
    FilePart,
    ImagePart,
    Message,
    SystemMessage,
    ToolMessage,
    ToolResult,
    UserMessage,
    whole_text,
)
from m1agent.problems import close_match, shown

VERSION = 1
_ROLES: dict[str, type] = {
    "system": SystemMessage,
    "user": UserMessage,
    "assistant": AssistantMessage,
    "tool": ToolMessage,
}
_PARTS: dict[str, type] = {"image": ImagePart, "file": FilePart}
_TAGS: dict[Any, tuple[str, str]] = {
    **{kind: ("role", name) for name, kind in _ROLES.items()},
    **{kind: ("type", name) for name, kind in _PARTS.items()},
}
_JSON = "text, a number, true, false, null, a list or an object"
_NAMES = {str: "text", bool: "true or false", int: "a whole number", float: "a number", bytes: "base64 text"}


def to_json(messages: Iterable[Message]) -> list[dict[str, Any]]:
    """One JSON object for each message, in order.

    Raises:
        TranscriptError: a call's arguments hold something that is no JSON value; the text says where.
    """
    return [message_to_json(message, f"messages[{index}]") for index, message in enumerate(messages)]


def from_json(values: Sequence[Mapping[str, Any]]) -> list[Message]:
    """The messages that `to_json` wrote.

    Raises:
        TranscriptError: this is no transcript, or one of a newer version; the text names the place and what fits there.
    """
    given: Any = values
    if not isinstance(given, list | tuple):
        raise TranscriptError(f"a transcript is a list of messages, not {shown(given)}")
    items = cast("Sequence[Any]", given)
    return [message_from_json(value, f"messages[{index}]") for index, value in enumerate(items)]


def message_to_json(message: Message, place: str = "message") -> dict[str, Any]:
    """One message as a JSON object; raises as `to_json`, naming `place`."""
    return {"version": VERSION, **_encode_object(message, place)}


def message_from_json(value: Any, place: str = "message") -> Message:
    """The message that `message_to_json` wrote; raises as `from_json`, naming `place`."""
    fields = _object(value, place)
    version = fields.pop("version", VERSION)
    if version != VERSION:
        raise TranscriptError(f"{place}.version: this m1agent reads version {VERSION}, got {shown(version)}")
    return cast("Message", _decode_tagged(fields, "role", _ROLES, place))


def results_to_json(results: Iterable[ToolResult | None]) -> list[dict[str, Any] | None]:
    """Results of one reply's calls, None where there is none yet; raises as `to_json`."""
    return [_encode(result, f"results[{index}]") for index, result in enumerate(results)]


def results_from_json(values: Any) -> tuple[ToolResult | None, ...]:
    """The results that `results_to_json` wrote; raises as `from_json`."""
    return _decode_items(ToolResult | None, values, "results")


def _encode(value: Any, place: str) -> Any:
    match value:
        case str():
            return whole_text(value)
        case None | bool() | int() | float():
            return value
        case bytes():
            return base64.b64encode(value).decode("ascii")
        case list() | tuple():
            items = cast("Sequence[Any]", value)
            return [_encode(item, f"{place}[{index}]") for index, item in enumerate(items)]
        case dict():
            return _encode_dict(cast("dict[Any, Any]", value), place)
        case _ if dataclasses.is_dataclass(value):
            return _encode_object(value, place)
        case _:
            raise TranscriptError(f"{place}: expected {_JSON}, got a {type(value).__name__}")


def _encode_dict(value: dict[Any, Any], place: str) -> dict[str, Any]:
    for key in value:
        if not isinstance(key, str):
            raise TranscriptError(f"{place}: the keys of an object are text, got {shown(key)}")
    return {whole_text(key): _encode(item, f"{place}.{key}") for key, item in value.items()}


def _encode_object(value: Any, place: str) -> dict[str, Any]:
    tag = _TAGS.get(type(value))
    said: dict[str, Any] = dict([tag]) if tag else {}
    for field in dataclasses.fields(value):
        content = getattr(value, field.name)
        if field.default is dataclasses.MISSING or content != field.default:
            said[field.name] = _encode(content, f"{place}.{field.name}")
    return said


def _object(value: Any, place: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise TranscriptError(f"{place}: expected an object, got {shown(value)}")
    return dict(cast("Mapping[str, Any]", value))


def _decode_tagged(value: Any, tag: str, kinds: Mapping[str, type], place: str) -> Any:
    fields = _object(value, place)
    name = fields.pop(tag, None)
    kind = kinds.get(name) if isinstance(name, str) else None
    if kind is None:
        raise TranscriptError(f"{place}.{tag}: expected one of {', '.join(kinds)}, got {shown(name)}")
    return _decode_fields(kind, fields, place)


def _decode_fields(kind: type, given: dict[str, Any], place: str) -> Any:
    hints = _hints(kind)
    for name in given:
        if name not in hints:
            raise TranscriptError(
                f"{place}: unknown field {shown(name)}.{close_match(name, hints)} Allowed: {', '.join(hints)}."
            )
    for field in dataclasses.fields(kind):
        optional = field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
        if field.name not in given and not optional:
            raise TranscriptError(f"{place}.{field.name}: missing")
    return kind(**{name: _decode(hints[name], value, f"{place}.{name}") for name, value in given.items()})


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _decode(kind: Any, value: Any, place: str) -> Any:
    origin = typing.get_origin(kind)
    if kind is Any:
        return _encode(value, place)
    if origin in (types.UnionType, typing.Union):
        return _decode_union(typing.get_args(kind), value, place)
    if origin is tuple:
        return _decode_items(typing.get_args(kind)[0], value, place)
    if origin is dict:
        return _encode_dict(_object(value, place), place)
    if dataclasses.is_dataclass(kind):
        return _decode_fields(cast("type", kind), _object(value, place), place)
    return _decode_plain(kind, value, place)


def _decode_union(kinds: tuple[Any, ...], value: Any, place: str) -> Any:
    if set(kinds) <= set(_PARTS.values()):
        return _decode_tagged(value, "type", _PARTS, place)
    if value is None and type(None) in kinds:
        return None
    kinds = tuple(kind for kind in kinds if kind is not type(None))
    assert len(kinds) == 1, f"{place}: no rule for {kinds}"
    return _decode(kinds[0], value, place)


def _decode_items(kind: Any, value: Any, place: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise TranscriptError(f"{place}: expected a list, got {shown(value)}")
    items = cast("Sequence[Any]", value)
    return tuple(_decode(kind, item, f"{place}[{index}]") for index, item in enumerate(items))


def _decode_plain(kind: type, value: Any, place: str) -> Any:
    if kind is bytes and isinstance(value, str):
        try:
            return base64.b64decode(value, validate=True)
        except (binascii.Error, ValueError) as error:
            raise TranscriptError(f"{place}: not base64 ({error})") from error
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise TranscriptError(f"{place}: expected {_NAMES[kind]}, got {shown(value)}")
    return whole_text(value) if isinstance(value, str) else value
