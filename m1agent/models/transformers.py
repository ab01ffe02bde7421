"""Any causal language model of transformers: its own chat template, our grammars over its tokens.

    model = load_model("hf:Qwen/Qwen3-0.6B")

The model's cache is kept over turns wherever that is exact: what a template renders anew is held against the tokens
that are there, and only what differs is computed. Calls are masked as a local model's are, if the vocabulary is BPE
over bytes; what the mask does not hold in full, the loop validates and tells.
"""

from __future__ import annotations

import threading
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from m1agent.errors import ContextFull, ModelError
from m1agent.events import ModelEvent, ReplyFinished
from m1agent.messages import AssistantMessage, Message, Setup, SystemMessage, Usage
from m1agent.models.base import Settings
from m1agent.models.hf_prompt import M1, ChatPrompt, Retag, Said
from m1agent.models.local import MAX_TOKENS, MISSING, reply_grammar
from m1agent.models.turns import last_call, opening
from m1agent.models.worker import in_thread
from m1agent.partial import PartialReply
from m1agent.prompt.envelope import THINK_CLOSE, Envelope
from m1agent.prompt.reply import ReplyParser
from m1agent.prompt.template import (
    BEGIN,
    BEGIN_DOCUMENT,
    END,
    Piece,
    render_message,
    render_reply,
    render_reply_start,
)

if TYPE_CHECKING:
    from m1runtime import Grammar, SamplingParams
    from m1runtime.transformers.causal import CausalModel, CausalSession, CausalStream

THINK_END = f"\n{THINK_CLOSE}\n"


class TransformersModel:
    """A model that `AutoModelForCausalLM` loads, those of M1 and Text-01 among them, without remote code.

    Args:
        source: a repository of the hub, or a folder. Weights are loaded at the first use.
        max_tokens: bound of a reply where neither settings nor limits give one.
        device: where it runs; a GPU where there is one. dtype: fp32 on a CPU, else what the checkpoint has.
        options: further arguments of `from_pretrained`, such as `quantization_config` or `revision`.
    """

    def __init__(
        self,
        source: str | Path,
        *,
        max_tokens: int = MAX_TOKENS,
        device: str | None = None,
        dtype: Any = None,
        **options: Any,
    ) -> None:
        self._source = str(source)
        self._max_tokens = max_tokens
        self._device, self._dtype, self._options = device, dtype, options
        self._loading = threading.Lock()
        self._causal: CausalModel | None = None
        self._prompt: ChatPrompt | None = None
        self._grammars: list[tuple[Envelope, bool, Grammar | None]] = []

    @property
    def name(self) -> str:
        return Path(self._source).name

    @property
    def causal(self) -> CausalModel:
        """The model and its tokeniser; loaded if they are not there yet.

        Raises:
            ModelError: it cannot be loaded; the text says why.
        """
        with self._loading:
            if self._causal is None:
                try:
                    self._causal = self._load()
                except ModuleNotFoundError as error:
                    raise ModelError(MISSING.format(error.name)) from error
                except (OSError, ValueError, ImportError, RuntimeError) as error:
                    raise ModelError(f"'{self._source}' cannot be loaded: {error}") from error
            return self._causal

    @property
    def constrained(self) -> bool:
        """Whether a grammar holds every reply to its envelope."""
        return self.causal.tokenizer is not None

    @property
    def refusals(self) -> tuple[type[Exception], ...]:
        """What the runtime raises where a grammar leaves nothing to write."""
        from m1runtime import BudgetError, GenerationError, SchemaError

        return (BudgetError, GenerationError, SchemaError)

    async def load(self) -> None:
        """Read the weights now. Raises ModelError as `causal` does."""
        await in_thread(lambda: self.causal)

    def open(self, setup: Setup, history: Sequence[Message] = ()) -> TransformersThread:
        return TransformersThread(self, setup, [Said(message) for message in history])

    async def aclose(self) -> None:
        """Let go of the weights; threads still open keep them."""
        self._causal = self._prompt = None
        self._grammars = []

    @property
    def prompt(self) -> ChatPrompt | None:
        """The chat template; None where the checkpoint has M1's tokens and no template, and M1's is meant."""
        causal = self.causal
        if self._prompt is None:
            names = () if causal.hf_tokenizer.chat_template else causal.hf_tokenizer.get_vocab()
            if all(token in names for token in (BEGIN_DOCUMENT, BEGIN, END)):
                return None
            self._prompt = ChatPrompt(causal.hf_tokenizer, self.name)
        return self._prompt

    @property
    def tags(self) -> tuple[str, str]:
        """Between which calls stand in a reply."""
        return self.prompt.tags if self.prompt is not None else M1

    def grammar(self, envelope: Envelope, *, thought: bool = False) -> Grammar | None:
        """The grammar of a reply, or of what follows its thinking; None where it is free text or cannot be masked."""
        for known, after, grammar in self._grammars:
            if known is envelope and after == thought:
                return grammar
        tags = self.tags
        # In Hermes' form each call has tags of its own, and a grammar ends with the first of them.
        made = reply_grammar(envelope, thought=thought, tags=tags, one=tags != M1)
        made = made if self.constrained else None
        self._grammars = [*self._grammars[-15:], (envelope, thought, made)]
        return made

    def params(self, settings: Settings) -> SamplingParams:
        """Sampling of a reply: the settings, else the checkpoint's defaults."""
        from m1runtime import SamplingParams

        given = self.causal.model.generation_config
        greedy = given.do_sample is False or (given.do_sample is None and given.temperature is None)
        defaults: dict[str, Any] = {
            "temperature": 0.0 if greedy else given.temperature,
            "top_p": given.top_p,
            "top_k": None if greedy else given.top_k,
        }
        chosen = {"temperature": settings.temperature, "top_p": settings.top_p, "seed": settings.seed}
        known: dict[str, Any] = {
            name: value for name, value in (defaults | _known(chosen)).items() if value is not None
        }
        return SamplingParams(
            max_new_tokens=settings.max_tokens or self._max_tokens, stop=settings.stop, drafts=False, **known
        )

    def encode(self, pieces: Sequence[Piece]) -> list[int]:
        """Token ids of a prompt: in special pieces the names of special tokens are these, in others they are words."""
        hf = self.causal.hf_tokenizer
        ids: list[int] = []
        for piece in pieces:
            ids += hf.encode(piece.text, add_special_tokens=False, split_special_tokens=not piece.special)
        return ids

    def _load(self) -> CausalModel:
        import torch
        import transformers

        from m1runtime.transformers import register
        from m1runtime.transformers.causal import CausalModel

        register(native=True)
        device = self._device or ("cuda" if torch.cuda.is_available() else "cpu")
        dtype = self._dtype or (torch.float32 if device == "cpu" else "auto")
        library: Any = transformers  # Typed in part only.
        model = library.AutoModelForCausalLM.from_pretrained(self._source, dtype=dtype, **self._options)
        if getattr(model, "hf_quantizer", None) is None and "device_map" not in self._options:
            model = model.to(device)
        return CausalModel(model.eval(), library.AutoTokenizer.from_pretrained(self._source))


@dataclass(slots=True)
class _Reply:
    """A reply being written. `next` computes: it belongs into a worker thread."""

    model: TransformersModel
    session: CausalSession
    envelope: Envelope
    settings: Settings
    text: str = ""
    usage: Usage = field(default_factory=Usage)
    stop: str = "done"
    _stream: CausalStream | None = None
    _thought: int = 0
    _closed: bool = False

    def begin(self) -> None:
        """Start; what the runtime refuses is raised here."""
        params = self.model.params(self.settings)
        self._stream = self.session.stream(params, self.model.grammar(self.envelope))
        self.usage = Usage(len(self.session.tokens), reused_tokens=self.session.reused)

    def next(self, *, thinking: bool) -> str | None:
        """The next characters; None after the last."""
        bound = self.settings.thinking
        if thinking and bound is not None and self._thought >= bound and not self._closed:
            return self._close_thinking()
        if self._stream is None:
            return None
        chunk = next(self._stream)
        self._thought += len(chunk.ids) if thinking else 0
        if chunk.completion is not None:
            self._count(self._stream)
            self.stop = "length" if chunk.completion.finish_reason == "length" else "done"
            self._stream = None
        self.text += chunk.text
        return chunk.text

    def close(self) -> None:
        """End it here, complete or not."""
        if self._stream is not None:
            self._stream.close()
            self._count(self._stream)
            self._stream = None

    def _close_thinking(self) -> str | None:
        """Write the end of the thinking, and go on with what must follow it."""
        if self._stream is None:
            return None
        self._closed = True
        self.close()
        ids = self.model.encode([Piece(THINK_END)])
        self.session.extend(ids)
        self.usage += Usage(output_tokens=len(ids), forced_tokens=len(ids))
        self.text += THINK_END
        params = self.model.params(self.settings)
        left = params.max_new_tokens - self.usage.output_tokens
        if left < 1:
            self.stop = "length"
        else:
            with suppress(*self.model.refusals):  # What must follow does not fit any more: the reply is cut here.
                grammar = self.model.grammar(self.envelope, thought=True)
                self._stream = self.session.stream(replace(params, max_new_tokens=left), grammar)
                return THINK_END
            self.stop = "length"
        return THINK_END

    def _count(self, stream: CausalStream) -> None:
        done = stream.completion
        self.usage += Usage(output_tokens=len(done.ids), forced_tokens=done.forced_tokens)
        self.usage = replace(self.usage, thinking_tokens=self._thought)


class TransformersThread:
    """One conversation with a `TransformersModel`: what was said, and the tokens and cache of it."""

    def __init__(self, model: TransformersModel, setup: Setup, said: Sequence[Said]) -> None:
        self._model = model
        self._setup = setup
        self._said = list(said)
        self._calls = last_call([one.message for one in said])
        self._session: CausalSession | None = None

    @property
    def ids(self) -> tuple[int, ...]:
        """Tokens of everything so far; before the first reply none."""
        return self._session.tokens if self._session is not None else ()

    async def respond(
        self, new: Sequence[Message], envelope: Envelope, settings: Settings
    ) -> AsyncGenerator[ModelEvent]:
        self._said += [Said(message) for message in new]
        self._calls = max(self._calls, last_call(new))
        session = await in_thread(self._read)
        reply = _Reply(self._model, session, envelope, settings)
        parser = ReplyParser(envelope, first_call=self._calls + 1)
        retag, partial = Retag(self._model.tags), PartialReply()
        finished = False
        try:
            await in_thread(reply.begin)
            while (text := await in_thread(lambda: reply.next(thinking=parser.thinking))) is not None:
                for event in parser.feed(retag(text)):
                    partial.add(event)
                    yield event
            events = parser.feed(retag("", final=True))
            rest, message = parser.finish("length" if reply.stop == "length" else "done")
            self._keep(message, reply.text)
            finished = True
        finally:
            await in_thread(reply.close)
            if not finished and partial.message() != AssistantMessage():
                self._said.append(Said(partial.message()))
        for event in (*events, *rest):
            yield event
        yield ReplyFinished(message, reply.usage, "length" if reply.stop == "length" else "done")

    def _keep(self, message: AssistantMessage, text: str) -> None:
        self._calls += len(message.calls)
        self._said.append(Said(message, text))

    def _read(self) -> CausalSession:
        """Bring the session to the prompt of the next reply."""
        from m1runtime import SessionError

        if self._session is None:
            self._session = self._model.causal.session()
        try:
            self._session.read(self._prompt_ids(self._session))
        except SessionError as error:
            raise ContextFull(
                f"the conversation does not fit '{self._model.name}': {error}; "
                "shorten it with Agent(compaction=...), a smaller ResultBudget, or conversation.rewind(...)"
            ) from error
        return self._session

    def _prompt_ids(self, session: CausalSession) -> list[int]:
        """Tokens of the prompt. Those that are there stay as they were written, as far as their text stands in it."""
        pieces = self._pieces()
        tokenizer = self._model.causal.tokenizer
        text = "".join(piece.text for piece in pieces)
        held = tokenizer.decode(session.tokens) if tokenizer is not None else ""
        if not held or not text.startswith(held):
            return self._model.encode(pieces)
        assert tokenizer is not None
        rest = _after(pieces, len(held))
        return [*session.tokens, *(id for one in rest for id in tokenizer.encode(one.text, special=one.special))]

    def _pieces(self) -> list[Piece]:
        prompt = self._model.prompt
        if prompt is not None:
            return prompt.render(self._setup, self._said)
        head = list(takewhile(lambda one: isinstance(one.message, SystemMessage), self._said))
        made = opening(self._setup, [one.message for one in head])
        for one in self._said[len(head) :]:
            made += render_message(one.message) if one.text is None else render_reply(one.text)
        return [*made, *render_reply_start()]

    def mark(self) -> tuple[int, int]:
        return len(self._said), self._calls

    async def rewind(self, mark: Any) -> bool:
        length, self._calls = mark
        del self._said[length:]
        return True

    def fork(self) -> TransformersThread:
        twin = TransformersThread(self._model, self._setup, self._said)
        twin._calls = self._calls
        twin._session = self._session.fork() if self._session is not None else None
        return twin

    async def aclose(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None


def _after(pieces: Sequence[Piece], length: int) -> list[Piece]:
    """What is left of the pieces without their first characters."""
    left: list[Piece] = []
    for piece in pieces:
        kept = piece.text[length:]
        length = max(0, length - len(piece.text))
        if kept:
            left.append(replace(piece, text=kept))
    return left


def _known(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
