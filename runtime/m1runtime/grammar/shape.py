"""Where a JSON text stands, read byte by byte: what the search for a completion merges equal states by."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

QUOTE, BACKSLASH, COMMA, OPEN_OBJECT, CLOSE_OBJECT, OPEN_ARRAY, CLOSE_ARRAY = b'"\\,{}[]'
MARK = 1
"""A byte that no JSON text holds; `closing` writes it where properties come in any order, to go on in a fixed one."""
_STRUCTURE = frozenset((QUOTE, COMMA, OPEN_OBJECT, CLOSE_OBJECT, OPEN_ARRAY, CLOSE_ARRAY))


@dataclass(frozen=True, slots=True)
class Shape:
    """Open containers and the string being written.

    A frame is `{` with the keys written so far and the first value if that is a string (tools and unions are told apart
    by it), or `[` with a comma for each item; the outermost frame counts finished values. `string` is None outside
    strings; `since` counts bytes since the last structural one; `free` marks a string that could be anything. `names`
    holds the keys of each open object, None where nobody asks; `repeated` says that one came twice.
    """

    frames: tuple[bytes, ...] = (b"",)
    string: bytes | None = None
    escaped: bool = False
    key: bool = False
    key_next: bool = False
    free: bool = False
    since: int = 0
    names: tuple[frozenset[bytes], ...] | None = None
    repeated: bool = False

    @classmethod
    def start(cls, *, names: bool) -> Shape:
        """Nothing read yet; `names`: watch for keys that come twice in one object."""
        return cls(names=() if names else None)

    def feed(self, text: bytes) -> Shape:
        """The shape after `text`."""
        shape, at = self, 0
        while at < len(text):
            if shape.string is not None:
                shape, at = shape._in_string(text, at)
            else:
                end = at
                while end < len(text) and text[end] not in _STRUCTURE:
                    end += 1
                if end > at:
                    shape = replace(shape, since=shape.since + end - at)
                if end < len(text):
                    shape = shape._outside(text[end])
                at = end + 1
        return shape

    def freed(self) -> Shape:
        """The same inside a string whose contents do not matter."""
        return replace(self, free=True)

    def repeats(self) -> bool:
        """The key being written, closed here, would come twice."""
        return self.key and bool(self.names) and _name(self.string or b"") in self.names[-1]

    def _in_string(self, text: bytes, at: int) -> tuple[Shape, int]:
        end, escaped = at, self.escaped
        while end < len(text) and (escaped or text[end] != QUOTE):
            escaped = not escaped and text[end] == BACKSLASH
            end += 1
        string = b"" if self.free and not self.key else (self.string or b"") + text[at:end]
        if end == len(text):
            return replace(self, string=string, escaped=escaped, since=self.since + end - at), end
        top, names, repeated = self.frames[-1], self.names, self.repeated
        if self.key:
            top += string + b'"'
            if names:
                name = _name(string)
                repeated = repeated or name in names[-1]
                names = (*names[:-1], names[-1] | {name})
        elif top.startswith(b"{") and b"=" not in top:
            top += b"=" + (b"" if self.free else string)
        frames, key_next = (*self.frames[:-1], top), self.key_next
        return Shape(frames, None, key_next=key_next, names=names, repeated=repeated), end + 1

    def _outside(self, byte: int) -> Shape:
        outer, top = self.frames[:-1], self.frames[-1]
        if byte == QUOTE:
            return replace(self, string=b"", key=self.key_next, key_next=False, since=0)
        if byte == OPEN_OBJECT:
            names = None if self.names is None else (*self.names, frozenset[bytes]())
            return replace(self, frames=(*self.frames, b"{"), key_next=True, since=0, names=names)
        if byte == OPEN_ARRAY:
            return replace(self, frames=(*self.frames, b"["), key_next=False, since=0)
        if byte == COMMA:
            in_array = top.startswith(b"[")
            return replace(
                self, frames=(*outer, top + b",") if in_array else self.frames, key_next=not in_array, since=0
            )
        if not outer:
            return replace(self, since=self.since + 1)
        if len(outer) == 1:
            outer = (outer[0] + b"v",)
        names = self.names[:-1] if self.names and byte == CLOSE_OBJECT else self.names
        return replace(self, frames=outer, key_next=False, since=0, names=names)


def _name(spelling: bytes) -> bytes:
    """A key as it is compared: written without needless escapes."""
    if BACKSLASH not in spelling:
        return spelling
    return json.loads(b'"' + spelling + b'"').encode(errors="surrogatepass")
