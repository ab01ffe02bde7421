"""A model in this process, on m1runtime: the only file of the SDK that imports it, and only when a model is used.

A thread is one runtime session. What was said stays as the tokens it was said in: new turns are tokenised piece by
piece and appended, the model's own turns are kept as generated. The engine computes in a thread of its own, all
conversations together; a reader that leaves, a cancellation or a limit ends a reply at the token that was read last.
"""

from __future__ import annotations

import json
import threading
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from m1agent.errors import ContextFull, ModelError
from m1agent.events import ModelEvent, ReplyFinished, TokensScored
from m1agent.messages import Message, Setup
from m1agent.models.bare import completion, prompt_ids
from m1agent.models.base import Settings
from m1agent.models.checks import CallChecks
from m1agent.models.turns import CLOSE, NEWLINE, last_call, opening, question
from m1agent.models.worker import in_thread
from m1agent.models.writing import Writing
from m1agent.prompt.envelope import CALLS_CLOSE, CALLS_OPEN, THINK_CLOSE, THINK_OPEN, Envelope, Named
from m1agent.prompt.reply import ReplyParser
from m1agent.prompt.template import Piece, render_message

if TYPE_CHECKING:
    from m1runtime import Completion, Engine, Grammar, SamplingParams, Session, Stream, Tokenizer, TokenLogprob
    from m1runtime.grammar import ToolSchemaReport

    __all__ = ["Completion", "Grammar", "LocalModel", "LocalThread", "Session", "Stream", "TokenLogprob"]

MAX_TOKENS = 1024
UNBOUNDED = 1 << 20
MISSING = "local models need {}: pip install 'm1agent[runtime]'"

T = TypeVar("T")


@dataclass(slots=True)
class _Compiled:
    """What an envelope was compiled to, for the whole reply or for what follows its thinking."""

    envelope: Envelope
    thought: bool
    grammar: Grammar | None
    checks: CallChecks = field(default_factory=CallChecks)
    least: int | None = None


class LocalModel:
    """A checkpoint on m1runtime.

    Args:
        source: a bundled name ("m1-nano"), a checkpoint folder, or an `Engine`. Weights are loaded at the first use.
        max_tokens: bound of a reply where neither settings nor limits give one.
        device, dtype: as for `Engine.from_pretrained`.
        engine: further options of `Engine.from_pretrained`, such as `{"quantization": "int8", "compile": True}`.

    `constrained`: a grammar keeps every call and answer in its schema. `logprobs`: it tells how likely tokens were.

    A folder's `generation_config.json` gives the sampling defaults, as in transformers: `do_sample: false` is greedy.
    """

    def __init__(
        self,
        source: str | Path | Engine,
        *,
        max_tokens: int = MAX_TOKENS,
        device: str | None = None,
        dtype: Any = None,
        engine: Mapping[str, Any] | None = None,
    ) -> None:
        if engine and not isinstance(source, str | Path):
            raise TypeError("engine= is for an engine that is loaded here; the one that was given has its options")
        self._source = source
        self._engine: Engine | None = None
        self._max_tokens = max_tokens
        self._options: dict[str, Any] = {"device": device, "dtype": dtype, **(engine or {})}
        self._loading = threading.Lock()
        self._defaults: Settings | None = None
        self._grammars: list[_Compiled] = []

    constrained = logprobs = True

    @property
    def name(self) -> str:
        return Path(self._source).name if isinstance(self._source, str | Path) else "local"

    @property
    def engine(self) -> Engine:
        """The engine; loads the weights if they are not there yet.

        Raises:
            ModelError: the checkpoint cannot be loaded; the text says why.
        """
        try:
            from m1runtime import Engine, M1RuntimeError
        except ModuleNotFoundError as error:
            raise ModelError(MISSING.format(error.name)) from error

        with self._loading:
            if self._engine is None:
                if isinstance(self._source, Engine):
                    self._engine = self._source
                else:
                    try:
                        self._engine = Engine.from_pretrained(self._source, **self._options)
                    except M1RuntimeError as error:
                        raise ModelError(str(error)) from error
            return self._engine

    @property
    def tokenizer(self) -> Tokenizer:
        """The checkpoint's tokenizer. Raises ModelError when it has none."""
        tokenizer = self.engine.tokenizer
        if tokenizer is None:
            raise ModelError(f"the checkpoint of '{self.name}' has no tokenizer.json; an agent needs one")
        return tokenizer

    def open(self, setup: Setup, history: Sequence[Message] = ()) -> LocalThread:
        return LocalThread(self, opening(setup, history), calls=last_call(history))

    async def load(self) -> None:
        """Read the weights now. Raises ModelError as `engine` does."""
        await in_thread(lambda: self.tokenizer)

    async def text(self, prompt: str | Sequence[int]) -> str:
        """A bare prompt as text. Raises PromptError as `complete` does."""
        return prompt if isinstance(prompt, str) else self.tokenizer.decode(prompt_ids(self, prompt))

    def complete(self, prompt: str | Sequence[int], settings: Settings) -> AsyncGenerator[ModelEvent]:
        """What follows a bare text, or token ids, without any chat format; the last event is `ReplyFinished`.

        Special tokens written by their names are special.

        Raises:
            PromptError: a token is none of the model's.
            ContextFull: the prompt fills the context.
        """
        return completion(self, prompt, settings)

    def encode(self, pieces: Iterable[Piece]) -> list[int]:
        """Token ids of a prompt: special pieces by their id, everything else as plain text."""
        tokenizer = self.tokenizer
        ids: list[int] = []
        for piece in pieces:
            if not piece.special:
                ids += tokenizer.encode(piece.text, special=False)
            elif piece.text in tokenizer.special_ids:
                ids.append(tokenizer.special_ids[piece.text])
            else:
                raise ModelError(f"the tokenizer of '{self.name}' has no special token {piece.text}")
        return ids

    def params(self, settings: Settings) -> SamplingParams:
        """Sampling of a reply: the settings, else the checkpoint's defaults, else the runtime's."""
        from m1runtime import SamplingParams

        defaults = self._checkpoint_defaults()
        temperature = _first(settings.temperature, defaults.temperature)
        top_p = _first(settings.top_p, defaults.top_p)
        given = {"temperature": temperature, "top_p": top_p, "seed": settings.seed, "logprobs": settings.logprobs}
        return SamplingParams(
            max_new_tokens=settings.max_tokens or self._max_tokens,
            stop=settings.stop,
            **{key: cast("Any", value) for key, value in given.items() if value is not None},
        )

    def grammar(self, envelope: Envelope, *, thought: bool = False) -> Grammar | None:
        """The grammar of a reply, or None where it is free text. Raises m1runtime's SchemaError.

        `thought`: of what follows the thinking.
        """
        return self._compiled(envelope, thought=thought).grammar

    def reports(self, envelope: Envelope) -> tuple[ToolSchemaReport, ...]:
        """What the grammar of a reply enforces, tool by tool; the answer's report, where there is one, has no name.

        What a report lists in `unenforced` is checked once a call is complete. Needs the runtime, but no weights.

        Raises:
            ModelError: the runtime is not installed.
        """
        try:
            grammar = self.grammar(envelope)
        except ModuleNotFoundError as error:
            raise ModelError(MISSING.format(error.name)) from error
        return () if grammar is None else tuple(grammar.reports)

    def checks(self, envelope: Envelope) -> CallChecks:
        """The checks of those tools whose schema no grammar wholly enforces."""
        return self._compiled(envelope).checks

    def least(self, envelope: Envelope) -> int:
        """Tokens, the end among them, of the shortest that may follow the thinking of a reply."""
        compiled = self._compiled(envelope, thought=True)
        if compiled.least is None:
            grammar = compiled.grammar
            start = grammar.start(self.tokenizer, max_new_tokens=UNBOUNDED) if grammar is not None else None
            compiled.least = start.min_tokens if start is not None else 0
        return compiled.least

    @property
    def refusals(self) -> tuple[type[Exception], ...]:
        """What the runtime raises where a grammar leaves nothing to write."""
        from m1runtime import BudgetError, GenerationError, SchemaError

        return (BudgetError, GenerationError, SchemaError)

    def _compiled(self, envelope: Envelope, *, thought: bool = False) -> _Compiled:
        for known in self._grammars:
            if known.envelope is envelope and known.thought == thought:
                return known
        made = _Compiled(envelope, thought, reply_grammar(envelope, thought=thought))
        if made.grammar is not None and not thought:
            weak = {report.name for report in made.grammar.reports if not report.enforced}
            made.checks = CallChecks.of(spec for spec in envelope.tools if spec.name in weak)
        self._grammars = [*self._grammars[-7:], made]
        return made

    async def aclose(self) -> None:
        """Let go of an engine that was loaded here; sessions still open keep it."""
        if isinstance(self._source, str | Path):
            engine, self._engine = self._engine, None
            if engine is not None and self._options.get("tensor_parallel", 1) > 1:
                await in_thread(engine.close)  # Its other ranks are processes.
        self._grammars = []

    def _checkpoint_defaults(self) -> Settings:
        if self._defaults is None:
            self._defaults = _generation_defaults(self._folder())
        return self._defaults

    def _folder(self) -> Path | None:
        from m1runtime.engine import BUNDLED

        if not isinstance(self._source, str | Path):
            return None
        return BUNDLED.get(str(self._source), Path(self._source))


class LocalThread:
    """One conversation with a `LocalModel`: a runtime session, and what it has still to read."""

    def __init__(
        self, model: LocalModel, unread: Sequence[Piece], session: Session | None = None, *, calls: int = 0
    ) -> None:
        self._model = model
        self._session = session
        self._unread = list(unread)
        self._new: list[int] = []
        self._asked = False
        self._calls = calls
        self._closed = False

    @property
    def ids(self) -> tuple[int, ...]:
        held = self._session.tokens if self._session is not None else ()
        return (*held, *self._new, *self._model.encode(self._unread))

    async def read(self, new: Sequence[Message]) -> None:
        """Compute new messages ahead, so that forks share the work; `respond(())` then replies to them."""
        self._unread += [*self._closing(), *(piece for message in new for piece in render_message(message))]
        self._calls = max(self._calls, last_call(new))
        self._asked = False
        await self._read()

    async def respond(
        self, new: Sequence[Message], envelope: Envelope, settings: Settings
    ) -> AsyncGenerator[ModelEvent]:
        if self._closed:
            raise ModelError("the thread is closed")
        self._unread += [*self._closing(), *question(new)]
        self._calls = max(self._calls, last_call(new))
        self._asked = True
        session = await self._read()
        writing = Writing(self._model, session, envelope, settings)
        parser = ReplyParser(envelope, first_call=self._calls + 1)
        try:
            await in_thread(writing.begin)
            while (text := await self._next(writing, parser)) is not None:
                for event in parser.feed(text):
                    yield event
                if scores := writing.scored():
                    yield TokensScored(scores)
        finally:
            await in_thread(writing.close)
        events, message = parser.finish(writing.stop)
        for event in events:
            yield event
        self._calls += len(message.calls)
        yield ReplyFinished(message, writing.usage, writing.stop)

    def mark(self) -> tuple[int, int]:
        assert self._session is not None
        return self._session.length, self._calls

    async def rewind(self, mark: Any) -> bool:
        session = self._session
        if session is None or self._closed:
            return False
        length, self._calls = mark
        self._unread, self._new = [], []
        await in_thread(lambda: session.rewind(length))
        return True

    def fork(self) -> LocalThread:
        twin = LocalThread(self._model, self._unread, self._session.fork() if self._session is not None else None)
        twin._new, twin._asked, twin._calls = list(self._new), self._asked, self._calls
        return twin

    async def aclose(self) -> None:
        self._closed = True
        if self._session is not None:
            await in_thread(self._session.close)  # It waits for the forward pass under way.

    def _closing(self) -> tuple[Piece, ...]:
        """What ends the model's last turn: the template writes a newline after the end token."""
        if not self._asked:
            return ()
        ended = (
            self._session is not None
            and not self._unread
            and not self._new
            and self._session.tokens[-1] in self._model.engine.eos_ids
        )
        return (NEWLINE,) if ended else CLOSE

    async def _read(self) -> Session:
        """Compute the unread tokens; the session that holds them."""
        engine = await in_thread(lambda: self._model.engine)
        self._new += self._model.encode(self._unread)
        self._unread = []
        if self._session is None:
            self._session = engine.session()
        self._check_room(self._session)
        new, self._new = self._new, []
        await self._session.aappend(new)
        return self._session

    async def _next(self, writing: Writing, parser: ReplyParser) -> str | None:
        """The next characters; what is quick is done here, since a thread costs more than it."""
        await writing.ready()
        thinking = parser.thinking
        if writing.light:
            return writing.next(thinking=thinking)
        return await in_thread(lambda: writing.next(thinking=thinking))

    def _check_room(self, session: Session) -> None:
        """Before anything is computed, so that the figure is that of the whole."""
        whole, context = session.length + len(self._new), self._model.engine.config.max_position_embeddings
        if whole >= context:
            raise ContextFull(
                f"the conversation has {whole} tokens, and the context of '{self._model.name}' holds {context}; "
                "shorten it with Agent(compaction=...), a smaller ResultBudget, or conversation.rewind(...)"
            )


def reply_grammar(
    envelope: Envelope, *, thought: bool, tags: tuple[str, str] = (CALLS_OPEN, CALLS_CLOSE), one: bool = False
) -> Grammar | None:
    """What a reply may be, or what may follow its thinking; None for free text. `one`: a single call at most.

    Raises ModelError for a choice of tools that there are not.
    """
    from m1runtime import Grammar
    from m1runtime.grammar import ToolGrammar

    choice = envelope.choice
    specs = [spec for spec in envelope.tools if not isinstance(choice, Named) or spec.name == choice.name]
    if isinstance(choice, Named) and not specs:
        raise ModelError(f"tool_choice names '{choice.name}', which is none of the tools")
    if choice == "required" and not specs:
        raise ModelError("tool_choice is 'required', but there are no tools to choose from")
    free = choice in ("auto", "none")
    answer = envelope.answer if free else None
    tools = [ToolGrammar(spec.name, spec.parameters) for spec in specs if choice != "none"]
    if not tools and answer is None:
        return None
    return Grammar.tool_calls(
        tools,
        trigger=tags[0],
        end=tags[1],
        mode="auto" if free else "required",
        parallel=envelope.parallel and not one and not isinstance(choice, Named),
        skip=("", "") if thought and (answer is not None or not free) else (THINK_OPEN, THINK_CLOSE),
        answer=answer,
    )


def _generation_defaults(folder: Path | None) -> Settings:
    file = folder / "generation_config.json" if folder is not None else None
    if file is None or not file.is_file():
        return Settings()
    try:
        given = cast("dict[str, Any]", json.loads(file.read_text(encoding="utf-8")))
    except ValueError as error:
        raise ModelError(f"{file}: no valid JSON ({error})") from error
    if given.get("do_sample") is False:
        return Settings(temperature=0.0)
    try:
        return Settings(temperature=given.get("temperature"), top_p=given.get("top_p"))
    except ValueError as error:
        raise ModelError(f"{file}: {error}") from error


def _first(*values: T | None) -> T | None:
    return next((value for value in values if value is not None), None)
