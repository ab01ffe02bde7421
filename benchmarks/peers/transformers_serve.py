"""m1-nano for `transformers serve`: the same weights in transformers' own dialect, with a chat template.

Its MiniMax rotates whole heads where the model rotates half of each, so what it says differs; the work is the same.
"""

from __future__ import annotations

import shutil
from pathlib import Path

TEMPLATE = (
    "<begin_of_document>{% for message in messages %}<beginning_of_sentence>"
    "{{ 'user name=user' if message.role == 'user' else 'ai name=assistant' }}\n"
    "{{ message.content if message.content is string else message.content[0].text }}<end_of_sentence>\n{% endfor %}"
    "{% if add_generation_prompt %}<beginning_of_sentence>ai name=assistant\n{% endif %}"
)


def write(source: Path, target: Path) -> None:
    """The checkpoint at `source` as a folder that transformers reads by itself."""
    from benchmarks.decode import peer_of

    model = peer_of(source)
    model.save_pretrained(target)  # type: ignore[operator]
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source / name, target / name)
    (target / "chat_template.jinja").write_text(TEMPLATE)
