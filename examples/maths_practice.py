"""Practice problems: a model writes them, sympy checks every answer, and wrong ones are replaced.

python examples/maths_practice.py "quadratic equations" --difficulty easy --count 5 --model path/to/a/checkpoint
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field

from m1agent import Agent, Conversation, M1AgentError
from m1agent.cli_agent import positive
from m1agent.models.base import Model
from m1tools.symbolic import MathsError, compute

EXAMINER = "You write practice problems. The question states all numbers in figures; expression and operation solve it."
NUMBER = re.compile(r"\d+(?:\.\d+)?")
ROUNDS = 4


class Exercise(BaseModel):
    """A practice problem, and how the maths tools solve it."""

    question: str
    expression: str = Field(description="What the tool is given, for example x^2 - 9 = 0.")
    operation: Literal["evaluate", "simplify", "factor", "solve", "derivative", "integral", "limit"]
    answer: str


def generate_practice_problems(
    topic: str, difficulty: str = "easy", count: int = 5, *, model: str | Path | Model
) -> list[Exercise]:
    """Different problems whose answers the maths tools agree with; wrong ones are replaced.

    Raises:
        RunStopped: the model did not answer.
        ValueError: after several rounds there are still too few.
    """
    kept: dict[str, Exercise] = {}
    ask, talk = f"Write {count} {difficulty} practice problems on {topic}.", Conversation()
    with Agent(model, instructions=EXAMINER, output=list[Exercise]) as agent:
        for _ in range(ROUNDS):
            faults: list[str] = []
            for one in agent.run_sync(ask, conversation=talk).unwrap():
                if fault := fault_of(one):
                    faults.append(f"{one.question!r}: {fault}.")
                else:
                    kept[one.question] = one
            if len(kept) >= count:
                return list(kept.values())[:count]
            ask = "\n".join([*faults, f"Write {count - len(kept)} new ones, different from all before."])
    raise ValueError(f"only {len(kept)} of {count} problems could be verified; try a larger model")


def fault_of(exercise: Exercise) -> str:
    """What is wrong with it, or ''."""
    missing = set(NUMBER.findall(exercise.expression)) - set(NUMBER.findall(exercise.question))
    if missing:
        return f"the expression has {', '.join(sorted(missing))}, the question does not"
    try:
        right = compute(exercise.expression, exercise.operation)
        return "" if agree(exercise.answer, right) else f"the answer is {right}, not {exercise.answer}"
    except MathsError as error:
        return str(error)


def agree(answer: str, right: str) -> bool:
    """Whether an answer says the same as a result, value by value: `x = 3, -3` as `x = -3 or x = 3`.

    Raises:
        MathsError: the answer cannot be read.
    """
    given, wanted = _values(answer), _values(right)
    return len(given) == len(wanted) and all(any(_equal(one, value) for one in given) for value in wanted)


def _values(text: str) -> list[str]:
    text = re.sub(r"\b[a-z]\s*=|\+ ?[cC]$", "", text.strip().rstrip("."))
    return [part.strip() for part in re.split(r",|;|\bor\b|\band\b", text)]


def _equal(one: str, value: str) -> bool:
    """`value` may be told in two ways: `5/2 = 2.5`, `1/3 ≈ 0.333333`."""
    spellings = [spelling for part in re.split("[=≈]", value) if (spelling := part.strip())]
    return one in spellings or any(compute(f"({one}) - ({spelling})", "simplify") == "0" for spelling in spellings)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a checkpoint folder, hf:..., openai:...; m1-nano is too small")
    parser.add_argument("topic")
    parser.add_argument("--difficulty", default="easy")
    parser.add_argument("--count", type=positive, default=5)
    given = parser.parse_args()
    try:
        problems = generate_practice_problems(given.topic, given.difficulty, given.count, model=given.model)
    except (M1AgentError, ValueError) as error:
        print(f"maths_practice: {error}", file=sys.stderr)
        return 1
    for number, one in enumerate(problems, 1):
        print(f"{number}. {one.question}\n   {one.answer}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
