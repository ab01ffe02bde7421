"""Whole conversations: a few tools, several requests, calls, results and answers."""

from __future__ import annotations

import random
from dataclasses import dataclass

from m1agent.messages import AssistantMessage, Message, Setup, ToolCall, ToolMessage, ToolResult, ToolSpec, UserMessage
from training.data import families, maths, synthetic, times
from training.data.requests import Request
from training.data.words import Words

NO_TOOL = "I have no tool for that."
SMALL_TALK = (("hello", "Hello! How can I help you?"), ("hi", "Hello! How can I help you?"), ("good morning", "Hello! How can I help you?"), ("hey there", "Hello! How can I help you?"),
              ("thank you", "You are welcome."), ("thanks a lot", "You are welcome."), ("thanks", "You are welcome."), ("bye", "Goodbye!"), ("see you", "Goodbye!"),
              ("who are you", "I am a small agent that calls tools."), ("what can you do", "I can call the tools I am given."))  # fmt: skip
INSTRUCTIONS = ("You are a helpful assistant.", "You are a helpful assistant.", "Use the tools.", "Be brief.", "You are a maths tutor.", "Answer with the tools you have.",
                "You help with everyday tasks.", "You are an agent.", "Call a tool when one fits.")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Dialogue:
    """A conversation as messages; every assistant message in it is an example."""

    setup: Setup
    messages: tuple[Message, ...]


class Toolbox:
    """The tools of one conversation and a source of requests for them."""

    def __init__(self, rng: random.Random, words: Words, *, kind: str, count: int, rename: float, focus: float) -> None:
        self.rng, self.words, self.focus = rng, words, focus
        self.makers: list[tuple[ToolSpec, object]] = []
        self._add_main(kind, rename)
        while len(self.makers) < count:
            self._add(
                rng.choice(("family", "synthetic", "rival", "maths" if rng.random() < 0.3 else "synthetic")), rename
            )
        self.main = 2 if kind == "times" else 1
        self.specs = tuple(rng.sample([spec for spec, _ in self.makers], len(self.makers)))

    def request(self) -> Request:
        """A request for the main tool, or for any of the tools."""
        spec, maker = self.rng.choice(self.makers[: self.main] if self.rng.random() < self.focus else self.makers)
        if isinstance(maker, synthetic.SyntheticTool):
            return maker.request()
        if isinstance(maker, families.Family):
            return families.request(self.rng, self.words, maker, spec)
        if maker == "maths":
            return maths.request(self.rng, self.words, spec)
        return times.request(self.rng, self.words, maker)  # type: ignore[arg-type]

    def _add_main(self, kind: str, rename: float) -> None:
        if kind == "times":
            pair = times.specs(self.rng)
            self.makers += [(spec, pair) for spec in pair]
        else:
            self._add(kind, rename)

    def _add(self, kind: str, rename: float) -> None:
        maker: object = "maths"
        if kind == "maths":
            spec = maths.spec(self.rng, self.words)
        elif kind == "family":
            maker = self.rng.choice(families.FAMILIES)
            spec = families.spec(self.rng, self.words, maker, rename=self.rng.random() < rename)
        else:
            rivals = [other for _, other in self.makers if isinstance(other, synthetic.SyntheticTool)]
            maker = (
                synthetic.rival(self.rng, self.words, rivals[0])
                if kind == "rival" and rivals
                else synthetic.SyntheticTool(self.rng, self.words)
            )
            spec = maker.spec
        if (
            spec.name not in {known.name for known, _ in self.makers}
            and not any(maker is known for _, known in self.makers)
            and not (maker == "maths" and any(known == "maths" for _, known in self.makers))
        ):
            self.makers.append((spec, maker))


def dialogue(
    rng: random.Random,
    *,
    held_out: bool = False,
    kind: str = "",
    turns: int = 0,
    tools: int = 0,
    rename: float = 0.6,
    focus: float = 0.4,
    refusals: float = 0.08,
    strange: float = 0.0,
) -> Dialogue:
    """A random conversation. `kind` of the main tool: maths, times, family or synthetic; `focus`: how often it is meant; `refusals`:
    how often no tool fits; `strange`: the share of invented words made of rare letters."""
    words = Words(rng, held_out=held_out, strange=strange)
    kind = kind or rng.choices(("maths", "times", "family", "synthetic"), (25, 7, 33, 35))[0]
    box = Toolbox(
        rng, words, kind=kind, count=tools or rng.choice((1, 2, 2, 3, 3, 3, 4, 4, 5)), rename=rename, focus=focus
    )
    setup = Setup(rng.choice(INSTRUCTIONS) if rng.random() < 0.5 else "", box.specs)
    messages: list[Message] = []
    for _ in range(turns or rng.choice((1, 2, 3, 4, 5, 6))):
        messages += turn(rng, words, box, refusals)
    return Dialogue(setup, tuple(messages))


def turn(rng: random.Random, words: Words, box: Toolbox, refusals: float) -> list[Message]:
    """One user message and all that follows from it."""
    kind = rng.random()
    if kind < refusals:
        return _refusal(rng, words, box)
    if kind < refusals + 0.03:
        said, answer = rng.choice(SMALL_TALK)
        return [
            UserMessage(said.capitalize() + rng.choice(("", "!", "."))),
            AssistantMessage(answer),
        ]
    first = box.request()
    if kind < 0.83:
        return [UserMessage(first.said), *_exchange([first]), AssistantMessage(first.answer)]
    second = box.request()
    if kind < 0.94:
        return [
            UserMessage(_both(rng, first, second)),
            *_exchange([first, second]),
            AssistantMessage(f"{first.answer} {second.answer}"),
        ]
    said = f"First {_lower(first.said)} Then {_lower(second.said)}"
    return [
        UserMessage(said),
        *_exchange([first]),
        *_exchange([second]),
        AssistantMessage(f"{first.answer} {second.answer}"),
    ]


def _exchange(requests: list[Request]) -> list[Message]:
    """The reply that calls, and the message with the results. Call ids never reach a prompt."""
    calls = [ToolCall(str(i), one.tool.name, one.arguments) for i, one in enumerate(requests) if one.tool]
    results = [ToolResult(call.id, call.name, one.result) for call, one in zip(calls, requests, strict=True)]
    return [AssistantMessage(calls=tuple(calls)), ToolMessage(tuple(results))]


def _both(rng: random.Random, first: Request, second: Request) -> str:
    joined = rng.choice(("{} {}", "{} And {}", "{} Also, {}", "{}\n{}"))
    return joined.format(
        _ended(first.said), _lower(second.said) if "{} And" in joined or "Also" in joined else _ended(second.said)
    )


def _ended(text: str) -> str:
    return text if text[-1] in ".?!" else text + "."


def _lower(text: str) -> str:
    return _ended(text[0].lower() + text[1:])


def _refusal(rng: random.Random, words: Words, box: Toolbox) -> list[Message]:
    """A request whose tool is not there."""
    names = {spec.name for spec in box.specs}
    descriptions = {spec.description.lower() for spec in box.specs}
    while True:
        if rng.random() < 0.5:
            family = rng.choice(families.FAMILIES)
            if any(maker is family for _, maker in box.makers):
                continue
            other = families.request(rng, words, family, families.spec(rng, words, family))
        elif rng.random() < 0.2 and not any(maker == "maths" for _, maker in box.makers):
            other = maths.request(rng, words)
        else:
            other = synthetic.SyntheticTool(rng, words).request()
        if other.tool and other.tool.name not in names and other.tool.description.lower() not in descriptions:
            return [UserMessage(other.said), AssistantMessage(NO_TOOL)]
