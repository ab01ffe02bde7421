"""`Grammar`: what a reply may be, independent of any tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from llguidance import LLMatcher

from m1runtime.errors import BudgetError, SchemaError
from m1runtime.grammar import writer
from m1runtime.grammar.again import After, resumed
from m1runtime.grammar.calls import Reply, Value, value_plan
from m1runtime.grammar.guided import Text
from m1runtime.grammar.inside import Programs, programs
from m1runtime.grammar.keywords import Schema
from m1runtime.grammar.matcher import Constraint, FreeText, Opening, Scanner, State
from m1runtime.grammar.plain import as_json, tree
from m1runtime.grammar.reach import unusable
from m1runtime.grammar.report import CompiledSchema, ToolSchemaReport, Unenforced
from m1runtime.grammar.schema import Order, compile_schema, free_object, refusal
from m1runtime.grammar.table import Plan
from m1runtime.grammar.vocabulary import TokenizerLike, Vocabulary, vocabulary

SEPARATORS = (", ", ": ")
Mode = Literal["auto", "required"]


@dataclass(frozen=True, slots=True)
class ToolGrammar:
    """A tool as the grammar sees it: its name and the JSON Schema of its arguments."""

    name: str
    schema: Schema


@dataclass(frozen=True, slots=True)
class _Calls:
    """A tool-calls grammar: after a trigger, as a whole reply, and after a thinking block.

    `free`: unmasked text may come before the trigger.
    """

    body: Plan
    direct: Plan
    after_thinking: Plan
    trigger: bytes
    skip: tuple[bytes, bytes]
    free: bool


@dataclass(frozen=True, slots=True, eq=False)
class Grammar:
    """An immutable description of the allowed output; `start` gives the constraint of one generation."""

    _text: Text | Plan | _Calls
    _values: tuple[tuple[str, Value], ...] = ()
    _after: After | None = None
    _answer: Grammar | None = None

    @property
    def reports(self) -> list[ToolSchemaReport]:
        """What is left to validate afterwards, a report for each schema. Plain schemas are enforced as they are."""
        return [ToolSchemaReport(name) if value.tree else value.compiled.report for name, value in self._values]

    @classmethod
    def from_json_schema(
        cls, schema: Schema, *, separators: tuple[str, str] = SEPARATORS, order: Order = "schema"
    ) -> Grammar:
        """One JSON value of `schema`, its separators fixed and no other whitespace.

        `order`: that of an object's properties, the schema's or any; either way each comes once and the required ones
        are there. Keywords that cannot be enforced are listed in `reports`. Raises SchemaError when the rest cannot be
        compiled.
        """
        text, plain = tree(schema, separators=separators, tool=False)
        if plain is not None:
            plan = value_plan(text, plain, separators, any_order=order == "any")
            return cls(plan, (("", Value(text, plain, lambda: free_object("", separators, "unknown"))),))
        compiled = compile_schema("", schema, separators=separators, tool=False, order=order)
        if compiled is None:
            raise SchemaError(f"the schema cannot be compiled: {refusal(schema, separators=separators)}")
        value = Value(None, None, lambda: compiled)
        return cls(value.text, (("", value),))

    @classmethod
    def from_regex(cls, pattern: str) -> Grammar:
        """Text that matches `pattern` from start to end (Rust regex syntax, no look-around). Raises SchemaError."""
        return cls.from_lark(writer.regex(pattern))

    @classmethod
    def from_lark(cls, text: str) -> Grammar:
        """A grammar in llguidance's Lark dialect with the rule `start`. Raises SchemaError."""
        why = _refusal(text)
        if why is not None:
            raise SchemaError(f"the grammar cannot be compiled: {why}")
        return cls(Text(text))

    @classmethod
    def tool_calls(
        cls,
        tools: Sequence[ToolGrammar],
        *,
        trigger: str = "<tool_calls>",
        end: str = "</tool_calls>",
        mode: Mode = "auto",
        parallel: bool = True,
        max_calls: int | None = None,
        skip: tuple[str, str] = ("<think>", "</think>"),
        answer: Schema | None = None,
        order: Order = "schema",
    ) -> Grammar:
        """Replies that call tools: `trigger` newline {"name": ..., "arguments": {...}} newline [...] `end`.

        auto: free text until the trigger stands outside `skip`; required: an optional `skip` block, then the calls.
        With `answer`, an optional `skip` block, then either the calls or one JSON value of that schema; its report is
        the last, without a name, and without tools it is all there is. `max_calls` bounds the calls of one reply (None:
        no bound); `parallel=False` is `max_calls=1`. `order`: that of properties in arguments and answer. A schema that
        cannot be enforced is weakened and reported, never dropped. Raises SchemaError for neither tools nor answer, an
        answer where calls are required, two tools of one name, or max_calls < 1.
        """
        _check_tools(tools, max_calls, mode, answer)
        values = tuple((tool.name, _arguments(tool, order)) for tool in tools)
        other = None if answer is None else _answer(answer, order)
        limit = max_calls if parallel else 1
        reply = Reply(values, trigger, end, SEPARATORS, limit, other, order == "any")
        calls = _Calls(
            reply.plan(begun=True),
            reply.plan(),
            reply.plan(newlines=True),
            trigger.encode(),
            (skip[0].encode(), skip[1].encode()),
            free=mode == "auto" and other is None,
        )
        alone = None
        if tools and answer is not None:
            alone = cls.tool_calls((), trigger=trigger, end=end, skip=skip, answer=answer, order=order)
        return cls(calls, values if other is None else (*values, ("", other)), _answer=alone)

    def after(self, tokens: Sequence[int], *, lead: bytes = b"", failed: bytes = b"") -> Grammar:
        """The same text once `tokens` of it stand: `start` gives the constraint of what follows them.

        With `failed`, which must be a JSON value of the text: `lead` and then another value follow. `start` raises
        SchemaError when the text cannot begin so, GenerationError when there is no other value.
        """
        return replace(self, _after=After(tuple(tokens), lead, failed))

    def start(self, tokenizer: TokenizerLike, *, max_new_tokens: int) -> Constraint:
        """The constraint of one generation of at most `max_new_tokens` tokens, eos among them.

        Raises BudgetError, a ValueError naming the minimum, when what must be written cannot fit.
        """
        known = vocabulary(tokenizer)
        state = self._first(known, programs(tokenizer))
        if state is None:
            raise BudgetError(max_new_tokens, None)
        if self._after is not None:
            return resumed(known, state, self._after, max_new_tokens)
        answer = self._answer._first(known, programs(tokenizer)) if self._answer is not None else None
        if answer is not None and answer.min_tokens > max_new_tokens:
            answer = None
        return Constraint(known, state, max_new_tokens, answer, calls=isinstance(self._text, _Calls))

    def _first(self, known: Vocabulary, compiled: Programs) -> State | None:
        calls = self._text
        if not isinstance(calls, _Calls):
            return compiled.get(calls).start
        opening, closing = calls.skip
        if calls.free:
            return FreeText(known, compiled.get(calls.body), Scanner(calls.trigger, opening, closing))
        direct = compiled.get(calls.direct).start
        if not opening:
            return direct
        after = compiled.get(calls.after_thinking).start
        if direct is None or after is None:
            return None
        return Opening(direct, after, Scanner(b"", opening, closing, inside=True))


def _check_tools(tools: Sequence[ToolGrammar], max_calls: int | None, mode: Mode, answer: Schema | None) -> None:
    names = [tool.name for tool in tools]
    twice = sorted({name for name in names if names.count(name) > 1})
    if not names and answer is None:
        raise SchemaError("a tool-calls grammar needs at least one tool")
    if answer is not None and mode == "required":
        raise SchemaError("where calls are required there can be no answer; leave answer= out, or take mode='auto'")
    if twice:
        raise SchemaError(f"two tools are named {twice[0]!r}; tool names must differ")
    if max_calls is not None and max_calls < 1:
        raise SchemaError(f"max_calls is {max_calls}; it must be at least 1, or None for no bound")


def _arguments(tool: ToolGrammar, order: Order) -> Value:
    text, plain = tree(tool.schema, separators=SEPARATORS, tool=True)

    def compile() -> CompiledSchema:
        compiled = compile_schema(tool.name, tool.schema, separators=SEPARATORS, tool=True, order=order)
        return compiled or free_object(tool.name, SEPARATORS, "unknown")

    return Value(text or object(), plain, compile)


def _answer(schema: Schema, order: Order) -> Value:
    """A value of the answer's schema, or any JSON value where that cannot be compiled."""

    def compile() -> CompiledSchema:
        compiled = compile_schema("", schema, separators=SEPARATORS, tool=False, order=order)
        if compiled is not None:
            return compiled
        free = compile_schema("", True, separators=SEPARATORS, tool=False)
        assert free is not None
        why = refusal(schema, separators=SEPARATORS)
        return replace(free, report=ToolSchemaReport("", (Unenforced("", "*", why),)))

    return Value(as_json(schema) or object(), None, compile)


def _refusal(lark: str) -> str | None:
    failed, messages = LLMatcher.validate_grammar_with_warnings(LLMatcher.grammar_from_lark(lark))
    return messages[0].split("\n")[0] if failed else unusable(lark)
