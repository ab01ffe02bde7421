"""A maths tutor: numbered steps, the answer boxed, and every number of them computed by the maths tools.

python examples/maths_tutor.py "What is the derivative of 3x^2 + 2x - 1?"
python examples/maths_tutor.py "A train goes 180 km in 2.5 hours. How fast?" --model path/to/a/checkpoint

maths_practice.py writes problems to practise on.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from maths_practice import NUMBER, Exercise, generate_practice_problems

from m1agent import Agent, Conversation, M1AgentError, Retry
from m1agent.messages import AssistantMessage, Message, ToolMessage
from m1agent.models.base import Model
from m1tools.maths import calculate_math

__all__ = ["Exercise", "Solution", "Step", "generate_practice_problems", "solve_problem"]

CONCEPTS = {
    "derivative": "differentiation",
    "integral": "integration",
    "solve": "equations",
    "factor": "factorisation",
    "simplify": "algebra",
    "limit": "limits",
}
TUTOR = (
    "You are a maths tutor. Compute every step with calculate_math, never in your head. Before each call say in one "
    "sentence what it is for. At the end write a line 'Answer: ...' and a line 'Concepts: ...' with the ideas used."
)


@dataclass(frozen=True, slots=True)
class Step:
    """`result` is what the tool made of `expression`; `text` is the model's, '' where it named an unknown number."""

    text: str
    expression: str
    operation: str
    result: str


@dataclass(frozen=True, slots=True)
class Solution:
    """`str()` numbers the steps, where they are to be shown, and boxes the answer."""

    steps: tuple[Step, ...]
    answer: str
    concepts: tuple[str, ...]
    show_steps: bool = True

    def __str__(self) -> str:
        lines = [
            f"{number}. {step.text or f'{step.operation.capitalize()}:'} {step.expression} → {step.result}"
            for number, step in enumerate(self.steps if self.show_steps else (), 1)
        ]
        return "\n".join([*lines, rf"\boxed{{{self.answer}}}", f"Concepts: {', '.join(self.concepts)}"])


def solve_problem(problem: str, show_steps: bool = True, *, model: str | Path | Model = "m1-nano") -> Solution:
    """Solve a problem; each step is a call of the maths tools.

    Where the model writes no line 'Answer:', the answer is the result of the last step.

    Raises:
        RunStopped: there was no answer whose numbers all come from the problem or from a step.
    """
    talk = Conversation()

    def checked(answer: str) -> Retry | None:
        steps = steps_of(talk.messages)
        if not steps:
            return Retry("Nothing was computed. Call calculate_math.")
        unknown = _unknown(answer, _known(problem, steps))
        return Retry(f"No step computed {', '.join(sorted(unknown))}. Compute it.") if unknown else None

    with Agent(model, [calculate_math], TUTOR, output_guards=[checked]) as agent:
        text = agent.run_sync(problem, conversation=talk).unwrap()
    steps = steps_of(talk.messages)
    known = _known(problem, steps)
    shown = tuple(replace(step, text="") if _unknown(step.text, known) else step for step in steps)
    used = dict.fromkeys(CONCEPTS.get(step.operation, "arithmetic") for step in steps)
    named = [name.strip() for name in _line("Concepts", text).split(",") if name.strip()]
    return Solution(shown, _line("Answer", text) or steps[-1].result, tuple(named or used), show_steps)


def steps_of(messages: Sequence[Message]) -> list[Step]:
    """The calls of a conversation that the tool could compute; the words before a call go with it."""
    steps: list[Step] = []
    waiting: dict[str, tuple[str, dict[str, str]]] = {}
    for message in messages:
        if isinstance(message, AssistantMessage):
            waiting |= {call.id: (message.text.strip(), call.arguments) for call in message.calls}
        elif isinstance(message, ToolMessage):
            for result in message.results:
                text, arguments = waiting[result.call_id]
                if not result.is_error:
                    steps.append(Step(text, arguments["expression"], arguments["operation"], result.content))
    return steps


def _known(problem: str, steps: Sequence[Step]) -> set[str]:
    return _numbers(" ".join([problem, *(f"{step.expression} {step.result}" for step in steps)]))


def _numbers(text: str) -> set[str]:
    return set(NUMBER.findall(re.sub(r"(?<=\d),(?=\d{3}\b)", "", text)))


def _unknown(text: str, known: set[str]) -> set[str]:
    """Numbers in a text that are neither known nor, being decimals, a known one rounded."""
    return {one for one in _numbers(text) - known if "." not in one or not any(_rounds(one, of) for of in known)}


def _rounds(one: str, of: str) -> bool:
    return abs(float(of) - float(one)) <= 0.5 / 10 ** len(one.partition(".")[2])


def _line(name: str, text: str) -> str:
    found = re.search(rf"^{name}: *(.+?)\.?$", text, re.MULTILINE)
    return found[1] if found else ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="m1-nano", help="a bundled model, a checkpoint folder, hf:..., openai:...")
    parser.add_argument("problem")
    parser.add_argument("--no-steps", action="store_true", help="show the answer alone")
    given = parser.parse_args()
    try:
        print(solve_problem(given.problem, not given.no_steps, model=given.model))
    except M1AgentError as error:
        print(f"maths_tutor: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
