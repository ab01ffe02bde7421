"""Tool results that the client would refuse as a whole for one part: the part becomes a note, the rest stays."""

from __future__ import annotations

from typing import Any, cast

from m1agent.mcp.faults import explained
from m1agent.mcp.render import one_line
from m1agent.schema import canonical_json

OLDER = "2025-11-25"
UNNEEDED = ("annotations", "_meta")
LONGEST_TYPE = 40


def repair_result(result: dict[str, Any], version: str = OLDER) -> None:
    """Make of a `tools/call` result what the client accepts in this version of the protocol, as far as that goes."""
    from mcp_types.methods import SERVER_RESULTS

    content: Any = result.get("content")
    known = ("tools/call", version) in SERVER_RESULTS
    if not known or not isinstance(content, list) or not _fault(result, version):
        return
    result["content"] = blocks = [_readable(block, version) for block in cast("list[Any]", content)]
    if result.get("isError") is None:
        result.pop("isError", None)
    if _fault(result, version) and "structuredContent" in result:
        text = _as_text(result.pop("structuredContent"))
        if all(block.get("text") != text for block in blocks):
            blocks.append(_text(text))


def _readable(block: Any, version: str) -> dict[str, Any]:
    """The block, or the block without what we do not use, or a note in its place."""
    if not isinstance(block, dict):
        return _left_out("", f"no object but {type(block).__name__}")
    given = cast("dict[str, Any]", block)
    bare = {key: value for key, value in given.items() if key not in UNNEEDED}
    for form in (given, bare):
        if not _fault({"content": [form], "resultType": "complete"}, version):
            return form
    kind: Any = given.get("type")
    return _left_out(one_line(kind, LONGEST_TYPE) if isinstance(kind, str) else "", _reason(bare, kind))


def _left_out(kind: str, reason: str) -> dict[str, Any]:
    return _text(f"[{kind} block left out: {reason}]" if kind else f"[block left out: {reason}]")


def _as_text(structure: Any) -> str:
    try:
        return canonical_json(structure)
    except RecursionError:
        return "[structured content left out: it is nested too deeply]"


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _fault(result: dict[str, Any], version: str) -> bool:
    from mcp_types.methods import parse_server_result

    try:
        parse_server_result("tools/call", version, result)
    except (ValueError, RecursionError):  # pydantic's errors, and what is nested too deeply for it.
        return True
    return False


def _reason(block: dict[str, Any], kind: Any) -> str:
    import mcp_types as types
    from pydantic import ValidationError

    models = {
        "text": types.TextContent,
        "image": types.ImageContent,
        "audio": types.AudioContent,
        "resource_link": types.ResourceLink,
        "resource": types.EmbeddedResource,
    }
    model = models.get(kind) if isinstance(kind, str) else None
    if model is None:
        return "a block of this type cannot be read" if kind else "it has no type"
    try:
        model.model_validate(block, by_name=False)
    except ValidationError as error:
        return explained(error).partition(f"{model.__name__}: ")[2]
    return "it cannot be read"
