"""What people write against what sympy builds, and what is printed against what is read back."""

from __future__ import annotations

from typing import Any

import sympy
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from m1tools.symbolic import MathsError
from m1tools.symbolic.build import build
from m1tools.symbolic.lexer import normalise
from m1tools.symbolic.parser import parse_one
from m1tools.symbolic.printing import render

X, Y = (sympy.Symbol(name, real=True) for name in "xy")
_FUNCTIONS = {"sin": sympy.sin, "cos": sympy.cos, "exp": sympy.exp, "sqrt": sympy.sqrt, "atan": sympy.atan}

Written = tuple[str, Any, int]  # text, expression, how tightly the text binds (1 sum, 2 product, 3 power, 4 atom)


def _wrapped(written: Written, level: int) -> str:
    text, _, binds = written
    return text if binds >= level else f"({text})"


def _sum(left: Written, right: Written, sign: str) -> Written:
    value = left[1] + right[1] if sign in {" + ", "+"} else left[1] - right[1]
    return f"{_wrapped(left, 1)}{sign}{_wrapped(right, 2)}", value, 1


def _product(left: Written, right: Written, sign: str) -> Written:
    if sign in {"/", " ÷ "}:
        assume(not right[1].is_zero)
        return f"{_wrapped(left, 2)}{sign}{_wrapped(right, 3)}", left[1] / right[1], 2
    after = _wrapped(right, 3)
    if sign == "":
        after = after if after[0].isalpha() and _wrapped(left, 2)[-1].isdigit() else f"({right[0]})"
        sign = " "
    return f"{_wrapped(left, 2)}{sign}{after}", left[1] * right[1], 2


def _power(base: Written, exponent: int, style: str) -> Written:
    digits = (
        str(exponent).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")) if style == "²" else f"{style}{exponent}"
    )
    return f"{_wrapped(base, 4)}{digits}", base[1] ** exponent, 3


def _call(argument: Written, name: str, style: str) -> Written:
    if style == "|":
        assume("|" not in argument[0])
        return f"|{argument[0]}|", sympy.Abs(argument[1]), 4
    if style == " " and argument[2] == 4 and argument[0].isalnum():
        return f"({name} {argument[0]})", _FUNCTIONS[name](argument[1]), 4
    return f"{name}({argument[0]})", _FUNCTIONS[name](argument[1]), 4


_ATOMS: st.SearchStrategy[Written] = st.one_of(
    st.integers(0, 2000).map(lambda n: (str(n), sympy.Integer(n), 4)),
    st.integers(1000, 9_999_999).map(lambda n: (f"{n:,}", sympy.Integer(n), 4)),
    st.integers(1, 999).map(lambda n: (f"{n / 100:.2f}", sympy.Rational(n, 100), 4)),
    st.sampled_from([("x", X, 4), ("y", Y, 4), ("π", sympy.pi, 4), ("e", sympy.E, 4)]),
)


def _larger(smaller: st.SearchStrategy[Written]) -> st.SearchStrategy[Written]:
    return st.one_of(
        st.builds(_sum, smaller, smaller, st.sampled_from([" + ", "+", " - ", "-", " − "])),
        st.builds(_product, smaller, smaller, st.sampled_from(["*", " × ", "·", "/", " ÷ ", ""])),
        st.builds(_power, smaller, st.integers(0, 3), st.sampled_from(["^", "**", "²"])),
        st.builds(_call, smaller, st.sampled_from(sorted(_FUNCTIONS)), st.sampled_from(["(", " ", "|"])),
    )


_WRITTEN = st.recursive(_ATOMS, _larger, max_leaves=7)


def _same(left: Any, right: Any) -> bool:
    if left == right:
        return True
    for x, y in ((0.37, 1.21), (2.3, 0.6)):
        a, b = (side.evalf(30, subs={X: x, Y: y}) for side in (left, right))
        if not abs(a - b) <= 1e-12 * (1 + abs(b)):
            return False
    return True


@settings(max_examples=250, deadline=None)
@given(_WRITTEN)
def test_human_writing_is_read_as_sympy_builds_it(written: Written) -> None:
    text, expected, _ = written
    assume(not expected.has(sympy.zoo, sympy.nan))
    try:
        read = build(parse_one(normalise(text)))
    except MathsError as error:
        assume("division by zero" not in str(error))
        raise
    assert _same(read, expected), (text, read)


@settings(max_examples=250, deadline=None)
@given(_WRITTEN)
def test_what_is_printed_reads_back(written: Written) -> None:
    _, expression, _ = written
    assume(not expression.has(sympy.zoo, sympy.nan))
    assume(all(abs(number.p) < 10**30 and number.q < 10**30 for number in expression.atoms(sympy.Rational)))
    try:
        text = render(expression)
    except MathsError as error:
        assume("too long" not in str(error))
        raise
    assert _same(build(parse_one(normalise(text))), expression), text
