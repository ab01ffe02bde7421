"""Drafts: tokens that are likely to follow, for one forward pass to verify.

Three sources, tried in this order wherever a token is chosen. The text that followed when the last tokens stood in the
sequence before: tool definitions, the question, earlier turns and calls. The boundary token: a forced run stops where a
longer token may begin, and then the grammar leaves few tokens, all of which begin with the shortest of them. The end of
a value whose text cannot go on as it did before. Between the choices stand the runs that the grammar forces.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
from torch import Tensor

from m1runtime.grammar.vocabulary import TokenizerLike
from m1runtime.rules import Constraint

LONGEST = 4
"""Tokens compared to find where the text stood before."""
CHOICES = 8
"""Tokens drafted at most, those of forced runs not counted."""
LEAST = 4
"""Choices drafted after a draft that failed. In a mixture of experts every token of a pass wakes experts of its own."""
CANDIDATES = 16
"""Earlier places compared."""
FEW = 512
"""A boundary leaves fewer tokens than this, the inside of a string nearly all."""
LONGEST_WAIT = 32
_AMPLE = 1 << 31
"""More tokens left than any grammar asks for, so that no way to an end is looked for."""


class Lookup:
    """Where the tokens of one sequence stood before, as compressors find it: the last place of every pair of tokens,
    and from every place the one before it. Adding and finding take constant time.

    Tokens that differ in leading spaces and quotes alone are taken for one: a word begins a JSON string without the
    space it has in a sentence.
    """

    def __init__(self, token_bytes: Sequence[bytes] | None) -> None:
        self._token_bytes = token_bytes
        self._names: dict[bytes, int] = {}
        self._alike: dict[int, int] = {}
        self._ids: list[int] = []
        self._before: list[int] = []
        self._pairs: dict[tuple[int, int], int] = {}
        self._singles: dict[int, int] = {}

    def extend(self, tokens: Sequence[int]) -> None:
        """Adds the tokens of the sequence that are not known yet."""
        ids = self._ids
        for i in range(len(ids), len(tokens)):
            before = -1
            if i:
                self._singles[ids[-1]] = i
            if i > 1:
                pair = (ids[-2], ids[-1])
                before = self._pairs.get(pair, -1)
                self._pairs[pair] = i
            self._before.append(before)
            ids.append(self.alike(tokens[i]))

    def truncate(self, length: int) -> None:
        """Forgets the tokens beyond a length. Places that named them are told from true ones when they are found."""
        del self._ids[length:], self._before[length:]

    def copy(self) -> Lookup:
        """The same for a sequence that goes its own way from here."""
        other = Lookup(self._token_bytes)
        other._names, other._alike = dict(self._names), dict(self._alike)
        other._ids, other._before = list(self._ids), list(self._before)
        other._pairs, other._singles = dict(self._pairs), dict(self._singles)
        return other

    def alike(self, token: int) -> int:
        """One id for all tokens that are taken for one; negative for tokens without a letter or digit."""
        found = self._alike.get(token)
        if found is None:
            found = self._alike[token] = self._name(token)
        return found

    def find(self, tail: Sequence[int], *, single: bool) -> int | None:
        """The place of the token that followed when `tail`, as `alike` names its tokens, stood there before.

        The longest match wins, and the latest of these. A match has a letter or digit, and two tokens unless `single`.
        """
        best, length = None, 1
        at = self._pairs.get((tail[-2], tail[-1]), -1) if len(tail) > 1 else -1
        for _ in range(CANDIDATES):
            if not 0 <= at < len(self._ids):
                break
            matched = self._matched(tail, at)
            if matched > length:
                best, length = at, matched
            at = self._before[at]
        if best is not None and any(name >= 0 for name in tail[-length:]):
            return best
        at = self._singles.get(tail[-1], -1) if single and tail and tail[-1] >= 0 else -1
        return at if 0 < at < len(self._ids) and self._ids[at - 1] == tail[-1] else None

    def _matched(self, tail: Sequence[int], at: int) -> int:
        n = 0
        while n < min(LONGEST, len(tail), at) and self._ids[at - 1 - n] == tail[-1 - n]:
            n += 1
        return n

    def _name(self, token: int) -> int:
        raw = self._token_bytes[token] if self._token_bytes and token < len(self._token_bytes) else None
        if raw is None:
            return token
        core = raw.lstrip(b' "') or raw
        name = self._names.setdefault(core, token)
        return name if any(byte >= 0x80 or chr(byte).isalnum() for byte in core) else -1 - name


@dataclass(frozen=True, slots=True)
class Step:
    """A drafted choice: its token, the run forced behind it, the grammar before, its mask, and the grammar after."""

    token: int
    run: tuple[int, ...]
    mask: Tensor | None
    before: Constraint | None
    after: Constraint | None


class Drafter:
    """Drafts for the replies of one generation."""

    def __init__(self, lookup: Lookup, tokenizer: TokenizerLike | None, ends: frozenset[int]) -> None:
        self._lookup = lookup
        self._table = _table(tokenizer) if tokenizer is not None else None
        self._ends = ends
        self._alone = False
        self._misses = self._wait = 0
        self._most = CHOICES

    def propose(
        self, tokens: Sequence[int], constraint: Constraint | None, remaining: int, *, alone: bool
    ) -> list[Step]:
        """Choices likely to follow `tokens`, with `remaining` tokens left; [] if there is nothing to go by.

        `constraint` is only looked at. `alone`: a single token waits for the next pass. Beside a forced run a draft is
        nearly free; there it would cost a CPU its quick path, and is left out for a while after it failed repeatedly.
        """
        self._lookup.extend(tokens)
        self._alone = alone
        if alone and self._wait:
            self._wait -= 1
            return []
        tail = [self._lookup.alike(token) for token in tokens[-LONGEST:]]
        state = constraint.fork() if constraint is not None else None
        steps: list[Step] = []
        source: int | None = None
        while len(steps) < self._most and remaining > 0:
            mask = state.mask() if state is not None else None
            before = state.fork() if state is not None else None
            token, source = self._next(tokens, tail, source, state, mask)
            if token is None or (state is not None and not state.try_accept(token, remaining - 1)):
                break
            over = token in self._ends
            run = tuple(state.forced(remaining - 1)) if state is not None and not over else ()
            steps.append(Step(token, run, mask, before, state.fork() if state is not None else None))
            if over or not self._ends.isdisjoint(run) or (state is not None and state.done):
                break
            remaining -= 1 + len(run)
            tail = [*tail, self._lookup.alike(token), *map(self._lookup.alike, run)][-LONGEST:]
            if source is not None and run:
                source = source + len(run) if tuple(tokens[source : source + len(run)]) == run else None
        return steps

    def learn(self, accepted: int, drafted: int) -> None:
        """How many choices of the last draft came true: the next may have one more, or twice as many if all did."""
        likely = 2 * accepted if accepted == drafted else accepted + 1
        self._most = min(CHOICES, max(LEAST, likely))
        self._misses = 0 if accepted else self._misses + self._alone
        if self._misses > 1:
            self._wait = min(2**self._misses, LONGEST_WAIT)

    def _next(
        self,
        tokens: Sequence[int],
        tail: Sequence[int],
        source: int | None,
        state: Constraint | None,
        mask: Tensor | None,
    ) -> tuple[int | None, int | None]:
        """The likely token, and the place where the text goes on after it, if it is from there."""
        if state is not None and mask is not None and self._table is not None:
            token = self._table.boundary(state, mask)
            if token is not None:
                same = source is not None and source < len(tokens) and tokens[source] == token
                return token, source + 1 if same and source is not None else None
        found = source if source is not None else self._lookup.find(tail, single=mask is not None)
        if found is not None and found < len(tokens) and _allows(mask, tokens[found]):
            return tokens[found], found + 1
        return None, None


class _Table:
    """The bytes of a tokenizer's tokens, the first of each, and how many they are."""

    def __init__(self, token_bytes: Sequence[bytes]) -> None:
        self._bytes = token_bytes
        self._firsts = np.array([raw[0] if raw else -1 for raw in token_bytes])
        self._lengths = np.array([len(raw) for raw in token_bytes])

    def nested(self, mask: Tensor) -> list[int]:
        """The allowed tokens, shortest first, that every longer one begins with; [] where many are allowed."""
        allowed = mask.numpy()
        if not 0 < int(np.bitwise_count(allowed.view(np.uint32)).sum()) <= FEW:
            return []
        ids = np.flatnonzero(np.unpackbits(allowed.view(np.uint8), bitorder="little"))
        if (self._firsts[ids] != self._firsts[ids[0]]).any():
            return []
        ranked = [int(i) for i in ids[self._lengths[ids].argsort(kind="stable")]]
        starts = [self._bytes[token] for token in ranked]
        parted = (n for n, start in enumerate(starts) if not all(one.startswith(start) for one in starts[n + 1 :]))
        return ranked[: next(parted, len(ranked))]

    def boundary(self, state: Constraint, mask: Tensor) -> int | None:
        """The longest token of a text that is forced, None where none is.

        A token may also reach beyond the forced text, so where tokens are nested the grammar behind the first is asked.
        """
        nested = self.nested(mask)
        if len(nested) < 2:
            return nested[0] if nested else None
        longest = len(self._bytes[nested[-1]])
        text = self._certain(state.fork(), nested[0], longest)
        return max((t for t in nested if text.startswith(self._bytes[t])), key=lambda t: len(self._bytes[t]))

    def _certain(self, state: Constraint, token: int, length: int) -> bytes:
        """The text that can only follow, up to about `length` bytes; it begins with `token`."""
        text, run = self._bytes[token], [token]
        while len(text) < length and run:
            run = state.forced(_AMPLE) if state.try_accept(run[-1], _AMPLE) else []
            text += b"".join(self._bytes[t] for t in run)
            mask = state.mask()
            run = self.nested(mask)[:1] if mask is not None else []
            text += b"".join(self._bytes[t] for t in run)
        return text


_tables: WeakKeyDictionary[TokenizerLike, _Table] = WeakKeyDictionary()


def _table(tokenizer: TokenizerLike) -> _Table:
    found = _tables.get(tokenizer)
    return found if found is not None else _tables.setdefault(tokenizer, _Table(tokenizer.token_bytes))


def _allows(mask: Tensor | None, token: int) -> bool:
    return mask is None or (token // 32 < len(mask) and bool(int(mask[token // 32]) >> token % 32 & 1))
