"""Going on with a text that stands in part: what stands is read again, and a value that failed is not written again."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from m1runtime.errors import GenerationError, SchemaError
from m1runtime.grammar.inside import Inside
from m1runtime.grammar.matcher import Constraint, State
from m1runtime.grammar.vocabulary import Vocabulary

_NUMBER = frozenset(b"0123456789+-.eE")


@dataclass(frozen=True, slots=True)
class After:
    """Tokens of a grammar's text that stand, the bytes that come next, and the JSON value that must not follow them.

    Without a value (empty) anything the grammar allows may follow.
    """

    tokens: tuple[int, ...]
    lead: bytes = b""
    failed: bytes = b""


class Rewriting:
    """Inside a grammar: `lead` comes next, and then nothing that begins with one of `barred`."""

    __slots__ = ("barred", "inner", "lead", "text", "vocabulary")
    done = False

    def __init__(self, inner: Inside, lead: bytes, barred: tuple[bytes, ...], text: bytes = b"") -> None:
        """`barred` texts begin with `lead`; `text` is what was written since."""
        self.vocabulary = inner.program.vocabulary
        self.inner, self.lead, self.barred, self.text = inner, lead, barred, text

    @property
    def min_tokens(self) -> int:
        """Tokens of the completion that is known; 0 if none was needed."""
        return 0 if self.inner.path is None else self.inner.min_tokens

    def mask(self, remaining: int) -> Tensor:
        """That of the grammar, narrowed to the lead. What is barred is refused by `accept`."""
        mask, missing = self.inner.mask(remaining), self.lead[len(self.text) :]
        return mask & self.vocabulary.beginnings(missing) if missing else mask

    def accept(self, token: int, remaining: int) -> Rewriting | Inside | None:
        """Still on the way of what is barred, or past it, or None."""
        text = self.text + self.vocabulary.bytes_of(token)
        length = min(len(text), len(self.lead))
        if text[:length] != self.lead[:length] or any(map(text.startswith, self.barred)):
            return None
        after = self.inner.accept(token, remaining)
        if after is None or not any(barred.startswith(text) for barred in self.barred):
            return after
        return Rewriting(after, self.lead, self.barred, text)

    def refined(self) -> Rewriting:
        """Itself with the shortest completion, which may be the one that is barred."""
        return Rewriting(self.inner.refined(), self.lead, self.barred, self.text)


def resumed(vocabulary: Vocabulary, state: State, after: After, max_new_tokens: int) -> Constraint:
    """The constraint of at most `max_new_tokens` tokens that follow those which stand.

    Raises SchemaError when the grammar does not take what stands, GenerationError when it leaves the failed value only.
    """
    left = max_new_tokens + len(after.tokens)
    for token in after.tokens:
        left -= 1
        taken = state.accept(token, left)
        if taken is None:
            raise SchemaError("the grammar does not take the tokens that are said to stand")
        state = taken
    if not after.failed:
        return Constraint(vocabulary, state.refined(), max_new_tokens, calls=True)
    if not isinstance(state, Inside):
        raise SchemaError("no value can have failed here: the text is not inside the grammar")
    rewriting = Rewriting(state, after.lead, _barred(state, after.lead, after.failed))
    return Constraint(vocabulary, rewriting, max_new_tokens, calls=True)


def _barred(state: Inside, lead: bytes, failed: bytes) -> tuple[bytes, ...]:
    """Beginnings that lead to the failed value alone: up to the last byte in whose place there is another.

    A number ends only where something else begins, and might go on instead.
    """
    reader = state.reader()
    for byte in lead:
        reader.take(byte)
    last = 0
    for length, byte in enumerate(failed, start=1):
        if reader.allowed - {byte}:
            last = length
        if not reader.take(byte):
            raise SchemaError("the grammar does not take the value that is said to have failed")
    if failed[-1] in _NUMBER:
        follow = reader.allowed
        if follow & _NUMBER:
            return tuple(lead + failed + bytes((byte,)) for byte in sorted(follow - _NUMBER))
    if not last:
        raise GenerationError(f"no other value than {failed.decode(errors='replace')} may stand here")
    return (lead + failed[:last],)
