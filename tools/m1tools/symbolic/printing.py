"""sympy expressions as people write them: `6x + 2`, `x^3/3`, `2sqrt(3)`, `e^(2x) sin(x)`.

What is printed reads back: `parse` and `build` of the text give the expression again.
"""

from __future__ import annotations

from typing import Any

from m1tools.symbolic.backend import StrPrinter, sympy
from m1tools.symbolic.errors import MathsError

MAX_CHARACTERS = 400
MAX_INTEGER_DIGITS = 60
_NAMES = {"log": "ln", "ceiling": "ceil", "Min": "min", "Max": "max", "LambertW": "W"}


def render(expression: Any, *, decimal: bool = False) -> str:
    """The text of an expression; with `decimal`, rationals that terminate are written as decimals."""
    printer = _Printer({"order": "lex"})
    printer.decimal = decimal
    text: str = printer.doprint(expression)
    if len(text) > MAX_CHARACTERS:
        raise MathsError(f"the result is too long to show ({len(text):,} characters). Ask for a smaller one.")
    return text


def approximate(value: Any, digits: int = 6) -> str | None:
    """Decimal text of a number with at least `digits` significant digits, or None when it has none."""
    number = value.evalf(digits + 20, maxn=200)
    real, imaginary = number.as_real_imag()
    if not (real.is_Float or real.is_zero) or not (imaginary.is_Float or imaginary.is_zero):
        return None
    if imaginary.is_zero or abs(imaginary) < 1e-18 * (1 + abs(real)):
        return _float(real, digits)
    sign = "-" if imaginary < 0 else "+"
    return (
        f"{_float(real, digits)} {sign} {_float(abs(imaginary), digits)}i" if real else f"{_float(imaginary, digits)}i"
    )


def _float(value: Any, digits: int) -> str:
    if value == 0:
        return "0"
    exponent = int(sympy.floor(sympy.log(abs(value), 10).evalf(20)))
    if not -5 <= exponent < 15:
        mantissa, power = f"{sympy.Float(value, digits + 10):.{digits - 1}e}".split("e")
        return f"{_trimmed(mantissa)}*10^{int(power)}" if int(power) >= 0 else f"{_trimmed(mantissa)}*10^({int(power)})"
    places = max(digits - exponent - 1, 4 if exponent > 2 else 0)
    return _trimmed(f"{sympy.Float(value, 30):.{places}f}")


def _trimmed(text: str) -> str:
    return text.rstrip("0").rstrip(".") if "." in text else text


def decimal_digits(value: Any, limit: int = 12) -> str | None:
    """A rational as a terminating decimal of at most `limit` places, or None."""
    if not value.is_Rational:
        return None
    scaled = value * sympy.Integer(10) ** limit
    if scaled.q != 1:
        return None
    digits = str(abs(scaled.p)).rjust(limit + 1, "0")
    return ("-" if value < 0 else "") + _trimmed(f"{digits[:-limit]}.{digits[-limit:]}")


def is_gaussian(value: Any) -> bool:
    """True for a + bi with rational a and b, which needs no decimal unless it is real."""
    return bool(value.has(sympy.I)) and all(part.is_Rational for part in value.as_real_imag())


class _Printer(StrPrinter):
    decimal = False

    def _print_Integer(self, expr: Any) -> str:
        digits = str(abs(expr.p)) if expr.p.bit_length() < 14_000 else None
        if digits is None or len(digits) > MAX_INTEGER_DIGITS:
            return approximate(sympy.Integer(expr)) or "?"
        return f"-{digits}" if expr.p < 0 else digits

    def _print_Rational(self, expr: Any) -> str:
        if self.decimal and (text := decimal_digits(expr)):
            return text
        return f"{self._print(sympy.Integer(expr.p))}/{self._print(sympy.Integer(expr.q))}"

    def _print_Zero(self, expr: Any) -> str:
        return "0"

    _print_One = _print_NegativeOne = _print_Integer
    _print_Half = _print_Rational

    def _print_Exp1(self, expr: Any) -> str:
        return "e"

    def _print_ImaginaryUnit(self, expr: Any) -> str:
        return "i"

    def _print_Infinity(self, expr: Any) -> str:
        return "infinity"

    def _print_NegativeInfinity(self, expr: Any) -> str:
        return "-infinity"

    def _print_Abs(self, expr: Any) -> str:
        inner = self._print(expr.args[0])
        return f"abs({inner})" if "|" in inner else f"|{inner}|"

    def _print_exp(self, expr: Any) -> str:
        return f"e^{self._exponent(expr.args[0])}"

    def _print_factorial(self, expr: Any) -> str:
        return f"factorial({self._print(expr.args[0])})"

    def _print_Mod(self, expr: Any) -> str:
        return f"({self._print(expr.args[0])}) mod ({self._print(expr.args[1])})"

    def _print_Function(self, expr: Any) -> str:
        name = expr.func.__name__
        return f"{_NAMES.get(name, name)}({', '.join(self._print(arg) for arg in expr.args)})"

    def _print_LatticeOp(self, expr: Any) -> str:
        arguments = sorted(expr.args, key=sympy.default_sort_key)
        return f"{_NAMES[expr.func.__name__]}({', '.join(self._print(arg) for arg in arguments)})"

    _print_Min = _print_Max = _print_LatticeOp

    def _print_Pow(self, expr: Any, rational: bool = False) -> str:
        base, exponent = expr.args
        if exponent == sympy.S.Half:
            return f"sqrt({self._print(base)})"
        if exponent.is_Rational and exponent.is_negative:
            return self._print_Mul(expr)
        return f"{self._atom(base)}^{self._exponent(exponent)}"

    def _exponent(self, expr: Any) -> str:
        text = self._print(expr)
        simple = (expr.is_Integer and expr.is_nonnegative and text.isdigit()) or expr.is_Symbol
        return text if simple or expr in {sympy.E, sympy.pi} else f"({text})"

    def _atom(self, expr: Any) -> str:
        """A base or factor: in parentheses unless nothing around it could bind to its inside."""
        text = self._print(expr)
        plain = expr.is_Symbol or expr.is_NumberSymbol or expr is sympy.I or (expr.is_Integer and text.isdigit())
        root = expr.is_Pow and expr.exp == sympy.S.Half
        applied = expr.is_Function and not isinstance(expr, sympy.exp | sympy.Mod)
        return text if plain or root or applied else f"({text})"

    def _print_Mul(self, expr: Any) -> str:
        coefficient, rest = expr.as_coeff_Mul(rational=True)
        factors = [] if rest == 1 else list(sympy.Mul.make_args(rest))
        factors = sympy.Mul(*factors, evaluate=False).as_ordered_factors() if len(factors) > 1 else factors
        above = [factor for factor in factors if not _inverted(factor)]
        below = [1 / factor for factor in factors if _inverted(factor)]
        sign, top, bottom = self._coefficient(coefficient)
        numerator = self._product(top, above)
        if bottom == "" and not below:
            return sign + numerator
        denominator = self._product(bottom, below)
        single = len(below) + (bottom != "") == 1
        return f"{sign}{numerator}/{denominator if single else f'({denominator})'}"

    def _coefficient(self, value: Any) -> tuple[str, str, str]:
        sign = "-" if value < 0 else ""
        value = abs(value)
        if self.decimal and value.q != 1 and (text := decimal_digits(value)):
            return sign, text, ""
        numerator, denominator = sympy.Integer(value.p), sympy.Integer(value.q)
        return (
            sign,
            "" if numerator == 1 else self._print(numerator),
            "" if denominator == 1 else self._print(denominator),
        )

    def _product(self, coefficient: str, factors: list[Any]) -> str:
        text = coefficient
        for factor in factors:
            part = self._factor(factor) if len(factors) > 1 or coefficient or factor.is_Add else self._power(factor)
            text += _joint(text, part) + part
        return text or "1"

    def _factor(self, factor: Any) -> str:
        return f"({self._print(factor)})" if factor.is_Add or isinstance(factor, sympy.Mod) else self._power(factor)

    def _power(self, factor: Any) -> str:
        return self._print(factor)


def _inverted(factor: Any) -> bool:
    if not factor.is_Pow or isinstance(factor, sympy.exp):
        return False
    return bool(factor.exp.is_Rational and factor.exp.is_negative)


def _joint(before: str, after: str) -> str:
    """What stands between two factors so that they neither merge nor read as a call."""
    if not before:
        return ""
    if after[0].isdigit() or after[0] == "-":
        return "*"
    if after[0] == "(":
        return "" if before[-1] in ")0123456789" else " "
    return "" if before[-1].isdigit() and "^" not in before and "_" not in before else " "
