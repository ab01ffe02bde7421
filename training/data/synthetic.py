"""Tools nobody has seen: verb, noun, parameters and wordings drawn at random, described so that a reader can follow."""

from __future__ import annotations

import random
import re
from typing import Any

from m1agent.messages import ToolSpec
from m1agent.schema import canonical_json
from training.data import families, values
from training.data.requests import Request, command, question
from training.data.values import Value
from training.data.words import Words

VERBS = (
    ("get", "find", "show", "fetch", "look up", "check", "retrieve"),
    ("create", "make", "add", "open", "start"),
    ("delete", "remove", "cancel", "drop"),
    ("update", "change", "edit", "modify"),
    ("send", "share", "forward", "submit"),
    ("book", "reserve", "order", "buy"),
    ("list", "count", "print"),
    ("compare", "rank", "rate"),
    ("move", "copy", "export"),
    ("block", "lock", "close", "stop"),
)
KINDS = ("phrase", "phrase", "person", "city", "email", "file", "date", "clock", "code", "code", "integer", "integer", "number", "boolean", "enum", "enum", "list")  # fmt: skip
PLAIN_NAMES = {
    "phrase": "title name label text subject note reason topic", "person": "person owner user author client contact assignee",
    "city": "city place location town region", "email": "email address recipient sender", "file": "file path document source",
    "date": "date day due_date start_date end_date deadline", "clock": "time hour start_time end_time", "code": "id code number order_id user_id item_id key",
    "integer": "count amount quantity limit size priority level age year page", "number": "price weight value score rate budget total",
    "boolean": "urgent private active public silent draft archived", "enum": "color status mode kind category level size", "list": "tags items names labels topics",
}  # fmt: skip


class SyntheticTool:
    """A random tool with all that is needed to ask for it."""

    def __init__(self, rng: random.Random, words: Words, verb: str = "", noun: str = "") -> None:
        self.rng, self.words = rng, words
        self.group = next((group for group in VERBS if verb in group), rng.choice(VERBS))
        self.verb = verb or rng.choice(self.group)
        self.noun = noun or (f"{words.adjective()} {words.noun()}" if rng.random() < 0.2 else words.noun(0.45))
        self.kinds: dict[str, str] = {}
        for _ in range(rng.choice((0, 1, 1, 1, 2, 2, 2, 3, 3, 4))):
            self._add_parameter()
        optional = [name for name in self.kinds if rng.random() < 0.25 or self.kinds[name] == "boolean"]
        self.optional = set(optional)
        self.spec = ToolSpec(self._name(), self._description(), self._parameters())

    def request(self) -> Request:
        """A request for this tool."""
        rng = self.rng
        used = [name for name in self.kinds if name not in self.optional or rng.random() < 0.6]
        drawn = {name: self._value(name) for name in used}
        arguments = {name: drawn[name].argument for name in used}
        order = used[:] if rng.random() < 0.6 else rng.sample(used, len(used))
        verb = rng.choice(self.group) if rng.random() < 0.5 else self.verb
        article = rng.choice(("the ", "the ", "a ", "", "my "))
        text = f"{verb} {article}{self.noun}" + self._say(order, drawn)
        asks = self.group is VERBS[0] and rng.random() < 0.4
        said = question(rng, f"what is the {self.noun}" + self._say(order, drawn)) if asks else command(rng, text)
        result, answer = outcome(rng, self.words)
        return Request(said, self.spec, arguments, result, answer)

    def _add_parameter(self) -> None:
        kind = self.rng.choice(KINDS)
        name = self.words.invented() if self.rng.random() < 0.4 else self.rng.choice(PLAIN_NAMES[kind].split())
        if self.rng.random() < 0.15:
            name = f"{self.words.noun()}_{name}"
        if name in self.kinds:
            return
        if kind == "enum":
            kind = "|".join(dict.fromkeys(self.words.any_word() for _ in range(self.rng.randint(2, 5))))
            kind = kind if "|" in kind else kind + "|other"
        if self.rng.random() < 0.15:
            first, *rest = name.split("_")
            name = first + "".join(part.capitalize() for part in rest)
        self.kinds[name] = kind

    def _value(self, name: str) -> Value:
        return families.value(self.rng, self.words, self.kinds[name])

    def _say(self, names: list[str], drawn: dict[str, Value]) -> str:
        """The parameters in one of the ways people name them."""
        rng, style = self.rng, self.rng.random()
        texts = {name: drawn[name] for name in names if self.kinds[name] != "boolean"}
        flags = [
            (" with " if drawn[n].argument else " without ") + _spoken(n) for n in names if self.kinds[n] == "boolean"
        ]
        if len(texts) == 1 and style < 0.35 and isinstance(next(iter(texts.values())).argument, str):
            return f"{rng.choice((' for ', ' ', ' of ', ' called ', ': '))}{next(iter(texts.values())).said}" + "".join(
                flags
            )
        pairs = [(_spoken(name), one.said) for name, one in texts.items()]
        if style < 0.5:
            said = _join(rng, [f"{name} {value}" for name, value in pairs], rng.choice((" with ", " for ", " with ")))
        elif style < 0.65:
            said = _join(rng, [f"{name} is {value}" for name, value in pairs], " where ")
        elif style < 0.8:
            said = (
                rng.choice((" ({})", ", {}", " - {}", ". {}")).format(
                    ", ".join(f"{name}: {value}" for name, value in pairs)
                )
                if pairs
                else ""
            )
        elif style < 0.9:
            said = _join(rng, [f"{value} as the {name}" for name, value in pairs], " using ")
        else:
            said = _join(rng, [f"{name} = {value}" for name, value in pairs], " with ")
        return said + "".join(flags)

    def _name(self) -> str:
        rng, verb, noun = self.rng, self.verb.replace(" ", "_"), self.noun.replace(" ", "_")
        style = rng.random()
        if style < 0.4:
            return f"{verb}_{noun}"
        if style < 0.5:
            return verb + "".join(part.capitalize() for part in noun.split("_"))
        if style < 0.6:
            return f"{noun}_{verb}"
        if style < 0.7:
            return f"{self.words.noun()}__{verb}_{noun}"
        if style < 0.75:
            return f"{noun}-{verb}"
        return rng.choice(
            (
                self.words.invented(),
                f"{self.words.invented()}_{self.words.invented()}",
                f"{self.words.invented()}{rng.randint(1, 99)}",
            )
        )

    def _description(self) -> str:
        text = f"{self.verb.capitalize()} {self.rng.choice(('the ', 'a ', ''))}{self.noun}"
        return text + self.rng.choice(
            (
                ".",
                ".",
                ".",
                "",
                " for the user.",
                " in the system.",
                f" by {_spoken(next(iter(self.kinds)))}." if self.kinds else ".",
            )
        )

    def _parameters(self) -> dict[str, Any]:
        properties = {name: self._property(name) for name in self.kinds}
        required = [name for name in self.kinds if name not in self.optional]
        return {"type": "object", "properties": properties} | ({"required": required} if required else {})

    def _property(self, name: str) -> dict[str, Any]:
        schema = families.json_type(self.rng, self.kinds[name])
        if self.rng.random() < 0.7:
            spoken = _spoken(name)
            schema["description"] = self.rng.choice(
                (
                    f"The {spoken}.",
                    f"{spoken.capitalize()}.",
                    f"{spoken.capitalize()} of the {self.noun}.",
                    f"The {spoken} to use.",
                )
            )
        if self.rng.random() < 0.05 and schema["type"] == "integer":
            schema |= {"minimum": self.rng.choice((0, 1)), "maximum": 10 ** self.rng.randint(4, 6)}
        return schema


def rival(rng: random.Random, words: Words, tool: SyntheticTool) -> SyntheticTool:
    """A tool easily mistaken for another: the same noun under another verb, or the same verb with another noun."""
    if rng.random() < 0.5:
        others = [group for group in VERBS if group is not tool.group]
        return SyntheticTool(rng, words, verb=rng.choice(rng.choice(others)), noun=tool.noun)
    return SyntheticTool(rng, words, verb=tool.verb)


def outcome(rng: random.Random, words: Words) -> tuple[str, str]:
    """A tool's result, and the sentence that passes it on."""
    kind = rng.random()
    if kind < 0.2:
        result = rng.choice(("ok", "done", "success"))
        return result, "Done."
    if kind < 0.35:
        fields = {
            words.any_word(): rng.choice((values.code(rng).said, words.any_word(), rng.randint(0, 999)))
            for _ in range(rng.randint(1, 3))
        }
        shown = ", ".join(f"{name} {value}" for name, value in fields.items())
        return canonical_json(fields), f"The result is {shown}."
    if kind < 0.45:
        problem = values.phrase(rng, words).said
        return f"Error: {problem}", f"That did not work: {problem}."
    result = rng.choice((values.phrase(rng, words).said, str(rng.randint(0, 99999)), values.decimal(rng).said, values.code(rng).said,
                         f"{words.noun()} {rng.randint(0, 99)}", values.date(rng).said, f"{words.first_name()} {words.last_name()}"))  # fmt: skip
    return result, f"The result is {result}."


def _spoken(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).replace("_", " ").lower()


def _join(rng: random.Random, parts: list[str], opening: str) -> str:
    if not parts:
        return ""
    if len(parts) == 1:
        return opening + parts[0]
    glue = rng.choice((" and ", ", ", ", and "))
    return opening + (", ".join(parts[:-1]) + glue + parts[-1])
