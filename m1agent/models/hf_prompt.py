"""Conversations in a model's own chat template, and what tools look like where the template has no place for them.

A template that writes tools and `<tool_calls>` (M1) or `<tool_call>` (Hermes, Qwen) is given the tools, and replies are
read in that form. In any other, tools are told as M1's prompt tells them: a text at the end of the system message lists
them, calls stand between `<tool_calls>` tags in the reply, and results are a user message of lines
`tool name: ...` and `tool result: ...`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Literal, cast

from m1agent.errors import ModelError
from m1agent.messages import (
    AssistantMessage,
    JsonSchema,
    Message,
    Setup,
    SystemMessage,
    ToolMessage,
    ToolSpec,
    UserMessage,
    whole_text,
)
from m1agent.prompt.envelope import CALLS_CLOSE, CALLS_OPEN
from m1agent.prompt.template import TOOLS_INTRO, TOOLS_OUTRO, Piece, reply_text
from m1agent.schema import canonical_schema, prompt_json

HERMES = ("<tool_call>", "</tool_call>")
M1 = (CALLS_OPEN, CALLS_CLOSE)
Form = Literal["m1", "hermes", "text"]


@dataclass(frozen=True, slots=True)
class Said:
    """A turn as a template takes it. `text`: a reply as it was written, to the letter."""

    message: Message
    text: str | None = None


class ChatPrompt:
    """Renders conversations for one tokeniser of transformers.

    Raises ModelError where it has no chat template.
    """

    def __init__(self, hf_tokenizer: Any, name: str) -> None:
        self._hf = hf_tokenizer
        self._name = name
        template = hf_tokenizer.chat_template
        if not template:
            raise ModelError(
                f"'{name}' has no chat template; take a model that was taught to chat, or put a chat_template.jinja "
                "into its folder"
            )
        self.form = _form(str(template))
        self._special = sorted(hf_tokenizer.all_special_tokens, key=len, reverse=True)

    @property
    def tags(self) -> tuple[str, str]:
        """Between which calls stand in a reply."""
        return HERMES if self.form == "hermes" else M1

    def render(self, setup: Setup, said: Sequence[Said]) -> list[Piece]:
        """The prompt of the next reply. A special token's name in somebody's words stays words."""
        mark = _unused(setup, said)
        guard = _Guard(self._special, mark)
        system, turns = self._messages(setup, said, guard)
        tools = [_tool(spec) for spec in setup.tools] if self.form != "text" and setup.tools else None
        try:
            text = self._apply([*system, *turns], tools)
        except Exception as error:
            if not system:
                raise ModelError(f"the chat template of '{self._name}' fails: {error}") from error
            text = self._apply(_without_system(system, turns), tools)  # Some templates know no system message.
        return list(guard.pieces(text))

    def _apply(self, messages: Sequence[dict[str, Any]], tools: Any) -> str:
        try:
            return self._hf.apply_chat_template(messages, tools=tools, add_generation_prompt=True, tokenize=False)
        except Exception as error:
            if messages and messages[0]["role"] == "system":
                raise
            raise ModelError(f"the chat template of '{self._name}' fails: {error}") from error

    def _messages(
        self, setup: Setup, said: Sequence[Said], guard: _Guard
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        head = list(takewhile(lambda one: isinstance(one.message, SystemMessage), said))
        texts = [setup.instructions, *(one.message.text for one in head if isinstance(one.message, SystemMessage))]
        if setup.tools and self.form == "text":
            texts.append(TOOLS_INTRO + "".join(prompt_json(spec) + "\n" for spec in setup.tools) + TOOLS_OUTRO)
        whole = "\n\n".join(filter(None, texts))
        system = [{"role": "system", "content": guard(whole)}] if whole else []
        return system, [turn for one in said[len(head) :] for turn in self._turns(one, guard)]

    def _turns(self, said: Said, guard: _Guard) -> Iterator[dict[str, Any]]:
        match said.message:
            case SystemMessage(text):
                yield {"role": "system", "content": guard(text)}
            case UserMessage(text):
                yield {"role": "user", "content": guard(text)}
            case AssistantMessage() as message:
                yield self._reply(message, said.text, guard)
            case ToolMessage(results):
                if self.form == "text":
                    lines = (f"tool name: {one.name}\ntool result: {one.content}\n" for one in results)
                    yield {"role": "user", "content": guard("\n".join(lines))}
                else:
                    for one in results:
                        yield {
                            "role": "tool",
                            "name": one.name,
                            "tool_call_id": one.call_id,
                            "content": guard(one.content),
                        }

    def _reply(self, message: AssistantMessage, text: str | None, guard: _Guard) -> dict[str, Any]:
        if text is None and self.form == "hermes" and message.calls:
            functions = [{"name": call.name, "arguments": call.arguments} for call in message.calls]
            calls = [{"type": "function", "function": function} for function in functions]
            bare = AssistantMessage(message.text, message.thinking)
            return {"role": "assistant", "content": guard(reply_text(bare)), "tool_calls": calls}
        return {"role": "assistant", "content": guard(reply_text(message) if text is None else text)}


def _form(template: str) -> Form:
    if "tools" not in template:
        return "text"
    return "m1" if CALLS_OPEN in template else "hermes" if HERMES[0] in template else "text"


class _Guard:
    """Marks special tokens' names in texts that a template is given, and parts what it renders at the marks."""

    def __init__(self, special: Sequence[str], mark: str) -> None:
        self._special = list(special)
        self._mark = mark
        self._found = re.compile("|".join(map(re.escape, special))) if special else None

    def __call__(self, text: str) -> str:
        text = whole_text(text)
        if self._found is None:
            return text
        return self._found.sub(lambda match: f"{self._mark}{self._special.index(match[0])}{self._mark}", text)

    def pieces(self, text: str) -> Iterator[Piece]:
        """Text of the template, in which special tokens are such, is special; the marked names are not."""
        for at, part in enumerate(re.split(f"{self._mark}([0-9]+){self._mark}", text)):
            if part:
                yield Piece(self._special[int(part)]) if at % 2 else Piece(part, special=True)


def _unused(setup: Setup, said: Sequence[Said]) -> str:
    """A character of the private use area that no text of the conversation has."""
    text = f"{setup}{said!r}"
    return next(chr(code) for code in range(0xE000, 0xF8FF) if chr(code) not in text)


def _tool(spec: ToolSpec) -> dict[str, Any]:
    shown = canonical_schema(spec.parameters)
    parameters: JsonSchema = {"type": "object", "properties": cast("JsonSchema", {}), **shown}
    function: dict[str, Any] = {"name": spec.name, "description": spec.description, "parameters": parameters}
    return {"type": "function", "function": function}


def _without_system(system: Sequence[dict[str, Any]], turns: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The system message in front of the first user's."""
    text = system[0]["content"]
    first = next((turn for turn in turns if turn["role"] == "user"), None)
    if first is None:
        return [{"role": "user", "content": text}, *turns]
    return [turn | {"content": f"{text}\n\n{turn['content']}"} if turn is first else turn for turn in turns]


class Retag:
    """Streams a reply's text with other call tags in the place of its own."""

    def __init__(self, tags: tuple[str, str]) -> None:
        self._pairs = tuple(zip(tags, M1, strict=True)) if tags != M1 else ()
        self._held = ""

    def __call__(self, text: str, *, final: bool = False) -> str:
        """What is certain of the text so far."""
        if not self._pairs:
            return text
        self._held += text
        for old, new in self._pairs:
            self._held = self._held.replace(old, new)
        longest = 0 if final else min(len(self._held), max(len(old) for old, _ in self._pairs) - 1)
        kept = next(
            (n for n in range(longest, 0, -1) if any(old.startswith(self._held[-n:]) for old, _ in self._pairs)), 0
        )
        shown, self._held = self._held[: len(self._held) - kept], self._held[len(self._held) - kept :]
        return shown
