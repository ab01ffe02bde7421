"""Small checkpoints: one with random weights, and one that thinks for ever. Both have M1's special tokens."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def small() -> Any:
    """How the runtime's tests write small checkpoints."""
    path = Path(__file__).parents[1] / "runtime" / "conftest.py"
    spec = importlib.util.spec_from_file_location("small_checkpoints", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory, small: Any) -> Path:
    made: Path = small.write_checkpoint(
        tmp_path_factory.mktemp("model"), *small.random_checkpoint(seed=4, vocab_size=288)
    )
    (made / "tokenizer.json").write_text(small.small_tokenizer())
    (made / "tokenizer_config.json").write_text('{"eos_token": "<end_of_sentence>"}')
    return made


@pytest.fixture(scope="session")
def thinker(tmp_path_factory: pytest.TempPathFactory, small: Any) -> Path:
    """Each token is always followed by the same one: a reply begins to think and never ends to by itself; where the
    thinking was closed for it, it says "ok" and ends.

    Nothing but the last token reaches the head: every output projection is zero and embeddings are unit vectors.
    """
    import torch

    from m1runtime import Tokenizer
    from m1runtime.engine import BUNDLED

    nano = BUNDLED["m1-nano"]
    tokenizer = Tokenizer.from_file(nano / "tokenizer.json")
    size = 640
    shape = {"hidden_size": size, "num_hidden_layers": 2, "attn_type_list": [0, 1], "vocab_size": size}
    config, tensors = small.random_checkpoint(**shape, intermediate_size=8, num_local_experts=2)
    for name, tensor in tensors.items():
        if name.endswith(("o_proj.weight", "out_proj.weight", "w2.weight")):
            tensor.zero_()
        elif "norm" in name:
            tensor.fill_(1.0)
    (opened,), (closed,), (ok,) = (tokenizer.encode(text) for text in ("<think>\n", "</think>\n", "ok"))
    begun, end, musing = tokenizer.encode("ai name=assistant\n")[-1], tokenizer.special_ids["<end_of_sentence>"], 64
    after = {begun: opened, closed: ok, ok: end}
    tensors["model.embed_tokens.weight"] = torch.eye(size)
    tensors["lm_head.weight"].zero_()
    for token in range(size):
        tensors["lm_head.weight"][after.get(token, musing), token] = 1.0
    made: Path = small.write_checkpoint(tmp_path_factory.mktemp("thinker"), config, tensors)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(nano / name, made / name)
    return made
