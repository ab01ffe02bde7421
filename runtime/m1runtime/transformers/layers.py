"""The sub-layers of the hybrid as plain modules under the hub's names, with autograd.

Shapes: B rows of T tokens, H hidden size, A heads of D, K KV heads, E experts. `real` [B, T] says which are no padding.
"""

# pyright: basic
# transformers is typed in part only.
from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_layers import GradientCheckpointingLayer

from m1kernels.lightning import decay_slopes
from m1kernels.moe import route
from m1kernels.norm import rms_norm, rms_norm_gate
from m1kernels.rotary import apply_rotary
from m1runtime.config import LIGHTNING, ModelConfig
from m1runtime.transformers.cache import LightningStates, MiniMaxM1Cache, run


class M1RMSNorm(nn.Module):
    """The weight of an RMS norm."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


class Router(nn.Module):
    """A product in fp32. No `nn.Linear`: quantisers would replace it, and the choice of experts must not be rounded."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.float(), self.weight.float())


class LightningAttention(nn.Module):
    """Linear attention with one decay a head, an RMS norm over all heads' channels, and an output gate."""

    def __init__(self, c: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.layers, self.heads = layer, c.num_hidden_layers, c.num_attention_heads
        self.qkv_proj = nn.Linear(c.hidden_size, 3 * c.inner_size, bias=False)
        self.output_gate = nn.Linear(c.hidden_size, c.inner_size, bias=False)
        self.out_proj = nn.Linear(c.inner_size, c.hidden_size, bias=False)
        self.norm = M1RMSNorm(c.inner_size, c.inner_norm_eps)
        self._slopes: Tensor | None = None

    def slopes(self, device: torch.device) -> Tensor:
        """Decay exponents [A] fp32. No buffer: one would follow the model into 16 bits, where the slowest heads never
        forget."""
        if self._slopes is None or self._slopes.device != device:
            self._slopes = decay_slopes(self.heads, self.layer, self.layers).to(device)
        return self._slopes

    def forward(self, n: Tensor, real: Tensor | None, cache: MiniMaxM1Cache | None) -> Tensor:
        batch, length, _ = n.shape
        qkv = F.silu(self.qkv_proj(n).float()).view(batch, length, self.heads, 3, -1)
        q, k, v = qkv.unbind(3)
        held = cache.layers[self.layer] if cache is not None else None
        state = held.state if isinstance(held, LightningStates) else None
        if state is None:
            state = k.new_zeros(batch, self.heads, k.shape[-1], k.shape[-1])
        slopes = self.slopes(n.device)
        o, state = run(q, k, v, slopes, state, real)
        if isinstance(held, LightningStates):
            held.update(k, v, state, real, slopes)
        o = rms_norm_gate(o.flatten(2), self.norm.weight, self.output_gate(n), self.norm.eps)
        return self.out_proj(o.to(n.dtype))


class SoftmaxAttention(nn.Module):
    """Causal grouped-query attention with rotary position on the first `rotary_dim` dims of each head."""

    def __init__(self, c: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.dim, self.rotary_dim, self.theta = layer, c.head_dim, c.rotary_dim, c.rope_theta
        kv = c.num_key_value_heads * c.head_dim
        self.q_proj = nn.Linear(c.hidden_size, c.inner_size, bias=False)
        self.k_proj = nn.Linear(c.hidden_size, kv, bias=False)
        self.v_proj = nn.Linear(c.hidden_size, kv, bias=False)
        self.o_proj = nn.Linear(c.inner_size, c.hidden_size, bias=False)

    def forward(self, n: Tensor, positions: Tensor, mask: Tensor | None, cache: MiniMaxM1Cache | None) -> Tensor:
        """positions [B, T]; mask [B or 1, 1, T, S] bool, None where nothing is hidden but what is later."""
        q, k, v = (self._heads(proj(n)) for proj in (self.q_proj, self.k_proj, self.v_proj))
        q, k = self._turned(q, positions), self._turned(k, positions)
        if cache is not None:
            k, v = cache.update(k, v, self.layer)
        # A CPU's fused attention would round the scores of 16-bit inputs.
        q, k, v = (x.float() if x.device.type == "cpu" else x for x in (q, k, v))
        causal = mask is None and q.shape[2] > 1
        o = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=True)
        return self.o_proj(o.transpose(1, 2).flatten(2).to(n.dtype))

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], -1, self.dim).transpose(1, 2)

    def _turned(self, x: Tensor, positions: Tensor) -> Tensor:
        rows = x.transpose(1, 2)
        turned = apply_rotary(rows.flatten(0, 1), positions.flatten(), self.rotary_dim, self.theta)
        return turned.view_as(rows).transpose(1, 2)


class Expert(nn.Module):
    """A SwiGLU MLP under the names of an expert."""

    def __init__(self, c: ModelConfig) -> None:
        super().__init__()
        self.w1 = nn.Linear(c.hidden_size, c.intermediate_size, bias=False)
        self.w2 = nn.Linear(c.intermediate_size, c.hidden_size, bias=False)
        self.w3 = nn.Linear(c.hidden_size, c.intermediate_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class DenseMLP(nn.Module):
    """A SwiGLU MLP under the names of a dense one."""

    def __init__(self, hidden: int, inner: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden, inner, bias=False)
        self.up_proj = nn.Linear(hidden, inner, bias=False)
        self.down_proj = nn.Linear(inner, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Experts(nn.Module):
    """The top k of E experts for each token; each expert is computed for its own tokens alone."""

    def __init__(self, c: ModelConfig) -> None:
        super().__init__()
        self.top_k = c.num_experts_per_tok
        self.gate = Router(c.hidden_size, c.num_local_experts)
        self.experts = nn.ModuleList(Expert(c) for _ in range(c.num_local_experts))

    def forward(self, n: Tensor) -> Tensor:
        x = n.flatten(0, 1)
        weights, ids = route(x, self.gate.weight, self.top_k)
        out = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
        for expert in ids.unique().tolist():
            rows, places = (ids == expert).nonzero(as_tuple=True)
            part = self.experts[expert](x[rows]).float() * weights[rows, places, None]
            out = out.index_add(0, rows, part)
        return out.to(n.dtype).view_as(n)

    def scores(self, n: Tensor) -> Tensor:
        """Router logits [B·T, E], for the balancing loss."""
        return self.gate(n.flatten(0, 1))


class M1DecoderLayer(GradientCheckpointingLayer):
    """One attention of either kind and one set of experts, each behind its norm and residual."""

    def __init__(self, c: ModelConfig, layer: int) -> None:
        super().__init__()
        self.lightning = c.attn_types[layer] == LIGHTNING
        self.self_attn = LightningAttention(c, layer) if self.lightning else SoftmaxAttention(c, layer)
        if c.num_local_experts > 1:
            self.block_sparse_moe = Experts(c)
        else:
            self.mlp = DenseMLP(c.hidden_size, c.intermediate_size)
        if c.shared_intermediate_size:
            self.coefficient = Router(c.hidden_size, 1)
            self.shared_mlp = DenseMLP(c.hidden_size, c.shared_intermediate_size)
        self.input_layernorm = M1RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.post_attention_layernorm = M1RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.postnorm, self.routed, self.shared = c.postnorm, c.num_local_experts > 1, bool(c.shared_intermediate_size)
        self.alpha, self.beta = (
            (c.lightning_alpha, c.lightning_beta) if self.lightning else (c.softmax_alpha, c.softmax_beta)
        )
        self.mlp_alpha, self.mlp_beta = c.mlp_alpha, c.mlp_beta

    def forward(
        self,
        h: Tensor,
        real: Tensor | None = None,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        past_key_values: MiniMaxM1Cache | None = None,
        scored: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        n = self.input_layernorm(h)
        a = (
            self.self_attn(n, real, past_key_values)
            if self.lightning
            else self.self_attn(n, positions, mask, past_key_values)
        )
        h = self.alpha * (n if self.postnorm else h) + self.beta * a
        n = self.post_attention_layernorm(h)
        scores = self.block_sparse_moe.scores(n) if scored and self.routed else None
        return self.mlp_alpha * (n if self.postnorm else h) + self.mlp_beta * self._mixed(n), scores

    def _mixed(self, n: Tensor) -> Tensor:
        routed = self.block_sparse_moe(n) if self.routed else self.mlp(n)
        if not self.shared:
            return routed
        c = torch.sigmoid(self.coefficient(n))
        return (routed * (1 - c) + self.shared_mlp(n) * c).to(n.dtype)
