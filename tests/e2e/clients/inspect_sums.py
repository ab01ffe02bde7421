"""A task of inspect_ai: two sums, with a tool; what the answer must contain is the score."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from operator import add, mul
from typing import Literal

from inspect_ai import Task, task
from inspect_ai.dataset import Sample
from inspect_ai.scorer import includes
from inspect_ai.solver import generate, use_tools
from inspect_ai.tool import tool


@tool
def calculate_math() -> Callable[..., Awaitable[str]]:
    async def execute(expression: str, operation: Literal["evaluate", "simplify", "derivative"]) -> str:
        """Perform mathematical calculations.

        Args:
            expression: Mathematical expression to evaluate.
            operation: Type of mathematical operation.
        """
        left, sign, right = expression.split()
        return str({"*": mul, "+": add}[sign](int(left), int(right)))

    return execute


@task
def sums() -> Task:
    samples = [Sample("What is 12 times 11?", target="132"), Sample("What is 7 plus 8?", target="15")]
    return Task(dataset=samples, solver=[use_tools(calculate_math()), generate()], scorer=includes())
