"""A tool, and one request that needs it."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

from m1agent.messages import ToolSpec


@dataclass(frozen=True, slots=True)
class Request:
    """What the user says, the call it needs (None: no tool fits), what the tool says back, and the answer."""

    said: str
    tool: ToolSpec | None
    arguments: dict[str, Any] = field(default_factory=dict)
    result: str = ""
    answer: str = ""


OPENINGS = ("", "", "", "", "", "Please ", "Can you ", "Could you please ", "I want to ", "I would like to ", "Help me ",
            "Hi, please ", "Now ", "I need to ", "Could you ", "Let's ", "Hey, can you ", "Next, ", "Would you ")  # fmt: skip
QUESTION_OPENINGS = ("", "", "", "", "", "", "Hi, ", "Please tell me: ", "Quick question: ", "Tell me, ", "I wonder, ",
                     "Hello! ", "Do you know ", "And ", "So ", "Okay, ")  # fmt: skip


def command(rng: random.Random, text: str) -> str:
    """`text` begins with a verb in lower case; returns it as somebody would say it."""
    opening = rng.choice(OPENINGS)
    asks = opening.startswith(("Can", "Could", "Would", "Hey"))
    return _finish(rng, opening + text, "?" if asks else ".")


def question(rng: random.Random, text: str) -> str:
    """`text` is a question without its mark, beginning in lower case."""
    return _finish(rng, rng.choice(QUESTION_OPENINGS) + text, "?")


def _finish(rng: random.Random, text: str, mark: str) -> str:
    capital = text if rng.random() < 0.15 else text[0].upper() + text[1:]
    return capital + (mark if rng.random() < 0.75 else "")
