"""How likely each token of a reply was."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from m1kernels.sample import apply_mask


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token and its natural log probability among the tokens that could be chosen, and the likeliest of them.

    Temperature and filters are left out, the grammar is not: a token that it left no choice about has 0. `top`: token
    and log probability, the likeliest first.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


def forced(token: int, count: int) -> TokenLogprob:
    """Of a token without alternatives."""
    return TokenLogprob(token, 0.0, ((token, 0.0),) if count else ())


def chosen(token: int, logits: Tensor, mask: Tensor | None, count: int) -> TokenLogprob:
    """Of `token` by logits [1, V] under a mask (see `m1kernels.sample.apply_mask`), and of the `count` likeliest."""
    logprobs = (logits.float() if mask is None else apply_mask(logits.float(), mask)).log_softmax(-1)[0]
    best = logprobs.topk(min(count, len(logprobs)))
    top = zip(_numbers(best.indices), _numbers(best.values), strict=True)
    likeliest = tuple((int(id), value) for id, value in top if value > float("-inf"))
    return TokenLogprob(token, float(logprobs[token]), likeliest)


def _numbers(values: Tensor) -> list[float]:
    return [float(value) for value in values]
