"""outlines-core and lm-format-enforcer, asked which texts of a schema they take.

Run with `python -m benchmarks.peers.schemas SIDE` in the peers' environment; it imports nothing of ours. A line of the
input is `["compile", schema]` or `["accepts", text]`, one of the output true or false.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

Accepts = Callable[[str], bool]
END = 256


def outlines_core(schema: Any) -> Accepts:
    """Its regular expression of the schema, indexed over single bytes."""
    from outlines_core import Guide, Index, Vocabulary
    from outlines_core.json_schema import build_regex_from_schema

    vocabulary = Vocabulary(END, {bytes([i]): [i] for i in range(256)})
    index = Index(build_regex_from_schema(json.dumps(schema)), vocabulary)

    def accepts(text: str) -> bool:
        guide = Guide(index)
        for token in text.encode():
            if token not in guide.get_tokens():
                return False
            guide.advance(token, return_tokens=False)
        return END in guide.get_tokens()

    return accepts


def format_enforcer(schema: Any) -> Accepts:
    """Its parser of characters, with an alphabet that holds those of the text, as a vocabulary's would."""
    from lmformatenforcer import CharacterLevelParserConfig, JsonSchemaParser
    from lmformatenforcer.consts import COMPLETE_ALPHABET

    JsonSchemaParser(schema)

    def accepts(text: str) -> bool:
        alphabet = COMPLETE_ALPHABET + "".join(set(text) - set(COMPLETE_ALPHABET))
        parser: Any = JsonSchemaParser(schema, CharacterLevelParserConfig(alphabet=alphabet))
        for character in text:
            if character not in parser.get_allowed_characters():
                return False
            parser = parser.add_character(character)
        return parser.can_end()

    return accepts


SIDES: dict[str, Callable[[Any], Accepts]] = {"outlines-core": outlines_core, "lm-format-enforcer": format_enforcer}


def main() -> None:
    """Answers until the input ends. What a peer raises, whatever it is, is a no."""
    compile_, accepts = SIDES[sys.argv[1]], None
    for line in sys.stdin:
        kind, given = json.loads(line)
        try:
            if kind == "compile":
                accepts = None
                accepts = compile_(given)
                answer = True
            else:
                answer = accepts is not None and accepts(given)
        except Exception:
            answer = False
        print(json.dumps(bool(answer)), flush=True)


if __name__ == "__main__":
    main()
