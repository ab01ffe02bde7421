"""The words around an expression: which variable, which bounds, which point."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal, get_args

from m1tools.symbolic import bounds
from m1tools.symbolic.errors import MathsError
from m1tools.symbolic.lexer import normalise
from m1tools.symbolic.parser import Node, parse, parse_one

Operation = Literal[
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
]
OPERATIONS: tuple[Operation, ...] = get_args(Operation)
MAX_CHARACTERS = 1_000
MAX_ORDER = 20


@dataclass(frozen=True, slots=True)
class Problem:
    """`statements` are expressions or equations; `at` are substitutions; `decimal` when the numbers were decimals."""

    operation: Operation
    statements: tuple[Node, ...]
    variables: tuple[str, ...] = ()
    order: int = 1
    bounds: tuple[Node, Node] | None = None
    point: Node | None = None
    side: Literal["+", "-", "+-"] = "+-"
    at: tuple[tuple[str, Node], ...] = ()
    decimal: bool = False

    def nodes(self) -> tuple[Node, ...]:
        extra = (*(self.bounds or ()), *((self.point,) if self.point else ()), *(value for _, value in self.at))
        return (*self.statements, *extra)


_VARIABLE = r"([A-Za-z](?:_?\w{1,8})?)"
_FILLER = re.compile(
    r"^\s*(?:what(?:'s| is| are)?|calculate|compute|find|evaluate|eval|simplify|simplified form|solve|factori[sz]e|"
    r"factor|"
    r"expand|please|the|value|result|sum|difference|product|quotient|add|subtract|multiply|divide|equation|system|"
    r"expression|function|of|for|by:?|roots?|solutions?|zeros)(?=[\s:(-]|$):?\s*",
    re.IGNORECASE,
)
_VERBS: dict[Operation, re.Pattern[str]] = {
    "derivative": re.compile(
        r"^\s*(?:(?:first|second|third|fourth) )?(?:derivative|differentiate|diff)\b(?: of\b)?:?|"
        r"^\s*d(?:\^\(?\d\)?)? ?[a-z]?/ ?d[a-z]",
        re.IGNORECASE,
    ),
    "integral": re.compile(
        r"^\s*(?:(?:in)?definite )?(?:integral|antiderivative|integrate|int)(?![a-z])(?: of\b)?:?", re.IGNORECASE
    ),
    "limit": re.compile(r"^\s*lim(?:it)?\b(?: of\b)?:?", re.IGNORECASE),
}
_RESPECT = re.compile(rf"[,\s]*\b(?:with respect to|w\.?r\.?t\.?|in terms of)\s+{_VARIABLE}(?=\s|,|$)", re.IGNORECASE)
_AT = re.compile(r"[,\s]+(?:at|when|where|if|given|with|for)\s+([A-Za-z]\w{0,8}\s*=.*)$", re.IGNORECASE)
_FOR = re.compile(rf"[,\s]+(?:solve\s+)?for\s+{_VARIABLE}(?:\s*(?:,|and|,)\s*{_VARIABLE})*\s*$", re.IGNORECASE)
_SOLVE_FOR = re.compile(rf"^\s*solve\s+for\s+{_VARIABLE}\s*[:,]\s*(.+)$", re.IGNORECASE)
_FUNCTION_HEAD = re.compile(r"^\s*(?:[fgh]\s*'*\s*\(\s*[a-z]\s*\)|y)\s*=(?!=)\s*", re.IGNORECASE)
_ORDERS = {"first": 1, "second": 2, "third": 3, "fourth": 4}


def read(expression: str, operation: str) -> Problem:
    """The problem that a text states. Raises MathsError for anything that is not a bounded piece of mathematics."""
    if operation not in OPERATIONS:
        raise MathsError(f"unknown operation {operation!r}. Use one of: {', '.join(OPERATIONS)}.")
    if len(expression) > MAX_CHARACTERS:
        raise MathsError(
            f"the expression is too long: {len(expression):,} characters, the limit is {MAX_CHARACTERS:,}. Shorten it."
        )
    text = _strip(normalise(expression))
    if not text:
        raise MathsError("the expression is empty. Send one such as 3x^2 + 2x - 1.")
    problem = _interpret(text, operation)
    for node in problem.nodes():
        bounds.check(node)
    return replace(problem, decimal=bool(re.search(r"\d\.\d|(?<!\d)\.\d", text)))


def _strip(text: str) -> str:
    text = _SOLVE_FOR.sub(r"\2 for \1", text)
    text = re.sub(r"[?.\s:]+$", "", text)
    while (shorter := _FILLER.sub("", text, count=1)) != text:
        text = shorter
    return text.strip()


def _interpret(text: str, operation: Operation) -> Problem:
    for verb, pattern in _VERBS.items():
        if operation in {verb, "evaluate", "simplify"} and pattern.match(text):
            operation = verb
            break
    if operation == "derivative":
        return _derivative(text)
    if operation == "integral":
        return _integral(text)
    if operation == "limit":
        return _limit(text)
    if operation == "solve":
        return _solve(text)
    if operation in {"add", "subtract", "multiply", "divide"}:
        return _arithmetic(text, operation)
    return _expression(text, operation)


def _substitutions(text: str) -> tuple[str, tuple[tuple[str, Node], ...]]:
    """Split "x^2 at x = 3" into the expression and the values of its variables."""
    found = _AT.search(text)
    if not found:
        return text, ()
    return text[: found.start()], _values(parse(found[1]))


def _values(equations: tuple[Node, ...]) -> tuple[tuple[str, Node], ...]:
    if not all(equation.op == "=" and equation.args[0].op == "symbol" for equation in equations):
        raise MathsError("give values as 'x = 3'.")
    return tuple((equation.args[0].text, equation.args[1]) for equation in equations)


def _expression(text: str, operation: Operation) -> Problem:
    text, at = _substitutions(_FUNCTION_HEAD.sub("", text) if operation != "evaluate" or "(" in text[:3] else text)
    first, *rest = parse(text)
    if rest and not at and first.op != "=":
        at, rest = _values(tuple(rest)), []
    if rest:
        raise MathsError(f"{operation} takes one expression, got {len(rest) + 1}. Send them one at a time.")
    if first.op == "=" and operation == "evaluate" and first.symbols():
        return Problem("solve", (first,), at=at)
    return Problem(operation, (first,), at=at)


def _arithmetic(text: str, operation: Operation) -> Problem:
    if operation == "subtract" and (found := re.fullmatch(r"(.+?)\s+from\s+(.+)", text)):
        return Problem(operation, (parse_one(found[2]), parse_one(found[1])))
    text = re.sub(r"\s+(?:to|by|with|from)\s+", " , ", text)
    if operation in {"multiply", "divide"}:
        text = re.sub(r"^(-?[\d.]+)\s+(-[\d.]+)$", r"\1, \2", text)
    statements = parse(text, thousands=not re.fullmatch(r"[\d,]+", text))
    if len(statements) == 1 and statements[0].op == "number":
        if not re.fullmatch(r"[\d,]+", text) or not (statements := parse(text))[1:]:
            raise MathsError(f"{operation} needs two numbers, for example '{_EXAMPLES[operation]}'.")
    if any(statement.op == "=" for statement in statements):
        raise MathsError(f"{operation} takes numbers, got an equation. Use the operation solve.")
    return Problem(operation, statements)


_EXAMPLES: dict[str, str] = {"add": "3 + 4", "subtract": "10 - 3", "multiply": "3 * 4", "divide": "12 / 4"}


def _solve(text: str) -> Problem:
    text, at = _substitutions(text)
    names: tuple[str, ...] = ()
    if found := _FOR.search(text) or _RESPECT.search(text):
        names = tuple(re.findall(r"\b(?!for\b|and\b|solve\b|in\b|terms\b|of\b)[A-Za-z]\w*", found[0].split("for")[-1]))
        text = text[: found.start()]
    equations = parse(text)
    if len(equations) > 1 and not names:
        names = tuple(node.text for node in equations if node.op == "symbol")
        equations = tuple(node for node in equations if node.op != "symbol")
    return Problem("solve", equations, variables=names, at=at)


def _derivative(text: str) -> Problem:
    order, variables = 1, ()
    if ordinal := re.match(r"\s*(first|second|third|fourth)\s+", text, re.IGNORECASE):
        order, text = _ORDERS[ordinal[1].lower()], text[ordinal.end() :]
    if quotient := re.match(r"\s*d(?:\^\(?(\d+)\)?)?\s*[a-z]?\s*/\s*d\s*([A-Za-z])(?:\^\(?\d+\)?)?\s*(?:of\b)?", text):
        order, variables, text = int(quotient[1] or 1), (quotient[2],), text[quotient.end() :]
    text = _strip(_VERBS["derivative"].sub("", text, count=1))
    text, at = _substitutions(text)
    if respect := _RESPECT.search(text):
        variables, text = (respect[1],), text[: respect.start()] + text[respect.end() :]
    first, *rest = parse(_FUNCTION_HEAD.sub("", text))
    if rest and rest[0].op == "symbol":
        variables = (rest.pop(0).text,)
    if rest and rest[0].op == "number" and re.fullmatch(r"\d{1,9}", rest[0].text):
        order = int(rest.pop(0).text)
    if rest and not at:
        at, rest = _values(tuple(rest)), []
    if rest or first.op == "=":
        raise MathsError("derivative takes one expression, for example '3x^2 + 2x - 1' or 'x^2 y with respect to y'.")
    if order > MAX_ORDER:
        raise MathsError(f"the order {order} is too high: the limit is {MAX_ORDER}.")
    return Problem("derivative", (first,), variables=variables, order=order, at=at)


_BETWEEN = re.compile(
    rf"(?:(?:,|\bfor\b|\bas\b)\s*{_VARIABLE}\s*(?:goes|in)?|,)?\s*\b(?:from|between|over|on)\b\s*\(?\s*"
    rf"(?:{_VARIABLE}\s*=\s*)?(.+?)\s*(?:,|\bto\b|->|\band\b)\s*(?:{_VARIABLE}\s*=\s*)?(.+?)\s*$",
    re.IGNORECASE,
)
_TUPLE = re.compile(rf",\s*\(\s*{_VARIABLE}\s*,([^(),]+),([^(),]+)\)\s*$")
_MEASURE = re.compile(r"(?:^|(?<=[\s*)\w|!]))\*?\s*d([A-Za-z])\s*$")
_LIMITS_BELOW = re.compile(r"^\s*_\s*(\([^()]+\)|-?\w+)\s*\^\s*(\([^()]+\)|-?\w+)")


def _integral(text: str) -> Problem:
    text = _strip(_VERBS["integral"].sub("", text, count=1))
    variables: tuple[str, ...] = ()
    limits: tuple[Node, Node] | None = None
    if respect := _RESPECT.search(text):
        variables, text = (respect[1],), text[: respect.start()] + text[respect.end() :]
    if below := _LIMITS_BELOW.match(text):
        limits, text = (parse_one(below[1]), parse_one(below[2])), text[below.end() :]
    elif found := _TUPLE.search(text):
        variables, limits = (found[1],), (parse_one(found[2]), parse_one(found[3]))
        text = text[: found.start()]
    elif found := _BETWEEN.search(text):
        if variable := found[1] or found[2]:
            variables = (variable,)
        limits = (parse_one(found[3]), parse_one(_closed(found[5])))
        text = text[: found.start()]
    if measure := _MEASURE.search(text):
        variables, text = (measure[1],), text[: measure.start()]
    first, *rest = parse(_FUNCTION_HEAD.sub("", text) or "1")
    if rest and rest[0].op == "symbol":
        variables = (rest.pop(0).text,)
    if len(rest) == 2:
        limits, rest = (rest[0], rest[1]), []
    if rest or first.op == "=":
        raise MathsError("integral takes one expression, for example 'x^2' or 'x^2 from 0 to 1'.")
    return Problem("integral", (first,), variables=variables, bounds=limits)


def _closed(text: str) -> str:
    """Drop the bracket that closes an interval "[0, 1]"."""
    return text[:-1] if text.count(")") > text.count("(") else text


_APPROACHES = rf"{_VARIABLE}\s*(?:->|approaches|tends to|goes to)\s*"
_TRAILING = re.compile(rf"(?:[,\s]+(?:as|when|for)\s+|\s*,\s*|\s+){_APPROACHES}(.+?)$", re.IGNORECASE)
_LEADING = re.compile(rf"^[\s_(]*{_APPROACHES}([^()\s]+(?:\([^()]*\))?)[\s),]+(?:of\s+)?", re.IGNORECASE)
_SIDES = re.compile(r"\s*(?:from\s+)?(?:the\s+)?(?:\b(left|right|below|above)\b|\^?\(?([+-])\)?)\s*$", re.IGNORECASE)


def _limit(text: str) -> Problem:
    text = _strip(_VERBS["limit"].sub("", re.sub(r"^\s*(lim(?:it)?)_", r"\1 ", text), count=1))
    if found := _LEADING.match(text):
        variable, target, text = found[1], found[2], text[found.end() :]
    elif found := _TRAILING.search(text):
        variable, target, text = found[1], found[2], text[: found.start()]
    else:
        first, *rest = parse(text)
        if len(rest) == 2 and rest[0].op == "symbol":
            return Problem("limit", (first,), variables=(rest[0].text,), point=rest[1])
        if len(rest) == 1 and rest[0].op == "=" and rest[0].args[0].op == "symbol":
            return Problem("limit", (first,), variables=(rest[0].args[0].text,), point=rest[0].args[1])
        raise MathsError("say where the limit is taken, for example 'sin(x)/x as x -> 0'.")
    target, side = _side(target)
    return Problem(
        "limit", (parse_one(_FUNCTION_HEAD.sub("", text)),), variables=(variable,), point=parse_one(target), side=side
    )


def _side(target: str) -> tuple[str, Literal["+", "-", "+-"]]:
    found = _SIDES.search(target)
    if not found:
        return target, "+-"
    word = (found[1] or found[2]).lower()
    return target[: found.start()], "-" if word in {"left", "below", "-"} else "+"
