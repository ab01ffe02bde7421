"""Tokens → text as it may be shown: whole characters only, and nothing of a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class TextStream:
    """Decodes tokens one by one; `text` is what was emitted, `stopped` whether a stop string was met."""

    def __init__(self, token_bytes: Sequence[bytes], stops: Sequence[str] = ()) -> None:
        self._token_bytes = token_bytes
        self._stops = stops
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self.text = ""
        self.stopped = False

    def push(self, token: int, *, stops: bool = True) -> str:
        """The text this token makes certain: characters it completes, less what may be the start of a stop string.

        `stops`: whether a stop string may end here; else all of it is certain.
        """
        return self._emit(self._decoder.decode(self._token_bytes[token]), stops=stops)

    def finish(self) -> str:
        """What was held back; an unfinished character becomes U+FFFD."""
        return self._emit(self._decoder.decode(b"", final=True), final=True)

    def _emit(self, new: str, *, stops: bool = True, final: bool = False) -> str:
        if self.stopped:
            return ""
        self._held += new
        found = [at for stop in self._stops if (at := self._held.find(stop)) >= 0] if stops else []
        if found:
            self.stopped = True
            certain = min(found)
        else:
            certain = len(self._held) - (0 if final or not stops else self._possible_stop())
        emitted, self._held = self._held[:certain], self._held[certain:]
        self.text += emitted
        return emitted

    def _possible_stop(self) -> int:
        longest = min(len(self._held), max((len(stop) - 1 for stop in self._stops), default=0))
        for length in range(longest, 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop in self._stops):
                return length
        return 0
