"""One matcher over tokens, and a proof at every step that it can still be completed within the budget."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from threading import Lock

import torch
from llguidance import LLMatcher, LLParserLimits
from torch import Tensor

from m1runtime.errors import SchemaError
from m1runtime.grammar.closing import Completion, complete_fast, complete_shortest
from m1runtime.grammar.shape import QUOTE, Shape
from m1runtime.grammar.vocabulary import Vocabulary, byte_tokenizer

UNBOUNDED = 1 << 30
LIMITS = LLParserLimits(max_items_in_row=20_000, step_max_items=400_000)
"""The defaults refuse 600 tools, or one of 600 optional arguments."""
MARGIN = 8
"""Where bytes are forced, a mask holds their canonical token alone; near the end of the budget the completion's own
(fewer) tokens are allowed beside it."""


class Program:
    """A grammar text compiled for one vocabulary; shared by every generation that uses it.

    `json`: the text is JSON apart from fixed parts, so equal places of its skeleton may be merged in the search;
    `names`: its objects may hold made-up names, none of which may come twice.
    Raises SchemaError when llguidance refuses the text.
    """

    def __init__(self, vocabulary: Vocabulary, lark: str, *, json: bool, names: bool) -> None:
        grammar = LLMatcher.grammar_from_lark(lark)
        self.vocabulary = vocabulary
        self.json = json
        self.names = names
        self._lock = Lock()
        self.matcher = LLMatcher(vocabulary.llg, grammar, log_level=0, limits=LIMITS)
        self.bytes_matcher = LLMatcher(byte_tokenizer(), grammar, log_level=0, limits=LIMITS)
        for matcher in (self.matcher, self.bytes_matcher):
            if matcher.is_error():
                raise SchemaError(f"the grammar cannot be compiled: {matcher.get_error()}")

    @property
    def start(self) -> Guided | None:
        """The initial state, its shortest completion known; None if no completion was found.

        Its matchers are the caller's own: llguidance refuses one that two threads use at once.
        """
        with self._lock:
            first = self._first
            if first is None:
                return None
            return replace(first, matcher=first.matcher.deep_copy(), bytes_matcher=first.bytes_matcher.deep_copy())

    @cached_property
    def _first(self) -> Guided | None:
        first = Guided(self, self.matcher, self.bytes_matcher, b"", Shape.start(names=self.names), Path((), b"", False))
        path = first.search(UNBOUNDED) or first.search_fast(UNBOUNDED)
        return None if path is None else replace(first, path=path)


class Programs:
    """The programs of one grammar for one vocabulary, compiled when first needed."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._programs: dict[str, Program] = {}

    def get(self, lark: str, *, json: bool, names: bool) -> Program:
        """The program of a grammar text. Raises SchemaError."""
        if lark not in self._programs:
            self._programs[lark] = Program(self._vocabulary, lark, json=json, names=names)
        return self._programs[lark]


@dataclass(frozen=True, slots=True)
class Path:
    """A known completion: its tokens including eos, its bytes, and whether nothing shorter exists."""

    tokens: tuple[int, ...]
    text: bytes
    shortest: bool


@dataclass(frozen=True, slots=True)
class Guided:
    """A state inside the grammar, immutable: steps return the next state or None. `path` completes it.

    `bytes_matcher` stands `behind` bytes before the matcher, `shape` has `read` some of these; they follow when needed.
    """

    program: Program
    matcher: LLMatcher
    bytes_matcher: LLMatcher
    behind: bytes
    shape: Shape
    path: Path
    finished: bool = field(default=False)
    read: int = field(default=0)

    @property
    def done(self) -> bool:
        """Nothing but eos may follow."""
        return self.finished or self.matcher.is_stopped()

    def mask(self, remaining: int) -> Tensor:
        """int32 [words]: the allowed tokens, narrowed to the completion when the budget leaves no choice."""
        vocabulary = self.program.vocabulary
        if self.done:
            return vocabulary.eos_mask.clone()
        if len(self.path.tokens) >= remaining:
            return vocabulary.mask_of(self.path.tokens[:1])
        mask = torch.zeros(vocabulary.words, dtype=torch.int32)
        words = (vocabulary.llg.vocab_size + 31) // 32
        raw = mask if words == vocabulary.words else torch.zeros(words, dtype=torch.int32)
        self.matcher.unsafe_compute_mask_ptr(raw.data_ptr(), raw.numel() * 4)
        if raw is not mask:
            shared = min(words, vocabulary.words)
            mask[:shared] = raw[:shared]
        mask &= ~vocabulary.eos_mask
        if self.matcher.is_accepting():
            mask |= vocabulary.eos_mask
        if 2 * len(self.path.tokens) + MARGIN > remaining:
            mask |= vocabulary.mask_of(self.path.tokens[:1])
        return mask

    def accept(self, token: int, remaining: int) -> Guided | None:
        """The state after `token`, if the grammar takes it and what is left of the budget can complete it."""
        if self.finished:
            return None
        if token in self.program.vocabulary.eos_ids:
            return replace(self, finished=True, path=Path((), b"", True)) if self.matcher.is_accepting() else None
        return self.take((token,), remaining)

    def take(self, tokens: tuple[int, ...], remaining: int) -> Guided | None:
        """The state after plain `tokens`, under the same two conditions."""
        matcher = self.matcher.deep_copy()
        if not matcher.consume_tokens(list(tokens)):
            return None
        raw = b"".join(map(self.program.vocabulary.bytes_of, tokens))
        after = replace(self, matcher=matcher, behind=self.behind + raw)
        if self.program.names and QUOTE in raw:
            after = after.caught_up_shape()
            if after.shape.repeated:
                return None
        path = after.follow(self.path, tokens, raw)
        if path is None or len(path.tokens) > remaining:
            after = after.caught_up()
            path = after.search_fast(remaining) or after.search(remaining)
        return None if path is None or len(path.tokens) > remaining else replace(after, path=path)

    def feed(self, raw: bytes, remaining: int) -> Guided | None:
        """The state after bytes that a token has written beyond the place where this grammar began."""
        tokens = self.program.vocabulary.cover(raw)
        return None if tokens is None else self.take(tokens, remaining) if tokens else self.within(remaining)

    def within(self, remaining: int) -> Guided | None:
        """Itself, if the budget can complete it."""
        return self if len(self.path.tokens) <= remaining else None

    def forced(self, remaining: int) -> tuple[tuple[int, ...], Guided] | None:
        """The canonical tokens that can only follow, and the state after them."""
        if self.done:
            return None
        tokens = tuple(self.matcher.compute_ff_tokens())
        after = self.take(tokens, remaining - len(tokens)) if tokens else None
        return None if after is None else (tokens, after)

    def refined(self) -> Guided:
        """Itself with the shortest completion there is."""
        if self.path.shortest or self.done:
            return self
        after = self.caught_up()
        path = after.search(len(self.path.tokens))
        if path is None or len(path.tokens) >= len(self.path.tokens):
            path = replace(self.path, shortest=True)
        return replace(after, path=path)

    def follow(self, old: Path, tokens: tuple[int, ...], raw: bytes) -> Path | None:
        """The old completion, adapted to what was just written; one call into the matcher in the common case."""
        if self.matcher.is_stopped():
            return None if self.matcher.is_error() else Path((self.program.vocabulary.eos,), b"", True)
        n = len(tokens)
        if tokens == old.tokens[:n]:
            return Path(old.tokens[n:], old.text[len(raw) :], old.shortest)
        if old.text.startswith(raw):
            return self.check(old.text[len(raw) :], shortest=old.shortest)
        for k in range(min(len(raw), len(old.text)), 0, -1):
            if raw.endswith(old.text[:k]):
                path = self.check(old.text[k:], shortest=False)
                if path is not None:
                    return path
        return self.check(old.text, shortest=False)

    def check(self, text: bytes, *, shortest: bool) -> Path | None:
        """`text` and eos as a completion, if the matcher takes them."""
        vocabulary = self.program.vocabulary
        plain = vocabulary.cover(text)
        if plain is None:
            return None
        tokens = (*plain, vocabulary.eos)
        if self.matcher.validate_tokens(list(tokens)) < len(tokens):
            return None
        repeated = self.program.names and self.caught_up_shape().shape.feed(text).repeated
        return None if repeated else Path(tokens, text, shortest)

    def caught_up_shape(self) -> Guided:
        """Itself with the shape at the same place."""
        if self.read == len(self.behind):
            return self
        return replace(self, shape=self.shape.feed(self.behind[self.read :]), read=len(self.behind))

    def caught_up(self) -> Guided:
        """Itself with the byte matcher at the same place."""
        if not self.behind:
            return self
        matcher = self.bytes_matcher.deep_copy()
        matcher.consume_tokens(list(self.behind))
        return replace(self.caught_up_shape(), bytes_matcher=matcher, behind=b"", read=0)

    def search_fast(self, limit: int) -> Path | None:
        """Some completion of at most `limit` tokens, found greedily."""
        if self.matcher.is_stopped():
            return None
        text = complete_fast(self.bytes_matcher, self.shape, limit=limit)
        path = None if text is None else self.check(text, shortest=False)
        return None if path is None or len(path.tokens) > limit else path

    def search(self, limit: int) -> Path | None:
        """The shortest completion, of at most `limit` tokens."""
        vocabulary = self.program.vocabulary

        def cost(text: bytes) -> int:
            plain = vocabulary.cover(text)
            return UNBOUNDED if plain is None else len(plain)

        slack = limit + 8 + limit // 2
        found: Completion | None = complete_shortest(
            self.bytes_matcher, self.shape, cost, limit=slack, merge=self.program.json
        )
        return None if found is None else self.check(found.text, shortest=found.shortest)
