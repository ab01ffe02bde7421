"""Text as people and models type it (unicode, LaTeX, words) to tokens."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from m1tools.symbolic.errors import MathsError

Kind = Literal["number", "name", "op", "end"]

ALIASES = {
    "arcsin": "asin", "arccos": "acos", "arctan": "atan", "arcsinh": "asinh", "arccosh": "acosh", "arctanh": "atanh",
    "tg": "tan", "ctg": "cot", "cosec": "csc", "log": "ln", "fact": "factorial", "ceiling": "ceil", "sgn": "sign",
    "ncr": "binomial",
}  # fmt: skip
ARITY = {
    **dict.fromkeys(["sin", "cos", "tan", "cot", "sec", "csc", "asin", "acos", "atan", "acot", "asec", "acsc"], (1, 1)),
    **dict.fromkeys(["sinh", "cosh", "tanh", "coth", "sech", "csch", "asinh", "acosh", "atanh"], (1, 1)),
    **dict.fromkeys(["exp", "sqrt", "cbrt", "abs", "sign", "floor", "ceil", "factorial", "gamma", "erf"], (1, 1)),
    **dict.fromkeys(["log2", "log10", "re", "im", "conjugate"], (1, 1)),
    **dict.fromkeys(["root", "frac", "binomial", "atan2"], (2, 2)),
    **dict.fromkeys(["min", "max", "gcd", "lcm"], (1, 20)),
    **dict.fromkeys(["ln", "round"], (1, 2)),
}
CONSTANTS = {"pi": "pi", "e": "e", "i": "i", "oo": "oo", "inf": "oo", "infinity": "oo", "infty": "oo"}
GREEK = frozenset(
    "alpha beta delta epsilon zeta eta theta iota kappa lambda mu nu xi rho sigma tau upsilon phi chi psi omega".split()
)
WORD_OPERATORS = {
    "plus": "+", "minus": "-", "times": "*", "over": "/", "and": ",", "mod": "mod", "of": "of", "percent": "%",
    "degrees": "°", "equals": "=",
}  # fmt: skip
_ENGLISH = frozenset("is to at by for in if or on as an be it so do no we us my me he with from the a".split()) - {"a"}

_CHARACTERS = str.maketrans({
    **dict.fromkeys("−–—‒﹣-", "-"), **dict.fromkeys("×·⋅∙∗•", "*"), **dict.fromkeys("÷∕⁄", "/"),
    **dict.fromkeys("→⟶⇒", "\x00"), "π": " pi ", "∞": " oo ", "√": " sqrt ", "∛": " cbrt ", "½": "(1/2)",
    "⅓": "(1/3)", "⅔": "(2/3)", "¼": "(1/4)", "¾": "(3/4)", "⅛": "(1/8)", "≤": "<=", "≥": ">=", "∫": " integral ",
    "’": "'", "′": "'", "$": " ", "[": "(", "]": ")", ";": ",", "\n": " ", "\t": " ", "\u00a0": " ", "\u202f": " ",
    "ⅇ": "e", "α": " alpha ", "β": " beta ", "δ": " delta ", "θ": " theta ", "λ": " lambda ", "μ": " mu ",
    "σ": " sigma ", "φ": " phi ", "ω": " omega ", "ρ": " rho ", "τ": " tau ", "ε": " epsilon ", "∂": "d", "º": "°",
    **{chr(0x2080 + digit): f"_{digit}" for digit in range(10)},
})  # fmt: skip
_SUPERSCRIPT = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿˣ", "0123456789+-nx")
_LATEX = {
    "cdot": "*", "times": "*", "div": "/", "to": "->", "rightarrow": "->", "infty": " oo ", "left": "", "right": "",
    "dfrac": " frac ", "tfrac": " frac ", "int": " integral ", "quad": " ",
}  # fmt: skip
_WORDS = [
    (re.compile(pattern, re.IGNORECASE), symbol)
    for pattern, symbol in [
        (r"\b(?:divided|over) by\b", "/"), (r"\bmultiplied (?:by|with)\b", "*"),
        (r"\b(?:raised )?to the (?:power(?: of)?)\b", "^"), (r"\braised to\b", "^"), (r"\bsquared\b", "^2"),
        (r"\bcubed\b", "^3"), (r"\b(?:the )?square root(?: of)?\b", " sqrt "),
        (r"\b(?:the )?cube root(?: of)?\b", " cbrt "), (r"\bnatural log(?:arithm)?(?: of)?\b", " ln "),
        (r"\babsolute value of\b", " abs "),
    ]
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Token:
    kind: Kind
    text: str
    position: int


def normalise(text: str) -> str:
    """ASCII spelling of an expression: unicode signs, superscripts, LaTeX commands and operator words replaced."""
    text = re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿˣ]+", lambda run: f"^({run[0].translate(_SUPERSCRIPT)})", text)
    text = text.translate(_CHARACTERS).replace("\x00", "->").replace("**", "^")
    text = re.sub(r"\\([A-Za-z]+)", lambda command: _LATEX.get(command[1], f" {command[1]} "), text)
    text = re.sub(r"\\[,;:! ]", " ", text)
    text = text.replace("{", "(").replace("}", ")")
    for pattern, symbol in _WORDS:
        text = pattern.sub(symbol, text)
    text = re.sub(r"\b(\w+) choose (\w+)", r"binomial(\1, \2)", text)
    return re.sub(r"\s+", " ", text).strip()


_NUMBER = r"(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+(?![A-Za-z\d]))?"
_GROUPED = re.compile(r"[1-9]\d{0,2}(?:,\d{3})+(?!\d)(?:\.\d+)?(?!,\d)")
_PLAIN = re.compile(_NUMBER)
_NAME = re.compile(r"[A-Za-z]+")
_SUBSCRIPT = re.compile(r"_?\d+|_\(?[A-Za-z0-9]{1,8}\)?")
_OPERATOR = re.compile(r"->|//|<=|>=|==|!=|[-+*/^!%°=,()|<>]")


def tokenize(text: str, *, thousands: bool = True) -> list[Token]:
    """Tokens of a normalised text, ending with one of kind "end".

    A comma inside a number ("1,000.5") groups thousands, except among the arguments of a function of several.
    """
    tokens: list[Token] = []
    calls: list[bool] = []
    position = 0
    while position < len(text):
        if text[position] == " ":
            position += 1
            continue
        grouping = thousands and not (calls and calls[-1])
        found, position = _read(text, position, grouping)
        _track_calls(calls, tokens, found)
        tokens.extend(found)
    return [*tokens, Token("end", "the end", len(text))]


def _track_calls(calls: list[bool], tokens: list[Token], found: list[Token]) -> None:
    for token in found:
        if token.text == "(":
            calls.append(bool(tokens) and ARITY.get(tokens[-1].text, (0, 0))[1] > 1)
        elif token.text == ")" and calls:
            calls.pop()


def _read(text: str, position: int, grouping: bool) -> tuple[list[Token], int]:
    if number := (grouping and _GROUPED.match(text, position)) or _PLAIN.match(text, position):
        return [Token("number", number[0].replace(",", ""), position)], number.end()
    if name := _NAME.match(text, position):
        return _name(text, name[0], position)
    if operator := _OPERATOR.match(text, position):
        return [_operator(operator[0], position)], operator.end()
    around = text[max(0, position - 12) : position + 12]
    raise MathsError(
        f"unexpected character {text[position]!r} near {around!r}. Send a plain expression such as 3x^2 + 2x - 1."
    )


def _operator(text: str, position: int) -> Token:
    if text in {"<", ">", "<=", ">=", "!="}:
        raise MathsError(f"{text!r} is not supported: inequalities cannot be computed. Use an equation with '='.")
    return Token("op", "=" if text == "==" else text, position)


def _name(text: str, word: str, start: int) -> tuple[list[Token], int]:
    """One name, a word operator, a symbol with its subscript, or letters and functions written together ("2xy")."""
    end, lower = start + len(word), word.lower()
    if lower == "log" and (base := re.compile(r"_?(2|10)(?![\d.])").match(text, end)):
        return [Token("name", f"log{base[1]}", start)], base.end()
    if lower in WORD_OPERATORS:
        return [Token("op", WORD_OPERATORS[lower], start)], end
    if name := _known(word):
        return [Token("name", name, start)], end
    if len(word) == 1 or lower in GREEK:
        subscript = _SUBSCRIPT.match(text, end)
        if subscript:
            end = subscript.end()
            word = _subscripted(word, subscript[0].strip("_()"))
        return [Token("name", word, start)], end
    return [Token("name", part, start) for part in _split(word)], end


def _subscripted(word: str, subscript: str) -> str:
    return f"{word}{subscript}" if subscript.isdigit() else f"{word}_{subscript}"


def _known(word: str) -> str | None:
    lower = ALIASES.get(word.lower(), word.lower())
    if lower in ARITY and len(word) > 1:
        return lower
    if word in {"E", "I"}:
        return None
    return CONSTANTS.get(word if len(word) == 1 else lower)


def _split(word: str) -> list[str]:
    parts: list[str] = []
    rest = word
    while rest:
        size = next((n for n in range(len(rest), 1, -1) if _known(rest[:n]) or rest[:n].lower() in GREEK), 1)
        parts.append(_known(rest[:size]) or rest[:size])
        rest = rest[size:]
    letters = sum(part not in ARITY for part in parts)
    if letters > 3 or word.lower() in _ENGLISH:
        raise MathsError(
            f"unknown name {word!r}. Use single letters as variables and functions such as sin, sqrt or ln."
        )
    return parts
