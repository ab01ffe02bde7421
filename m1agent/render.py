"""What a tool returned, as the text a model reads and the parts beside it."""

from __future__ import annotations

from typing import Any, cast

from pydantic_core import from_json, to_json

from m1agent.messages import FilePart, ImagePart, Part, ToolOutput
from m1agent.schema import canonical_json

NOTHING = "Done. Nothing was returned."


def render_result(value: Any) -> ToolOutput:
    """A tool's result: strings as they are, images and files as parts with a short note, everything else as JSON.

    A list that holds parts is rendered item by item, a line each.

    Raises:
        TypeError: the value has no JSON form.
    """
    match value:
        case ToolOutput():
            return value
        case str():
            return ToolOutput(value)
        case None:
            return ToolOutput(NOTHING)
        case ImagePart() | FilePart():
            return ToolOutput(note(value), (value,))
        case bytes() | bytearray():
            return render_result(FilePart(bytes(value)))
        case list() | tuple() if any(isinstance(item, Part | bytes) for item in cast("list[Any]", value)):
            outputs = [render_result(item) for item in cast("list[Any]", value)]
            return ToolOutput("\n".join(one.content for one in outputs), tuple(p for one in outputs for p in one.parts))
        case _:
            return ToolOutput(_json(value))


def note(part: Part) -> str:
    """What a model that cannot see a part is told of it."""
    name = part.name if isinstance(part, FilePart) and part.name else "file"
    kind = "image" if isinstance(part, ImagePart) else name
    return f"[{kind} {part.media_type}, {len(part.data)} bytes]"


def _json(value: Any) -> str:
    try:
        return canonical_json(from_json(to_json(value, by_alias=True, inf_nan_mode="strings")))
    except ValueError as error:
        raise TypeError(
            f"a tool returned a {type(value).__name__}, which has no JSON form; return text or JSON values"
        ) from error
