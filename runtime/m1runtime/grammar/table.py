"""States of a plain grammar: as `Guided`, but every mask, move and completion is found once and then looked up."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor

from m1runtime.grammar.foreign import Foreign
from m1runtime.grammar.guided import MARGIN, ROOM, UNBOUNDED, Program, Text
from m1runtime.grammar.lexicon import Lexicon
from m1runtime.grammar.path import Path
from m1runtime.grammar.place import Place
from m1runtime.grammar.places import Places
from m1runtime.grammar.vocabulary import LONGEST_TOKEN, Vocabulary

MAX_PLACES = 50_000
MAX_MASKS = 256
MAX_EXPANSIONS = 20_000


Compile: TypeAlias = Callable[[Text], Program]


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """A grammar in places: `begin` makes the first one, with what compiles the values that are not plain.

    `key` says which grammar it is; `bound`: bytes that finish it from any place, None if no bound is known.
    """

    key: object
    begin: Callable[[Places, Compile], Place]
    separators: tuple[str, str]
    bound: int | None
    any_order: bool = False


@dataclass(frozen=True, slots=True)
class Forced:
    """Tokens that can only follow, and the place after them."""

    tokens: tuple[int, ...]
    after: Place


class Table:
    """What is known of a plain grammar in one vocabulary; shared by every generation that uses it.

    `roomy`: with more tokens left than this, any token the grammar takes can be followed to an end.
    """

    def __init__(self, lexicon: Lexicon, plan: Plan, compile: Compile) -> None:
        self.lexicon = lexicon
        self.vocabulary: Vocabulary = lexicon.vocabulary
        known = plan.bound if self.vocabulary.spells_bytes else None
        self.roomy = UNBOUNDED if known is None else known + known // 4 + ROOM
        self._plan, self._compile = plan, compile
        self._renew()

    def _renew(self) -> None:
        places = Places(self._plan.separators, any_order=self._plan.any_order)
        first = self._plan.begin(places, self._compile)
        self._places = places
        self._first = Tabled(self, first, self.quick(first))
        self._masks: dict[Place, Tensor] = {}
        self._runs: dict[Place, Forced | None] = {}
        self._shortest: dict[Place, Path] = {}
        self._free: dict[Place, Tabled] = {}

    @property
    def start(self) -> Tabled:
        """The initial state and a completion of it."""
        if len(self._places) > MAX_PLACES:  # Numbers between bounds have a place for each beginning.
            self._renew()
        return self._first

    def mask(self, place: Place) -> Tensor:
        """int32 [words]: the tokens that may follow, eos among them where the text may end; not to be changed."""
        found = self._masks.get(place)
        if found is None:
            found = self._mask(place)
            if place.kept and len(self._masks) < MAX_MASKS:
                self._masks[place] = found
        return found

    def _mask(self, place: Place) -> Tensor:
        forced, vocabulary = self.forced(place), self.vocabulary
        if forced is not None:
            return vocabulary.mask_of(forced.tokens[:1])
        mask = self.lexicon.mask(place)
        return mask | vocabulary.eos_mask if place.accepting else mask

    def free(self, place: Place) -> Tabled:
        """The state at `place` where the budget is so large that no completion is looked for."""
        found = self._free.get(place)
        if found is None:
            found = Tabled(self, place, None)
            if place.kept:
                self._free[place] = found
        return found

    def forced(self, place: Place) -> Forced | None:
        """The canonical tokens that can only follow; None if there are none."""
        if not place.kept:
            return self._forced(place)
        if place not in self._runs:
            self._runs[place] = self._forced(place)
        return self._runs[place]

    def _forced(self, place: Place) -> Forced | None:
        run, after = _forced_bytes(place)
        tokens = self.vocabulary.canonical(run) if run else None
        firm, at, count = self._firm(run, after), 0, 0
        for token in tokens or ():
            if at + (size := len(self.vocabulary.bytes_of(token))) > firm:
                break
            at, count = at + size, count + 1
        if not tokens or not count:
            return None
        end = after if at == len(run) else place.walk(run[:at])
        return None if end is None else Forced(tokens[:count], end)

    def _firm(self, run: bytes, after: Place) -> int:
        """How many forced bytes come before any token that may begin in them and go on after their end.

        Pieces of such a token would leave the model in a spelling it does not write: `f`, `ind` is no longer open once
        `fi` stands, nor `", "arguments": {"` once `{` does where `{}` may follow as well.
        """
        first = max(0, len(run) - LONGEST_TOKEN)
        return next((at for at in range(first, len(run)) if self.lexicon.goes_on(run[at:], after)), len(run))

    def quick(self, place: Place) -> Path:
        """A completion found without a search."""
        pieces: list[bytes] = []
        while True:
            text, after = place.nearest
            if after is place:
                break
            pieces.append(text)
            place = after
        whole = b"".join(pieces)
        tokens = self.vocabulary.canonical(whole)
        return Path((*tokens, self.vocabulary.eos) if tokens is not None else self._spelled(whole), whole, False)

    def _spelled(self, text: bytes) -> tuple[int, ...]:
        return self.vocabulary.closing(text)

    def shortest(self, place: Place) -> Path:
        """The completion of the fewest tokens: a search by tokens through the ways that lead to the end."""
        found = self._shortest.get(place)
        if found is None:
            found = self._search(place)
            if place.kept:
                self._shortest[place] = found
        return found

    def _search(self, place: Place) -> Path:
        first = self._known_way(place)
        if first is not place:  # The rest is one text.
            text = self.quick(first).text
            return Path(self._spelled(text), text, True)
        came: dict[Place, tuple[Place, int, bytes] | None] = {first: None}
        level = [first]
        while level and len(came) < MAX_EXPANSIONS:
            following: list[Place] = []
            for here in level:
                if here.accepting:
                    return self._traced(came, here)
                for token, raw, after in self._steps(here):
                    if after not in came:
                        came[after] = (here, token, raw)
                        following.append(after)
            level = following
        quick = self.quick(place)
        return Path(self._spelled(quick.text), quick.text, True)

    def _steps(self, here: Place) -> Iterator[tuple[int, bytes, Place]]:
        """Tokens on the ways to the end, and where they lead."""
        ways: list[tuple[bytes, Place, bytes]] = [(b"", here, b"")]
        while ways:
            text, place, rest = ways.pop()
            if not rest:
                closers = place.closers()
                ways += [(text, after, more) for more, after in closers if more]
                ways += [(text, after, b"") for more, after in closers if not more and after is not place]
                continue
            for end in range(1, len(rest) + 1):
                longer = text + rest[:end]
                token = self.lexicon.token(longer)
                if token is not None and (after := here.walk(longer)) is not None:
                    yield token, longer, self._known_way(after)
                if not self.lexicon.covers(longer):
                    break
            else:
                ways.append((text + rest, place, b""))

    def _known_way(self, place: Place) -> Place:
        """The place itself; instead of a foreign one, of which no two are equal, the text that ends it."""
        inner = place.parts[0]
        if not isinstance(inner, Foreign):
            return place
        text, after = inner.closers()[0]
        return self._places.literal(text, after)

    def _traced(self, came: dict[Place, tuple[Place, int, bytes] | None], end: Place) -> Path:
        tokens: list[int] = [self.vocabulary.eos]
        text, here = b"", end
        while (step := came[here]) is not None:
            here, token, raw = step
            tokens.append(token)
            text = raw + text
        return Path(tuple(reversed(tokens)), text, True)


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
    """A state inside a plain grammar, immutable. `path` completes it; None where none has been looked for."""

    __slots__ = ("finished", "path", "place", "program")

    def __init__(self, program: Table, place: Place, path: Path | None, *, finished: bool = False) -> None:
        self.program, self.place, self.path, self.finished = program, place, path, finished

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
            return program.mask(self.place)
        if len(path.tokens) >= remaining:
            path = self.refined().known
        first = program.vocabulary.mask_of(path.tokens[:1])
        return first if len(path.tokens) >= remaining else program.mask(self.place) | first

    def accept(self, token: int, remaining: int) -> Tabled | None:
        """The state after `token`, if the grammar takes it and what is left of the budget can complete it."""
        if self.finished:
            return None
        if token in self.program.vocabulary.eos_ids:
            return (
                Tabled(self.program, self.place, Path((), b"", True), finished=True) if self.place.accepting else None
            )
        return self.take((token,), remaining)

    def take(self, tokens: tuple[int, ...], remaining: int) -> Tabled | None:
        """The state after plain `tokens`, under the same two conditions."""
        program = self.program
        raw = (
            program.vocabulary.bytes_of(tokens[0])
            if len(tokens) == 1
            else b"".join(map(program.vocabulary.bytes_of, tokens))
        )
        after = self.place.walk(raw)
        return None if after is None or not raw else self._at(after, tokens, raw, remaining)

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
        run = None if self.finished else self.program.forced(self.place)
        if run is None:
            return None
        left = remaining - len(run.tokens)
        raw = b"".join(map(self.program.vocabulary.bytes_of, run.tokens))
        after = self._at(run.after, run.tokens, raw, left)
        return None if after is None else (run.tokens, after)

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


def _forced_bytes(place: Place) -> tuple[bytes, Place]:
    """The bytes that can only follow, and the place after them."""
    run: list[bytes] = []
    while (fixed := place.fixed) is not None:
        run.append(fixed[0])
        place = fixed[1]
    return b"".join(run), place
