"""What a grammar becomes for one vocabulary: a table where its schemas are plain, else a matcher of llguidance's."""

from __future__ import annotations

from collections import OrderedDict
from threading import RLock
from typing import TypeAlias, overload
from weakref import WeakKeyDictionary

from m1runtime.grammar.guided import Guided, Program, Text
from m1runtime.grammar.lexicon import Lexicon
from m1runtime.grammar.table import Plan, Table
from m1runtime.grammar.tabled import Tabled
from m1runtime.grammar.vocabulary import TokenizerLike, Vocabulary, vocabulary

PROGRAMS = 128

Inside: TypeAlias = Guided | Tabled
"""A state inside a grammar."""


class Programs:
    """The programs of one vocabulary, shared by all grammars; those used last are kept."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._programs: OrderedDict[object, Program | Table] = OrderedDict()
        self._lexicon: Lexicon | None = None
        self._lock = RLock()

    @overload
    def get(self, text: Text) -> Program: ...
    @overload
    def get(self, text: Text | Plan) -> Program | Table: ...
    def get(self, text: Text | Plan) -> Program | Table:
        """The program of a grammar text, or the table of a plan. Raises SchemaError."""
        key = text.key if isinstance(text, Plan) else text
        with self._lock:
            found = self._programs.get(key)
            if found is None:
                found = self._programs[key] = self._made(text)
            self._programs.move_to_end(key)
            while len(self._programs) > PROGRAMS:
                self._programs.popitem(last=False)
        return found

    def _made(self, text: Text | Plan) -> Program | Table:
        if isinstance(text, Text):
            return Program(self._vocabulary, text)
        if self._lexicon is None:
            self._lexicon = Lexicon(self._vocabulary)
        return Table(self._lexicon, text, self.get)


_programs: WeakKeyDictionary[TokenizerLike, Programs] = WeakKeyDictionary()


def programs(tokenizer: TokenizerLike) -> Programs:
    """The programs for `tokenizer`, kept for its lifetime."""
    found = _programs.get(tokenizer)
    return found if found is not None else _programs.setdefault(tokenizer, Programs(vocabulary(tokenizer)))
