"""Grammars read and written byte by byte: what they accept is what they say, whatever the vocabulary."""

from __future__ import annotations

from collections.abc import Collection
from random import Random

from torch import Tensor

from m1runtime.grammar import Grammar
from m1runtime.grammar.vocabulary import byte_tokenizer

ROOMY = 100_000
TELLING = frozenset((*b'"}],:0123456789abtfn-.{[', 256))
END = 256


class Bytes:
    """A tokenizer of single bytes."""

    vocab_size = 257
    token_bytes = [*(bytes([i]) for i in range(256)), b"<end>"]  # noqa: RUF012
    special_ids = {"<end>": END}  # noqa: RUF012
    eos_ids = frozenset({END})
    llg = byte_tokenizer()


BYTES = Bytes()


def takes(grammar: Grammar, text: str | bytes) -> bool:
    """Whether the grammar takes every byte, and the end after them."""
    raw = text.encode() if isinstance(text, str) else text
    constraint = grammar.start(BYTES, max_new_tokens=ROOMY)
    return all(constraint.try_accept(token, ROOMY - 1 - i) for i, token in enumerate((*raw, END)))


def draw(grammar: Grammar, budget: int, random: Random, telling: Collection[int] = TELLING) -> str | None:
    """A random text under the mask within `budget` bytes, made of `telling` tokens mostly; None if it was cut."""
    constraint, written, left = grammar.start(BYTES, max_new_tokens=budget), bytearray(), budget
    while left:
        allowed = tokens_in(constraint.mask())
        preferred = [token for token in allowed if token in telling]
        while True:
            token = random.choice(preferred if preferred and random.random() < 0.7 else allowed)
            if constraint.try_accept(token, left - 1):
                break
            allowed = [other for other in allowed if other != token]
            preferred = [other for other in preferred if other != token]
        run = [token, *(() if token == END else constraint.forced(left - 1))]
        left -= len(run)
        if END in run:
            return (written + bytes(run[: run.index(END)])).decode()
        written += bytes(run)
    return None


def tokens_in(mask: Tensor | None) -> list[int]:
    """The ids that a mask of BYTES allows."""
    assert mask is not None
    words = mask.tolist()
    return [i for i in range(257) if words[i // 32] >> (i % 32) & 1]
