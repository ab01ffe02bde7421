"""The tokenizer of m1-nano: a byte-level BPE of short pieces.

Copying a value from the question into a call is what a small model finds hard, and it learns it when a word looks the
same everywhere: spaces, digits and signs stand alone, words fall into pieces of at most four letters. The fixed phrases
of the chat template and of JSON Schema are one token each, which keeps prompts short.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from m1agent.prompt import template
from training.data.conversation import dialogue

SPECIALS = (template.END, template.BEGIN, template.BEGIN_DOCUMENT)
PHRASES = (
    "system ai_setting=assistant\n", "system tool_setting=tools\n" + template.TOOLS_INTRO, template.TOOLS_OUTRO, "user name=user\n", "ai name=assistant\n",
    "tool name=tools\n", "tool name: ", "\ntool result: ", "<tool_calls>\n", "</tool_calls>", "<think>\n", "</think>\n", '{"name": "', '", "arguments": {"', '", "arguments": {}}\n',
    '", "description": "', '", "parameters": {"type": "object", "properties": {"', '", "parameters": {"type": "object", "properties": {}}}\n', '": {"type": "string", "description": "', '": {"type": "string", "enum": ["',
    '": {"type": "integer", "description": "', '": {"type": "number", "description": "', '": {"type": "boolean", "description": "', '": {"type": "array", "description": "',
    '": {"type": "string"}', '": {"type": "integer"}', '": {"type": "number"}', '": {"type": "boolean"}', '", "items": {"type": "string"}}', '": {"type": "array", "items": {"type": "string"}}',
    '", "enum": ["', '"]}', '"}}, "required": ["', '"}}}}\n', '"}, "', '}, "required": ["', '"]}}\n', '}}}\n', '"}}\n', '}}\n', '": "', '": ["', '": ', '", "', '"], "', '"]', '"}', ', "', '": {"',
    '"type": "string"', '"description": "', '"type": "integer"', '"type": "number"', '"type": "boolean"', '"type": "array"', '"type": "object"', ', "minimum": ', ', "maximum": ', "\n\n",
)  # fmt: skip
PIECE_LETTERS = 4


def train(vocab_size: int, *, dialogues: int, seed: int) -> Tokenizer:
    """A tokenizer of `vocab_size` tokens, learned from generated conversations."""
    words = Tokenizer(BPE())
    words.pre_tokenizer = _pre_tokenizer()
    merges = vocab_size - len(SPECIALS) - len(PHRASES)
    trainer = BpeTrainer(
        vocab_size=merges,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=PIECE_LETTERS,
        show_progress=False,
    )
    words.train_from_iterator(_plain_words(_texts(dialogues, seed)), trainer)
    model = json.loads(words.to_str())["model"]
    vocabulary: dict[str, int] = dict(model["vocab"])
    for phrase in PHRASES:
        vocabulary.setdefault(_byte_level(phrase), len(vocabulary))
    merge_pairs = [tuple(pair) for pair in model["merges"]]
    tokenizer = Tokenizer(BPE(vocabulary, merge_pairs, ignore_merges=True))
    tokenizer.pre_tokenizer = _pre_tokenizer()
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIALS))
    return tokenizer


def save(tokenizer: Tokenizer, folder: Path) -> None:
    """Writes tokenizer.json and tokenizer_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": template.BEGIN,
        "eos_token": template.END,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1) + "\n")


def encode(tokenizer: Tokenizer, pieces: Iterable[template.Piece]) -> list[int]:
    """Token ids of a prompt, special pieces as single tokens."""
    ids: list[int] = []
    for piece in pieces:
        ids += [tokenizer.token_to_id(piece.text)] if piece.special else tokenizer.encode(piece.text).ids
    return ids


def _pre_tokenizer() -> pre_tokenizers.PreTokenizer:
    phrases = "|".join(re.escape(phrase) for phrase in sorted(PHRASES, key=len, reverse=True))
    split = Regex(phrases + r"|\p{Lu}?\p{Ll}+|\p{Lu}+(?!\p{Ll})|\p{L}|[^\p{L}]")
    return pre_tokenizers.Sequence(
        [pre_tokenizers.Split(split, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )


def _byte_level(text: str) -> str:
    encoded = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)
    return "".join(piece for piece, _ in encoded)


def _texts(dialogues: int, seed: int) -> Iterator[str]:
    rng = random.Random(seed)
    for _ in range(dialogues):
        one = dialogue(rng)
        pieces = template.render_setup(one.setup)
        for message in one.messages:
            pieces += template.render_message(message)
        yield template.plain_text(piece for piece in pieces if not piece.special)  # type: ignore[arg-type]


def _plain_words(texts: Iterable[str]) -> Iterator[str]:
    """The words between the phrases: phrases must not use up merges."""
    phrases = re.compile("|".join(re.escape(phrase) for phrase in sorted(PHRASES, key=len, reverse=True)))
    for text in texts:
        yield from (part for part in phrases.split(text) if part)
