"""States of a plain grammar: as `Guided`, but every mask and move is found once and then looked up."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from m1runtime.grammar.guided import MARGIN
from m1runtime.grammar.path import Path
from m1runtime.grammar.place import Place

if TYPE_CHECKING:
    from m1runtime.grammar.table import Table


@dataclass(frozen=True, slots=True)
class Forced:
    """Tokens (at least one) that can only follow, and the place after them."""

    tokens: tuple[int, ...]
    after: Place

    @property
    def rest(self) -> Forced | None:
        """What follows the first of them."""
        return Forced(self.tokens[1:], self.after) if len(self.tokens) > 1 else None


class PlaceBytes:
    """A plain grammar read byte by byte."""

    __slots__ = ("_place",)

    def __init__(self, place: Place) -> None:
        self._place = place

    @property
    def allowed(self) -> frozenset[int]:
        """The bytes that may follow."""
        return frozenset(self._place.allowed)

    def take(self, byte: int) -> bool:
        """Reads a byte; False where it may not follow."""
        after = self._place.move(byte)
        self._place = after or self._place
        return after is not None


class Tabled:
    """A state inside a plain grammar. `path` completes it; None where none has been looked for.

    It says the same for ever, and remembers what was asked: `row` is the mask of a state that needs no path, where it
    is known already, and `_moves` the states that tokens have led to.
    """

    __slots__ = ("_moves", "_run", "_sought", "finished", "path", "place", "program", "row")

    def __init__(
        self, program: Table, place: Place, path: Path | None, *, finished: bool = False, run: Forced | None = None
    ) -> None:
        """`run`: the rest of a forced run that led here."""
        self.program, self.place, self.path, self.finished = program, place, path, finished
        self.row: Tensor | None = None
        self._moves: dict[int, Tabled] = {}
        self._run, self._sought = run, run is not None

    @property
    def done(self) -> bool:
        """Nothing but eos may follow."""
        return self.finished or (self.place.accepting and not self.place.allowed)

    @property
    def known(self) -> Path:
        """A completion."""
        return self.path or self.program.quick(self.place)

    @property
    def min_tokens(self) -> int:
        """Tokens of the completion that is known."""
        return len(self.known.tokens)

    def mask(self, remaining: int) -> Tensor:
        """int32 [words], not to be changed: the allowed tokens, narrowed where the budget leaves no choice."""
        program, path = self.program, self.path
        if self.finished:
            return program.vocabulary.eos_mask
        if path is None or 2 * len(path.tokens) + MARGIN <= remaining:
            return self.row if self.row is not None else self.roomy_mask
        if len(path.tokens) >= remaining:
            path = self.refined().known
        first = program.vocabulary.mask_of(path.tokens[:1])
        return first if len(path.tokens) >= remaining else program.mask(self.place) | first

    @property
    def roomy_mask(self) -> Tensor:
        """int32 [words], not to be changed: the tokens that may follow where the budget is so large that all may."""
        if self.row is None:
            if self.path is not None and self._run is None:
                return self.program.mask(self.place)
            row, own = self._mask()
            if not own or (self.place.kept and self.program.holds_mask(row)):
                self.row = row
            return row
        return self.row

    def _mask(self) -> tuple[Tensor, bool]:
        """The mask, and whether it takes memory of its own."""
        vocabulary, run, place = self.program.vocabulary, self.run, self.place
        if run is not None:
            return vocabulary.only(run.tokens[0]), False
        return self.program.lexicon.mask(place, vocabulary.eos_ids if place.accepting else ()), True

    @property
    def run(self) -> Forced | None:
        """The canonical tokens that can only follow; None if there are none."""
        if not self._sought:
            program, place = self.program, self.place
            self._run = program.forced(place) if self.path is None else program.free(place).run
            self._sought = True
        return self._run

    def accept(self, token: int, remaining: int) -> Tabled | None:
        """The state after `token`, if the grammar takes it and what is left of the budget can complete it."""
        if remaining > self.program.roomy:
            return self._moves.get(token) or self._moved(token)
        if token in self.program.vocabulary.eos_ids:
            return self._ended()
        after, run = self.take((token,), remaining), self._run
        if after is not None and after.path is not None:
            after._went_on(run.rest if run is not None and token == run.tokens[0] else None, remaining)
        return after

    def _went_on(self, rest: Forced | None, remaining: int) -> None:
        """A state that has just been made takes over what is known of its place, and the rest of a run to it."""
        assert self.path is not None
        self._run, self._sought = rest, rest is not None
        if 2 * len(self.path.tokens) + MARGIN <= remaining:
            self.row = self.program.row(self.place) if rest is None else self.program.vocabulary.only(rest.tokens[0])

    def _moved(self, token: int) -> Tabled | None:
        """As `accept` where the budget is large."""
        after = self._ended() if token in self.program.vocabulary.eos_ids else self._stepped(token)
        if after is not None and after.place.kept and self.program.holds_move():
            self._moves[token] = after
        return after

    def _ended(self) -> Tabled | None:
        if self.finished or not self.place.accepting:
            return None
        return Tabled(self.program, self.place, Path((), b"", True), finished=True)

    def _stepped(self, token: int) -> Tabled | None:
        program, run = self.program, None if self.finished else self.run
        raw = program.vocabulary.bytes_of(token)
        place = self.place.walk(raw) if raw and not self.finished else None
        if place is None:
            return None
        rest = run.rest if run is not None and token == run.tokens[0] else None
        return program.free(place) if rest is None else Tabled(program, place, None, run=rest)

    def take(self, tokens: tuple[int, ...], remaining: int) -> Tabled | None:
        """The state after plain `tokens`, under the same two conditions."""
        bytes_of = self.program.vocabulary.bytes_of
        raw = bytes_of(tokens[0]) if len(tokens) == 1 else b"".join(map(bytes_of, tokens))
        after = self.place.walk(raw) if raw and not self.finished else None
        return None if after is None else self._at(after, tokens, raw, remaining)

    def _at(self, after: Place, tokens: tuple[int, ...], raw: bytes, remaining: int) -> Tabled | None:
        program, old = self.program, self.path
        if remaining > program.roomy:
            return program.free(after)
        if old is not None and old.tokens[: len(tokens)] == tokens:
            path = Path(old.tokens[len(tokens) :], old.text[len(raw) :], old.shortest)
        else:
            path = program.quick(after)
        return Tabled(program, after, path).within(remaining)

    def feed(self, raw: bytes, remaining: int) -> Tabled | None:
        """The state after bytes that a token has written beyond the place where this grammar began."""
        after, old = self.place.walk(raw), self.path
        if after is None:
            return None
        path = self.program.quick(after)
        if old is not None and old.text.startswith(raw):
            # What was promised before it began: another end may take more tokens.
            text = old.text[len(raw) :]
            path = Path(self.program.vocabulary.closing(text), text, False)
        return Tabled(self.program, after, path).within(remaining)

    def within(self, remaining: int) -> Tabled | None:
        """Itself, with a shorter completion if need be, if the budget can complete it."""
        if self.path is None or len(self.path.tokens) <= remaining:
            return self
        shorter = self.refined()
        return shorter if shorter.min_tokens <= remaining else None

    def forced(self, remaining: int) -> tuple[tuple[int, ...], Tabled] | None:
        """The canonical tokens that can only follow, and the state after them."""
        run = None if self.finished else self.run
        if run is None:
            return None
        left = remaining - len(run.tokens)
        raw = b"" if left > self.program.roomy else b"".join(map(self.program.vocabulary.bytes_of, run.tokens))
        after = self._at(run.after, run.tokens, raw, left)
        return None if after is None else (run.tokens, after)

    def look_ahead(self) -> Iterator[None]:
        """Finds, piece by piece, what will be asked for once a token has been taken."""
        return iter(()) if self.finished else self.program.look_ahead(self.place)

    def reader(self) -> PlaceBytes:
        """Reads on from here byte by byte."""
        return PlaceBytes(self.place)

    def refined(self) -> Tabled:
        """Itself with the shortest completion there is: the one at hand where the search, which knows one end of a
        foreign place, has none shorter.
        """
        old = self.path
        if self.finished or (old is not None and old.shortest):
            return self
        path = self.program.shortest(self.place)
        if old is not None and len(tokens := self.program.vocabulary.closing(old.text)) < len(path.tokens):
            path = Path(tokens, old.text, True)
        return Tabled(self.program, self.place, path)
