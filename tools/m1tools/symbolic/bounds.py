"""How large a value can get, estimated from the nodes before anything is computed."""

from __future__ import annotations

import math
from collections.abc import Callable

from m1tools.symbolic.errors import MathsError
from m1tools.symbolic.parser import Node

MAX_BITS = 20_000  # about 6,000 digits
_CONSTANTS = {"pi": math.pi, "e": math.e, "oo": math.inf}
_FLOAT: dict[str, Callable[[float, float], float]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / b,
    "^": lambda a, b: a**b,
    "frac": lambda a, b: a / b,
}
_FLOAT_ONE: dict[str, Callable[[float], float]] = {
    "negate": lambda a: -a,
    "exp": math.exp,
    "sqrt": math.sqrt,
    "cbrt": math.cbrt,
    "abs": abs,
    "factorial": lambda a: math.gamma(a + 1),
    "gamma": math.gamma,
    "floor": lambda a: a,
    "ceil": lambda a: a,
}


def check(node: Node) -> None:
    """Raise MathsError when an exact value could pass MAX_BITS bits."""
    _bits(node)


def _approximate(node: Node) -> float | None:
    """The value of a constant; inf when it overflows, None when it is unknown."""
    if node.op == "number":
        return _guarded(lambda: float(node.text))
    if node.op == "constant":
        return _CONSTANTS.get(node.text)
    values = [_approximate(arg) for arg in node.args]
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return None
    if len(known) == 2 and node.op in _FLOAT:
        return _guarded(lambda: _FLOAT[node.op](known[0], known[1]))
    if len(known) == 1 and node.op in _FLOAT_ONE:
        return _guarded(lambda: _FLOAT_ONE[node.op](known[0]))
    return None


def _guarded(compute: Callable[[], float | complex]) -> float | None:
    try:
        value = compute()
    except OverflowError:
        return math.inf
    except (ValueError, ZeroDivisionError):
        return None
    return None if isinstance(value, complex) or math.isnan(value) else value


def _bits(node: Node) -> float:
    if node.op == "number":
        return _limited(_number_bits(node.text), node)
    parts = [_bits(arg) for arg in node.args]
    if node.op in {"^", "exp"} and len(parts) == 2:
        exponent = _approximate(node.args[1])
        return _limited(parts[0] * max(1.0, abs(exponent)) if exponent is not None else sum(parts), node)
    if node.op in {"factorial", "gamma", "binomial"}:
        value = _approximate(node.args[0])
        return _limited(_factorial_bits(abs(value)) if value is not None else parts[0], node)
    return _limited(1.0 + sum(parts), node)


def _number_bits(text: str) -> float:
    mantissa, _, exponent = text.lower().partition("e")
    return len(mantissa) * 3.4 + (abs(float(exponent)) * 3.4 if exponent else 0.0)


def _factorial_bits(value: float) -> float:
    return value * math.log2(value + 2)


def _limited(bits: float, node: Node) -> float:
    if bits <= MAX_BITS:
        return bits
    what = {"^": "a power", "factorial": "a factorial", "number": "a number"}.get(node.op, "a value")
    raise MathsError(
        f"too large: {what} in this expression passes {int(MAX_BITS / 3.33):,} digits. Use smaller numbers."
    )
