"""What is known of a plain grammar in one vocabulary: masks, forced runs and completions, each found once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TypeAlias

from torch import Tensor

from m1runtime.grammar.foreign import Foreign
from m1runtime.grammar.guided import ROOM, UNBOUNDED, Program, Text
from m1runtime.grammar.lexicon import Lexicon
from m1runtime.grammar.path import Path
from m1runtime.grammar.place import Place
from m1runtime.grammar.places import Places
from m1runtime.grammar.tabled import Forced, Tabled
from m1runtime.grammar.vocabulary import Vocabulary

MAX_PLACES = 50_000
MAX_MOVES = 50_000
MAX_MASKS = 256
MAX_EXPANSIONS = 20_000
AHEAD = 48
"""Places after one that are looked at before it is known which of them comes."""


Compile: TypeAlias = Callable[[Text], Program]


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """A grammar in places: `begin` makes the first one, with what compiles the values that are not plain.

    `key` says which grammar it is; `bound`: bytes that finish it from any place, None if no bound is known; `plain`:
    all of its values are, so that whatever is asked of a place costs little.
    """

    key: object
    begin: Callable[[Places, Compile], Place]
    separators: tuple[str, str]
    bound: int | None
    any_order: bool = False
    plain: bool = True


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
        self._moves = 0
        self._rows: set[int] = set()
        self._shortest: dict[Place, Path] = {}
        self._free: dict[Place, Tabled] = {}
        self._looked: set[Place] = set()

    @property
    def start(self) -> Tabled:
        """The initial state and a completion of it."""
        # Numbers between bounds have a place for each beginning, strings a move for each token.
        if len(self._places) > MAX_PLACES or self._moves >= MAX_MOVES:
            self._renew()
        return self._first

    def mask(self, place: Place) -> Tensor:
        """int32 [words]: the tokens that may follow, eos among them where the text may end; not to be changed."""
        return self.free(place).roomy_mask

    def holds_mask(self, row: Tensor) -> bool:
        """Whether a state may keep this mask: one that others keep, too, or one more; False where there are enough."""
        if len(self._rows) < MAX_MASKS:
            self._rows.add(row.data_ptr())
        return row.data_ptr() in self._rows

    def holds_move(self) -> bool:
        """Counts a state that is to be kept as what follows another; False where there are enough."""
        self._moves += 1
        return self._moves <= MAX_MOVES

    def free(self, place: Place) -> Tabled:
        """The state at `place` where the budget is so large that no completion is looked for."""
        found = self._free.get(place)
        if found is None:
            found = Tabled(self, place, None)
            if place.kept:
                self._free[place] = found
        return found

    def row(self, place: Place) -> Tensor | None:
        """As `mask`, if it is known already."""
        found = self._free.get(place)
        return None if found is None else found.row

    def look_ahead(self, place: Place) -> Iterator[None]:
        """Finds, piece by piece, what will be asked for once a token has been taken at `place`: the runs that are then
        forced, and the masks behind them. What is found stays; nothing else changes.
        """
        if not (self._plan.plain and place.kept) or place in self._looked:
            return
        for after in islice(self.lexicon.exits(place), AHEAD):
            if after.kept:
                run = self.free(after).run
                self.mask(after if run is None else run.after)
            yield
        self._looked.add(place)

    def forced(self, place: Place) -> Forced | None:
        """The canonical tokens that can only follow; None if there are none.

        They stop before any token that may begin in them and go on after their end: pieces of such a token would leave
        the model in a spelling it does not write. `f`, `ind` is no longer open once `fi` stands, nor
        `", "arguments": {"` once `{` does where `{}` may follow as well.
        """
        run, after = _forced_bytes(place)
        firm = self.lexicon.firm(run, after) if run else 0
        tokens = self.vocabulary.canonical(run) if firm else None
        at, count = 0, 0
        for token in tokens or ():
            if at + (size := len(self.vocabulary.bytes_of(token))) > firm:
                break
            at, count = at + size, count + 1
        if not tokens or not count:
            return None
        end = after if at == len(run) else place.walk(run[:at])
        return None if end is None else Forced(tokens[:count], end)

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


def _forced_bytes(place: Place) -> tuple[bytes, Place]:
    """The bytes that can only follow, and the place after them."""
    run: list[bytes] = []
    while (fixed := place.fixed) is not None:
        run.append(fixed[0])
        place = fixed[1]
    return b"".join(run), place
