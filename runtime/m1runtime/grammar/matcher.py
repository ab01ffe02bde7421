"""`Constraint`: what one generation may write next, free text and calls alike."""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass
from typing import Protocol, TypeVar

from torch import Tensor

from m1runtime.errors import BudgetError
from m1runtime.grammar.guided import Program
from m1runtime.grammar.inside import Inside
from m1runtime.grammar.table import Table
from m1runtime.grammar.tabled import Tabled
from m1runtime.grammar.vocabulary import Vocabulary

AnyState = TypeVar("AnyState", "Thinking", "Opening")


@dataclass(frozen=True, slots=True)
class Scanner:
    """Finds a trigger in a stream of bytes, outside `opening` … `closing`; immutable.

    With an empty `trigger` it finds the end of the block it starts `inside`. `tail`: bytes that could begin a match.
    """

    trigger: bytes
    opening: bytes
    closing: bytes
    inside: bool = False
    tail: bytes = b""

    def scan(self, raw: bytes) -> tuple[Scanner, bytes | None]:
        """The scanner after `raw`, and the bytes behind the trigger if it was completed (None if not)."""
        text, inside = self.tail + raw, self.inside
        while True:
            if inside:
                at = text.find(self.closing)
                if at < 0:
                    return self._keep(text, inside, len(self.closing) - 1), None
                text, inside = text[at + len(self.closing) :], False
                if not self.trigger:
                    return self._keep(b"", inside, 0), text
            start = text.find(self.trigger) if self.trigger else -1
            skip = text.find(self.opening) if self.opening else -1
            if start >= 0 and (skip < 0 or start < skip):
                return self._keep(b"", inside, 0), text[start + len(self.trigger) :]
            if skip < 0:
                return self._keep(text, inside, max(len(self.trigger), len(self.opening)) - 1), None
            text, inside = text[skip + len(self.opening) :], True

    def _keep(self, text: bytes, inside: bool, longest: int) -> Scanner:
        return Scanner(self.trigger, self.opening, self.closing, inside, text[max(0, len(text) - longest) :])


class FreeText:
    """Unmasked text; a trigger hands over to the calls. Nothing has to follow."""

    __slots__ = ("calls", "ended", "scanner", "vocabulary")
    min_tokens = 0

    def __init__(
        self, vocabulary: Vocabulary, calls: Program | Table, scanner: Scanner, *, ended: bool = False
    ) -> None:
        self.vocabulary, self.calls, self.scanner, self.ended = vocabulary, calls, scanner, ended

    @property
    def done(self) -> bool:
        """eos has been written."""
        return self.ended

    def mask(self, remaining: int) -> Tensor | None:
        """None: anything may follow."""
        return self.vocabulary.eos_mask.clone() if self.ended else None

    def accept(self, token: int, remaining: int) -> FreeText | Inside | None:
        """Free text, the calls that its trigger began, or None if those cannot be closed within the budget."""
        if self.ended:
            return None
        if token in self.vocabulary.eos_ids:
            return FreeText(self.vocabulary, self.calls, self.scanner, ended=True)
        scanner, rest = self.scanner.scan(self.vocabulary.bytes_of(token))
        if rest is None:
            return FreeText(self.vocabulary, self.calls, scanner)
        start = self.calls.start
        return None if start is None else start.feed(rest, remaining)

    def refined(self) -> FreeText:
        """Itself: nothing has to follow."""
        return self


class Thinking:
    """Inside a thinking block that calls must follow: anything but eos, until the budget asks for the end of it."""

    __slots__ = ("_tokens_anew", "calls", "path", "scanner", "vocabulary")
    done = False

    def __init__(self, calls: Inside, scanner: Scanner) -> None:
        self.vocabulary, self.calls, self.scanner = calls.program.vocabulary, calls, scanner
        written = _overlap(scanner.tail, scanner.closing)
        anew, continued = (self.vocabulary.closing(scanner.closing[n:] + calls.known.text) for n in (0, written))
        self.path = min(anew, continued, key=len)
        self._tokens_anew = len(anew)

    @property
    def min_tokens(self) -> int:
        """Tokens of the shortest end of the thinking with the shortest calls, and eos."""
        return len(self.path)

    def mask(self, remaining: int) -> Tensor:
        """Everything but eos, or the one token of the way out once any other would be too many."""
        if self._tokens_anew >= remaining:
            return self.vocabulary.mask_of(self.path[:1])
        return self.vocabulary.text_mask.clone()

    def accept(self, token: int, remaining: int) -> Thinking | Inside | None:
        """Still thinking, the calls after it, or None."""
        if token in self.vocabulary.eos_ids:
            return None
        scanner, rest = self.scanner.scan(self.vocabulary.bytes_of(token))
        if rest is not None:
            return self.calls.feed(rest, remaining)
        return _within(Thinking(self.calls, scanner), remaining)

    def refined(self) -> Thinking:
        """Itself with the shortest calls after it, if that makes the way out shorter: tokens join over its parts."""
        made = Thinking(self.calls.refined(), self.scanner)
        return made if made.min_tokens < self.min_tokens else self


def _overlap(written: bytes, wanted: bytes) -> int:
    """How many bytes of `wanted` the end of `written` holds already."""
    return max(n for n in range(len(wanted)) if written.endswith(wanted[:n]))


class Opening:
    """The start of a reply that must call: a thinking block or the calls themselves, undecided yet.

    `calls` is None once the text can only become a thinking block.
    """

    __slots__ = ("after", "calls", "scanner", "text", "vocabulary")
    done = False

    def __init__(self, calls: Inside | None, after: Inside, scanner: Scanner, text: bytes = b"") -> None:
        self.vocabulary = after.program.vocabulary
        self.calls, self.after, self.scanner, self.text = calls, after, scanner, text

    def _path(self) -> tuple[int, ...]:
        if self.calls is not None:
            return self.calls.known.tokens
        text = self.scanner.opening[len(self.text) :] + self.scanner.closing + self.after.known.text
        return self.vocabulary.closing(text)

    @property
    def min_tokens(self) -> int:
        """Tokens of the shortest calls from here, and eos."""
        return len(self._path())

    def mask(self, remaining: int) -> Tensor:
        """Beginnings of the thinking block and of the calls."""
        path = self._path()
        if len(path) >= remaining:
            return self.vocabulary.mask_of(path[:1])
        mask = self.vocabulary.beginnings(self.scanner.opening[len(self.text) :])
        return mask.clone() if self.calls is None else mask | self.calls.mask(1 << 30)

    def accept(self, token: int, remaining: int) -> Opening | Thinking | Inside | None:
        """Still undecided, thinking, the calls, or None."""
        if token in self.vocabulary.eos_ids:
            return None
        text = self.text + self.vocabulary.bytes_of(token)
        opening = self.scanner.opening
        if text.startswith(opening):
            return self._think(text[len(opening) :], remaining)
        calls = None
        if self.calls is not None:
            calls = self.calls.accept(token, min(remaining, self.calls.program.roomy))
        if not opening.startswith(text) or text == self.text:
            return calls
        return _within(Opening(calls, self.after, self.scanner, text), remaining)

    def refined(self) -> Opening:
        """Itself with the shortest calls, of which one kind is known to be the way out."""
        if self.calls is not None:
            return Opening(self.calls.refined(), self.after, self.scanner, self.text)
        made = Opening(None, self.after.refined(), self.scanner, self.text)
        return made if made.min_tokens < self.min_tokens else self

    def _think(self, written: bytes, remaining: int) -> Thinking | Inside | None:
        scanner, rest = self.scanner.scan(written)
        if rest is not None:
            return self.after.feed(rest, remaining)
        return _within(Thinking(self.after, scanner), remaining)


def _within(state: AnyState, remaining: int) -> AnyState | None:
    """The state, its completion shortened if need be, if it fits into what remains."""
    if state.min_tokens > remaining:
        state = state.refined()
    return state if state.min_tokens <= remaining else None


class State(Protocol):
    """What `Constraint` asks of a place in the text: free text, thinking, or inside a grammar."""

    @property
    def done(self) -> bool: ...
    @property
    def min_tokens(self) -> int: ...
    def mask(self, remaining: int) -> Tensor | None: ...
    def accept(self, token: int, remaining: int) -> State | None: ...
    def refined(self) -> State: ...


class Constraint:
    """The constraint of one generation; owned by the session loop, cheap to fork.

    `mask`, then `try_accept` of the token drawn under it, then `forced`. Every state it takes can be completed within
    the tokens that are left.
    """

    __slots__ = ("_answer", "_calls", "_remaining", "_row", "_state", "_vocabulary")

    def __init__(
        self,
        vocabulary: Vocabulary,
        state: State,
        remaining: int,
        answer: State | None = None,
        *,
        calls: bool = False,
    ) -> None:
        """`answer`: the same place in a text that may only be an answer, where calls may come instead.

        calls: the grammar is that of calls and answers, which are of no use in part.
        """
        self._vocabulary, self._state, self._remaining, self._calls = vocabulary, state, remaining, calls
        self._answer = answer
        self._row: Tensor | None = None
        if state.min_tokens > remaining and self.min_tokens > remaining:
            raise BudgetError(remaining, self.min_tokens)

    @property
    def held(self) -> bool:
        """Inside a call or an answer, where a stop string must not cut; not in free text, nor while thinking."""
        return self._calls and not isinstance(self._state, FreeText | Thinking)

    def mask(self) -> Tensor | None:
        """int32 [ceil(V/32)] on the CPU, LSB first, 1 = allowed; None: free text, anything may follow.

        It may be shared: not to be changed.
        """
        row = self._row
        if row is None:
            self.prepare()
            row = self._row
        return row

    def prepare(self) -> None:
        """Finds the next mask and holds it for `mask`: for the time in which the model computes. Cheap when done."""
        if self._row is None:
            if not isinstance(self._state, Tabled) and self._known >= self._remaining:
                self._state = self._state.refined()
            self._row = self._state.mask(self._remaining)

    def look_ahead(self) -> Iterator[None]:
        """Finds, piece by piece, what will be asked for after the next token: for a caller who has to wait anyway, and
        who may stop at any piece. What is found is shared by all generations of the grammar.
        """
        return self._state.look_ahead() if isinstance(self._state, Tabled) else iter(())

    def answering(self, mask: Tensor) -> Tensor | None:
        """Those tokens of the present mask that an answer may go on with; None where calls are no longer open beside
        it, or not yet.
        """
        if self._answer is None or isinstance(self._state, Thinking):
            return None
        narrow = self._answer.mask(self._remaining)
        if narrow is None or mask.equal(narrow):
            self._answer = None
            return None
        return narrow

    def ending(self) -> Tensor | None:
        """As `mask`, the next token of the known completion alone, for a caller that many tokens were refused; None
        outside grammars.
        """
        state = self._state
        if not isinstance(state, Inside):
            return None
        path = state.path or state.refined().known
        return self._vocabulary.mask_of(path.tokens[:1])

    def try_accept(self, token: int, remaining: int) -> bool:
        """Takes `token` if the grammar allows it and `remaining` tokens, those after it, can complete the text.

        False leaves the state as it was.
        """
        after = self._state.accept(token, remaining)
        if after is None:
            return False
        self._state, self._remaining = after, remaining
        self._row = after.row if isinstance(after, Tabled) else None
        if self._answer is not None:
            self._answer = self._answer.accept(token, remaining)
        return True

    def forced(self, remaining: int) -> list[int]:
        """The canonical tokens that can only follow, already taken; at most `remaining`, [] if there are none."""
        step = self._state.forced(remaining) if isinstance(self._state, Inside) else None
        if step is None:
            return []
        tokens, self._state = step
        self._answer = self._row = None
        self._remaining = remaining - len(tokens)
        return list(tokens)

    @property
    def done(self) -> bool:
        """Nothing but eos may follow."""
        return self._state.done

    @property
    def min_tokens(self) -> int:
        """Tokens of the shortest completion from here, eos included; 0 in free text."""
        state = self._state.refined()
        if state is not self._state:
            self._state, self._row = state, None
        return state.min_tokens

    @property
    def _known(self) -> int:
        """Tokens of the completion at hand; 0 if none was needed."""
        state = self._state
        return state.min_tokens if not isinstance(state, Inside) or state.path is not None else 0

    def fork(self) -> Constraint:
        """An independent copy for the same thread; states are immutable, so nothing is duplicated."""
        return copy(self)
