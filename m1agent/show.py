"""Shows a run while it happens, for people: thinking, text, calls as they stream, results, and what it cost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TextIO

from m1agent.events import (
    ArgumentsDelta,
    CallReady,
    CallStarted,
    Event,
    RunFinished,
    StepFinished,
    TextDelta,
    ThinkingDelta,
    ToolFinished,
)
from m1agent.messages import UserMessage
from m1agent.models.turns import opening, question
from m1agent.prompt.template import plain_text

if TYPE_CHECKING:
    from m1agent.agent import Agent
    from m1agent.result import RunResult

DIM, BLUE, GREEN, RED, RESET = "\033[2m", "\033[34m", "\033[32m", "\033[31m", "\033[0m"
SHOWN = 2000


class Printer:
    """Writes events to `out`, in colour where that is a terminal. `fold`: thinking is not shown, only that there is."""

    def __init__(self, out: TextIO, *, fold: bool = False) -> None:
        self.fold = fold
        self._out = out
        self._colour = out.isatty()
        self._within = ""

    def prompt(self, text: str) -> None:
        """Show what the model reads."""
        self._begin("prompt", DIM)
        self._write(text.rstrip("\n"))
        self.end()

    def show(self, event: Event) -> None:
        """Show one event."""
        match event:
            case ThinkingDelta(text):
                folded = self.fold and self._within == "thinking"
                self._begin("thinking", DIM)
                self._write("" if folded else "..." if self.fold else text)
            case TextDelta(text):
                self._begin("answer")
                self._write(text)
            case CallStarted(_, _, name):
                self.end()
                self._begin("call", BLUE)
                self._write(f"{name} ")
            case ArgumentsDelta(_, text):
                self._write(text)
            case CallReady(_, call):
                self._write(f" [unreadable: {call.problem}]" if call.problem else "")
                self.end()
            case ToolFinished(_, result, seconds):
                self._begin("error" if result.is_error else "result", RED if result.is_error else GREEN)
                self._write(f"{_cut(result.content)}  ({seconds:.2f} s)")
                self.end()
            case StepFinished():
                self.end()
            case RunFinished(result):
                self.end()
                self._summary(result)
            case _:
                pass
        self._out.flush()

    def _summary(self, result: RunResult) -> None:
        if result.stop != "done":
            self._begin("stopped", RED)
            self._write(f"{result.stop}{f': {why}' if (why := _why(result)) else ''}")
            self.end()
        self._begin("cost", DIM)
        self._write(costs(result))
        self.end()

    def _begin(self, label: str, colour: str = "") -> None:
        if self._within == label:
            return
        self.end()
        self._within = label
        self._out.write(f"{colour if self._colour else ''}{label + ':':<10}")

    def _write(self, text: str) -> None:
        self._out.write(plain(text).replace("\n", "\n" + " " * 10))

    def end(self) -> None:
        """Begin a new line, if one is open."""
        if self._within:
            self._out.write(f"{RESET if self._colour else ''}\n")
        self._within = ""


def _why(result: RunResult) -> str:
    if result.pending:
        names = ", ".join(dict.fromkeys(call.name for call in result.pending))
        return f"{names} must be approved, and nobody can be asked here; m1agent chat asks"
    return str(result.error or result.reason)


def costs(result: RunResult) -> str:
    """What a run cost, in a line."""
    usage = result.usage
    computed = usage.input_tokens - usage.reused_tokens
    share = f" ({usage.forced_tokens / usage.output_tokens:.0%} written by the grammar)" if usage.output_tokens else ""
    return (
        f"{computed} tokens read, {usage.reused_tokens} reused, {usage.output_tokens} written{share}, "
        f"{result.steps} {'step' if result.steps == 1 else 'steps'}, {result.seconds:.1f} s"
    )


def prompt_of(agent: Agent[Any, Any], text: str) -> str:
    """What the model of an entered agent reads before its first reply to `text`."""
    return plain_text([*opening(agent.setup()), *question([UserMessage(text)])])


def plain(text: str) -> str:
    """Without control characters: what a model or a tool writes must not move the cursor or rewrite the screen."""
    return "".join(letter if letter.isprintable() or letter in "\n\t" else "\ufffd" for letter in text)


def _cut(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}... ({len(text)} characters)"
