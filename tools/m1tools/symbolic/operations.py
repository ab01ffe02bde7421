"""What each operation does with a problem, inside the worker."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

from m1tools.symbolic.backend import manualintegrate, mpmath, sympy
from m1tools.symbolic.build import build, symbol
from m1tools.symbolic.errors import MathsError
from m1tools.symbolic.phrases import Problem, read
from m1tools.symbolic.printing import MAX_INTEGER_DIGITS, approximate, decimal_digits, is_gaussian, render
from m1tools.symbolic.solving import solve

_UNDEFINED = (sympy.nan, sympy.zoo)


def answer(expression: str, operation: str) -> str:
    """The result of an operation as text. Raises MathsError with the problem and the remedy."""
    problem = read(expression, operation)
    return _OPERATIONS[problem.operation](problem)


def _substituted(problem: Problem, value: Any) -> Any:
    if not problem.at:
        return value
    values = {symbol(name): build(node) for name, node in problem.at}
    result = value.subs(values, simultaneous=True)
    if result.has(*_UNDEFINED):
        raise MathsError("undefined at that point (division by zero). Choose another value.")
    return result


def _shown(problem: Problem, value: Any) -> str:
    """A number exactly and, where that helps, as a decimal; any other expression as it is."""
    if value.has(*_UNDEFINED):
        raise MathsError("undefined: division by zero or infinity minus infinity. Check the expression.")
    if value.is_Integer and len(str(abs(int(value)))) > MAX_INTEGER_DIGITS:
        return f"≈ {approximate(value)}"
    if value.free_symbols or value.is_Integer or value.has(sympy.oo, -sympy.oo) or is_gaussian(value):
        return render(value, decimal=problem.decimal)
    if digits := decimal_digits(value):
        return digits if problem.decimal else f"{render(value)} = {digits}"
    decimals = approximate(value)
    if decimals is None or (problem.decimal and value.is_Rational):
        return f"≈ {decimals}" if decimals else render(value)
    exact = render(value)
    return exact if exact == decimals else f"{exact} ≈ {decimals}" if len(exact) <= 60 else f"≈ {decimals}"


def _arithmetic(combine: Callable[[Any, Any], Any]) -> Callable[[Problem], str]:
    def compute(problem: Problem) -> str:
        return _shown(problem, sympy.expand(reduce(combine, [build(node) for node in problem.statements])))

    return compute


def _divide(left: Any, right: Any) -> Any:
    if right.is_zero:
        raise MathsError("division by zero. Divide by another number.")
    return left / right


def _evaluate(problem: Problem) -> str:
    node = problem.statements[0]
    if node.op == "=":
        difference = sympy.simplify(build(node.args[0]) - build(node.args[1]))
        return "true" if difference == 0 else "false"
    value = _substituted(problem, build(node))
    if not value.free_symbols:
        return _shown(problem, _tidied(value))
    return _shown(problem, min(sympy.expand(value), sympy.simplify(value), value, key=sympy.count_ops))


def _tidied(value: Any) -> Any:
    return value if value.is_Rational else sympy.radsimp(sympy.expand(sympy.simplify(value)))


def _simplify(problem: Problem) -> str:
    node = problem.statements[0]
    if node.op == "=":
        return " = ".join(_shown(problem, sympy.simplify(build(side))) for side in node.args)
    return _shown(problem, sympy.simplify(_substituted(problem, build(node))))


def _factor(problem: Problem) -> str:
    node = problem.statements[0]
    if node.op == "=":
        return " = ".join(render(sympy.factor(build(side)), decimal=problem.decimal) for side in node.args)
    value = _substituted(problem, build(node))
    if value.is_Integer and abs(value) > 1:
        return _prime_factors(int(value))
    return _shown(problem, sympy.factor(value))


def _prime_factors(value: int) -> str:
    factors: dict[Any, int] = sympy.factorint(abs(value))
    parts = [f"{prime}^{power}" if power > 1 else str(prime) for prime, power in sorted(factors.items())]
    if len(parts) == 1 and "^" not in parts[0] and value > 0:
        return f"{value} is prime"
    return ("-1 * " if value < 0 else "") + " * ".join(parts)


def variable_of(problem: Problem, *values: Any) -> Any:
    """The named variable, the only one, or x, y, z, t in this order."""
    if problem.variables:
        return symbol(problem.variables[0])
    names = sorted({str(name) for value in values for name in value.free_symbols})
    preferred = next(
        (name for name in ("x", "y", "z", "t", *(names if len(names) == 1 else ())) if name in names), None
    )
    if preferred is None and names:
        raise MathsError(f"which variable: {', '.join(names)}? Add 'with respect to {names[0]}'.")
    return symbol(preferred or "x")


def _derivative(problem: Problem) -> str:
    value = build(problem.statements[0])
    result = sympy.diff(value, variable_of(problem, value), problem.order)
    if result.has(sympy.Derivative, sympy.Subs):
        raise MathsError("no derivative in closed form. Use another expression.")
    return _shown(problem, _substituted(problem, _neat(result)))


def _neat(value: Any) -> Any:
    """The form that the rules of calculus give; fractions over one denominator where that is shorter."""
    value = sympy.powsimp(value)
    if not sympy.denom(sympy.together(value)).free_symbols:
        return value
    return min(value, sympy.factor(value), key=sympy.count_ops)


def _integral(problem: Problem) -> str:
    value = build(problem.statements[0])
    variable = variable_of(problem, value)
    if problem.bounds is None:
        result = _antiderivative(value, variable)
        if result.has(sympy.Integral, sympy.meijerg):
            raise MathsError("no closed form of this integral is known. Give bounds ('from 0 to 1') for a number.")
        return f"{render(result, decimal=problem.decimal)} + C"
    low, high = (build(bound) for bound in problem.bounds)
    result = sympy.integrate(value, (variable, low, high))
    if result.is_infinite:
        return f"the integral diverges ({render(result)})"
    if result.has(*_UNDEFINED):
        return "the integral diverges"
    if result.has(sympy.Integral, sympy.meijerg, sympy.Piecewise):
        return _quadrature(value, variable, low, high)
    return _shown(problem, sympy.simplify(result))


def _quadrature(value: Any, variable: Any, low: Any, high: Any) -> str:
    def integrand(at: Any) -> Any:
        return mpmath.mpmathify(value.evalf(20, subs={variable: sympy.Float(at, 25)}))

    if value.free_symbols - {variable} or not all(bound.is_number for bound in (low, high)):
        raise MathsError("no closed form of this integral is known. Give numbers for the other variables.")
    ends = [mpmath.mpmathify(bound.evalf(20)) for bound in (low, high)]
    result, error = mpmath.quad(integrand, ends, error=True)
    if not abs(error) < 1e-7 * (1 + abs(result)):
        raise MathsError("no value of this integral is known. Use a simpler integrand.")
    return f"≈ {approximate(sympy.sympify(result))}"


def _antiderivative(value: Any, variable: Any) -> Any:
    """By the rules taught at school where they suffice, expanded where that is shorter."""
    result = _general(manualintegrate(value, variable))
    if result.has(sympy.Integral):
        result = _general(sympy.integrate(value, variable))
    expanded = sympy.expand(result)
    return expanded if result.is_polynomial(variable) else min(result, expanded, key=sympy.count_ops)


def _general(result: Any) -> Any:
    """The result without its special cases: of each choice the branch that excludes single values (`n != -1`)."""
    return result.replace(sympy.Piecewise, _general_branch)


def _general_branch(*branches: Any) -> Any:
    for branch, condition in branches:
        if isinstance(condition, sympy.Ne) or condition == sympy.true:
            return branch
    return branches[-1][0]


def _limit(problem: Problem) -> str:
    value = build(problem.statements[0])
    if problem.point is None:
        raise MathsError("say where the limit is taken, for example 'sin(x)/x as x -> 0'.")
    variable, point = symbol(problem.variables[0]), build(problem.point)
    if point.is_infinite or problem.side != "+-":
        return _limit_shown(problem, _one_sided(value, variable, point, "-" if problem.side == "-" else "+"))
    left, right = (_one_sided(value, variable, point, side) for side in "-+")
    if left != right and sympy.simplify(left - right) != 0:
        return f"does not exist (left: {render(left)}, right: {render(right)})"
    return _limit_shown(problem, right)


def _one_sided(value: Any, variable: Any, point: Any, side: str) -> Any:
    return sympy.limit(value, variable, point, side)


def _limit_shown(problem: Problem, result: Any) -> str:
    if result.has(sympy.AccumBounds, sympy.nan) or isinstance(result, sympy.AccumBounds):
        return "does not exist (it oscillates)"
    if result.has(sympy.Limit):
        raise MathsError("this limit could not be computed. Use a simpler expression.")
    return _shown(problem, sympy.simplify(result))


def _solve(problem: Problem) -> str:
    return solve(problem)


_OPERATIONS: dict[str, Callable[[Problem], str]] = {
    "add": _arithmetic(lambda a, b: a + b),
    "subtract": _arithmetic(lambda a, b: a - b),
    "multiply": _arithmetic(lambda a, b: a * b),
    "divide": _arithmetic(_divide),
    "derivative": _derivative,
    "integral": _integral,
    "evaluate": _evaluate,
    "simplify": _simplify,
    "factor": _factor,
    "solve": _solve,
    "limit": _limit,
}
