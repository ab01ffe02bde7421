"""Small random checkpoints in the hub layout, written by rules of their own and read by the loader under test."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

HUB_TINY: dict[str, Any] = {
    "architectures": ["MiniMaxM1ForCausalLM"],
    "model_type": "minimax_m1",
    "vocab_size": 97,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "attn_type_list": [0, 1, 0, 1],
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rotary_dim": 8,
    "rope_theta": 10000.0,
    "intermediate_size": 48,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "shared_intermediate_size": 0,
    "postnorm": True,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 4096,
    "layernorm_linear_attention_alpha": 1.7,
    "layernorm_linear_attention_beta": 0.9,
    "layernorm_full_attention_alpha": 1.5,
    "layernorm_full_attention_beta": 1.0,
    "layernorm_mlp_alpha": 1.6,
    "layernorm_mlp_beta": 1.1,
    "tie_word_embeddings": False,
    "eos_token_id": None,
}

Checkpoint = tuple[dict[str, Any], dict[str, torch.Tensor]]


def hub_shapes(c: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Hub names and shapes, by the rules of the original layout."""
    h, v, inner, f = c["hidden_size"], c["vocab_size"], c["num_attention_heads"] * c["head_dim"], c["intermediate_size"]
    kv = c["num_key_value_heads"] * c["head_dim"]
    shapes = {"model.embed_tokens.weight": (v, h), "model.norm.weight": (h,), "lm_head.weight": (v, h)}
    for layer, kind in enumerate(c["attn_type_list"]):
        base = f"model.layers.{layer}"
        own = {"input_layernorm.weight": (h,), "post_attention_layernorm.weight": (h,)}
        if kind == 0:
            own |= {"self_attn.qkv_proj.weight": (3 * inner, h), "self_attn.output_gate.weight": (inner, h)}
            own |= {"self_attn.norm.weight": (inner,), "self_attn.out_proj.weight": (h, inner)}
        else:
            own |= {"self_attn.q_proj.weight": (inner, h), "self_attn.o_proj.weight": (h, inner)}
            own |= {"self_attn.k_proj.weight": (kv, h), "self_attn.v_proj.weight": (kv, h)}
        if c["num_local_experts"] > 1:
            own["block_sparse_moe.gate.weight"] = (c["num_local_experts"], h)
            for e in range(c["num_local_experts"]):
                expert = f"block_sparse_moe.experts.{e}"
                own |= {f"{expert}.w1.weight": (f, h), f"{expert}.w2.weight": (h, f), f"{expert}.w3.weight": (f, h)}
        else:
            own |= {"mlp.gate_proj.weight": (f, h), "mlp.up_proj.weight": (f, h), "mlp.down_proj.weight": (h, f)}
        if shared := c["shared_intermediate_size"]:
            own |= {"coefficient.weight": (1, h), "shared_mlp.gate_proj.weight": (shared, h)}
            own |= {"shared_mlp.up_proj.weight": (shared, h), "shared_mlp.down_proj.weight": (h, shared)}
        shapes |= {f"{base}.{name}": shape for name, shape in own.items()}
    return shapes


def random_checkpoint(seed: int = 0, **changes: Any) -> Checkpoint:
    config = HUB_TINY | changes
    random = torch.Generator().manual_seed(seed)
    tensors = {
        name: torch.randn(shape, generator=random) * (shape[-1] ** -0.5 if len(shape) > 1 else 0.1) + (len(shape) == 1)
        for name, shape in hub_shapes(config).items()
    }
    return config, tensors


def write_checkpoint(folder: Path, config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="session")
def checkpoint() -> Callable[..., Checkpoint]:
    return random_checkpoint


@pytest.fixture(scope="session")
def write() -> Callable[[Path, dict[str, Any], dict[str, torch.Tensor]], Path]:
    return write_checkpoint


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("tiny"), *random_checkpoint())


@pytest.fixture(scope="session")
def shared_m1() -> Path:
    folder = Path(__file__).parents[3] / "shared" / "m1"
    if not folder.is_dir():
        pytest.skip("needs ../shared/m1 (MiniMax-M1's config, index and tokenizer) beside the checkout")
    return folder


MERGES = ["e r", "t h", "th e", "Ġ the", "l l", "o o", "S T", "ST O", "Ġ w"]
SPECIALS = ["<begin_of_document>", "<beginning_of_sentence>", "<end_of_sentence>"]


def small_tokenizer() -> str:
    """A byte-level BPE of 256 bytes, a few merges and M1's special tokens."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*alphabet, *(merge.replace(" ", "") for merge in MERGES)]
    merges = [(left, right) for left, right in (merge.split(" ") for merge in MERGES)]
    tokenizer = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIALS])
    return tokenizer.to_str()


@pytest.fixture(scope="session")
def text_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model with a tokenizer; the model has more rows than the tokenizer has tokens."""
    folder = write_checkpoint(tmp_path_factory.mktemp("text"), *random_checkpoint(seed=4, vocab_size=288))
    (folder / "tokenizer.json").write_text(small_tokenizer())
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<end_of_sentence>"}')
    return folder
