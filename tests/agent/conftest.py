"""A small checkpoint with random weights, a tokenizer and M1's special tokens."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = Path(__file__).parents[1] / "runtime" / "conftest.py"
    spec = importlib.util.spec_from_file_location("small_checkpoints", path)
    assert spec and spec.loader
    small = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(small)
    made: Path = small.write_checkpoint(
        tmp_path_factory.mktemp("model"), *small.random_checkpoint(seed=4, vocab_size=288)
    )
    (made / "tokenizer.json").write_text(small.small_tokenizer())
    (made / "tokenizer_config.json").write_text('{"eos_token": "<end_of_sentence>"}')
    return made
