"""What every prompt and reply of one engine obeys."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from operator import index
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from m1runtime.config import ModelConfig
from m1runtime.errors import SessionError, TokenizerError
from m1runtime.sampling import SamplingParams
from m1runtime.tokenizer import END_OF_SENTENCE, Tokenizer

if TYPE_CHECKING:
    from m1runtime.grammar import Grammar


class Constraint(Protocol):
    """What the generation loop asks of a grammar; `m1runtime.grammar.Constraint` is the real one."""

    @property
    def done(self) -> bool:
        """Nothing but an end token may follow."""
        ...

    @property
    def held(self) -> bool:
        """Inside a call or an answer, where a stop string must not cut."""
        ...

    def mask(self) -> Tensor | None:
        """Allowed tokens as int32 [ceil(V/32)] on the CPU, LSB first; None allows all."""
        ...

    def answering(self, mask: Tensor) -> Tensor | None:
        """Those of the allowed tokens that an answer may go on with, where calls are open beside it; else None."""
        ...

    def ending(self) -> Tensor | None:
        """As `mask`, the next token on the known way to the end alone; None where there is none to know."""
        ...

    def try_accept(self, token: int, remaining: int) -> bool:
        """Advances by a token with `remaining` more to come at most; False refuses it and changes nothing."""
        ...

    def forced(self, remaining: int) -> list[int]:
        """Tokens that must follow, already accepted."""
        ...

    def prepare(self) -> None:
        """Makes the next mask now; it is kept until a token is taken."""
        ...

    def look_ahead(self) -> Iterator[None]:
        """Finds, piece by piece, what will be asked for after the next token. It changes nothing but the time taken."""
        ...

    def fork(self) -> Constraint:
        """An independent copy."""
        ...


@dataclass(frozen=True, slots=True)
class Rules:
    """Ends of replies, tokens never to sample, sizes of vocabulary and context, and the tokenizer if there is one."""

    eos_ids: frozenset[int]
    end: int | None  # the end token appended when a grammar is done
    never: Tensor | None  # [V] bool: model rows beyond the tokenizer's tokens
    vocab_size: int
    context: int
    tokenizer: Tokenizer | None

    @classmethod
    def of(cls, config: ModelConfig, tokenizer: Tokenizer | None, device: torch.device) -> Rules:
        """The rules of a model and its tokenizer. Raises TokenizerError when they do not belong together."""
        eos, end, never, vocab = frozenset(config.eos_token_ids), None, None, config.vocab_size
        if tokenizer is not None:
            if tokenizer.vocab_size > vocab:
                raise TokenizerError(
                    f"the tokenizer has {tokenizer.vocab_size} tokens, the model {vocab} rows (vocab_size); "
                    "they belong to different checkpoints"
                )
            eos |= tokenizer.eos_ids
            end = tokenizer.special_ids.get(END_OF_SENTENCE)
            never = torch.arange(vocab, device=device) >= tokenizer.vocab_size if tokenizer.vocab_size < vocab else None
        if end is None:
            end = next(iter([*config.eos_token_ids, *sorted(eos)]), None)
        return cls(eos, end, never, vocab, config.max_position_embeddings, tokenizer)

    def check(self, ids: Iterable[int], *, after: int = 0) -> list[int]:
        """The ids as plain integers; `after`: tokens before them. Raises SessionError for what cannot be computed."""
        try:
            checked = [index(token) for token in ids]
        except TypeError:
            raise SessionError("token ids must be integers") from None
        if checked and not 0 <= min(checked) <= max(checked) < self.vocab_size:
            wrong = next(token for token in checked if not 0 <= token < self.vocab_size)
            raise SessionError(f"token {wrong} is outside the vocabulary of {self.vocab_size}")
        if after + len(checked) > self.context:
            raise SessionError(
                f"{after + len(checked)} tokens do not fit the model's context of {self.context} "
                "(max_position_embeddings); shorten the prompt"
            )
        return checked

    def budget(self, length: int, params: SamplingParams) -> int:
        """Tokens a reply may have after `length` tokens: max_new_tokens, or what the context still holds."""
        if not length:
            raise SessionError("there is nothing to continue; append at least one token first")
        if length >= self.context:
            raise SessionError(f"the session fills the model's context of {self.context} (max_position_embeddings)")
        if params.stop and self.tokenizer is None:
            raise TokenizerError("stop strings need text, and this checkpoint has no tokenizer; use token ids alone")
        return min(params.max_new_tokens, self.context - length)

    def constrain(self, grammar: Grammar | None, budget: int) -> Constraint | None:
        """The grammar's constraint over a reply of `budget` tokens. Raises TokenizerError without a tokenizer."""
        if grammar is None:
            return None
        if self.tokenizer is None:
            raise TokenizerError("a grammar needs a tokenizer, and this checkpoint has none")
        return grammar.start(self.tokenizer, max_new_tokens=budget)
