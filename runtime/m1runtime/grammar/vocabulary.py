"""What a grammar needs to know of a tokenizer: the bytes of every token, eos, and the shortest covering of a text."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Protocol
from weakref import WeakKeyDictionary

import numpy as np
import torch
from llguidance import LLTokenizer, TokenizerWrapper
from numpy.typing import NDArray
from torch import Tensor

from m1runtime.errors import SchemaError

LONGEST_TOKEN = 32
"""Longer tokens exist (runs of spaces, ruler lines) but never shorten a call."""


class TokenizerLike(Protocol):
    """The part of `m1runtime.tokenizer.Tokenizer` that grammars use."""

    @property
    def token_bytes(self) -> Sequence[bytes]: ...
    @property
    def special_ids(self) -> dict[str, int]: ...
    @property
    def eos_ids(self) -> frozenset[int]: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def llg(self) -> LLTokenizer: ...


@dataclass(frozen=True, slots=True, eq=False)
class Beyond:
    """Tokens [N] int64 that go on after a text, and the tokens [N] that spell what they add to it.

    Where a rest is no token, its token is left out: then another split of the same text is open.
    """

    tokens: Tensor
    rests: Tensor

    def among(self, mask: Tensor) -> Tensor:
        """Those whose rest `mask` [words] int32 allows."""
        return self.tokens[(mask[self.rests // 32] >> (self.rests % 32).int()) & 1 == 1]


@dataclass(frozen=True, slots=True, eq=False)
class Vocabulary:
    """Tables of one tokenizer, built once (tens of ms for 200k tokens).

    `words` is the length of a mask, ceil(V/32); `eos_mask` and `text_mask` are int32 [words]: only eos, and everything
    but eos; `plain_mask`: all bits but those of eos. `spells_bytes`: every byte has a token. `special`: tokens
    that stand for no text, eos among them.
    `eos` is the id that stands for all of `eos_ids` inside a matcher.
    """

    llg: LLTokenizer
    token_bytes: Sequence[bytes]
    eos_ids: frozenset[int]
    eos: int
    size: int
    words: int
    eos_mask: Tensor
    text_mask: Tensor
    plain_mask: Tensor
    spells_bytes: bool
    special: frozenset[int]
    _id_of: dict[bytes, int]
    _bits: NDArray[np.int32]
    _covers: dict[bytes, tuple[int, ...] | None] = field(default_factory=dict[bytes, "tuple[int, ...] | None"])
    _canonical: dict[bytes, tuple[int, ...] | None] = field(default_factory=dict[bytes, "tuple[int, ...] | None"])
    _beginnings: dict[bytes, Tensor] = field(default_factory=dict[bytes, Tensor])
    _beyond: dict[bytes, Beyond] = field(default_factory=dict[bytes, "Beyond"])
    _in_order: list[bytes] = field(default_factory=list[bytes])
    _only: dict[int, Tensor] = field(default_factory=dict[int, Tensor])

    def bytes_of(self, token: int) -> bytes:
        """Bytes of `token`; empty for ids beyond the known tokens."""
        return self.token_bytes[token] if 0 <= token < len(self.token_bytes) else b""

    def beyond(self, text: bytes) -> Beyond:
        """Plain tokens that begin with `text` and go on after it."""
        found = self._beyond.get(text)
        if found is None:
            if len(self._beyond) > 10_000:
                self._beyond.clear()
            found = self._beyond[text] = self._find_beyond(text)
        return found

    def _find_beyond(self, text: bytes) -> Beyond:
        if not self._in_order:
            self._in_order.extend(sorted(self._id_of))
        at, tokens, rests = bisect_right(self._in_order, text), list[int](), list[int]()
        while at < len(self._in_order) and self._in_order[at].startswith(text):
            raw = self._in_order[at]
            if (rest := self._id_of.get(raw[len(text) :])) is not None:
                tokens.append(self._id_of[raw])
                rests.append(rest)
            at += 1
        return Beyond(torch.tensor(tokens, dtype=torch.int64), torch.tensor(rests, dtype=torch.int64))

    def cover(self, text: bytes) -> tuple[int, ...] | None:
        """The fewest plain tokens whose bytes are `text` (canonical if as short); None if nothing covers it."""
        found = self._covers.get(text, ())
        if found == ():
            if len(self._covers) > 50_000:
                self._covers.clear()
            found = self._covers[text] = self._cover(text)
        return found

    def closing(self, text: bytes) -> tuple[int, ...]:
        """The fewest tokens of `text`, and eos. Raises SchemaError if no tokens cover it."""
        plain = self.cover(text)
        if plain is None:
            raise SchemaError(f"the vocabulary has no tokens for {text.decode(errors='replace')!r}")
        return (*plain, self.eos)

    def beginnings(self, text: bytes) -> Tensor:
        """int32 [words] that allows the plain tokens `text` may begin with, those that reach beyond it included."""
        if text not in self._beginnings:
            fits = [i for raw, i in self._id_of.items() if raw.startswith(text) or text.startswith(raw)]
            self._beginnings[text] = self.mask_of(fits)
        return self._beginnings[text]

    def canonical(self, text: bytes) -> tuple[int, ...] | None:
        """The tokens the tokenizer makes of `text`; None if they say something else."""
        found = self._canonical.get(text, ())
        if found == ():
            found = tuple(self.llg.tokenize_bytes(text))
            found = found if b"".join(map(self.bytes_of, found)) == text else None
            if len(text) <= 4 * LONGEST_TOKEN:
                if len(self._canonical) > 10_000:
                    self._canonical.clear()
                self._canonical[text] = found
        return found

    def _cover(self, text: bytes) -> tuple[int, ...] | None:
        fewest, canonical = _fewest(text, self._id_of), self.canonical(text)
        if canonical is None or (fewest is not None and len(fewest) < len(canonical)):
            return fewest
        return canonical

    def mask_of(self, ids: Sequence[int]) -> Tensor:
        """int32 [words] that allows exactly `ids`."""
        mask = bytearray(4 * self.words)
        for i in ids:
            mask[i >> 3] |= 1 << (i & 7)
        return torch.frombuffer(mask, dtype=torch.int32)

    def only(self, token: int) -> Tensor:
        """int32 [words] that allows one token; not to be changed.

        The rows of all tokens are windows on 32 rows of zeros around one bit: none of them needs memory of its own.
        """
        found = self._only.get(token)
        if found is None:
            if len(self._only) > 10_000:
                self._only.clear()
            start = self.words - 1 - (token >> 5)
            window = self._bits[token & 31, start : start + self.words]
            found = self._only[token] = torch.frombuffer(window, dtype=torch.int32)
        return found


_BITS = [1 << i if i < 31 else -(1 << 31) for i in range(32)]


def _fewest(text: bytes, id_of: dict[bytes, int]) -> tuple[int, ...] | None:
    n = len(text)
    cost = [0] + [n + 1] * n
    last = [0] * (n + 1)
    for start in range(n):
        reach = cost[start] + 1
        if reach > n:
            continue
        for end in range(start + 1, min(n, start + LONGEST_TOKEN) + 1):
            if reach < cost[end] and text[start:end] in id_of:
                cost[end] = reach
                last[end] = start
    if n and cost[n] > n:
        return None
    ids: list[int] = []
    end = n
    while end:
        ids.append(id_of[text[last[end] : end]])
        end = last[end]
    return tuple(reversed(ids))


_vocabularies: WeakKeyDictionary[TokenizerLike, Vocabulary] = WeakKeyDictionary()


def vocabulary(tokenizer: TokenizerLike) -> Vocabulary:
    """The tables of `tokenizer`, cached for its lifetime."""
    found = _vocabularies.get(tokenizer)
    if found is None:
        found = _vocabularies[tokenizer] = _build(tokenizer)
    return found


def _build(tokenizer: TokenizerLike) -> Vocabulary:
    size, words = tokenizer.vocab_size, (tokenizer.vocab_size + 31) // 32
    special = set(tokenizer.special_ids.values()) | tokenizer.eos_ids
    table = tokenizer.token_bytes
    id_of: dict[bytes, int] = {}
    for i, raw in enumerate(table):
        if i not in special and 0 < len(raw) <= LONGEST_TOKEN:
            id_of.setdefault(raw, i)
    eos_mask = torch.zeros(words, dtype=torch.int32)
    text_mask = torch.zeros(words * 32, dtype=torch.bool)
    text_mask[: len(table)] = True
    for i in tokenizer.eos_ids:
        eos_mask[i // 32] |= _BITS[i % 32]
        text_mask[i] = False
    return Vocabulary(
        llg=tokenizer.llg,
        token_bytes=table,
        eos_ids=tokenizer.eos_ids,
        eos=int(tokenizer.llg.eos_token),
        size=size,
        words=words,
        eos_mask=eos_mask,
        text_mask=_packed(text_mask),
        plain_mask=~eos_mask,
        spells_bytes=all(bytes((byte,)) in id_of for byte in range(256)),
        special=frozenset(special),
        _id_of=id_of,
        _bits=_single_bits(words),
    )


def _single_bits(words: int) -> NDArray[np.int32]:
    """int32 [32, 2 * words - 1]: a bit in the middle of zeros, in memory that has been touched."""
    rows = np.empty((32, 2 * words - 1), dtype=np.int32)
    rows.fill(0)
    rows[:, words - 1] = _BITS
    return rows


def _packed(bits: Tensor) -> Tensor:
    weights = torch.tensor(_BITS, dtype=torch.int32)
    return (bits.view(-1, 32).to(torch.int32) * weights).sum(1, dtype=torch.int32)


class _Bytes:
    eos_token_id = 256
    bos_token_id = None
    tokens = (*(bytes([i]) for i in range(256)), b"<end>")
    special_token_ids = (256,)

    def __call__(self, text: bytes) -> list[int]:
        return list(text)


@cache
def byte_tokenizer() -> LLTokenizer:
    """256 one-byte tokens and an end (id 256): the alphabet of the completion search."""
    return LLTokenizer(TokenizerWrapper(_Bytes()), slices=[])
