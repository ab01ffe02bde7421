"""What a reply may be, as places: calls line by line, the name first and then that tool's arguments; or an answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from m1runtime.grammar.foreign import Foreign
from m1runtime.grammar.guided import Text
from m1runtime.grammar.place import Place
from m1runtime.grammar.places import Places
from m1runtime.grammar.plain import ENDLESS, Node
from m1runtime.grammar.report import CompiledSchema
from m1runtime.grammar.table import Compile, Plan
from m1runtime.grammar.writer import call_prefix

LEADING = ("", "\n", "\n\n")


class Value:
    """A JSON value: the tree of a plain schema, or else a text of llguidance's, which is made when it is needed.

    `key` says which value it is.
    """

    def __init__(self, key: object, tree: Node | None, compile: Callable[[], CompiledSchema]) -> None:
        self.key, self.tree, self._compile = key, tree, compile

    @cached_property
    def compiled(self) -> CompiledSchema:
        """The schema as llguidance takes it."""
        return self._compile()

    @cached_property
    def text(self) -> Text:
        """The grammar text of the value."""
        compiled, value = self.compiled, self.compiled.value
        closing = value.text(closing=True) if value.closing else None
        return Text(value.text(), True, compiled.names, compiled.instance, compiled.bound, closing, compiled.texts)


@dataclass(frozen=True, slots=True, eq=False)
class Reply:
    """Calls of `tools` (name, arguments) between tags, at most `max_calls` of them; or the answer."""

    tools: tuple[tuple[str, Value], ...]
    begin: str
    end: str
    separators: tuple[str, str]
    max_calls: int | None
    answer: Value | None
    any_order: bool

    def plan(self, *, begun: bool = False, newlines: bool = False) -> Plan:
        """After the tag that begins the calls (`begun`), or as a whole, with line breaks before it if `newlines`."""
        known = tuple((name, value.key) for name, value in self.tools)
        answer = None if self.answer is None else self.answer.key
        key = (begun, newlines, self.begin, self.end, self.separators, self.max_calls, self.any_order, known, answer)

        def start(places: Places, compile: Compile) -> Place:
            body = _Body(self, places, compile)
            return body.calls if begun else body.whole(LEADING if newlines else LEADING[:1])

        plain = all(value.tree is not None for value in self._values)
        return Plan(key, start, self.separators, self._bound, self.any_order, plain)

    @property
    def _values(self) -> list[Value]:
        return [value for _, value in self.tools] + ([] if self.answer is None else [self.answer])

    @property
    def _bound(self) -> int | None:
        heads = [len(call_prefix(name, self.separators).encode()) for name, _ in self.tools]
        trees = [value.tree for value in self._values if value.tree is not None]
        around = len((self.begin + self.end).encode()) + 8
        most = max((tree.most for tree in trees), default=0) + max(heads, default=0) + around
        return most if len(trees) == len(self._values) and most < ENDLESS else None


class _Body:
    def __init__(self, reply: Reply, places: Places, compile: Compile) -> None:
        self._reply, self._places, self._compile = reply, places, compile
        self._close = places.literal(reply.end.encode(), places.end)

    @property
    def calls(self) -> Place:
        """After the tag."""
        return self._places.literal(b"\n", self._places.later(("call", 1), lambda: self._call(1)))

    def whole(self, leading: Sequence[str]) -> Place:
        """The calls with their tag, or the answer."""
        places, answer = self._places, self._reply.answer
        kinds = [places.literal(self._reply.begin.encode(), self.calls)] if self._reply.tools else []
        if answer is not None:
            kinds.append(self._value(answer, places.end))
        made = places.fork(places.literal(lead.encode(), kind) for lead in leading for kind in kinds)
        assert made is not None
        return made

    def _call(self, count: int) -> Place:
        places = self._places
        near = self._close.nearest
        rest = places.literal(b"}\n", places.later(("more", count), lambda: self._more(count), near))
        heads = [(call_prefix(name, self._reply.separators).encode(), value) for name, value in self._reply.tools]
        plain = [head for head, value in heads if value.tree is not None]
        ways = [(head, places.later((head, count), self._maker(value, rest))) for head, value in heads]
        return places.words(ways, quick=plain or None)

    def _maker(self, value: Value, rest: Place) -> Callable[[], Place]:
        return lambda: self._value(value, rest)

    def _value(self, value: Value, after: Place) -> Place:
        if value.tree is None:
            return Foreign.begin(self._compile(value.text), after)
        return self._places.value(value.tree, after)

    def _more(self, count: int) -> Place:
        """After a call: another, unless there are enough, or the end."""
        limit = self._reply.max_calls
        if limit is not None and count >= limit:
            return self._close
        following = 2 if limit is None else count + 1
        again = self._places.later(("call", following), lambda: self._call(following))
        made = self._places.fork([again, self._close], (self._close,))
        assert made is not None
        return made


def value_plan(key: object, tree: Node, separators: tuple[str, str], *, any_order: bool) -> Plan:
    """One JSON value of a plain schema."""

    def start(places: Places, compile: Compile) -> Place:
        return places.value(tree, places.end)

    bound = tree.most + 8 if tree.most < ENDLESS else None
    return Plan((key, separators, any_order), start, separators, bound, any_order)
