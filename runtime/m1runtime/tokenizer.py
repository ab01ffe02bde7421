"""A checkpoint's byte-level BPE: text ↔ token ids, and the raw bytes of every token."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import tokenizers
from llguidance import LLTokenizer

from m1runtime.errors import TokenizerError

log = logging.getLogger(__name__)
END_OF_SENTENCE = "<end_of_sentence>"


class Tokenizer:
    """Thin over `tokenizers.Tokenizer`; ids and bytes are exact, and untrusted text cannot forge special tokens."""

    def __init__(self, definition: str, *, eos_ids: Iterable[int] = (), eos_token: str | None = None) -> None:
        """`definition`: the text of a tokenizer.json; `eos_ids`, `eos_token`: ends known from elsewhere.

        Raises TokenizerError for a definition that is not byte-level BPE.
        """
        self._definition = definition
        try:
            parsed = cast("dict[str, Any]", json.loads(definition))
            self._special = tokenizers.Tokenizer.from_str(definition)
        except Exception as error:  # `tokenizers` raises bare Exception
            raise TokenizerError(f"tokenizer.json cannot be read: {error}") from None
        if not _is_byte_level(parsed):
            raise TokenizerError(
                "tokenizer.json is not byte-level (no ByteLevel decoder); only byte-level BPE is supported"
            )
        self._special.no_padding()
        self._special.no_truncation()
        added = cast("list[dict[str, Any]]", parsed.get("added_tokens") or [])
        self._added = {int(token["id"]): str(token["content"]) for token in added}
        self.special_ids: dict[str, int] = {str(t["content"]): int(t["id"]) for t in added if t.get("special")}
        self.vocab_size: int = 1 + max(self._special.get_vocab(with_added_tokens=True).values())
        named = (self._special.token_to_id(token) for token in (eos_token, END_OF_SENTENCE) if token)
        ends = {*eos_ids, *(end for end in named if end is not None)}
        self.eos_ids: frozenset[int] = frozenset(end for end in ends if 0 <= end < self.vocab_size)
        for end in ends - self.eos_ids:
            log.warning("end token %d is not among the tokenizer's %d tokens: ignored", end, self.vocab_size)

    @classmethod
    def from_file(cls, path: str | Path, *, eos_ids: Iterable[int] = ()) -> Tokenizer:
        """Reads tokenizer.json (a file, or in a folder) with the tokenizer_config.json and config.json beside it.

        The end tokens are the configs' `eos_token_id` and `eos_token`, and `<end_of_sentence>` where it exists. Raises
        TokenizerError.
        """
        path = Path(path)
        path = path / "tokenizer.json" if path.is_dir() else path
        try:
            definition = path.read_text(encoding="utf-8")
        except OSError as error:
            raise TokenizerError(f"{path}: cannot be read ({error})") from None
        ends = set(eos_ids)
        for name in ("config.json", "generation_config.json"):
            ends |= set(_as_ids(_optional_json(path.with_name(name)).get("eos_token_id")))
        eos = _optional_json(path.with_name("tokenizer_config.json")).get("eos_token")
        return cls(definition, eos_ids=ends, eos_token=_content(eos))

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Token ids of a text. `special=False` reads special tokens in it as plain text: for untrusted text."""
        tokenizer = self._special if special else self._plain
        return tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, special tokens literally; bytes that are not UTF-8 become U+FFFD."""
        known = self.token_bytes
        return b"".join(known[i] for i in ids).decode("utf-8", "replace")

    @property
    def token_bytes(self) -> list[bytes]:
        """Index = id: the raw bytes of each token; a special token's are its literal text, an unassigned id's empty."""
        return self._token_bytes

    @property
    def llg(self) -> LLTokenizer:
        """The same vocabulary for llguidance. Raises TokenizerError when the checkpoint names no end token."""
        return self._llg

    @cached_property
    def _token_bytes(self) -> list[bytes]:
        found = [b""] * self.vocab_size
        unmap = _byte_of_symbol()
        for token, i in self._special.get_vocab(with_added_tokens=True).items():
            found[i] = self._added[i].encode() if i in self._added else bytes(unmap[symbol] for symbol in token)
        return found

    @cached_property
    def _llg(self) -> LLTokenizer:
        if not self.eos_ids:
            raise TokenizerError(
                f"no end token: set eos_token in tokenizer_config.json, or add {END_OF_SENTENCE}; grammars need one"
            )
        return LLTokenizer(self._definition, n_vocab=self.vocab_size, eos_token=sorted(self.eos_ids))

    @cached_property
    def _plain(self) -> tokenizers.Tokenizer:
        plain = tokenizers.Tokenizer.from_str(self._definition)
        plain.no_padding()
        plain.no_truncation()
        plain.encode_special_tokens = True
        return plain


def _is_byte_level(parsed: dict[str, Any]) -> bool:
    decoder = cast("dict[str, Any]", parsed.get("decoder") or {})
    parts = cast("list[dict[str, Any]]", decoder.get("decoders") or [decoder])
    model = cast("dict[str, Any]", parsed.get("model") or {})
    return model.get("type") == "BPE" and any(part.get("type") == "ByteLevel" for part in parts)


def _byte_of_symbol() -> dict[str, int]:
    """Byte-level BPE's alphabet (GPT-2): printable bytes stand for themselves, the others for U+0100 on, in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + n): byte for n, byte in enumerate(others)}


def _optional_json(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise TokenizerError(f"{path}: not valid JSON ({error})") from None
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _as_ids(value: Any) -> list[int]:
    values = cast("list[Any]", value) if isinstance(value, list) else [value]
    return [v for v in values if isinstance(v, int) and not isinstance(v, bool)]


def _content(token: Any) -> str | None:
    if isinstance(token, dict):
        return cast("dict[str, str]", token).get("content")
    return token if isinstance(token, str) else None
