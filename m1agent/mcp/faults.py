"""A server's faults, in words that say where to look."""

from __future__ import annotations

from http import HTTPStatus

from m1agent.mcp.render import DOCUMENTATION

UNREADABLE = "its answer is no valid"
LOGIN = 'check its "headers", or let it ask for a login with "oauth"'
REMEDIES = {401: LOGIN, 403: LOGIN}


def explained(error: Exception) -> str:
    """What an error says; of an answer that cannot be read, the first place and what is wrong there."""
    from pydantic import ValidationError

    if not isinstance(error, ValidationError):
        return DOCUMENTATION.sub("", str(error).strip()) or type(error).__name__
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    place = ".".join(map(str, first["loc"])) or "the whole"
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return f"{UNREADABLE} {error.title}: {place}: {first['msg']}{more}"


def http_status(code: int) -> str:
    """An HTTP status and what to do about it."""
    try:
        phrase = f" {HTTPStatus(code).phrase}"
    except ValueError:
        phrase = ""
    return f"HTTP {code}{phrase}" + (f"; {REMEDIES[code]}" if code in REMEDIES else "")
