"""Real inputs with answers checked by sympy equivalence; the answers are read back with sympy's own parser."""

from __future__ import annotations

import re
from typing import Any

import pytest
import sympy
from sympy.parsing.sympy_parser import (
    convert_xor,
    factorial_notation,
    implicit_multiplication_application,
    parse_expr,
    standard_transformations,
)

from m1agent import ToolError
from m1tools.maths import calculate_math, toolset
from m1tools.symbolic import compute

_NAMES: dict[str, Any] = {
    **{name: sympy.Symbol(name, real=True) for name in ["x", "y", "z", "t", "a", "b", "c", "m", "n", "E", "C", "k"]},
    "e": sympy.E, "i": sympy.I, "ln": sympy.log, "infinity": sympy.oo, "abs": sympy.Abs,
}  # fmt: skip
_RULES = (*standard_transformations, convert_xor, implicit_multiplication_application, factorial_notation)


def value(text: str) -> Any:
    text = re.sub(r"\|([^|]*)\|", r"abs(\1)", text)
    return parse_expr(text, local_dict=_NAMES, transformations=_RULES)


def answer(expression: str, operation: str) -> str:
    """The tool's answer, given time enough for a machine that is busy with other work."""
    return compute(expression, operation, seconds=10.0)


def same(left: Any, right: Any) -> bool:
    return left == right or sympy.simplify(left - right) == 0


def exact_and_decimal(text: str) -> tuple[str, str | None]:
    exact, _, decimal = text.partition(" ≈ ") if " ≈ " in text else text.partition(" = ")
    return exact, decimal or None


def number_matches(shown: str, expected: Any) -> bool:
    exact, decimal = exact_and_decimal(shown)
    if decimal is not None and abs(value(decimal) - expected) > 1e-5 * abs(expected):
        return False
    return same(value(exact), expected)


EXPRESSIONS = [
    ("derivative", "3x^2 + 2x - 1", "6x + 2"),
    ("derivative", "2 sin x", "2cos(x)"),
    ("derivative", "sin(x)^2", "2 sin(x) cos(x)"),
    ("derivative", "sin^2 x", "sin(2x)"),
    ("derivative", "sin²x", "sin(2x)"),
    ("derivative", "x²", "2x"),
    ("derivative", "x⁻¹", "-1/x^2"),
    ("derivative", "ln x", "1/x"),
    ("derivative", "log(x, 2)", "1/(x ln(2))"),
    ("derivative", "e^(2x)", "2 e^(2x)"),
    ("derivative", "derivative of x^3", "3x^2"),
    ("derivative", "What is the derivative of x^3?", "3x^2"),
    ("derivative", "x^2 y with respect to y", "x^2"),
    ("derivative", "x^2 y, y", "x^2"),
    ("derivative", "d/dx (x^3 + 1)", "3x^2"),
    ("derivative", "d²/dx² x^4", "12x^2"),
    ("derivative", "second derivative of x^4", "12x^2"),
    ("derivative", "f(x) = 5x**3", "15x^2"),
    ("derivative", "y = 7x", "7"),
    ("derivative", "x^3 at x = 2", "12"),
    ("derivative", "x/(x+1)", "1/(x+1)^2"),
    ("derivative", "x^2 sin x", "2x sin(x) + x^2 cos(x)"),
    ("derivative", "\\frac{x^2}{2}", "x"),
    ("derivative", "sin x cos x", "cos(2x)"),
    ("derivative", "t^2 + 3t", "2t + 3"),
    ("derivative", "sin^-1 x", "1/sqrt(1 - x^2)"),
    ("derivative", "42", "0"),
    ("integral", "x^2 from 0 to 1", "1/3"),
    ("integral", "x^2 between 0 and 3", "9"),
    ("integral", "x^2, x, 0, 1", "1/3"),
    ("integral", "x^2, (x, 0, 1)", "1/3"),
    ("integral", "∫_0^1 x² dx", "1/3"),
    ("integral", "\\int_{0}^{\\pi} \\sin x dx", "2"),
    ("integral", "x^2 dx from x=0 to x=3", "9"),
    ("integral", "x sin x from 0 to pi", "pi"),
    ("integral", "exp(-x^2) from -oo to oo", "sqrt(pi)"),
    ("integral", "1/x from 1 to e", "1"),
    ("integral", "|x| from -1 to 2", "5/2"),
    ("integral", "a x^2 from 0 to b", "a b^3/3"),
    ("add", "3 + 4", "7"),
    ("add", "3, 4", "7"),
    ("add", "3 and 4", "7"),
    ("add", "3 4", "7"),
    ("add", "1/2 + 1/3", "5/6"),
    ("add", "1.5, 2.25", "3.75"),
    ("add", "1,000 + 5", "1005"),
    ("add", "100,200", "300"),
    ("add", "the sum of 5 and 8", "13"),
    ("add", "2x + 3x", "5x"),
    ("subtract", "10, 3", "7"),
    ("subtract", "3 from 10", "7"),
    ("subtract", "5 − 8", "-3"),
    ("multiply", "3 × 4", "12"),
    ("multiply", "3 by 4", "12"),
    ("multiply", "3 -4", "-12"),
    ("multiply", "(x+1), (x-1)", "x^2 - 1"),
    ("divide", "10 by 4", "5/2"),
    ("divide", "144 ÷ 12", "12"),
    ("divide", "1/3", "1/3"),
    ("evaluate", "√2", "sqrt(2)"),
    ("evaluate", "sqrt 50", "5 sqrt(2)"),
    ("evaluate", "2π", "2 pi"),
    ("evaluate", "5!", "120"),
    ("evaluate", "1,000.5", "1000.5"),
    ("evaluate", "3 × 4 ÷ 2", "6"),
    ("evaluate", "12 % of 50", "6"),
    ("evaluate", "15%", "15/100"),
    ("evaluate", "17 % 5", "2"),
    ("evaluate", "0.1 + 0.2", "3/10"),
    ("evaluate", "|−5|", "5"),
    ("evaluate", "|2 - |3 - 7||", "2"),
    ("evaluate", "-3^2", "-9"),
    ("evaluate", "2^3^2", "512"),
    ("evaluate", "2^-2", "1/4"),
    ("evaluate", "(2+3)(4-1)", "15"),
    ("evaluate", "3(4+5)", "27"),
    ("evaluate", "sin(pi/6)", "1/2"),
    ("evaluate", "cos 60°", "1/2"),
    ("evaluate", "log10 1000", "3"),
    ("evaluate", "log_2(8)", "3"),
    ("evaluate", "what is 5 plus 3?", "8"),
    ("evaluate", "7 squared", "49"),
    ("evaluate", "10 divided by 4", "5/2"),
    ("evaluate", "square root of 16", "4"),
    ("evaluate", "½ + ¼", "3/4"),
    ("evaluate", "cbrt(-8)", "-2"),
    ("evaluate", "i^2", "-1"),
    ("evaluate", "5 choose 2", "10"),
    ("evaluate", "2.5e-3 * 4", "1/100"),
    ("evaluate", "x^2 + y when x = 3 and y = 2", "11"),
    ("evaluate", "2^100", "2^100"),
    ("evaluate", "7 // 2", "3"),
    ("simplify", "(x^2 - 1)/(x - 1)", "x + 1"),
    ("simplify", "sin(x)^2 + cos(x)^2", "1"),
    ("simplify", "6/8", "3/4"),
    ("simplify", "1/2x", "x/2"),
    ("limit", "sin(x)/x as x -> 0", "1"),
    ("limit", "lim x→∞ 1/x", "0"),
    ("limit", "lim(x->0) sin(x)/x", "1"),
    ("limit", "\\lim_{x \\to 0} \\frac{\\sin x}{x}", "1"),
    ("limit", "(x^2-4)/(x-2), x, 2", "4"),
    ("limit", "(1 + 1/n)^n as n -> infinity", "e"),
    ("limit", "1/x as x -> 0+", "infinity"),
    ("limit", "(1 - cos x)/x^2 as x approaches 0", "1/2"),
]


@pytest.mark.parametrize(("operation", "expression", "expected"), EXPRESSIONS)
def test_value(operation: Any, expression: str, expected: str) -> None:
    shown = answer(expression, operation)
    assert number_matches(shown, value(expected)), shown


INDEFINITE = [
    "x^2", "e^x", "1/x", "2x dx", "∫ x^2 dx", "3x^2 + 2x dx", "sin(x)^2", "tan x", "x e^x", "ln x", "sqrt(x) ln(x)",
    "1/(x^2+1)", "1/(x^3+1)", "cos(2x) dx", "x^2 sin x", "sqrt(1 - x^2)", "5", "e^x sin x", "x^n", "(2x+1)^5", "1/x dx",
]  # fmt: skip


@pytest.mark.parametrize("expression", INDEFINITE)
def test_antiderivative(expression: str) -> None:
    shown = answer(expression, "integral")
    assert shown.endswith(" + C")
    integrand = value(expression.replace("∫", "").replace("dx", ""))
    slope = sympy.diff(value(shown.removesuffix(" + C")), _NAMES["x"])
    for at in (0.3, 0.71):
        point = {_NAMES["x"]: at, _NAMES["n"]: 3}
        assert abs((slope - integrand).subs(point).evalf()) < 1e-9, shown


SOLUTIONS = [
    ("x = 3", ["3"]),
    ("x^2 - 4 = 0", ["-2", "2"]),
    ("x^2 - 4", ["-2", "2"]),
    ("x² = 2x", ["0", "2"]),
    ("2x + 3 = 7 for x", ["2"]),
    ("solve for x: 2x + 3 = 7", ["2"]),
    ("x^2 - 2 = 0", ["-sqrt(2)", "sqrt(2)"]),
    ("x^2 + 1 = 0", ["-i", "i"]),
    ("e^x = 5", ["ln(5)"]),
    ("2^x = 8", ["3"]),
    ("|x| = 3", ["-3", "3"]),
    ("sqrt(x) = 4", ["16"]),
    ("a*x + b = 0 for x", ["-b/a"]),
    ("E = m c^2 for m", ["E/c^2"]),
    ("0.5x = 2", ["4"]),
    ("a x^2 + b x + c = 0", ["(-b + sqrt(b^2 - 4a c))/(2a)", "(-b - sqrt(b^2 - 4a c))/(2a)"]),
]


@pytest.mark.parametrize(("equation", "expected"), SOLUTIONS)
def test_solutions(equation: str, expected: list[str]) -> None:
    shown = answer(equation, "solve").removesuffix(" (no real solution)")
    found = [value(exact_and_decimal(part.split(" = ", 1)[1])[0]) for part in shown.split(" or ")]
    assert len(found) == len(expected), shown
    for root in map(value, expected):
        assert any(same(root, candidate) for candidate in found), shown


TEXTS = [
    ("solve", "x + y = 3, x - y = 1", "x = 2, y = 1"),
    ("solve", "x^2 + y^2 = 25 and x + y = 7", "x = 3, y = 4 or x = 4, y = 3"),
    ("solve", "x1 + x2 = 3, x1 - x2 = 1", "x1 = 2, x2 = 1"),
    ("solve", "x = x + 1", "no solution"),
    ("solve", "2x = 2x", "true for every value"),
    ("solve", "cos x = x", "x ≈ 0.739085"),
    ("solve", "sin x = 1/2", "x = 2pi n + pi/6 or x = 2pi n + 5pi/6 (n any integer)"),
    ("solve", "x^3 - 3x + 1 = 0", "x ≈ -1.87939 or x ≈ 0.347296 or x ≈ 1.53209"),
    ("evaluate", "2x + 3 = 7", "x = 2"),
    ("evaluate", "2 + 2 = 4", "true"),
    ("evaluate", "0.1 + 0.2", "0.3"),
    ("evaluate", "100!", "≈ 9.33262*10^157"),
    ("evaluate", "1/3", "1/3 ≈ 0.333333"),
    ("divide", "10, 4", "5/2 = 2.5"),
    ("derivative", "3x^2 + 2x - 1", "6x + 2"),
    ("integral", "3x^2", "x^3 + C"),
    ("integral", "1/x from -1 to 1", "the integral diverges"),
    ("integral", "x^x from 0 to 1", "≈ 0.783431"),
    ("factor", "x^2 - 5x + 6", "(x - 3)(x - 2)"),
    ("factor", "2x^2 - 8", "2(x - 2)(x + 2)"),
    ("factor", "360", "2^3 * 3^2 * 5"),
    ("factor", "97", "97 is prime"),
    ("limit", "1/x as x -> 0", "does not exist (left: -infinity, right: infinity)"),
    ("limit", "sin(1/x) as x -> 0", "does not exist (it oscillates)"),
]


@pytest.mark.parametrize(("operation", "expression", "expected"), TEXTS)
def test_text(operation: Any, expression: str, expected: str) -> None:
    assert answer(expression, operation) == expected


ERRORS = [
    ("divide", "10, 0", "division by zero"),
    ("evaluate", "1/0", "division by zero"),
    ("evaluate", "1/x at x = 0", "division by zero"),
    ("evaluate", "five plus 3", "unknown name 'five'"),
    ("evaluate", "", "is empty"),
    ("evaluate", "3 +", "expected a number"),
    ("evaluate", "(3", r"expected '\)'"),
    ("evaluate", "3)", "does not continue"),
    ("evaluate", "sin 2*x", "ambiguous"),
    ("evaluate", "ln(0)", "undefined"),
    ("add", "7", "needs two numbers"),
    ("limit", "1/x", "say where"),
    ("integral", "x^x", "no closed form"),
    ("solve", "x > 3", "inequalities"),
    ("derivative", "a b", "which variable"),
    ("sing", "x", "unknown operation"),
]


@pytest.mark.parametrize(("operation", "expression", "message"), ERRORS)
def test_errors_name_the_problem(operation: Any, expression: str, message: str) -> None:
    with pytest.raises(ToolError, match=message) as caught:
        calculate_math(expression, operation)
    assert len(str(caught.value)) < 200


def test_the_toolset_holds_the_one_tool() -> None:
    (only,) = toolset
    assert only.name == "calculate_math"
    assert only.spec.description == "Perform mathematical calculations."
    assert only.spec.parameters["required"] == ["expression", "operation"]
    assert len(only.spec.parameters["properties"]["operation"]["enum"]) == 11
