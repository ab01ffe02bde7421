"""Any causal language model of transformers as sessions of tokens, under the runtime's grammars and sampling."""

# pyright: basic
# transformers is typed in part only.
from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import DynamicCache

from m1runtime.errors import SessionError, TokenizerError
from m1runtime.generation import Chunk, Completion, Generation
from m1runtime.rules import Rules
from m1runtime.sampling import SamplingParams
from m1runtime.sequence import SequenceState
from m1runtime.tokenizer import Tokenizer
from m1runtime.transformers.cache import MiniMaxM1Cache
from m1runtime.transformers.modeling import M1PreTrainedModel

if TYPE_CHECKING:
    from m1runtime.grammar import Grammar

log = logging.getLogger(__name__)

PREFILL = 2048
"""Tokens of one forward pass: what a long prompt needs of memory at once is bounded by it."""


class CausalModel:
    """A model of transformers, what ends its replies, and its tokeniser as grammars need it.

    Args:
        model: a causal language model, in evaluation mode.
        hf_tokenizer: transformers' tokenizer of it.

    `tokenizer` is None where the vocabulary is not BPE over bytes; such a model has no grammars and no stop strings.
    """

    def __init__(self, model: Any, hf_tokenizer: Any) -> None:
        self.model, self.hf_tokenizer = model, hf_tokenizer
        ends = _ends(model.generation_config.eos_token_id, model.config.eos_token_id, hf_tokenizer.eos_token_id)
        self.tokenizer: Tokenizer | None = None
        try:
            self.tokenizer = Tokenizer(hf_tokenizer.backend_tokenizer.to_str(), eos_ids=ends)
        except (TokenizerError, AttributeError) as error:
            log.warning("replies of this model cannot be held to a grammar, only checked: %s", error)
        rows = int(model.get_output_embeddings().weight.shape[0])
        known = max(len(hf_tokenizer), self.tokenizer.vocab_size if self.tokenizer is not None else 0)
        never = torch.arange(rows, device=model.device) >= known if known < rows else None
        eos = frozenset(ends) | (self.tokenizer.eos_ids if self.tokenizer is not None else frozenset())
        context = int(getattr(model.config.get_text_config(), "max_position_embeddings", None) or 1 << 31)
        end = hf_tokenizer.eos_token_id if hf_tokenizer.eos_token_id in eos else min(eos, default=None)
        self.rules = Rules(eos, end, never, rows, context, self.tokenizer)

    @property
    def context(self) -> int:
        """Tokens a conversation may have."""
        return self.rules.context

    def new_cache(self) -> Any:
        """A cache that can be cut back where the architecture allows it; None where the model makes its own."""
        if isinstance(self.model, M1PreTrainedModel):
            made: Any = MiniMaxM1Cache(self.model.config)
        elif self.model._supports_default_dynamic_cache():
            made = DynamicCache(config=self.model.config)
        else:
            return None
        made.activate_past_recording()
        return made

    def forward(self, part: Sequence[int], before: int, cache: Any) -> tuple[Tensor, Any]:
        """One pass over tokens that follow `before` cached ones: logits after the last [V] fp32, and the cache, None
        where the model has none."""
        device = self.model.device
        options: dict[str, Any] = {} if cache is None else {"past_key_values": cache}
        if self.model._supports_logits_to_keep():
            options["logits_to_keep"] = 1
        mask = torch.ones(1, before + len(part), dtype=torch.long, device=device)
        ids = torch.tensor([part], device=device)
        out = self.model(input_ids=ids, attention_mask=mask, use_cache=True, **options)
        made = getattr(out, "past_key_values", None)
        return out.logits[0, -1].float(), made if made is not None else cache

    def session(self) -> CausalSession:
        """An empty sequence of tokens."""
        return CausalSession(self)


class CausalSession:
    """Tokens with the model's own cache of them. Not to be used by two threads at once.

    The cache is kept over turns wherever that is exact: where the new tokens begin with the old ones, or where the
    cache can be cut back to what they share. Elsewhere all is computed anew.
    """

    def __init__(self, causal: CausalModel) -> None:
        self._causal = causal
        self._sequence = SequenceState(keep=0)
        self._cache: Any = None
        self._cached = 0
        self.reused = 0

    @property
    def tokens(self) -> tuple[int, ...]:
        """Every token so far, generated end tokens included."""
        return tuple(self._sequence.tokens)

    def read(self, ids: Sequence[int]) -> None:
        """Make `ids` the tokens, and compute what is new of them. `reused` counts those that were not computed again.

        Raises SessionError for no tokens, or more than the context holds.
        """
        checked = self._causal.rules.check(ids)
        if not checked:
            raise SessionError("a prompt needs at least one token")
        shared = _shared(self._sequence.tokens[: self._cached], checked)
        self._cut(min(shared, len(checked) - 1))
        self.reused = self._cached
        self._sequence.tokens = checked
        self._compute()

    def extend(self, ids: Sequence[int]) -> None:
        """Add tokens; they are computed with the next reply."""
        self._sequence.tokens += self._causal.rules.check(ids, after=len(self._sequence.tokens))

    def stream(self, params: SamplingParams, grammar: Grammar | None = None) -> CausalStream:
        """The reply as it grows. Raises SessionError or TokenizerError where there can be none, and what the grammar
        raises."""
        return CausalStream(self, params, grammar)

    def fork(self) -> CausalSession:
        """An independent session with the same past; the cache is copied."""
        twin = CausalSession(self._causal)
        twin._sequence.tokens = list(self._sequence.tokens)
        twin._cache, twin._cached = copy.deepcopy(self._cache), self._cached
        return twin

    def close(self) -> None:
        """Free the cache. Closing twice is fine."""
        self._cache, self._cached = None, 0

    def generation(self, params: SamplingParams, grammar: Grammar | None) -> Generation:
        """A reply to what stands, its logits computed."""
        self._compute()
        return Generation(self._sequence, params, self._causal.rules, grammar)

    def step(self, generation: Generation) -> Iterator[Chunk]:
        """Compute what the last step has chosen, and choose the next token with the run forced after it."""
        self._compute()
        return generation.step()

    def _cut(self, length: int) -> None:
        """Forget all but the first `length` cached tokens."""
        back = self._cached - length
        if back <= 0:
            return
        try:
            if not getattr(self._cache, "is_croppable", False):
                raise RuntimeError
            self._cache.crop(-back)
            self._cached = length
        except (RuntimeError, ValueError, NotImplementedError):
            self.close()

    @torch.inference_mode()
    def _compute(self) -> None:
        """Bring the cache and the logits up to date."""
        sequence = self._sequence
        if sequence.logits is not None and self._cached == len(sequence.tokens):
            return
        if self._cache is None:
            self._cache, self._cached = self._causal.new_cache(), 0
        length = PREFILL if self._cache is not None else len(sequence.tokens)
        for at in range(self._cached, len(sequence.tokens), length):
            part = sequence.tokens[at : at + length]
            logits, self._cache = self._causal.forward(part, at, self._cache)
            self._cached = at + len(part) if self._cache is not None else 0
            sequence.logits = logits
        sequence.computed = len(sequence.tokens)


class CausalStream(Iterator[Chunk]):
    """The chunks of one reply; afterwards `completion` holds it. Closing it early ends the reply there."""

    def __init__(self, session: CausalSession, params: SamplingParams, grammar: Grammar | None) -> None:
        self._session = session
        self._generation = session.generation(params, grammar)
        self._chunks = self._run()

    def __next__(self) -> Chunk:
        return next(self._chunks)

    def close(self) -> None:
        """End the reply here."""
        self._generation.cancel()

    @property
    def completion(self) -> Completion:
        """The reply as far as it got."""
        return self._generation.completion()

    def _run(self) -> Iterator[Chunk]:
        generation = self._generation
        while generation.finish_reason is None:
            yield from self._session.step(generation)
        yield generation.last_chunk()


def _ends(*values: Any) -> list[int]:
    """Ids that end a reply, wherever a checkpoint names them."""
    lists = [value if isinstance(value, list) else [value] for value in values]
    return sorted({id for one in lists for id in one if isinstance(id, int)})


def _shared(held: Sequence[int], wanted: Sequence[int]) -> int:
    """How many tokens both begin with."""
    pairs = zip(held, wanted, strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(held), len(wanted)))
