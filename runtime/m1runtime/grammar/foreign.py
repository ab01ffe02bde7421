"""A value that is no plain one, as a place: read by a matcher of llguidance's, which is made when it is reached."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property

from torch import Tensor

from m1runtime.grammar.guided import Guided, Program
from m1runtime.grammar.place import Place

CLOSE = b"}"


class Foreign(Place):
    """Inside the value that `state` reads, then `after`. An object is over with its bracket."""

    kept = False

    def __init__(self, state: Guided, after: Place, *, begins: bool = False) -> None:
        """`begins`: nothing of the value is written."""
        super().__init__()
        self.state, self.after, self.begins = state, after, begins
        self._sought = False
        self._vocabulary = state.program.vocabulary
        self._known: dict[bytes, bool] = {}

    @classmethod
    def begin(cls, program: Program, after: Place) -> Place:
        """Before the value."""
        state = program.start
        assert state is not None, "a compiled schema has an instance"
        return cls(state, after, begins=True)

    @property
    def accepting(self) -> bool:
        return self.state.matcher.is_accepting() and self.after.accepting

    @cached_property
    def allowed(self) -> bytes:
        return bytes(sorted(self.state.reader().allowed))

    @property
    def fixed(self) -> tuple[bytes, Place] | None:
        run = b"" if self.accepting else self.state.matcher.compute_ff_bytes()
        after = self.walk(run) if run else None
        return None if after is None else (run, after)

    @property
    def nearest(self) -> tuple[bytes, Place]:
        return self.state.known.text, self.after

    def closers(self) -> list[tuple[bytes, Place]]:
        if not self._sought:  # What is walked to from here then knows its shortest way too.
            self.state, self._sought = self.state.refined() if self.begins else self.state.shortened(), True
        return [(self.state.known.text, self.after)]

    @cached_property
    def own_mask(self) -> Tensor:
        """int32 [words]: the tokens that go on inside the value or end with it."""
        spare = self.state.matcher.deep_copy()
        mask = self.state.raw_mask()
        if self.state.matcher.is_error():  # This mask is beyond its limits, and it takes nothing any more.
            self.state = replace(self.state, matcher=spare)
            mask = self._vocabulary.mask_of(self.state.known.tokens[:1])
        return mask & self._vocabulary.plain_mask

    def allows(self, token: int) -> bool:
        """Whether a token goes on inside the value or ends with it."""
        return bool(int(self.own_mask[token >> 5]) >> (token & 31) & 1)

    def walk(self, text: bytes) -> Place | None:
        inside = self._taken(text)
        return self.cross(text) if inside is None else inside

    def cross(self, text: bytes) -> Place | None:
        """The place after a text that ends the object and goes on, or None."""
        end = text.find(CLOSE) + 1
        while 0 < end < len(text):
            if self._ends(text[:end]):
                return self.after.walk(text[end:])
            end = text.find(CLOSE, end) + 1
        return None

    def _ends(self, text: bytes) -> bool:
        """Whether the object ends with `text`."""
        found = self._known.get(text)
        if found is None:
            tokens = self._vocabulary.cover(text)
            found = self._known[text] = tokens is not None and self.allows(tokens[0]) and self._ends_after(tokens)
        return found

    def _ends_after(self, tokens: tuple[int, ...]) -> bool:
        return self.state.matcher.validate_tokens([*tokens, self._vocabulary.eos]) > len(tokens)

    def _taken(self, text: bytes) -> Place | None:
        if not text:
            return self
        tokens = self._vocabulary.cover(text)
        # With a completion at hand, the next one costs little; without, each would be searched for.
        after = None if tokens is None else self.state.take(tokens, self.state.program.roomy)
        if after is None:
            return None
        return self.after if after.matcher.is_stopped() else Foreign(after, self.after)

    def _step(self, byte: int) -> Place | None:
        return self._taken(bytes((byte,)))
