"""A checkpoint's BPE: text ↔ token ids, and the raw bytes of every token, which are proved on loading."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import tokenizers
from llguidance import LLTokenizer

from m1runtime.errors import TokenizerError

log = logging.getLogger(__name__)
END_OF_SENTENCE = "<end_of_sentence>"

PROBES = (
    '{"name": "f", "arguments": {"a": [1, -2.5e+10, true, false, null], "b": {}, "c": []}}',
    "".join(map(chr, range(0x20, 0x7F))),
    "0123456789 00 007 3.14159 1000000",
    " ",
    "a  b   c    d",
    "\n",
    "a\n\nb\n\n\n\n\tc\r\n",
    "\x00\x01\x1b\x7f",
    '"\\"\\\\/\\n\\u00e9"',
    "é ß Ж 漢字 हिन्दी",
    "🙂👩‍👩‍👧 \u202e",
    "<tool_calls>\n</tool_calls>",
)
"""Texts that must come back as they were: what JSON is made of, and characters of every length in UTF-8."""


class Tokenizer:
    """Thin over `tokenizers.Tokenizer`; ids and bytes are exact, and untrusted text cannot forge special tokens.

    Vocabularies that put a space before every text (SentencePiece's habit) are read without it: a text here is often a
    part of a longer one.
    """

    def __init__(self, definition: str, *, eos_ids: Iterable[int] = (), eos_token: str | None = None) -> None:
        """`definition`: the text of a tokenizer.json; `eos_ids`, `eos_token`: ends known from elsewhere.

        Raises TokenizerError for a definition that is not BPE over bytes (byte-level, or characters that fall back to
        bytes), and for one that does not give texts back as they were.
        """
        try:
            parsed = cast("dict[str, Any]", json.loads(definition))
            spelling = _spelling(parsed)
            changes = _exact(parsed) if spelling is not None else {}
            self._definition = json.dumps({**parsed, **changes}) if changes else definition
            self._special = tokenizers.Tokenizer.from_str(self._definition)
        except Exception as error:  # `tokenizers` raises bare Exception
            raise TokenizerError(f"tokenizer.json cannot be read: {error}") from None
        if spelling is None:
            raise TokenizerError(
                "tokenizer.json is not BPE over bytes (no ByteLevel or ByteFallback decoder); nothing else is supported"
            )
        self._bytes_of = spelling
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
        self._prove()

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

    def _prove(self) -> None:
        """Masks, forced tokens and replies rest on the bytes of the tokens of a text being the bytes of the text."""
        special = set(self.special_ids.values())
        for text in (*PROBES, *self.special_ids):
            ids = self.encode(text, special=False)
            raw = b"".join(self.token_bytes[i] for i in ids)
            if raw != text.encode():
                came = raw.decode("utf-8", "replace")
                raise TokenizerError(f"tokenizer.json changes text: {text!r} becomes {came!r}; no mask can hold for it")
            if special & set(ids):
                raise TokenizerError(f"tokenizer.json reads a special token in plain text: {text!r}")

    @cached_property
    def _token_bytes(self) -> list[bytes]:
        found = [b""] * self.vocab_size
        for token, i in self._special.get_vocab(with_added_tokens=True).items():
            try:
                found[i] = self._added[i].encode() if i in self._added else self._bytes_of(token)
            except KeyError as error:
                raise TokenizerError(f"tokenizer.json: token {token!r} has a character of no byte: {error}") from None
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


def _spelling(parsed: dict[str, Any]) -> Callable[[str], bytes] | None:
    """The bytes that a token of this vocabulary stands for; None where tokens do not stand for bytes."""
    model, kinds = cast("dict[str, Any]", parsed.get("model") or {}), _kinds(parsed)
    if model.get("type") != "BPE":
        return None
    if "ByteLevel" in kinds:
        unmap = _byte_of_symbol()
        return lambda token: bytes(unmap[symbol] for symbol in token)
    if "ByteFallback" in kinds and model.get("byte_fallback"):
        marks = [mark for part in _decoders(parsed) if (mark := _mark_of_space(part))]
        return lambda token: _fallback_bytes(token, marks)
    return None


def _decoders(parsed: dict[str, Any]) -> list[dict[str, Any]]:
    decoder = cast("dict[str, Any]", parsed.get("decoder") or {})
    return cast("list[dict[str, Any]]", decoder.get("decoders") or [decoder])


def _kinds(parsed: dict[str, Any]) -> set[str]:
    return {str(part.get("type")) for part in _decoders(parsed)}


def _fallback_bytes(token: str, spaces: Sequence[str]) -> bytes:
    """SentencePiece: `<0x0A>` is a byte, any other token its characters with a mark for the space."""
    if re.fullmatch("<0x[0-9A-F]{2}>", token):
        return bytes((int(token[3:5], 16),))
    for mark in spaces:
        token = token.replace(mark, " ")
    return token.encode()


def _mark_of_space(part: dict[str, Any]) -> str | None:
    """The character that stands for a space, of a decoder that turns it back."""
    if part.get("type") == "Metaspace":
        return str(part.get("replacement", "▁"))
    if part.get("type") == "Replace" and part.get("content") == " ":
        return cast("dict[str, str]", part.get("pattern") or {}).get("String")
    return None


def _exact(parsed: dict[str, Any]) -> dict[str, Any]:
    """The parts that must change: so that no space comes before a text, and for a decoder that llguidance reads."""
    stages = {stage: parsed.get(stage) for stage in ("normalizer", "pre_tokenizer")}
    exact = {stage: _without_prefix(part) for stage, part in stages.items()}
    if "ByteLevel" not in _kinds(parsed):
        marks = [mark for part in _decoders(parsed) if (mark := _mark_of_space(part))]
        spaces = [{"type": "Replace", "pattern": {"String": mark}, "content": " "} for mark in marks]
        exact["decoder"] = {"type": "Sequence", "decoders": [*spaces, {"type": "ByteFallback"}, {"type": "Fuse"}]}
    return {stage: part for stage, part in exact.items() if part != parsed.get(stage)}


def _without_prefix(part: Any) -> Any:
    if not isinstance(part, dict):
        return part
    node = cast("dict[str, Any]", part)
    match node.get("type"):
        case "Prepend":
            return None
        case "Sequence":
            key = "normalizers" if "normalizers" in node else "pretokenizers"
            return {**node, key: [kept for one in node[key] if (kept := _without_prefix(one)) is not None]}
        case "ByteLevel" if node.get("add_prefix_space"):
            return {**node, "add_prefix_space": False}
        case "Metaspace":
            return {key: value for key, value in node.items() if key != "add_prefix_space"} | {
                "prepend_scheme": "never"
            }
        case _:
            return node


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
