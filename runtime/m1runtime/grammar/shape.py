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
                    shape = shape._between(shape.frames, shape.key_next, shape.names, shape.since + end - at)
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
            return self._within(string, escaped, self.since + end - at), end
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
        outer, top, names = self.frames[:-1], self.frames[-1], self.names
        if byte == QUOTE:
            return Shape(self.frames, b"", key=self.key_next, names=names, repeated=self.repeated)
        if byte == OPEN_OBJECT:
            names = None if names is None else (*names, frozenset[bytes]())
            return self._between((*self.frames, b"{"), True, names)
        if byte == OPEN_ARRAY:
            return self._between((*self.frames, b"["), False, names)
        if byte == COMMA:
            in_array = top.startswith(b"[")
            return self._between((*outer, top + b",") if in_array else self.frames, not in_array, names)
        if not outer:
            return self._between(self.frames, self.key_next, names, self.since + 1)
        if len(outer) == 1:
            outer = (outer[0] + b"v",)
        return self._between(outer, False, names[:-1] if names and byte == CLOSE_OBJECT else names)

    def _between(
        self, frames: tuple[bytes, ...], key_next: bool, names: tuple[frozenset[bytes], ...] | None, since: int = 0
    ) -> Shape:
        """A shape outside strings. It is made field by field, as all here: `replace` takes most of a search's time."""
        return Shape(frames, None, False, False, key_next, False, since, names, self.repeated)

    def _within(self, string: bytes, escaped: bool, since: int) -> Shape:
        """A shape inside the same string."""
        return Shape(self.frames, string, escaped, self.key, self.key_next, self.free, since, self.names, self.repeated)


def _name(spelling: bytes) -> bytes:
    """A key as it is compared: written without needless escapes."""
    if BACKSLASH not in spelling:
        return spelling
    return json.loads(b'"' + spelling + b'"').encode(errors="surrogatepass")
