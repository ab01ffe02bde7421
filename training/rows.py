"""Training rows: whole conversations packed together, with a weight for every token."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from torch import Tensor

from m1agent.messages import AssistantMessage
from m1agent.prompt import template
from training.data.conversation import Dialogue, dialogue
from training.tokenizer import encode

REPLY_WEIGHT, ANSWER_WEIGHT, PROMPT_WEIGHT = 1.0, 0.6, 0.03
# Which tool to call is one decision among the many tokens of a reply, and the one most often wrong.
NAME_WEIGHT = 6.0
# Conversations to choose from when a row is filled up.
POOL = 64


_OPENING, _ARGUMENTS, _NO_ARGUMENTS = '{"name":Ġ"', '",Ġ"arguments":Ġ{"', '",Ġ"arguments":Ġ{}}Ċ'


@dataclass(frozen=True, slots=True)
class Batch:
    """`ids`, `documents` [B, T] int64; `weights` [B, T] float32, the weight of predicting the token there."""

    ids: Tensor
    documents: Tensor
    weights: Tensor


def batches(tokenizer: Tokenizer, seed: int, rows: int, length: int) -> Iterator[Batch]:
    """Endless batches, the same for the same seed."""
    stream = _rows(tokenizer, random.Random(seed), length)
    while True:
        drawn = [next(stream) for _ in range(rows)]
        ids, documents, weights = zip(*drawn, strict=True)
        yield Batch(torch.tensor(ids), torch.tensor(documents), torch.tensor(weights))


def weighted(tokenizer: Tokenizer, one: Dialogue) -> tuple[list[int], list[float]]:
    """Token ids of a conversation and what each counts."""
    ids = encode(tokenizer, template.render_setup(one.setup))
    weights = [PROMPT_WEIGHT] * len(ids)
    for message in one.messages:
        turn = encode(tokenizer, template.render_message(message))
        if isinstance(message, AssistantMessage):
            # The start of the reply is given and the newline after its end token is appended by the runtime.
            start = len(encode(tokenizer, template.render_reply_start()))
            counts = REPLY_WEIGHT if message.calls else ANSWER_WEIGHT
            replied = [counts] * (len(turn) - start - 1)
            for at in _names(tokenizer, turn[start:-1]):
                replied[at] = NAME_WEIGHT
            weights += [0.0] * start + replied + [0.0]
        else:
            weights += [PROMPT_WEIGHT] * len(turn)
        ids += turn
    return ids, weights


def _names(tokenizer: Tokenizer, reply: list[int]) -> Iterator[int]:
    """Positions of the tokens that decide: whether to call at all, and the tools' names."""
    opening = tokenizer.token_to_id(_OPENING)
    arguments = {tokenizer.token_to_id(phrase) for phrase in (_ARGUMENTS, _NO_ARGUMENTS)}
    inside = False
    yield 0
    for at, token in enumerate(reply):
        inside = inside and token not in arguments
        if inside:
            yield at
        inside = inside or token == opening


def _rows(tokenizer: Tokenizer, rng: random.Random, length: int) -> Iterator[tuple[list[int], list[int], list[float]]]:
    """Rows of whole conversations: the oldest of a pool, then the longest that still fit, then padding."""
    pool = [_drawn(tokenizer, rng, length) for _ in range(POOL)]
    while True:
        ids: list[int] = []
        documents: list[int] = []
        weights: list[float] = []
        at, number = 0, 0
        while at is not None:
            new, counts = pool[at]
            pool[at] = _drawn(tokenizer, rng, length)
            pool.append(pool.pop(at))
            ids += new
            documents += [number] * len(new)
            weights += counts
            number += 1
            room = length - len(ids)
            fitting = [i for i, (other, _) in enumerate(pool) if len(other) <= room]
            at = max(fitting, key=lambda i: len(pool[i][0]), default=None)
        yield ids + [0] * room, documents + [number] * room, weights + [0.0] * room


def _drawn(tokenizer: Tokenizer, rng: random.Random, length: int) -> tuple[list[int], list[float]]:
    """A conversation as `weighted` gives it, cut where it is longer than a row."""
    ids, weights = weighted(tokenizer, dialogue(rng, refusals=0.12, strange=0.12))
    weights[0] = 0.0  # nothing before the first token predicts it
    return ids[:length], weights[:length]
