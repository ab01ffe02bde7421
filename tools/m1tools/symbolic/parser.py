"""Tokens to nodes: a Pratt parser for the way people write mathematics.

Rules where writings differ: implicit multiplication binds like `*` (`1/2x` is x/2); a function without parentheses
takes the product that follows it (`sin 2x`) up to the next function or operator; `sqrt` takes one factor; `log` is
the natural logarithm; `sin^-1` is the inverse function.
"""

from __future__ import annotations

from dataclasses import dataclass

from m1tools.symbolic.errors import MathsError
from m1tools.symbolic.lexer import ARITY, CONSTANTS, Token, tokenize

MAX_TOKENS = 400
MAX_DEPTH = 40
MAX_SYMBOLS = 10

_INFIX = {"+": (10, 11), "-": (10, 11), "*": (20, 21), "/": (20, 21), "mod": (20, 21), "//": (20, 21), "^": (30, 29)}
_PRODUCT, _POWER, _POSTFIX = 20, 25, 40
_INVERSES = {
    **{name: f"a{name}" for name in ("sin", "cos", "tan", "cot", "sec", "csc", "sinh", "cosh", "tanh")},
}


@dataclass(frozen=True, slots=True)
class Node:
    """`op` is "number", "symbol", "constant" (then `text` says which), an operator, "=" or a function's name."""

    op: str
    args: tuple[Node, ...] = ()
    text: str = ""

    def symbols(self) -> frozenset[str]:
        found = frozenset({self.text}) if self.op == "symbol" else frozenset[str]()
        return found.union(*(arg.symbols() for arg in self.args))


def parse(text: str, *, thousands: bool = True) -> tuple[Node, ...]:
    """Expressions and equations of a normalised text, separated by commas or "and".

    Raises MathsError when the text is no mathematics, or passes MAX_TOKENS, MAX_DEPTH or MAX_SYMBOLS.
    """
    tokens = tokenize(text, thousands=thousands)
    if len(tokens) > MAX_TOKENS:
        raise MathsError(
            f"the expression is too long: {len(tokens)} parts, the limit is {MAX_TOKENS}. Send a shorter one."
        )
    statements = _Parser(tokens).statements()
    names = frozenset[str]().union(*(statement.symbols() for statement in statements))
    if len(names) > MAX_SYMBOLS:
        raise MathsError(f"too many variables: {len(names)}, the limit is {MAX_SYMBOLS}. Use fewer.")
    return statements


def parse_one(text: str) -> Node:
    """The single expression of a text."""
    statements = parse(text)
    if len(statements) != 1 or statements[0].op == "=":
        raise MathsError(f"expected one expression, got {text!r}.")
    return statements[0]


class _Parser:
    def __init__(self, tokens: list[Token]) -> None:
        self._tokens = tokens
        self._next = 0
        self._depth = 0
        self._open: list[str] = []

    @property
    def _token(self) -> Token:
        return self._tokens[self._next]

    def _advance(self) -> Token:
        token = self._token
        self._next += token.kind != "end"
        return token

    def _at(self, *texts: str) -> bool:
        return self._token.kind == "op" and self._token.text in texts

    def _take(self, text: str) -> bool:
        return self._at(text) and bool(self._advance())

    def _expect(self, text: str) -> None:
        if not self._take(text):
            raise self._unexpected(f"expected {text!r}")

    def _unexpected(self, why: str) -> MathsError:
        shown = self._token.text if self._token.kind == "end" else repr(self._token.text)
        return MathsError(f"{why}, got {shown} at character {self._token.position + 1}. Send one plain expression.")

    def statements(self) -> tuple[Node, ...]:
        found = [self._relation()]
        while self._take(",") or self._token.kind == "number":
            if self._token.kind == "end":
                break
            found.append(self._relation())
        if self._token.kind != "end":
            raise self._unexpected("the expression does not continue like this")
        return tuple(found)

    def _relation(self) -> Node:
        left = self._expression(0)
        return Node("=", (left, self._expression(0))) if self._take("=") else left

    def _expression(self, min_power: int) -> Node:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise MathsError(
                f"nested too deeply: the limit is {MAX_DEPTH} levels. Remove parentheses or split the expression."
            )
        left = self._prefix(min_power)
        while (longer := self._continue(left, min_power)) is not None:
            left = longer
        self._depth -= 1
        return left

    def _continue(self, left: Node, min_power: int) -> Node | None:
        token = self._token
        if token.kind == "op" and token.text in {"!", "%", "°"} and min_power <= _POSTFIX and not self._modulo():
            return self._postfix(left)
        if self._modulo() or (token.kind == "op" and token.text in _INFIX):
            operator = "mod" if token.text == "%" else token.text
            binds, right = _INFIX[operator]
            if binds < min_power:
                return None
            self._advance()
            return Node(operator, (left, self._expression(right)))
        if min_power <= _PRODUCT and self._starts_factor():
            return Node("*", (left, self._expression(_PRODUCT + 1)))
        return None

    def _postfix(self, left: Node) -> Node:
        operator = self._advance().text
        if operator == "!":
            if self._at("!"):
                raise MathsError("'!!' is ambiguous. Write (n!)! for a repeated factorial.")
            return Node("factorial", (left,))
        if operator == "°":
            return Node("/", (Node("*", (left, Node("constant", text="pi"))), Node("number", text="180")))
        percent = Node("/", (left, Node("number", text="100")))
        if self._take("of"):
            return Node("*", (percent, self._expression(_PRODUCT + 1)))
        return percent

    def _modulo(self) -> bool:
        """A percent sign before an operand (`17 % 5`) is the remainder, as in programs."""
        following = self._tokens[min(self._next + 1, len(self._tokens) - 1)]
        return self._at("%") and (following.kind in {"number", "name"} or following.text == "(")

    def _starts_factor(self) -> bool:
        if self._at("|"):
            return not self._open or self._open[-1] != "|"
        return self._token.kind == "name" or self._at("(")

    def _prefix(self, min_power: int) -> Node:
        token = self._token
        if token.kind == "number":
            return Node("number", text=self._advance().text)
        if token.kind == "name":
            return self._name(self._advance().text)
        if self._at("-", "+"):
            sign = self._advance().text
            operand = self._expression(max(_POWER, min_power))
            return Node("negate", (operand,)) if sign == "-" else operand
        if self._at("(", "|"):
            return self._group()
        raise self._unexpected("expected a number, a variable or a function")

    def _group(self) -> Node:
        opening = self._advance().text
        self._open.append(opening)
        inner = self._expression(0)
        self._expect(")" if opening == "(" else "|")
        self._open.pop()
        return inner if opening == "(" else Node("abs", (inner,))

    def _name(self, name: str) -> Node:
        if name in ARITY:
            return self._function(name)
        return Node("constant" if name in CONSTANTS else "symbol", text=name)

    def _function(self, name: str) -> Node:
        power: Node | None = None
        if self._take("^"):
            power = self._expression(_POSTFIX)
            if name in _INVERSES and power == Node("negate", (Node("number", text="1"),)):
                name, power = _INVERSES[name], None
        self._take("of")
        call = Node(name, self._arguments(name))
        return call if power is None else Node("^", (call, power))

    def _arguments(self, name: str) -> tuple[Node, ...]:
        low, high = ARITY[name]
        if name == "frac":
            return self._group(), self._group()
        arguments = self._listed() if self._at("(") else [self._bare(name)]
        if not low <= len(arguments) <= high:
            wanted = str(low) if low == high else f"{low} to {high}"
            raise MathsError(f"{name} takes {wanted} argument{'s' * (high > 1)}, got {len(arguments)}.")
        return tuple(arguments)

    def _listed(self) -> list[Node]:
        self._advance()
        self._open.append("(")
        found = [self._expression(0)]
        while self._take(","):
            found.append(self._expression(0))
        self._expect(")")
        self._open.pop()
        return found

    def _bare(self, name: str) -> Node:
        argument = self._expression(_POWER)
        if name in {"sqrt", "cbrt"}:
            return argument
        while self._starts_factor() and self._token.text not in ARITY:
            argument = Node("*", (argument, self._expression(_POWER)))
        if self._at("*", "/") and argument.op == "number":
            raise MathsError(
                f"'{name} {argument.text}{self._token.text}...' is ambiguous. Write {name}(...) with parentheses."
            )
        return argument
