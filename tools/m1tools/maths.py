"""The maths toolset: arithmetic, algebra and calculus through sympy, safe to give to any model.

Expressions are read as people write them and never evaluated as Python; `m1tools.symbolic` bounds their size and kills
a computation that takes too long. Results are exact, in the same style (`6x + 2`), with a decimal beside them where
that helps: `1/3 ≈ 0.333333`, `5/2 = 2.5`. Decimals in, decimals out. `log` is the natural logarithm, angles are in
radians unless marked `°`, `e`, `i` and `pi` are the constants.
"""

from __future__ import annotations

from typing import Literal

from m1agent import ToolError, Toolset, tool
from m1tools.symbolic import MathsError, compute


@tool
def calculate_math(
    expression: str,
    operation: Literal[
        "add",
        "subtract",
        "multiply",
        "divide",
        "derivative",
        "integral",
        "evaluate",
        "simplify",
        "factor",
        "solve",
        "limit",
    ],
) -> str:
    """Perform mathematical calculations.

    Args:
        expression: Mathematical expression to evaluate.
        operation: Type of mathematical operation.
    """
    try:
        return compute(expression, operation)
    except MathsError as error:
        raise ToolError(str(error)) from None


toolset = Toolset("maths", [calculate_math])
