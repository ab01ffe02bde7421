"""Maths requests: expressions people write, ways to ask, one tool in several guises."""

from __future__ import annotations

import random
import re
from typing import Any

from m1agent.messages import ToolSpec
from training.data.requests import Request, command, question
from training.data.words import Words

OPERATIONS = "add subtract multiply divide derivative integral evaluate simplify factor solve limit".split()
DEMO_EXPRESSION = "3x^2+2x-1"  # asked in the demo, so never part of the training data

ASKED: dict[str, tuple[str, ...]] = {
    "derivative": ("q:what is the derivative of {e}", "find the derivative of {e}", "differentiate {e}", "derivative of {e}",
                   "compute the derivative of {e} with respect to {v}", "take the derivative of {e}", "q:what is the derivative of f({v}) = {e}",
                   "q:what do you get if you differentiate {e}", "calculate the derivative of {e}", "q:what's the derivative of {e}",
                   "find d/d{v} of {e}", "differentiate the function {e}", "differentiate {e} with respect to {v}", "q:what is d/d{v} of {e}",
                   "q:how do I differentiate {e}", "determine the derivative of {e}", "find the slope function of {e}", "give me the derivative of {e}",
                   "work out the derivative of {e}", "q:what is the rate of change of {e}", "get the first derivative of {e}"),
    "integral": ("q:what is the integral of {e}", "integrate {e}", "find the integral of {e}", "compute the integral of {e} with respect to {v}",
                 "find the antiderivative of {e}", "q:what is the antiderivative of {e}", "integral of {e}", "calculate the integral of {e}",
                 "evaluate the integral of {e}", "integrate the function {e}", "q:what is the indefinite integral of {e}", "q:what's the integral of {e}",
                 "work out the integral of {e}", "integrate {e} with respect to {v}", "give me the antiderivative of {e}"),
    "evaluate": ("q:what is {e}", "evaluate {e}", "calculate {e}", "compute {e}", "q:how much is {e}", "work out {e}", "q:what does {e} equal",
                 "q:what is the value of {e}", "find the value of {e}", "{e} = ?", "q:what's {e}", "tell me what {e} is", "evaluate the expression {e}"),
    "simplify": ("simplify {e}", "simplify the expression {e}", "q:what is the simplified form of {e}", "q:can {e} be simplified", "reduce {e} to its simplest form",
                 "write {e} in a simpler form", "q:how does {e} simplify", "q:what does {e} simplify to", "make {e} simpler", "find the simplest form of {e}"),
    "factor": ("factor {e}", "factorize {e}", "factorise {e}", "find the factors of {e}", "q:what are the factors of {e}", "factor the polynomial {e}",
               "write {e} as a product of factors", "q:how does {e} factor", "q:what is the factored form of {e}", "factor the expression {e}", "factor out {e}"),
    "solve": ("solve {e}", "solve {e} for {v}", "solve the equation {e}", "find the roots of {e}", "q:what are the roots of {e}", "q:for which {v} is {e}",
              "q:what is {v} if {e}", "find {v} such that {e}", "q:what are the solutions of {e}", "find all solutions of {e}", "q:what values of {v} satisfy {e}",
              "solve for {v}: {e}", "find {v} if {e}", "q:what is the solution of {e}", "find the zeros of {e}", "q:what does {v} equal if {e}"),
    "limit": ("q:what is the limit of {e}", "find the limit of {e}", "compute the limit of {e}", "limit of {e}", "evaluate the limit of {e}", "calculate the limit of {e}",
              "q:what's the limit of {e}", "determine the limit of {e}", "work out the limit of {e}", "take the limit of {e}"),
    "add": ("q:what is {a} plus {b}", "add {a} and {b}", "q:what is the sum of {a} and {b}", "find the sum of {a} and {b}", "add {a} to {b}", "q:what is {a} + {b}",
            "q:how much is {a} plus {b}", "sum {a} and {b}", "add up {a} and {b}", "calculate {a} + {b}", "q:what do {a} and {b} add up to"),
    "subtract": ("q:what is {a} minus {b}", "subtract {b} from {a}", "q:what is the difference between {a} and {b}", "q:what is {a} - {b}", "take {b} away from {a}",
                 "q:how much is {a} minus {b}", "find the difference of {a} and {b}", "calculate {a} - {b}", "q:what is left if I take {b} from {a}"),
    "multiply": ("q:what is {a} times {b}", "multiply {a} by {b}", "multiply {a} and {b}", "q:what is the product of {a} and {b}", "q:what is {a} * {b}",
                 "q:how much is {a} times {b}", "find the product of {a} and {b}", "q:what is {a} x {b}", "calculate {a} * {b}", "q:what is {a} multiplied by {b}"),
    "divide": ("q:what is {a} divided by {b}", "divide {a} by {b}", "q:what is {a} / {b}", "q:what is the quotient of {a} and {b}", "q:how much is {a} divided by {b}",
               "q:how many times does {b} go into {a}", "calculate {a} / {b}", "split {a} by {b}", "find the quotient of {a} and {b}"),
}  # fmt: skip
# `3 + 4` belongs to `add`: no wording of `evaluate` may ask for it.
SIMPLE = re.compile(r"-?[\d.]+ ?[-+*/] ?[\d.]+")
SIGNS = {"add": "+", "subtract": "-", "multiply": "*", "divide": "/"}
ANSWERS = {
    "derivative": "The derivative of {e} is {r}.",
    "integral": "The integral of {e} is {r}.",
    "limit": "The limit of {e} is {r}.",
    "solve": "The solution of {e} is {r}.",
    "factor": "{e} factors as {r}.",
    "simplify": "{e} simplifies to {r}.",
}
APPROACHES = ("as {v} approaches {p}", "as {v} goes to {p}", "as {v} tends to {p}", "as {v} -> {p}")
SPOKEN = (
    ("the square root of {n}", "sqrt({n})"), ("{n} squared", "{n}^2"), ("{n} cubed", "{n}^3"), ("{n} to the power of {m}", "{n}^{m}"),
    ("the factorial of {m}", "{m}!"), ("{m} factorial", "{m}!"), ("{m} percent of {n}", "{m}% of {n}"), ("{n} to the power {m}", "{n}^{m}"),
    ("the cube root of {n}", "cbrt({n})"), ("the square of {n}", "{n}^2"), ("half of {n}", "{n} / 2"), ("the absolute value of -{n}", "abs(-{n})"),
)  # fmt: skip


def request(rng: random.Random, words: Words, tool: ToolSpec | None = None) -> Request:
    """One maths request for `tool`, by default `calculate_math` itself or one of its guises."""
    tool = tool or spec(rng, words)
    operation = rng.choice(OPERATIONS if rng.random() < 0.6 else ("derivative", "integral", "evaluate", "solve"))
    said, expression = _ask(rng, operation)
    if "".join(expression.split()).replace("*", "") == DEMO_EXPRESSION:
        return request(rng, words, tool)
    names = list(tool.parameters["properties"])
    arguments = {names[0]: expression, names[1]: operation}
    if tool.parameters["properties"][names[0]].get("enum"):
        arguments = {names[0]: operation, names[1]: expression}
    result = _result(rng, operation)
    answer = ANSWERS.get(operation, "{e} = {r}.").format(e=expression, r=result)
    return Request(said, tool, arguments, result, answer)


def spec(rng: random.Random, words: Words) -> ToolSpec:
    """The shipped tool half of the time, else the same thing under other names."""
    if rng.random() < 0.5:
        return _spec("calculate_math", "Perform mathematical calculations.", "expression", "Mathematical expression to evaluate.",
                     "operation", "Type of mathematical operation.")  # fmt: skip
    name = rng.choice(
        (
            "calculator",
            "maths",
            "math_tool",
            "do_math",
            "compute",
            "maths__calculate",
            "symbolic_math",
            words.invented(),
        )
    )
    first = rng.choice(("expression", "expr", "formula", "input", "term", words.invented()))
    second = rng.choice(("operation", "op", "action", "kind", "task", words.invented()))
    description = rng.choice(("Perform mathematical calculations.", "Do maths.", "Calculate with numbers and formulas.", "Symbolic mathematics.",
                              "Mathematics: algebra and calculus.", "Work out a mathematical expression."))  # fmt: skip
    shown = rng.choice(
        (
            "Mathematical expression to evaluate.",
            "The expression.",
            "What to calculate with.",
            "The mathematical expression.",
        )
    )
    return _spec(name, description, first, shown, second, rng.choice(("Type of mathematical operation.", "The operation.", "What to do with it.")), swap=rng.random() < 0.2)  # fmt: skip


def _spec(
    name: str, description: str, first: str, shown: str, second: str, chosen: str, swap: bool = False
) -> ToolSpec:
    properties: dict[str, Any] = {
        first: {"type": "string", "description": shown},
        second: {"type": "string", "description": chosen, "enum": list(OPERATIONS)},
    }
    if swap:
        properties = dict(reversed(properties.items()))
    return ToolSpec(name, description, {"type": "object", "properties": properties, "required": list(properties)})


def _ask(rng: random.Random, operation: str) -> tuple[str, str]:
    template = rng.choice(ASKED[operation])
    if operation in SIGNS:
        a, b = _number(rng), _number(rng)
        return _say(rng, template.format(a=a, b=b)), f"{a} {SIGNS[operation]} {b}"
    variable = rng.choice("xxxxxxytznabuk")
    if operation == "evaluate":
        if rng.random() < 0.25:
            spoken, written = rng.choice(SPOKEN)
            numbers = {"n": _number(rng), "m": str(rng.randint(2, 30))}
            return _say(rng, template.format(e=spoken.format(**numbers))), written.format(**numbers)
        while SIMPLE.fullmatch(expression := _arithmetic(rng)):
            pass
    elif operation == "solve":
        expression = (
            _equation(rng, variable)
            if "root" not in template and "zero" not in template
            else _polynomial(rng, variable)
        )
    elif operation == "limit":
        point = rng.choice(("0", "1", "2", "infinity", "-infinity", "oo", str(rng.randint(-9, 9)), "pi", "∞"))
        expression = _formula(rng, variable) + " " + rng.choice(APPROACHES).format(v=variable, p=point)
    elif operation == "factor":
        expression = _polynomial(rng, variable) if rng.random() < 0.9 else str(rng.randint(10, 5000))
    else:
        expression = _formula(rng, variable)
        if operation == "integral" and rng.random() < 0.2:
            expression += (
                f" from {rng.randint(-5, 3)} to {rng.choice((str(rng.randint(4, 10)), 'pi', 'infinity', '1'))}"
            )
    return _say(rng, template.format(e=expression, v=variable)), expression


def _say(rng: random.Random, text: str) -> str:
    return question(rng, text[2:]) if text.startswith("q:") else command(rng, text)


def _number(rng: random.Random) -> str:
    kind = rng.random()
    if kind < 0.75:
        return str(rng.randint(0, 10 ** rng.choice((1, 2, 2, 3, 4))))
    if kind < 0.9:
        return f"{rng.uniform(0, 10 ** rng.choice((1, 2, 3))):.{rng.choice((1, 2))}f}"
    return rng.choice(("-", "1/", "")) + str(rng.randint(2, 99))


def _arithmetic(rng: random.Random) -> str:
    space = rng.choice((" ", " ", ""))
    text = _factor(rng)
    for _ in range(rng.choice((1, 1, 2, 3))):
        sign = rng.choice("++--**//^")
        text += f"^{rng.randint(2, 9)}" if sign == "^" else f"{space}{sign}{space}{_factor(rng)}"
    return text


def _factor(rng: random.Random) -> str:
    kind = rng.random()
    if kind < 0.65:
        return _number(rng).lstrip("-")
    if kind < 0.8:
        return f"({rng.randint(0, 99)} {rng.choice('+-*/')} {rng.randint(1, 99)})"
    if kind < 0.95:
        return f"{rng.choice(('sqrt', 'sin', 'cos', 'log', 'ln', 'exp', 'tan', 'abs'))}({rng.choice((str(rng.randint(0, 200)), 'pi', 'pi/4', 'pi/' + str(rng.randint(2, 12))))})"
    return f"{rng.randint(2, 12)}{rng.choice(('!', '^2', ' * pi', '%'))}"


def _polynomial(rng: random.Random, v: str, degree: int = 0) -> str:
    degree = degree or rng.choice((1, 2, 2, 2, 3, 3, 4, 5))
    space, power, times = (
        rng.choice((" ", " ", " ", "")),
        rng.choice(("^", "^", "^", "**")),
        rng.choice(("", "", "", "*")),
    )
    terms: list[str] = []
    for exponent in range(degree, -1, -1):
        if exponent not in (degree, 0) and rng.random() < 0.4:
            continue
        coefficient = rng.randint(1, rng.choice((9, 9, 99)))
        base = v if exponent == 1 else f"{v}{power}{exponent}"
        shown = str(coefficient) if exponent == 0 else base if coefficient == 1 else f"{coefficient}{times}{base}"
        sign = rng.choice("+-") if terms else rng.choice(("", "", "", "", "-"))
        terms.append(f"{space}{sign}{space}{shown}" if terms else sign + shown)
    if len(terms) > 1 and rng.random() < 0.15:
        terms.pop()
    return "".join(terms)


def _formula(rng: random.Random, v: str) -> str:
    kind = rng.random()
    if kind < 0.45:
        return _polynomial(rng, v)
    space = rng.choice((" ", " ", ""))
    parts = [_atom(rng, v) for _ in range(rng.choice((1, 2, 2, 3)))]
    text = parts[0]
    for part in parts[1:]:
        sign = rng.choice(("+", "-", "*", "/", "*"))
        text += f"{space}{sign}{space}{part}"
    return text


def _atom(rng: random.Random, v: str) -> str:
    kind = rng.random()
    inner = rng.choice(
        (v, v, v, f"{rng.randint(2, 9)}{v}", f"{v}^2", f"{v} + {rng.randint(1, 9)}", f"{rng.randint(2, 9)}*{v}")
    )
    if kind < 0.45:
        name = rng.choice(("sin", "cos", "tan", "ln", "log", "exp", "sqrt", "sin", "cos"))
        return f"{rng.choice(('', '', str(rng.randint(2, 9))))}{name}({inner})"
    if kind < 0.6:
        return rng.choice(
            (
                f"e^{v}",
                f"{v}^{rng.randint(2, 9)}",
                f"e^({rng.randint(2, 9)}{v})",
                f"e^(-{v})",
                f"1/{v}",
                f"{rng.randint(2, 9)}^{v}",
            )
        )
    if kind < 0.8:
        return f"({_polynomial(rng, v, rng.choice((1, 1, 2)))}){rng.choice(('', '', '^2', '^3'))}"
    return rng.choice(
        (
            v,
            str(rng.randint(1, 20)),
            f"{rng.randint(2, 20)}{v}",
            f"{v}^2",
            f"{rng.randint(2, 9)}{v}^{rng.randint(2, 6)}",
        )
    )


def _equation(rng: random.Random, v: str) -> str:
    left = _polynomial(rng, v, rng.choice((1, 1, 2, 2, 3))) if rng.random() < 0.85 else _formula(rng, v)
    right = rng.choice(("0", "0", str(rng.randint(-20, 100)), str(rng.randint(1, 20)), _polynomial(rng, v, 1)))
    return f"{left}{rng.choice((' = ', ' = ', '='))}{right}"


def _result(rng: random.Random, operation: str) -> str:
    """Something the tool might say: its shape matters, its truth does not, for an answer only passes it on."""
    kind = rng.random()
    if kind < 0.2:
        return rng.choice((_number(rng), str(rng.randint(10**5, 10 ** rng.randint(6, 24)))))
    if kind < 0.35:
        return f"{rng.randint(1, 99)}/{rng.randint(2, 99)} ≈ {rng.uniform(0, 50):.{rng.choice((4, 5, 6))}f}"
    if kind < 0.45:
        return rng.choice(
            (
                f"sqrt({rng.randint(2, 99)}) ≈ {rng.uniform(1, 10):.5f}",
                "pi/4 ≈ 0.785398",
                "infinity",
                "e ≈ 2.71828",
                "1",
                "0",
                "-infinity",
                "pi/2 ≈ 1.5708",
                "does not exist (left: -infinity, right: infinity)",
                f"division by zero. Check the {rng.choice(('expression', 'input'))}.",
                f"2^{rng.randint(2, 9)} * 3 * {rng.randint(5, 97)}",
            )
        )
    if operation == "solve" and kind < 0.9:
        return _roots(rng)
    v = rng.choice("xxxyt")
    text = _polynomial(rng, v) if rng.random() < 0.5 else _formula(rng, v)
    if operation == "factor":
        text = f"({_polynomial(rng, v, 1)})({_polynomial(rng, v, rng.choice((1, 2)))})"
    return text.replace("**", "^").replace("*", rng.choice((" ", ""))) + (" + C" if operation == "integral" else "")


def _roots(rng: random.Random) -> str:
    roots = [
        rng.choice(
            (str(rng.randint(-50, 50)), f"{rng.randint(1, 9)}/{rng.randint(2, 9)}", f"-sqrt({rng.randint(2, 30)})")
        )
        for _ in range(rng.choice((1, 1, 2, 2, 3)))
    ]
    if rng.random() < 0.2:
        return " or ".join(f"x ≈ {rng.uniform(-9, 9):.5f}" for _ in roots)
    variable = rng.choice("xxxyt")
    return " or ".join(f"{variable} = {root}" for root in roots)
