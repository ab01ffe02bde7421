"""Equations and systems to a sentence such as `x = -2 or x = 2`."""

from __future__ import annotations

from typing import Any

from m1tools.symbolic.backend import sympy
from m1tools.symbolic.build import build, symbol
from m1tools.symbolic.errors import MathsError
from m1tools.symbolic.parser import Node
from m1tools.symbolic.phrases import Problem
from m1tools.symbolic.printing import approximate, decimal_digits, is_gaussian, render

MAX_DEGREE = 100
_MAX_EXACT_CHARACTERS = 40
_STARTS = (1.0, 0.1, -1.0, 3.0, -3.0)


def solve(problem: Problem) -> str:
    """Every solution found, or what is true instead: "no solution", "true for every x"."""
    values = {symbol(name, real=False): build(node, real=False) for name, node in problem.at}
    equations = [_difference(node).subs(values) for node in problem.statements]
    names = sorted({str(name) for equation in equations for name in equation.free_symbols})
    if not names:
        return "true for every value" if all(sympy.simplify(equation) == 0 for equation in equations) else "no solution"
    if len(equations) == 1 and len(problem.variables) < 2:
        return _solve_one(problem, equations[0], symbol(_unknown(problem, names), real=False))
    return _solve_system(problem, equations, [symbol(name, real=False) for name in problem.variables or names])


def _difference(node: Node) -> Any:
    if node.op != "=":
        return build(node, real=False)
    return build(node.args[0], real=False) - build(node.args[1], real=False)


def _unknown(problem: Problem, names: list[str]) -> str:
    if problem.variables:
        if problem.variables[0] not in names:
            raise MathsError(f"{problem.variables[0]} is not in the equation. Its variables are: {', '.join(names)}.")
        return problem.variables[0]
    return next((name for name in ("x", "y", "z", "t") if name in names), names[0])


def _solve_one(problem: Problem, equation: Any, unknown: Any) -> str:
    if sympy.simplify(equation) == 0:
        return f"true for every {unknown}"
    if equation.is_polynomial(unknown) and sympy.degree(equation, unknown) > MAX_DEGREE:
        raise MathsError(f"the degree is too high: the limit is {MAX_DEGREE}. Solve a smaller equation.")
    numeric = equation.free_symbols == {unknown}
    if numeric and _only_inside_trigonometry(equation, unknown) and (text := _periodic(equation, unknown)):
        return text
    mixed = numeric and _mixes_trigonometry(equation, unknown)
    found = None if mixed else _exact(equation, unknown)
    if not found and equation.is_polynomial(unknown) and sympy.degree(equation, unknown) < 1:
        return "no solution"
    if not found and numeric and (roots := _numeric(equation, unknown)):
        return " or ".join(f"{unknown} ≈ {root}" for root in roots)
    if found is None or (not found and equation.is_polynomial(unknown)):
        raise MathsError("no way to solve this equation is known. Simplify it.")
    if numeric and any(_unwieldy(value) for value in found):
        if equation.is_polynomial(unknown):
            found = list(sympy.Poly(equation, unknown).nroots(n=20, maxsteps=200))
    if not found:
        return "no solution"
    if numeric:
        found = sorted(found, key=_order)
    text = " or ".join(_assignment(problem, unknown, value) for value in found)
    unreal = numeric and not any(value.is_real or abs(sympy.im(value.evalf(20))) < 1e-15 for value in found)
    return f"{text} (no real solution)" if unreal else text


def _exact(equation: Any, unknown: Any) -> list[Any] | None:
    if equation.has(sympy.Abs, sympy.sign):
        unknown, plain = sympy.Symbol(unknown.name, real=True), unknown
        equation = equation.subs(plain, unknown)
    try:
        return list(sympy.solve(equation, unknown))
    except NotImplementedError:
        return None


def _unwieldy(value: Any) -> bool:
    return value.has(sympy.CRootOf) or sympy.count_ops(value) > 12


def _order(value: Any) -> tuple[float, ...]:
    real, imaginary = value.evalf(20).as_real_imag()
    return (float(bool(abs(imaginary) > 1e-15)), float(real), float(imaginary))


def _assignment(problem: Problem, name: Any, value: Any) -> str:
    """`x = 2`, `x = 1/2 = 0.5`, `x = sqrt(2) ≈ 1.41421` or `x ≈ 1.1673`."""
    if value.free_symbols or value.is_Integer or is_gaussian(value):
        return f"{name} = {render(value, decimal=problem.decimal)}"
    if digits := decimal_digits(value):
        return f"{name} = {digits}" if problem.decimal else f"{name} = {render(value)} = {digits}"
    decimals = approximate(value)
    exact = "" if value.has(sympy.Float) else render(value)
    if not exact or len(exact) > _MAX_EXACT_CHARACTERS or (problem.decimal and value.is_Rational):
        return f"{name} ≈ {decimals}"
    return f"{name} = {exact}" if decimals is None or exact == decimals else f"{name} = {exact} ≈ {decimals}"


def _only_inside_trigonometry(equation: Any, unknown: Any) -> bool:
    functions = equation.atoms(sympy.sin, sympy.cos, sympy.tan)
    return bool(functions) and not equation.subs(dict.fromkeys(functions, sympy.Dummy())).has(unknown)


def _mixes_trigonometry(equation: Any, unknown: Any) -> bool:
    """Sums such as `cos(x) - x`, which no exact method solves and the search for one is long."""
    trigonometric = equation.has(sympy.sin, sympy.cos, sympy.tan) and not _only_inside_trigonometry(equation, unknown)
    return bool(trigonometric) and bool(sympy.factor(equation).as_coeff_Mul()[1].is_Add)


def _periodic(equation: Any, unknown: Any) -> str | None:
    """Families of solutions of a trigonometric equation over the reals, or None when they have another form."""
    real = sympy.Symbol(unknown.name, real=True)
    found = sympy.solveset(equation.subs(unknown, real), real, sympy.S.Reals)
    if found is sympy.S.EmptySet:
        return "no real solution"
    families = found.args if isinstance(found, sympy.Union) else (found,)
    if not all(isinstance(family, sympy.ImageSet) and family.base_set is sympy.S.Integers for family in families):
        return None
    counter = sympy.Symbol("n")
    texts = [render(sympy.expand(family.lamda(counter))) for family in families]
    return " or ".join(f"{unknown} = {text}" for text in sorted(texts, key=len)) + " (n any integer)"


def _numeric(equation: Any, unknown: Any) -> list[str]:
    """Real roots that Newton's method reaches from a few starting points."""
    found: dict[str, float] = {}
    for start in _STARTS:
        try:
            root = sympy.nsolve(equation, unknown, start)
        except (ValueError, ZeroDivisionError, TypeError):
            continue
        if root.is_real and (text := approximate(root)):
            found[text] = float(root)
    return sorted(found, key=lambda text: found[text])


def _solve_system(problem: Problem, equations: list[Any], unknowns: list[Any]) -> str:
    try:
        found = list(sympy.solve(equations, unknowns, dict=True))
    except NotImplementedError:
        raise MathsError("no way to solve this system is known. Use fewer or simpler equations.") from None
    if not found and all(equation.is_polynomial(*unknowns) for equation in equations):
        return "no solution"
    if not found:
        raise MathsError("no solution of this system was found. Use simpler equations.")
    texts = [
        ", ".join(_assignment(problem, name, solution[name]) for name in unknowns if name in solution)
        for solution in found
    ]
    return " or ".join(sorted(texts)) or "true for every value"
