"""Probabilities of tokens, in the shapes of the two APIs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from m1agent.events import ScoredToken, TokensScored
from m1agent.serve.wire_out import ChatLogprobs, TextLogprobs, TokenLogprob, TopLogprob


def chat_logprobs(scored: Iterable[TokensScored]) -> ChatLogprobs:
    """Of a chat reply: every token of it, those of thinking and calls among them."""
    tokens = [token for one in scored for token in one.tokens]
    return ChatLogprobs(
        content=[
            TokenLogprob(
                token=token.text,
                logprob=token.logprob,
                bytes=list(token.bytes),
                top_logprobs=[_top(other) for other in token.top],
            )
            for token in tokens
        ],
        refusal=None,
    )


def _top(token: ScoredToken) -> TopLogprob:
    return TopLogprob(token=token.text, logprob=token.logprob, bytes=list(token.bytes))


def text_logprobs(tokens: Sequence[ScoredToken], offset: int) -> TextLogprobs:
    """Of a completion whose first token here is character `offset` of the text."""
    offsets: list[int] = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token.text)
    return TextLogprobs(
        tokens=[token.text for token in tokens],
        token_logprobs=[token.logprob for token in tokens],
        top_logprobs=[{other.text: other.logprob for other in token.top} or None for token in tokens],
        text_offset=offsets,
    )
