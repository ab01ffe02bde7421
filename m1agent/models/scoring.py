"""How likely tokens were, as the SDK tells it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from m1agent.events import ScoredToken

if TYPE_CHECKING:
    from m1agent.models.local import TokenLogprob


def scored(likely: Iterable[TokenLogprob], bytes_of: Sequence[bytes]) -> list[ScoredToken]:
    """What the runtime told of some tokens."""
    return [
        scored_token(one.token, one.logprob, bytes_of, [scored_token(*other, bytes_of) for other in one.top])
        for one in likely
    ]


def scored_token(token: int, logprob: float, bytes_of: Sequence[bytes], top: Iterable[ScoredToken] = ()) -> ScoredToken:
    """A token and its natural log probability; bytes that are no whole character show as U+FFFD in its text."""
    data = bytes_of[token]
    return ScoredToken(data.decode(errors="replace"), data, logprob, tuple(top))
