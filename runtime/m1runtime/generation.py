"""One reply being generated: choose a token, append it with the run the grammar forces after it, until an end.

A draft goes through the model beside the tokens that wait for it. Its tokens are then chosen one by one from the
logits of that pass, as if each had had a pass of its own, until one is chosen that was not drafted. So a draft changes
how many passes a reply takes, and nothing else: a token sampled from p is the drafted token x with probability
p(x), and otherwise distributed as p without x: that is speculative sampling for a draft that is one certain guess.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, zip_longest
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from m1kernels.sample import apply_mask, apply_repetition_penalty, sample
from m1runtime.errors import GenerationError
from m1runtime.executor import Executor
from m1runtime.logprobs import TokenLogprob, chosen, forced
from m1runtime.rules import Rules
from m1runtime.sampling import SamplingParams
from m1runtime.sequence import Draft, SequenceState
from m1runtime.text import TextStream

if TYPE_CHECKING:
    from m1runtime.grammar import Grammar
    from m1runtime.grammar.drafts import Drafter, Step

_UNLIKELY = -1e30
CALLING = 0.01
"""A model that gives less than this to all beginnings of calls together means to answer. Of two unlikely beginnings the
mask would else choose one by chance: a model that was never taught to answer in JSON would call tools for ever."""
TRIES = 16
"""Tokens that lead too far from the end of the budget, before the way that is known is taken: each is searched for."""

CHOSEN, FORCED, DRAFTED = range(3)

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True, slots=True)
class Completion:
    """A finished reply: `ids` without the end token, and how it came about, in tokens."""

    ids: tuple[int, ...]
    text: str
    finish_reason: FinishReason
    prompt_tokens: int
    reused_tokens: int = field(compare=False)  # of the prompt, those whose cache was there already
    forced_tokens: int  # of `ids`, those the grammar left no choice about
    drafted_tokens: int = field(default=0, compare=False)  # of `ids`, chosen ones that had been drafted
    logprobs: tuple[TokenLogprob, ...] = field(default=(), compare=False)  # one a token of `ids`, where asked for


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a reply as it grows; the last one has no ids and carries the completion."""

    ids: tuple[int, ...]
    text: str
    forced: bool = False
    completion: Completion | None = None
    logprobs: tuple[TokenLogprob, ...] = ()


class Generation:
    """The reply of one sequence. `step` needs the sequence's logits up to date."""

    def __init__(
        self, sequence: SequenceState, params: SamplingParams, rules: Rules, grammar: Grammar | None = None
    ) -> None:
        """Raises SessionError or TokenizerError when `rules` forbid such a reply, and what the grammar raises."""
        self.budget = rules.budget(len(sequence.tokens), params)
        self.constraint = rules.constrain(grammar, self.budget)
        self.sequence = sequence
        self.params = params
        self.ids: list[int] = []
        self._origins = bytearray()  # of `ids`: CHOSEN, FORCED or DRAFTED
        self._logprobs: list[TokenLogprob] = []  # of `ids`, where asked for
        self._likely: TokenLogprob | None = None  # of the token just chosen
        self.finish_reason: FinishReason | None = None
        self._rules = rules
        self.prompt = len(sequence.tokens)
        self._found = self.prompt - sequence.fresh - sequence.unread - sequence.skipped
        self.reused = max(0, self._found + sequence.skipped)
        sequence.busy = True
        self._text = TextStream(rules.tokenizer.token_bytes, params.stop) if rules.tokenizer else None
        self._random: torch.Generator | None = None
        self._drafter = self._make_drafter() if params.drafts or (params.drafts is None and grammar) else None
        self._steps: list[Step] = []

    @property
    def remaining(self) -> int:
        """Tokens left in the budget."""
        return self.budget - len(self.ids)

    def draft(self) -> Draft | None:
        """What is likely to follow, to go along with the next forward pass; None when none is due."""
        self._steps = []
        if self._drafter is not None and self.sequence.pending:
            self._steps = self._drafter.propose(
                self.sequence.tokens, self.constraint, self.remaining, alone=self.sequence.pending == 1
            )
        if not self._steps:
            return None
        tokens: list[int] = []
        choices = [0]
        for step in self._steps:
            tokens += (step.token, *step.run)
            choices.append(len(tokens))
        return Draft(tuple(tokens), tuple(choices))

    def prepare(self) -> None:
        """Makes the mask that the pass under way will need; those of a draft were made when it was proposed."""
        constraint = self._steps[-1].after if self._steps else self.constraint
        if constraint is not None:
            constraint.prepare()

    def look_ahead(self) -> Iterator[None]:
        """Finds, piece by piece, what the grammar will be asked for after the tokens that the pass under way brings."""
        places = [self.constraint, *(step.after for step in self._steps)]
        return chain.from_iterable(place.look_ahead() for place in places if place is not None)

    def step(self) -> Iterator[Chunk]:
        """Chooses tokens as far as the last pass has logits for them, each with its forced run; yields what can be
        shown."""
        if not self.ids:
            self.reused = max(0, self._found + self.sequence.skipped)
        trial = self.sequence.trial
        steps = [] if trial is None else self._steps
        rows = [self.sequence.logits] if trial is None else trial.logits
        accepted = 0
        for logits, step in zip_longest(rows, steps):
            token = self._choose(logits, step)
            drafted = step if step is not None and step.token == token else None
            yield from self._take(token, drafted)
            if drafted is None or self.finish_reason is not None:
                break
            accepted += 1
        if self._drafter is not None and steps:
            self._drafter.learn(accepted, len(steps))

    def completion(self) -> Completion:
        """The reply as far as it got; one that has not finished counts as cancelled."""
        self.cancel()
        if self._text is not None:
            self._text.finish()
        text = self._text.text if self._text else ""
        reason = self.finish_reason or "cancelled"
        return Completion(
            tuple(self.ids),
            text,
            reason,
            self.prompt,
            self.reused,
            self._origins.count(FORCED),
            self._origins.count(DRAFTED),
            tuple(self._logprobs),
        )

    def cancel(self) -> None:
        """Ends a reply that has not ended by itself."""
        self.finish_reason = self.finish_reason or "cancelled"

    def last_chunk(self) -> Chunk:
        """The text still held back, and the completion."""
        rest = self._text.finish() if self._text else ""
        return Chunk((), rest, completion=self.completion())

    def truncate(self, count: int) -> None:
        """Takes back all but the first `count` tokens of a reply that is over; it counts as cancelled then."""
        del self.ids[count:], self._origins[count:], self._logprobs[count:]
        self.finish_reason = "cancelled"
        if self._text is not None and self._rules.tokenizer is not None:
            self._text = TextStream(self._rules.tokenizer.token_bytes, self.params.stop)
            for token in self.ids:
                self._text.push(token, stops=False)

    def account(self, executor: Executor) -> None:
        """Counts the tokens of a reply that is over, and ends its trial."""
        counters = executor.counters
        counters.generated += len(self.ids)
        counters.forced += self._origins.count(FORCED)
        counters.reused += self.reused
        executor.settle(self.sequence)
        self.sequence.fresh = 0
        self.sequence.busy = False

    def _take(self, token: int, drafted: Step | None) -> Iterator[Chunk]:
        if token in self._rules.eos_ids:
            self._end(token)
            return
        yield self._append([token], CHOSEN if drafted is None else DRAFTED)
        if self.constraint is not None and self.finish_reason is None:
            yield from self._append_forced(drafted.run if drafted else self.constraint.forced(self.remaining))
        if self.constraint is not None and self.finish_reason != "stop" and self.constraint.done:
            self._end(self._rules.end if self.remaining else None)

    def _append_forced(self, run: Sequence[int]) -> Iterator[Chunk]:
        end = next((i for i, token in enumerate(run) if token in self._rules.eos_ids), len(run))
        if end:
            yield self._append(run[:end], FORCED)
        if end < len(run) and self.finish_reason is None:
            self._end(run[end])

    def _append(self, run: Sequence[int], origin: int) -> Chunk:
        kept: list[int] = []
        shown = ""
        free = self.constraint is None or not self.constraint.held  # A stop string must not cut a call.
        for token in run:
            kept.append(token)
            shown += self._text.push(token, stops=free) if self._text else ""
            if self._text is not None and self._text.stopped:
                self.finish_reason = "stop"
                break
            if len(self.ids) + len(kept) >= self.budget:
                self.finish_reason = "length"
                break
        self.ids += kept
        self._origins += bytes((origin,)) * len(kept)
        self.sequence.tokens += kept
        likely = self._likelihood(kept, origin)
        self._logprobs += likely
        return Chunk(tuple(kept), shown, origin == FORCED, logprobs=likely)

    def _likelihood(self, tokens: Sequence[int], origin: int) -> tuple[TokenLogprob, ...]:
        if self.params.logprobs is None:
            return ()
        if origin == FORCED:
            return tuple(forced(token, self.params.logprobs) for token in tokens)
        assert self._likely is not None
        return (self._likely,) * len(tokens)

    def _make_drafter(self) -> Drafter:
        from m1runtime.grammar.drafts import Drafter, Lookup

        tokenizer = self._rules.tokenizer
        if self.sequence.lookup is None:
            self.sequence.lookup = Lookup(tokenizer.token_bytes if tokenizer is not None else None)
        return Drafter(self.sequence.lookup, tokenizer, self._rules.eos_ids)

    def _end(self, token: int | None) -> None:
        self.finish_reason = "stop"
        if token is not None:
            self.sequence.tokens.append(token)

    def _choose(self, logits: Tensor | None, step: Step | None) -> int:
        """The next token, taken by the grammar; where it is the drafted one, the forced run is taken, too."""
        assert logits is not None
        logits = self._adjusted(logits[None])
        if step is not None:
            self.constraint = step.before
        mask = self._mask(logits, step)
        if mask is not None:
            # Where the grammar leaves only tokens that were never trained, one of them must still be chosen.
            logits = logits.clamp(min=_UNLIKELY)
        p = self.params
        tried = 0
        while True:
            try:
                drawn = sample(
                    logits,
                    temperature=p.temperature,
                    top_k=p.top_k,
                    top_p=p.top_p,
                    min_p=p.min_p,
                    mask=mask,
                    generator=self._random,
                )
            except ValueError as error:
                raise GenerationError(f"no token can be chosen after {len(self.ids)} tokens: {error}") from None
            token = int(drawn)
            if p.logprobs is not None:
                self._likely = chosen(token, logits, mask, p.logprobs)
            if step is not None and token == step.token:
                self.constraint = step.after
                return token
            if self.constraint is None or self.constraint.try_accept(token, self.remaining - 1):
                return token
            logits = logits.clone()
            logits[0, token] = float("-inf")
            tried += 1
            if tried == TRIES and (ending := self.constraint.ending()) is not None:
                mask = _padded(ending, logits)

    def _adjusted(self, logits: Tensor) -> Tensor:
        if self._rules.never is not None:
            logits = logits.masked_fill(self._rules.never, float("-inf"))
        if self.params.repetition_penalty != 1:
            logits = apply_repetition_penalty(logits, sorted(set(self.sequence.tokens)), self.params.repetition_penalty)
        if self._random is None and self.params.temperature:
            self._random = torch.Generator(device=logits.device)
            if self.params.seed is None:
                self._random.seed()
            else:
                self._random.manual_seed(self.params.seed)
        return logits

    def _mask(self, logits: Tensor, step: Step | None) -> Tensor | None:
        mask = step.mask if step is not None else self.constraint.mask() if self.constraint is not None else None
        if mask is None or self.constraint is None:
            return None
        answering = self.constraint.answering(mask)
        allowed = _padded(mask, logits)
        if answering is None:
            return allowed
        calling = apply_mask(logits.softmax(-1), _padded(mask & ~answering, logits)).clamp(min=0).sum()
        return allowed if calling >= CALLING else _padded(answering, logits)


def _padded(mask: Tensor, logits: Tensor) -> Tensor:
    """The mask over the model's rows: the tokenizer may know fewer tokens, and the rest stay forbidden."""
    words = -(-logits.shape[-1] // 32)
    return torch.nn.functional.pad(mask, (0, words - mask.shape[-1])).view(1, words)
