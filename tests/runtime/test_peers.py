"""The same weights through transformers (post-norm, all of head_dim rotated) and through a float64 recurrence."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from m1runtime import Engine

IDS = [3, 80, 12, 12, 96, 0, 41, 7, 55, 23, 3, 80, 12, 61, 90, 2, 2, 19] * 4

PEER_CONFIGS: list[dict[str, Any]] = [
    {
        "num_attention_heads": 6,
        "num_key_value_heads": 3,
        "head_dim": 8,
        "num_local_experts": 5,
        "intermediate_size": 20,
    },
    {"attn_type_list": [1, 0, 1, 1], "num_local_experts": 8, "num_experts_per_tok": 3, "head_dim": 12},
    {"attn_type_list": [0, 0, 0, 1, 0], "num_hidden_layers": 5, "num_attention_heads": 12, "num_key_value_heads": 1},
]


def alibi(heads: int) -> list[float]:
    """ALiBi's slopes with its interpolation, as its authors' code has them (arXiv 2108.12409)."""
    power = 2 ** math.floor(math.log2(heads))
    start = 2 ** (-(2 ** -(math.log2(power) - 3)))
    own = [start * start**i for i in range(power)]
    return own if power == heads else own + alibi(2 * power)[0::2][: heads - power]


@pytest.mark.parametrize("change", PEER_CONFIGS)
def test_transformers_agrees(
    checkpoint: Callable[..., Any], write: Callable[..., Path], tmp_path: Path, change: dict[str, Any]
) -> None:
    change = {"head_dim": 16} | change
    config, tensors = checkpoint(seed=1, **change, rotary_dim=change["head_dim"])
    engine = Engine.from_pretrained(write(tmp_path, config, tensors), device="cpu", progress=False)
    peer = transformers_model(config, tensors)
    with torch.no_grad():
        expected = peer(torch.tensor([IDS]), use_cache=False).logits[0]
    assert (engine.score(IDS) - expected).abs().max() < 1e-4


def transformers_model(config: dict[str, Any], tensors: dict[str, Tensor]) -> Any:
    from transformers import MiniMaxConfig, MiniMaxForCausalLM

    names = {"linear_attn": "linear_attention", "full_attn": "full_attention", "mlp": "mlp"}
    factors = {f"{s}_{p}_factor": config[f"layernorm_{n}_{p}"] for s, n in names.items() for p in ("alpha", "beta")}
    kinds = ["full_attention" if kind else "linear_attention" for kind in config["attn_type_list"]]
    shared = ("vocab_size hidden_size num_hidden_layers num_attention_heads num_key_value_heads head_dim "
              "intermediate_size num_local_experts num_experts_per_tok rms_norm_eps").split()  # fmt: skip
    model = MiniMaxForCausalLM(
        MiniMaxConfig(
            **{name: config[name] for name in shared},
            **factors,
            layer_types=kinds,
            rope_parameters={"rope_type": "default", "rope_theta": config["rope_theta"]},
            attn_implementation="eager",
        )
    ).eval()
    state = {name: tensor for name, tensor in tensors.items() if "block_sparse_moe" not in name}
    for layer, kind in enumerate(config["attn_type_list"]):
        w1, w2, w3 = (stacked(config, tensors, layer, f"w{i}") for i in (1, 2, 3))
        state[f"model.layers.{layer}.mlp.gate.weight"] = tensors[f"model.layers.{layer}.block_sparse_moe.gate.weight"]
        state[f"model.layers.{layer}.mlp.experts.gate_up_proj"] = torch.cat((w1, w3), dim=1)
        state[f"model.layers.{layer}.mlp.experts.down_proj"] = w2
        if kind == 0:
            use_alibi(model.model.layers[layer].self_attn, config, layer)
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    assert all("decay" in name or "slope" in name for name in missing)
    return model


def stacked(config: dict[str, Any], tensors: dict[str, Tensor], layer: int, name: str) -> Tensor:
    base = f"model.layers.{layer}.block_sparse_moe.experts"
    return torch.stack([tensors[f"{base}.{e}.{name}.weight"] for e in range(config["num_local_experts"])])


def use_alibi(attention: Any, config: dict[str, Any], layer: int) -> None:
    """transformers has plain slopes for head counts that are no power of two; the original interpolates."""
    factor = 1 - layer / (config["num_hidden_layers"] - 1) + 1e-5
    slopes = torch.tensor(alibi(config["num_attention_heads"]))[:, None, None] * factor
    decays = attention.decay_factors(slopes)
    for name, value in zip(
        ("slope_rate", "query_decay", "key_decay", "diagonal_decay"), (slopes, *decays), strict=True
    ):
        getattr(attention, name).copy_(value)


REFERENCE_CONFIGS: list[dict[str, Any]] = [
    {"postnorm": False, "layernorm_mlp_alpha": 1.0, "layernorm_full_attention_alpha": 1.0},
    {"postnorm": False, "num_attention_heads": 6, "num_key_value_heads": 2, "rotary_dim": 6},
    {"postnorm": False, "num_local_experts": 1, "num_experts_per_tok": 1, "tie": True},
    {"postnorm": True, "shared_intermediate_size": 12, "attn_type_list": [1, 1, 0, 0]},
    {"attn_type_list": [0, 0, 0, 0]},
    {"attn_type_list": [1, 1, 1, 1]},
]


@pytest.mark.parametrize("change", REFERENCE_CONFIGS)
def test_the_float64_recurrence_agrees(
    checkpoint: Callable[..., Any], write: Callable[..., Path], tmp_path: Path, change: dict[str, Any]
) -> None:
    tie = change.get("tie", False)
    config, tensors = checkpoint(seed=2, tie_word_embeddings=tie, **{k: v for k, v in change.items() if k != "tie"})
    if tie:
        del tensors["lm_head.weight"]
    engine = Engine.from_pretrained(write(tmp_path, config, tensors), device="cpu", progress=False)
    expected = reference(config, {name: tensor.double() for name, tensor in tensors.items()}, IDS)
    assert (engine.score(IDS) - expected).abs().max() < 1e-4


def rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return weight * x / (x.square().mean(-1, keepdim=True) + eps).sqrt()


def reference(c: dict[str, Any], w: dict[str, Tensor], ids: list[int]) -> Tensor:
    """The equations token by token, float64."""
    h = w["model.embed_tokens.weight"][ids]
    for layer, kind in enumerate(c["attn_type_list"]):
        own = {name.removeprefix(f"model.layers.{layer}."): t for name, t in w.items() if f".layers.{layer}." in name}
        alpha, beta = (c[f"layernorm_{'full' if kind else 'linear'}_attention_{part}"] for part in ("alpha", "beta"))
        n = rms(h, own["input_layernorm.weight"], 1e-5)
        a = softmax_attention(c, own, n) if kind else lightning_attention(c, own, n, layer)
        h = alpha * (n if c["postnorm"] else h) + beta * a
        n = rms(h, own["post_attention_layernorm.weight"], 1e-5)
        h = c["layernorm_mlp_alpha"] * (n if c["postnorm"] else h) + c["layernorm_mlp_beta"] * experts(c, own, n)
    head = w.get("lm_head.weight", w["model.embed_tokens.weight"])
    return rms(h, w["model.norm.weight"], 1e-5) @ head.T


def lightning_attention(c: dict[str, Any], w: dict[str, Tensor], n: Tensor, layer: int) -> Tensor:
    heads, dim = c["num_attention_heads"], c["head_dim"]
    qkv = F.silu(n @ w["self_attn.qkv_proj.weight"].T).view(-1, heads, 3, dim)
    factor = 1 - layer / (c["num_hidden_layers"] - 1) + 1e-5
    decay = torch.exp(-torch.tensor(alibi(heads), dtype=torch.float64) * factor)[:, None, None]
    state = torch.zeros(heads, dim, dim, dtype=torch.float64)
    rows: list[Tensor] = []
    for q, k, v in qkv.transpose(1, 2):
        state = decay * state + k[:, :, None] * v[:, None, :]
        rows.append((q[:, None, :] @ state).flatten())
    gate = torch.sigmoid(n @ w["self_attn.output_gate.weight"].T)
    return (gate * rms(torch.stack(rows), w["self_attn.norm.weight"], 1e-6)) @ w["self_attn.out_proj.weight"].T


def softmax_attention(c: dict[str, Any], w: dict[str, Tensor], n: Tensor) -> Tensor:
    heads, dim, rotary = c["num_attention_heads"], c["head_dim"], c["rotary_dim"]
    q, k, v = ((n @ w[f"self_attn.{x}_proj.weight"].T).view(len(n), -1, dim).transpose(0, 1) for x in "qkv")
    angles = torch.arange(len(n))[:, None] * c["rope_theta"] ** (-torch.arange(0, rotary, 2).double() / rotary)
    turn = torch.polar(torch.ones_like(angles), angles)

    def rotate(x: Tensor) -> Tensor:
        pairs = torch.complex(x[..., : rotary // 2], x[..., rotary // 2 : rotary]) * turn
        return torch.cat((pairs.real, pairs.imag, x[..., rotary:]), dim=-1)

    groups = heads // c["num_key_value_heads"]
    k, v = (x.repeat_interleave(groups, dim=0) for x in (rotate(k), v))
    scores = rotate(q) @ k.transpose(1, 2) / math.sqrt(dim)
    causal = torch.ones(len(n), len(n)).tril().bool()
    o = scores.masked_fill(~causal, float("-inf")).softmax(-1) @ v
    return o.transpose(0, 1).flatten(1) @ w["self_attn.o_proj.weight"].T


def mlp(n: Tensor, w1: Tensor, w2: Tensor, w3: Tensor) -> Tensor:
    return (F.silu(n @ w1.T) * (n @ w3.T)) @ w2.T


def experts(c: dict[str, Any], w: dict[str, Tensor], n: Tensor) -> Tensor:
    if c["num_local_experts"] == 1:
        return mlp(n, *(w[f"mlp.{name}_proj.weight"] for name in ("gate", "down", "up")))
    p = (n @ w["block_sparse_moe.gate.weight"].T).softmax(-1)
    chosen, ids = p.topk(c["num_experts_per_tok"], dim=-1)
    weights = torch.zeros_like(p).scatter(1, ids, chosen / chosen.sum(-1, keepdim=True))
    out = torch.zeros_like(n)
    for e in range(c["num_local_experts"]):
        out += weights[:, e, None] * mlp(n, *(w[f"block_sparse_moe.experts.{e}.w{i}.weight"] for i in (1, 2, 3)))
    if c["shared_intermediate_size"]:
        mix = torch.sigmoid(n @ w["coefficient.weight"].T)
        shared = mlp(n, *(w[f"shared_mlp.{name}_proj.weight"] for name in ("gate", "down", "up")))
        out = out * (1 - mix) + shared * mix
    return out
