"""The network of `m1runtime.model`, written for training: equal-length rows, several documents a row, autograd.

Parameters carry the names of the hub layout, so that a state dict is a checkpoint the runtime loads as it is. Matrix
products run in bfloat16, everything else in float32. Equations: docs of `m1runtime.model`; a test holds the two equal.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from m1kernels.lightning import decay_slopes
from m1runtime.config import ModelConfig

CHUNK = 64
QUERIES = 128


class Norm(nn.Module):
    """Root-mean-square norm over the last dimension."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), self.weight.shape, self.weight, self.eps)


class Linear(nn.Module):
    """A bias-free product `x Wᵀ` in `precision`; weight [out, in] float32."""

    precision = torch.bfloat16

    def __init__(self, inputs: int, outputs: int, gain: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) * (gain / math.sqrt(inputs)))

    def forward(self, x: Tensor) -> Tensor:
        return x.to(self.precision) @ self.weight.to(self.precision).t()


class Documents:
    """Which positions of a row belong together: masks shared by all layers. `ids` [B, T] number the documents."""

    def __init__(self, ids: Tensor) -> None:
        batch, length = ids.shape
        chunks = ids.view(batch, length // CHUNK, CHUNK)
        last = chunks[:, :, -1]
        before = torch.cat([last.new_full((batch, 1), -1), last[:, :-1]], dim=1)
        self.within = (chunks[..., :, None] == chunks[..., None, :])[:, :, None].float()  # [B, n, 1, C, C]
        self.reaches_end = (chunks == last[..., None])[:, :, None, :, None].float()  # [B, n, 1, C, 1]
        self.from_before = (chunks == before[..., None])[:, :, None, :, None].float()  # [B, n, 1, C, 1]
        self.between = (before[:, :, None] == last[:, None, :])[:, None].float()  # [B, 1, n, n]
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        seen = (ids[:, :, None] == ids[:, None, :]) & causal
        self.attention = torch.zeros(seen.shape).masked_fill(~seen, float("-inf"))[:, None]  # [B, 1, T, T], added
        self.blocks = [(at, min(at + QUERIES, length)) for at in range(0, length, QUERIES)]
        fresh = torch.cat([torch.ones(batch, 1, dtype=torch.bool), ids[:, 1:] != ids[:, :-1]], dim=1)
        steps = torch.arange(length).expand(batch, length)
        self.positions = steps - torch.where(fresh, steps, 0).cummax(dim=1).values  # [B, T]


class Lightning(nn.Module):
    """Lightning attention by chunks; see `m1kernels.lightning` for the recurrence."""

    precision = torch.bfloat16

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.heads, self.width = config.num_attention_heads, config.head_dim
        inner = self.heads * self.width
        self.qkv_proj = Linear(config.hidden_size, 3 * inner)
        self.output_gate = Linear(config.hidden_size, inner)
        self.out_proj = Linear(inner, config.hidden_size, 0.5)
        self.norm = Norm(inner, 1e-6)
        slopes = decay_slopes(self.heads, layer, config.num_hidden_layers)
        steps = torch.arange(CHUNK)
        gaps = (steps[:, None] - steps[None, :]).clamp(min=0)
        self.register_buffer("decay", torch.exp(-slopes[:, None, None] * gaps).tril(), persistent=False)
        self.register_buffer("query_decay", torch.exp(-slopes[:, None] * (steps + 1))[..., None], persistent=False)
        self.register_buffer(
            "key_decay", torch.exp(-slopes[:, None] * (CHUNK - 1 - steps))[..., None], persistent=False
        )
        self.register_buffer("slopes", slopes, persistent=False)

    def forward(self, x: Tensor, docs: Documents) -> Tensor:
        batch, length, _ = x.shape
        n = length // CHUNK
        qkv = F.silu(self.qkv_proj(x).float()).view(batch, n, CHUNK, self.heads, 3 * self.width).transpose(2, 3)
        q, k, v = qkv.split(self.width, dim=-1)  # [B, n, A, C, D]
        scores = (q.to(self.precision) @ k.to(self.precision).transpose(-1, -2)).float() * self.decay * docs.within
        intra = scores.to(self.precision) @ v.to(self.precision)
        local = (k * self.key_decay * docs.reaches_end).to(self.precision).transpose(-1, -2) @ v.to(self.precision)
        states = torch.einsum("bacx,bxade->bcade", self._carry(n) * docs.between, local.float())
        inter = (q * self.query_decay * docs.from_before).to(self.precision) @ states.to(self.precision)
        out = (intra.float() + inter.float()).transpose(2, 3).reshape(batch, length, -1)
        return self.out_proj(torch.sigmoid(self.output_gate(x).float()) * self.norm(out))

    def _carry(self, n: int) -> Tensor:
        """Weight of chunk x's own state in the state before chunk c: [A, n, n], zero unless x < c."""
        chunks = torch.arange(n)
        gaps = chunks[:, None] - 1 - chunks[None, :]
        return torch.exp(-self.slopes[:, None, None] * CHUNK * gaps.clamp(min=0)) * (gaps >= 0)


class Attention(nn.Module):
    """Causal grouped-query attention with rotary position on the first `rotary_dim` dimensions of a head."""

    precision = torch.bfloat16

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.heads, self.groups, self.width = (
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
        )
        self.rotary = config.rotary_dim
        self.q_proj = Linear(config.hidden_size, self.heads * self.width)
        self.k_proj = Linear(config.hidden_size, self.groups * self.width)
        self.v_proj = Linear(config.hidden_size, self.groups * self.width)
        self.o_proj = Linear(self.heads * self.width, config.hidden_size, 0.5)
        frequencies = config.rope_theta ** (-torch.arange(0, self.rotary, 2).float() / self.rotary)
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, x: Tensor, docs: Documents) -> Tensor:
        batch, length, _ = x.shape
        angles = docs.positions[:, None, :, None] * self.frequencies
        q = self._rotate(self._split(self.q_proj(x), self.heads), angles)
        k = self._rotate(self._split(self.k_proj(x), self.groups), angles)
        v = self._split(self.v_proj(x), self.groups)
        repeats = self.heads // self.groups
        k, v = k.repeat_interleave(repeats, dim=1), v.repeat_interleave(repeats, dim=1)
        # Block by block and without later keys: compiled for a CPU, twice as fast as the fused attention with a mask.
        q, k, v = (q * self.width**-0.5).to(self.precision), k.to(self.precision), v.to(self.precision)
        hidden = docs.attention.to(self.precision)
        parts = [
            self._attend(q[:, :, at:end], k[:, :, :end], v[:, :, :end], hidden[:, :, at:end, :end])
            for at, end in docs.blocks
        ]
        out = torch.cat(parts, dim=2)
        return self.o_proj(out.transpose(1, 2).reshape(batch, length, -1))

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, hidden: Tensor) -> Tensor:
        return (q @ k.transpose(-1, -2) + hidden).softmax(dim=-1) @ v

    def _split(self, x: Tensor, heads: int) -> Tensor:
        return x.view(x.shape[0], x.shape[1], heads, self.width).transpose(1, 2).float()

    def _rotate(self, x: Tensor, angles: Tensor) -> Tensor:
        half = self.rotary // 2
        a, b, rest = x[..., :half], x[..., half : self.rotary], x[..., self.rotary :]
        cos, sin = angles.cos(), angles.sin()
        return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], dim=-1)


class Expert(nn.Module):
    """The three matrices of one SwiGLU expert."""

    def __init__(self, hidden: int, inner: int) -> None:
        super().__init__()
        self.w1, self.w3 = Linear(hidden, inner), Linear(hidden, inner)
        self.w2 = Linear(inner, hidden, 0.5)


class Experts(nn.Module):
    """Top-k of E experts. All experts are computed and weighted: at this width that is faster than sorting tokens."""

    precision = torch.bfloat16

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.top_k, self.count = config.num_experts_per_tok, config.num_local_experts
        self.gate = nn.Linear(config.hidden_size, self.count, bias=False)
        self.experts = nn.ModuleList(Expert(config.hidden_size, config.intermediate_size) for _ in range(self.count))
        self.balance = torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        shares = self.gate(x).softmax(dim=-1)
        top = shares.topk(self.top_k, dim=-1)
        weights = torch.zeros_like(shares).scatter(-1, top.indices, top.values / top.values.sum(-1, keepdim=True))
        self.balance = self.count * ((weights > 0).float().mean((0, 1)) * shares.mean((0, 1))).sum()
        gate_up = torch.cat([expert.w1.weight for expert in self.experts] + [e.w3.weight for e in self.experts])
        down = torch.cat([expert.w2.weight for expert in self.experts], dim=1)
        gates, ups = (x.to(self.precision) @ gate_up.to(self.precision).t()).float().chunk(2, dim=-1)
        inner = (F.silu(gates) * ups).unflatten(-1, (self.count, -1)) * weights[..., None]
        return inner.flatten(-2).to(self.precision) @ down.to(self.precision).t()


class Layer(nn.Module):
    """A post-norm layer: the skip path carries the normalised stream."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        softmax = bool(config.attn_types[layer])
        self.self_attn = Attention(config, layer) if softmax else Lightning(config, layer)
        self.block_sparse_moe = Experts(config)
        self.input_layernorm = Norm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = Norm(config.hidden_size, config.rms_norm_eps)
        self.alpha, self.alpha_mlp = (config.softmax_alpha if softmax else config.lightning_alpha), config.mlp_alpha

    def forward(self, h: Tensor, docs: Documents) -> Tensor:
        n = self.input_layernorm(h)
        h = self.alpha * n + self.self_attn(n, docs)
        n = self.post_attention_layernorm(h)
        return self.alpha_mlp * n + self.block_sparse_moe(n)


class Body(nn.Module):
    """Embedding, layers and final norm."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        nn.init.normal_(self.embed_tokens.weight, std=0.3)
        self.layers = nn.ModuleList(Layer(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = Norm(config.hidden_size, config.rms_norm_eps)

    def forward(self, ids: Tensor, docs: Documents) -> Tensor:
        h = self.embed_tokens(ids)
        for layer in self.layers:
            h = layer(h, docs)
        return self.norm(h)


class TrainingModel(nn.Module):
    """Logits [B, T, vocab] float32 of token ids [B, T] with document numbers [B, T]; T a multiple of `CHUNK`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.model = Body(config)
        self.lm_head = Linear(config.hidden_size, config.vocab_size)

    def set_precision(self, precision: torch.dtype) -> None:
        """The dtype of matrix products; bfloat16 unless set."""
        for module in self.modules():
            if hasattr(module, "precision"):
                module.precision = precision

    def forward(self, ids: Tensor, documents: Tensor) -> Tensor:
        return self.lm_head(self.model(ids, Documents(documents))).float()

    def balance(self) -> Tensor:
        """Load-balancing loss of the last forward, 1.0 when experts share the tokens evenly (times top-k)."""
        return torch.stack([layer.block_sparse_moe.balance for layer in self.model.layers]).mean()
