"""Small checkpoints, all with M1's special tokens: one of random weights, and those that say what they are told to."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

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


Follow: TypeAlias = Mapping[str, Sequence[str]]
Chain: TypeAlias = Callable[[Path, Follow], Path]
BEGUN = "ai name=assistant\n"
END = "<end_of_sentence>"


@pytest.fixture(scope="session")
def chain(small: Any) -> Chain:
    """Writes a checkpoint, with the tokenizer of m1-nano, in which the last token alone says what comes next.

    `follow`: the tokens that may come after a token, the likeliest first; after any other, "a" for ever. A reply
    begins after BEGUN. Only the last token reaches the head: every output projection is zero and embeddings
    are unit vectors.
    """
    import torch

    from m1runtime import Tokenizer
    from m1runtime.engine import BUNDLED

    nano, size = BUNDLED["m1-nano"], 640
    tokenizer = Tokenizer.from_file(nano / "tokenizer.json")

    def last(text: str) -> int:
        ids = [tokenizer.special_ids[text]] if text in tokenizer.special_ids else tokenizer.encode(text, special=False)
        assert len(ids) == 1 or text == BEGUN, f"{text!r} is {len(ids)} tokens"
        return ids[-1]

    def write(folder: Path, follow: Follow) -> Path:
        shape = {"hidden_size": size, "num_hidden_layers": 2, "attn_type_list": [0, 1], "vocab_size": size}
        config, tensors = small.random_checkpoint(**shape, intermediate_size=8, num_local_experts=2)
        for name, tensor in tensors.items():
            if name.endswith(("o_proj.weight", "out_proj.weight", "w2.weight")):
                tensor.zero_()
            elif "norm" in name:
                tensor.fill_(1.0)
        tensors["model.embed_tokens.weight"] = torch.eye(size)
        tensors["lm_head.weight"].zero_()
        after = {last(token): [last(text) for text in texts] for token, texts in follow.items()}
        for token in range(size):
            for rank, text in enumerate(after.get(token, [last("a")])):
                tensors["lm_head.weight"][text, token] = 1.0 - rank / 10
        made: Path = small.write_checkpoint(folder, config, tensors)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(nano / name, made / name)
        return made

    return write


@pytest.fixture(scope="session")
def thinker(tmp_path_factory: pytest.TempPathFactory, chain: Chain) -> Path:
    """A reply begins to think and never ends to by itself; where the thinking was closed for it, it says "ok"."""
    follow = {BEGUN: ["<think>\n"], "</think>\n": ["ok"], "ok": [END]}
    return chain(tmp_path_factory.mktemp("thinker"), follow)
