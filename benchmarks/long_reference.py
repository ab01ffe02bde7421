"""The network in float64, token by token where it matters: what long contexts are compared with.

Written from the equations and not from the runtime. Softmax attention is computed for chosen rows alone, so only the
last layer may be one; experts are a dense SwiGLU, whose output does not jump where routing is a near tie.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

_BLOCK = 256


def write_checkpoint(folder: Path, *, heads: int, dim: int, hidden: int = 32, lightning: int = 3) -> None:
    """A random checkpoint: lightning layers, then one softmax layer; position theta and alphas are MiniMax-M1's."""
    layers, inner = lightning + 1, 2 * hidden
    config = {
        "architectures": ["MiniMaxM1ForCausalLM"],
        "vocab_size": 97,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "attn_type_list": [0] * lightning + [1],
        "num_attention_heads": heads,
        "num_key_value_heads": 1,
        "head_dim": dim,
        "rotary_dim": dim // 2,
        "rope_theta": 1e7,
        "intermediate_size": inner,
        "num_local_experts": 1,
        "postnorm": True,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 10_240_000,
        **{f"layernorm_{part}_alpha": 3.5565588200778455 for part in ("linear_attention", "full_attention", "mlp")},
        **{f"layernorm_{part}_beta": 1.0 for part in ("linear_attention", "full_attention", "mlp")},
        "tie_word_embeddings": False,
        "eos_token_id": None,
    }
    random = torch.Generator().manual_seed(8)
    shapes = {"model.embed_tokens": (97, hidden), "model.norm": (hidden,), "lm_head": (97, hidden)}
    for layer in range(layers):
        own: dict[str, tuple[int, ...]] = {"input_layernorm": (hidden,), "post_attention_layernorm": (hidden,)}
        if layer < lightning:
            own |= {"self_attn.qkv_proj": (3 * heads * dim, hidden), "self_attn.output_gate": (heads * dim, hidden)}
            own |= {"self_attn.norm": (heads * dim,), "self_attn.out_proj": (hidden, heads * dim)}
        else:
            own |= {"self_attn.q_proj": (heads * dim, hidden), "self_attn.o_proj": (hidden, heads * dim)}
            own |= {"self_attn.k_proj": (dim, hidden), "self_attn.v_proj": (dim, hidden)}
        own |= {"mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden), "mlp.down_proj": (hidden, inner)}
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in own.items()}
    tensors = {
        f"{name}.weight": torch.randn(shape, generator=random) * (1.5 * shape[-1] ** -0.5 if len(shape) > 1 else 0.1)
        + (len(shape) == 1)
        for name, shape in shapes.items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")


class Reference:
    """A checkpoint of `write_checkpoint`, in float64."""

    def __init__(self, config: dict[str, object], tensors: dict[str, Tensor]) -> None:
        self.c = config
        self.w = {name.removesuffix(".weight"): tensor.double() for name, tensor in tensors.items()}
        self.heads, self.dim = int(str(config["num_attention_heads"])), int(str(config["head_dim"]))

    def logits(self, ids: Sequence[int], rows: Sequence[int]) -> Tensor:
        """float64 logits [len(rows), V] after those tokens."""
        h = self.w["model.embed_tokens"][torch.tensor(ids)]
        kinds = self.c["attn_type_list"]
        assert isinstance(kinds, list)
        for layer, kind in enumerate(kinds):
            n = self._rms(h, f"model.layers.{layer}.input_layernorm")
            a = self._softmax(n, layer, rows) if kind else self._lightning(n, layer, len(kinds))
            n = n[torch.tensor(rows)] if kind else n
            h = self._residual(n, a, "full_attention" if kind else "linear_attention")
            h = self._mlp(h, layer)
        return self._rms(h, "model.norm") @ self.w["lm_head"].T

    def _lightning(self, n: Tensor, layer: int, layers: int) -> Tensor:
        base = f"model.layers.{layer}.self_attn"
        q, k, v = F.silu(n @ self.w[f"{base}.qkv_proj"].T).view(len(n), self.heads, 3, self.dim).unbind(2)
        factor = 1 - layer / (layers - 1) + 1e-5
        slopes = [2.0 ** (-8 * (j + 1) / self.heads) * factor for j in range(self.heads)]
        o = torch.cat([recurrence(q[:, j], k[:, j], v[:, j], slope)[0] for j, slope in enumerate(slopes)], -1)
        o = self._rms(o, f"{base}.norm", 1e-6) * torch.sigmoid(n @ self.w[f"{base}.output_gate"].T)
        return o @ self.w[f"{base}.out_proj"].T

    def _softmax(self, n: Tensor, layer: int, rows: Sequence[int]) -> Tensor:
        base, wanted = f"model.layers.{layer}.self_attn", torch.tensor(rows)
        q = self._turn((n[wanted] @ self.w[f"{base}.q_proj"].T).view(-1, self.heads, self.dim), wanted)
        k = self._turn((n @ self.w[f"{base}.k_proj"].T)[:, None], torch.arange(len(n)))[:, 0]
        v = n @ self.w[f"{base}.v_proj"].T
        o = [((q[i] @ k[: row + 1].T) / math.sqrt(self.dim)).softmax(-1) @ v[: row + 1] for i, row in enumerate(rows)]
        return torch.stack(o).flatten(1) @ self.w[f"{base}.o_proj"].T

    def _turn(self, x: Tensor, positions: Tensor) -> Tensor:
        half = int(str(self.c["rotary_dim"])) // 2
        frequencies = float(str(self.c["rope_theta"])) ** (-torch.arange(half, dtype=torch.float64) / half)
        turn = torch.polar(torch.ones(1, dtype=torch.float64), positions[:, None] * frequencies)[:, None]
        turned = torch.complex(x[..., :half].contiguous(), x[..., half : 2 * half].contiguous()) * turn
        return torch.cat([turned.real, turned.imag, x[..., 2 * half :]], -1)

    def _mlp(self, h: Tensor, layer: int) -> Tensor:
        base = f"model.layers.{layer}"
        n = self._rms(h, f"{base}.post_attention_layernorm")
        gate, up, down = (self.w[f"{base}.mlp.{name}_proj"].T for name in ("gate", "up", "down"))
        return self._residual(n, (F.silu(n @ gate) * (n @ up)) @ down, "mlp")

    def _residual(self, n: Tensor, branch: Tensor, part: str) -> Tensor:
        return float(str(self.c[f"layernorm_{part}_alpha"])) * n + branch

    def _rms(self, x: Tensor, name: str, eps: float = 1e-5) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * self.w[name]


def recurrence(q: Tensor, k: Tensor, v: Tensor, slope: float) -> tuple[Tensor, Tensor]:
    """One head of lightning attention in float64, q, k, v [T, D]: outputs [T, D] and the last state [D, D]."""
    state = q.new_zeros(q.shape[1], q.shape[1])
    place = torch.arange(_BLOCK, dtype=torch.float64)
    within = torch.exp(-slope * (place[:, None] - place).clamp(min=0)).tril()
    parts: list[Tensor] = []
    for start in range(0, len(q), _BLOCK):
        a, b, c = (x[start : start + _BLOCK] for x in (q, k, v))
        m = len(a)
        before = torch.exp(-slope * (place[:m] + 1))[:, None] * (a @ state)
        parts.append(before + (a @ b.T * within[:m, :m]) @ c)
        keys = b * torch.exp(-slope * (m - 1 - place[:m]))[:, None]
        state = math.exp(-slope * m) * state + keys.T @ c
    return torch.cat(parts), state
