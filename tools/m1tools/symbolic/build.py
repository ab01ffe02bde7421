"""Nodes to sympy expressions. Nothing is evaluated but through the constructors listed here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import sympy

from m1tools.symbolic.errors import MathsError
from m1tools.symbolic.parser import Node

_CONSTANTS: dict[str, Any] = {"pi": sympy.pi, "e": sympy.E, "i": sympy.I, "oo": sympy.oo}


def build(node: Node, *, real: bool = True) -> Any:
    """The sympy expression of a node; decimals become exact rationals, and symbols are real unless told otherwise."""
    if node.op == "number":
        return sympy.Rational(node.text)
    if node.op == "symbol":
        return symbol(node.text, real=real)
    if node.op == "constant":
        return _CONSTANTS[node.text]
    if node.op == "=":
        raise MathsError("an equation is not a value here. Use the operation solve.")
    value = _APPLY[node.op](*(build(arg, real=real) for arg in node.args))
    if value.has(sympy.zoo):
        raise MathsError("division by zero. Check the expression.")
    return value


def symbol(name: str, *, real: bool = True) -> Any:
    return sympy.Symbol(name, real=True) if real else sympy.Symbol(name)


def _divide(left: Any, right: Any) -> Any:
    if right.is_zero:
        raise MathsError("division by zero. Check the expression.")
    return left / right


def _remainder(left: Any, right: Any) -> Any:
    if right.is_zero:
        raise MathsError("division by zero. Check the expression.")
    return sympy.Mod(left, right)


def _logarithm(value: Any, base: Any = sympy.E) -> Any:
    if value.is_zero:
        raise MathsError("the logarithm of 0 is undefined.")
    if base.is_zero or base == 1:
        raise MathsError(f"{base} is no base of a logarithm.")
    exponent = _exact_logarithm(value, base)
    return sympy.log(value) / sympy.log(base) if exponent is None else exponent


def _exact_logarithm(value: Any, base: Any) -> Any:
    if not (value.is_Rational and base.is_Rational and value > 0 and base > 0):
        return None
    nearest = sympy.Integer(round(float((sympy.log(value) / sympy.log(base)).evalf(20))))
    return nearest if abs(nearest) < 10_000 and base**nearest == value else None


def _root(value: Any, degree: Any) -> Any:
    odd = degree.is_Integer and degree % 2 == 1
    return -sympy.root(-value, degree) if odd and value.is_negative else sympy.root(value, degree)


def _round(value: Any, digits: Any = sympy.Integer(0)) -> Any:
    scale = sympy.Integer(10) ** digits
    return sympy.sign(value) * sympy.floor(abs(value) * scale + sympy.Rational(1, 2)) / scale


_APPLY: dict[str, Callable[..., Any]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": _divide,
    "frac": _divide,
    "//": lambda a, b: sympy.floor(_divide(a, b)),
    "^": lambda a, b: a**b,
    "mod": _remainder,
    "negate": lambda a: -a,
    "ln": _logarithm,
    "log2": lambda a: _logarithm(a, sympy.Integer(2)),
    "log10": lambda a: _logarithm(a, sympy.Integer(10)),
    "cbrt": lambda a: _root(a, sympy.Integer(3)),
    "root": _root,
    "round": _round,
    "ceil": sympy.ceiling,
    "abs": sympy.Abs,
    "min": sympy.Min,
    "max": sympy.Max,
    "gcd": lambda *values: sympy.gcd(list(values)),
    "lcm": lambda *values: sympy.lcm(list(values)),
    **{
        name: getattr(sympy, name)
        for name in (
            "sin cos tan cot sec csc asin acos atan acot asec acsc sinh cosh tanh coth sech csch asinh acosh atanh "
            "exp sqrt sign floor factorial gamma erf re im conjugate binomial atan2"
        ).split()
    },
}
