"""One matcher over tokens, and a proof at every step that it can still be completed within the budget."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from threading import Lock

import torch
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from torch import Tensor

from m1runtime.errors import SchemaError
from m1runtime.grammar.closing import GLANCE, STATES, Completion, complete_fast, complete_shortest
from m1runtime.grammar.path import Path
from m1runtime.grammar.shape import QUOTE, Shape
from m1runtime.grammar.vocabulary import Vocabulary, byte_tokenizer

UNBOUNDED = 1 << 30
LIMITS = LLParserLimits(max_items_in_row=20_000, step_max_items=400_000, step_lexer_fuel=1_000_000)
"""The defaults refuse 600 tools, or one of 600 optional arguments, and masks where strings of bounded length stand
beside long enumerations."""
ROOM = 64
MASKS = 256
EARLY = 512
"""A mask is remembered by the bytes before it, up to MASKS masks and EARLY bytes: agents begin their calls alike."""
MARGIN = 8
"""Where bytes are forced, a mask holds their canonical token alone; near the end of the budget the completion's own
(fewer) tokens are allowed beside it."""


@dataclass(frozen=True, slots=True)
class Text:
    """A grammar text and what is known of it.

    `json`: the text is JSON apart from fixed parts, so equal places of its skeleton may be merged in the search;
    `names`: its objects may hold made-up names, none of which may come twice; `instance`: a text it accepts, None if
    none is known yet; `bound`: bytes that finish it from any place, None if no bound is known; `closing`: the text that
    completions are searched in, None for the same one; `texts`: strings that match its patterns.
    """

    lark: str
    json: bool = False
    names: bool = False
    instance: bytes | None = None
    bound: int | None = None
    closing: str | None = None
    texts: tuple[bytes, ...] = ()


def bytes_matcher(lark: str) -> LLMatcher:
    """A matcher of `lark` over bytes, the caller's own; those compiled last are kept. Look at its `is_error`."""
    with _bytes_lock:
        pristine = _pristine(lark)
        return pristine if pristine.is_error() else pristine.deep_copy()


_bytes_lock = Lock()


@lru_cache(64)
def _pristine(lark: str) -> LLMatcher:
    return _compiled(byte_tokenizer(), lark)


def _compiled(llg: LLTokenizer, lark: str) -> LLMatcher:
    return LLMatcher(llg, LLMatcher.grammar_from_lark(lark), log_level=0, limits=LIMITS)


class Program:
    """A grammar text compiled for one vocabulary; shared by every generation that uses it.

    `roomy`: with more tokens left than this, any token the grammar takes can be followed to an end.
    Raises SchemaError when llguidance refuses the text.
    """

    def __init__(self, vocabulary: Vocabulary, text: Text) -> None:
        self.vocabulary = vocabulary
        self.json = text.json
        self.names = text.names
        known = text.bound if vocabulary.spells_bytes else None
        self.roomy = UNBOUNDED if known is None else known + known // 4 + ROOM
        self.masks: dict[bytes, Tensor] = {}
        self.texts = text.texts
        self._text = text
        self._lock = Lock()
        self._matcher = _compiled(vocabulary.llg, text.lark)
        if self._matcher.is_error():
            raise SchemaError(f"the grammar cannot be compiled: {self._matcher.get_error()}")

    @property
    def start(self) -> Guided | None:
        """The initial state and a completion of it; None if no completion was found.

        Its matcher is the caller's own: llguidance refuses one that two threads use at once.
        """
        with self._lock:
            first = self._first
            return None if first is None else replace(first, matcher=first.matcher.deep_copy())

    def bytes_matcher(self) -> LLMatcher:
        """A matcher over bytes at the start of the text, the caller's own."""
        return bytes_matcher(self._text.closing or self._text.lark)

    @cached_property
    def _first(self) -> Guided | None:
        first = Guided(self, self._matcher, None, b"", Shape.start(names=self.names), None)
        known = self._text.instance
        path = None if known is None else first.check(known, shortest=False, plain=self.vocabulary.canonical(known))
        if path is None:
            first = replace(first, bytes_matcher=self.bytes_matcher())
            path = first.search(UNBOUNDED) or first.search_fast(UNBOUNDED)
        return None if path is None else replace(first, bytes_matcher=None, path=path)


@dataclass(frozen=True, slots=True)
class MatcherBytes:
    """A grammar read byte by byte."""

    matcher: LLMatcher

    @property
    def allowed(self) -> frozenset[int]:
        """The bytes that may follow."""
        bits = int.from_bytes(self.matcher.compute_bitmask()[:32], "little")
        return frozenset(byte for byte in range(256) if bits >> byte & 1)

    def take(self, byte: int) -> bool:
        """Reads a byte; False where it may not follow."""
        return self.matcher.consume_token(byte)


@dataclass(frozen=True, slots=True)
class Guided:
    """A state inside the grammar, immutable: steps return the next state or None.

    `path` completes it; None where the budget is so large that none has been looked for.
    `bytes_matcher` (None: at the start) stands `behind` bytes before the matcher, and `shape` has `read` some of these;
    they follow when needed.
    """

    program: Program
    matcher: LLMatcher
    bytes_matcher: LLMatcher | None
    behind: bytes
    shape: Shape
    path: Path | None
    finished: bool = field(default=False)
    read: int = field(default=0)

    @property
    def done(self) -> bool:
        """Nothing but eos may follow."""
        return self.finished or self.matcher.is_stopped()

    @property
    def known(self) -> Path:
        """A completion: that of a state whose path is known, as those at the start and after `proved` are."""
        assert self.path is not None
        return self.path

    @property
    def min_tokens(self) -> int:
        """Tokens of the completion that is known."""
        return len(self.known.tokens)

    def mask(self, remaining: int) -> Tensor:
        """int32 [words]: the allowed tokens, narrowed to the completion when the budget leaves no choice."""
        vocabulary = self.program.vocabulary
        if self.done:
            return vocabulary.eos_mask.clone()
        path = self.path
        if path is not None and len(path.tokens) >= remaining:
            return vocabulary.mask_of(path.tokens[:1])
        mask = self._mask()
        if path is not None and 2 * len(path.tokens) + MARGIN > remaining:
            mask |= vocabulary.mask_of(path.tokens[:1])
        return mask

    def _mask(self) -> Tensor:
        early = self.bytes_matcher is None and len(self.behind) < EARLY
        known = self.program.masks.get(self.behind) if early else None
        if known is not None:
            return known.clone()
        vocabulary = self.program.vocabulary
        mask = self.raw_mask() & vocabulary.plain_mask
        straddling = self._straddling()
        if straddling is not None and straddling.numel():
            mask |= vocabulary.mask_of([int(token) for token in straddling])
        if self.matcher.is_accepting():
            mask |= vocabulary.eos_mask
        if early and len(self.program.masks) < MASKS:
            self.program.masks[self.behind] = mask.clone()
        return mask

    def raw_mask(self) -> Tensor:
        """int32 [words]: what the matcher allows, eos as it sees it."""
        vocabulary = self.program.vocabulary
        mask = torch.zeros(vocabulary.words, dtype=torch.int32)
        words = (vocabulary.llg.vocab_size + 31) // 32
        raw = mask if words == vocabulary.words else torch.zeros(words, dtype=torch.int32)
        self.matcher.unsafe_compute_mask_ptr(raw.data_ptr(), raw.numel() * 4)
        if raw is not mask:
            shared = min(words, vocabulary.words)
            mask[:shared] = raw[:shared]
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
        program = self.program
        matcher = self.matcher.deep_copy()
        if not matcher.consume_tokens(list(tokens)):
            return None
        raw = b"".join(map(program.vocabulary.bytes_of, tokens))
        after = Guided(program, matcher, self.bytes_matcher, self.behind + raw, self.shape, None, False, self.read)
        if program.names and QUOTE in raw:
            after = after.caught_up_shape()
            if after.shape.repeated:
                return None
        if remaining > program.roomy and not matcher.is_error():
            return after
        path = None if self.path is None else after.follow(self.path, tokens, raw)
        return after.proved(path, remaining)

    def proved(self, path: Path | None, remaining: int) -> Guided | None:
        """Itself with a completion of at most `remaining` tokens, `path` if that is one."""
        after = self
        if path is not None and len(path.tokens) > remaining:
            path = self.check(path.text, shortest=False)  # the tokenizer's own spelling may not be the shortest
        if path is None or len(path.tokens) > remaining:
            after = self.caught_up()
            path = after.search_fast(remaining) or after.search(remaining, states=GLANCE)
        if path is None or len(path.tokens) > remaining:
            return None
        return Guided(
            self.program, self.matcher, after.bytes_matcher, after.behind, after.shape, path, self.finished, after.read
        )

    def feed(self, raw: bytes, remaining: int) -> Guided | None:
        """The state after bytes that a token has written beyond the place where this grammar began."""
        tokens = self.program.vocabulary.cover(raw)
        return None if tokens is None else self.take(tokens, remaining) if tokens else self.within(remaining)

    def within(self, remaining: int) -> Guided | None:
        """Itself, if the budget can complete it."""
        return self.proved(self.path, remaining)

    def forced(self, remaining: int) -> tuple[tuple[int, ...], Guided] | None:
        """The canonical tokens that can only follow, and the state after them."""
        if self.done:
            return None
        tokens = self._settled(tuple(self.matcher.compute_ff_tokens()))
        after = self.take(tokens, remaining - len(tokens)) if tokens else None
        return None if after is None else (tokens, after)

    def _settled(self, tokens: tuple[int, ...]) -> tuple[int, ...]:
        """Those of the forced tokens that no longer token can take the place of.

        A token may begin inside the forced text and end in what is still free, such as `", "arguments": {"` where an
        empty object may stand as well. Forcing pieces of it would leave the model in a spelling it does not write.
        """
        run = self.matcher.compute_ff_bytes() if tokens else b""
        allowed = self._after(run) if run else None
        if allowed is None:
            return tokens
        at, vocabulary = 0, self.program.vocabulary
        for k, token in enumerate(tokens):
            if vocabulary.beyond(run[at:]).among(allowed).numel():
                return tokens[:k]
            at += len(vocabulary.bytes_of(token))
        return tokens

    def _straddling(self) -> Tensor | None:
        """Tokens that begin in forced text and end beyond it: the matcher's own mask holds the canonical one alone."""
        run = self.matcher.compute_ff_bytes()
        allowed = self._after(run) if run else None
        return None if allowed is None else self.program.vocabulary.beyond(run).among(allowed)

    def _after(self, run: bytes) -> Tensor | None:
        """Mask [words] int32 of what may follow forced bytes, or None where that is their end."""
        vocabulary, matcher = self.program.vocabulary, self.matcher.deep_copy()
        tokens = vocabulary.cover(run)
        if tokens is None or not matcher.consume_tokens(list(tokens)) or matcher.is_stopped():
            return None
        mask = torch.zeros((vocabulary.llg.vocab_size + 31) // 32, dtype=torch.int32)
        matcher.unsafe_compute_mask_ptr(mask.data_ptr(), mask.numel() * 4)
        return mask

    def refined(self) -> Guided:
        """Itself with the shortest completion there is."""
        if self.finished or (self.path is not None and self.path.shortest):
            return self
        if self.matcher.is_stopped():
            return replace(self, path=self._end())
        after, old = self.caught_up(), self.path
        path = after.search(UNBOUNDED if old is None else len(old.tokens))
        if old is None:
            path = path or after.search_fast(UNBOUNDED)
        elif path is None or len(path.tokens) >= len(old.tokens):
            path = after.check(old.text, shortest=True)
            if path is None or len(path.tokens) >= len(old.tokens):
                path = Path(old.tokens, old.text, True)
        return replace(after, path=path)

    def shortened(self) -> Guided:
        """Itself with a shorter completion, if a short search finds one."""
        if self.done or self.known.shortest:
            return self
        after, least = self.caught_up(), self.min_tokens
        path = after.search(least, states=GLANCE)
        return self if path is None or len(path.tokens) >= least else replace(after, path=path)

    def _end(self) -> Path:
        return Path((self.program.vocabulary.eos,), b"", True)

    def follow(self, old: Path, tokens: tuple[int, ...], raw: bytes) -> Path | None:
        """The old completion, adapted to what was just written; one call into the matcher in the common case."""
        if self.matcher.is_stopped():
            return None if self.matcher.is_error() else self._end()
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

    def check(self, text: bytes, *, shortest: bool, plain: tuple[int, ...] | None = None) -> Path | None:
        """`text` and eos as a completion, in its fewest tokens or those of `plain`, if the matcher takes them."""
        vocabulary = self.program.vocabulary
        plain = plain or vocabulary.cover(text)
        if plain is None:
            return None
        tokens = (*plain, vocabulary.eos)
        if self.matcher.validate_tokens(list(tokens)) < len(tokens):
            return None
        repeated = self.program.names and self.caught_up_shape().shape.feed(text).repeated
        return None if repeated else Path(tokens, text, shortest)

    def reader(self) -> MatcherBytes:
        """Reads on from here byte by byte."""
        matcher = self.caught_up().bytes_matcher
        assert matcher is not None
        return MatcherBytes(matcher.deep_copy())

    def caught_up_shape(self) -> Guided:
        """Itself with the shape at the same place."""
        if self.read == len(self.behind):
            return self
        return replace(self, shape=self.shape.feed(self.behind[self.read :]), read=len(self.behind))

    def caught_up(self) -> Guided:
        """Itself with the byte matcher at the same place."""
        if not self.behind and self.bytes_matcher is not None:
            return self
        matcher = self.program.bytes_matcher() if self.bytes_matcher is None else self.bytes_matcher.deep_copy()
        matcher.consume_tokens(list(self.behind))
        return replace(self.caught_up_shape(), bytes_matcher=matcher, behind=b"", read=0)

    def search_fast(self, limit: int) -> Path | None:
        """Some completion of at most `limit` tokens, found greedily."""
        if self.matcher.is_stopped():
            return None if self.matcher.is_error() else self._end()
        assert self.bytes_matcher is not None
        text = complete_fast(self.bytes_matcher, self.shape, limit=limit, texts=self.program.texts)
        path = None if text is None else self.check(text, shortest=False)
        return None if path is None or len(path.tokens) > limit else path

    def search(self, limit: int, *, states: int = STATES) -> Path | None:
        """The shortest completion, of at most `limit` tokens, if it is found within `states`."""
        vocabulary = self.program.vocabulary

        def cost(text: bytes) -> int:
            plain = vocabulary.cover(text)
            return UNBOUNDED if plain is None else len(plain)

        assert self.bytes_matcher is not None
        slack = limit + 8 + limit // 2
        found: Completion | None = complete_shortest(
            self.bytes_matcher,
            self.shape,
            cost,
            limit=slack,
            merge=self.program.json,
            texts=self.program.texts,
            states=states,
        )
        return None if found is None else self.check(found.text, shortest=found.shortest)
