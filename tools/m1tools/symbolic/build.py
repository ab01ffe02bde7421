"""Nodes to sympy expressions. Nothing is evaluated but through the constructors listed here."""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import partial
from typing import Any

from m1tools.symbolic.backend import sympy
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


_ZERO = sympy.Integer(0)


def _round(value: Any, digits: Any = _ZERO) -> Any:
    scale = sympy.Integer(10) ** digits
    return sympy.sign(value) * sympy.floor(abs(value) * scale + sympy.Rational(1, 2)) / scale


def _power(base: Any, exponent: Any) -> Any:
    if base.is_zero and exponent.is_negative:
        raise MathsError("division by zero. Check the expression.")
    return base**exponent


def _floor_divide(left: Any, right: Any) -> Any:
    return sympy.floor(_divide(left, right))


def _gcd(*values: Any) -> Any:
    return sympy.gcd(list(values))


def _lcm(*values: Any) -> Any:
    return sympy.lcm(list(values))


_APPLY: dict[str, Callable[..., Any]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": _divide,
    "frac": _divide,
    "//": _floor_divide,
    "^": _power,
    "mod": _remainder,
    "negate": operator.neg,
    "ln": _logarithm,
    "log2": partial(_logarithm, base=sympy.Integer(2)),
    "log10": partial(_logarithm, base=sympy.Integer(10)),
    "cbrt": partial(_root, degree=sympy.Integer(3)),
    "root": _root,
    "round": _round,
    "ceil": sympy.ceiling,
    "abs": sympy.Abs,
    "min": sympy.Min,
    "max": sympy.Max,
    "gcd": _gcd,
    "lcm": _lcm,
    **{
        name: getattr(sympy, name)
        for name in (
            "sin cos tan cot sec csc asin acos atan acot asec acsc sinh cosh tanh coth sech csch asinh acosh atanh "
            "exp sqrt sign floor factorial gamma erf re im conjugate binomial atan2"
        ).split()
    },
}
