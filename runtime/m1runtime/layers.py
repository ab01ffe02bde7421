"""The sub-layers of the hybrid, one equation a line; weights are plain or quantised.

Shapes: T packed tokens of N sequences, H hidden size, A heads of D, K KV heads, E experts of inner size F.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from m1kernels.attention import paged_attention
from m1kernels.lightning import decay_slopes, lightning_decode, lightning_prefill, state_fading
from m1kernels.moe import grouped_experts, route
from m1kernels.norm import rms_norm_gate
from m1kernels.quant import Weight, linear, linears, plain
from m1kernels.rotary import Rotation
from m1runtime.config import ModelConfig
from m1runtime.ranks import ALONE, Ranks


@dataclass(frozen=True, slots=True)
class Batch:
    """New tokens of N sequences, packed without padding, and where each sequence keeps its cache.

    ids, positions: [T] int64; bounds: N+1 offsets into them; slots: [N] int64 rows of the state pool.
    page_tables: N int64 tensors; kv_rows: [T] int64, each token's row in the flattened pages; lengths: N cached lengths
    including the new tokens.
    ring_rows: each sequence's last tokens, as rows of the flattened rings; recent: packed indices of these tokens, None
    for all of them.
    export: packed indices of tokens after which the lightning states are copied out.
    rows: packed indices whose logits are wanted; None for all of them.
    """

    ids: Tensor
    positions: Tensor
    bounds: tuple[int, ...]
    slots: Tensor
    page_tables: list[Tensor]
    kv_rows: Tensor
    lengths: list[int]
    ring_rows: Tensor
    recent: Tensor | None = None
    export: tuple[int, ...] = ()
    rows: Tensor | None = None
    decode: bool = field(init=False)  # one token a sequence
    slot_run: slice | None = field(init=False)  # the slots, where they ascend one by one: known on a CPU only

    def __post_init__(self) -> None:
        object.__setattr__(self, "decode", self.bounds == tuple(range(len(self.bounds))) and not self.export)
        object.__setattr__(self, "slot_run", _run(self.slots) if self.slots.is_cpu else None)

    def remember(self, ring: Tensor, values: Tensor) -> None:
        """Writes the last tokens' values [T, ...] into a ring [slots, rows, ...]."""
        recent = values if self.recent is None else values[self.recent]
        ring.flatten(0, 1).index_copy_(0, self.ring_rows, recent.to(ring.dtype))


def _run(slots: Tensor) -> slice | None:
    rows: list[int] = slots.tolist()  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    start, stop = (rows[0], rows[0] + len(rows)) if rows else (0, 0)
    return slice(start, stop) if rows == list(range(start, stop)) else None


class LightningAttention:
    """Linear attention with one decay a head, an RMS norm over all heads' channels, and an output gate."""

    def __init__(
        self, config: ModelConfig, layer: int, weights: Mapping[str, Weight], base: str, ranks: Ranks = ALONE
    ) -> None:
        self.qkv = weights[f"{base}.qkv"]  # [3AD, H], head by head q, k, v
        self.gate = weights[f"{base}.output_gate"]  # [AD, H]
        self.norm = plain(weights[f"{base}.norm"])  # [AD]
        self.out = weights[f"{base}.out"]  # [H, AD]
        self.heads, self.eps, self.ranks = config.num_attention_heads, config.inner_norm_eps, ranks
        slopes = decay_slopes(self.heads * ranks.size, layer, config.num_hidden_layers)
        self.slopes = slopes[self.heads * ranks.rank :][: self.heads].to(self.norm.device)
        self.fading = state_fading(self.slopes, 1)

    def __call__(self, n: Tensor, batch: Batch, states: Tensor, ring: Tensor) -> tuple[Tensor, Tensor | None]:
        """n [T, H], states [slots, A, D, D] and ring [slots, rows, A, 2, D] updated in place → output [T, H] and the
        exported states [P, A, D, D]."""
        raw, gate = linears(n, self.qkv, self.gate)
        raw = raw.view(len(n), self.heads, 3, -1)
        batch.remember(ring, raw[:, :, 1:])
        q, k, v = F.silu(raw.float()).unbind(2)
        exported = None
        if batch.decode:
            if batch.slot_run is None:
                o = lightning_decode(q, k, v, self.slopes, states, batch.slots, fading=self.fading)
            else:
                o = lightning_decode(q, k, v, self.slopes, states[batch.slot_run], fading=self.fading)
        else:
            run = lightning_prefill(q, k, v, self.slopes, batch.bounds, states[batch.slots], export=batch.export)
            states[batch.slots] = run.state
            o, exported = run.o, run.exported
        o = o.flatten(1)
        o = rms_norm_gate(o, self.norm, gate, self.eps, self._mean_square(o))
        return self.ranks.sum(linear(o.to(n.dtype), self.out)), exported

    def _mean_square(self, o: Tensor) -> Tensor | None:
        """Of the channels of all ranks' heads, [T, 1]; None where these are all."""
        if self.ranks.size == 1:
            return None
        return self.ranks.sum(o.square().sum(-1, keepdim=True)) / (o.shape[-1] * self.ranks.size)


class SoftmaxAttention:
    """Causal grouped-query attention over pages, with rotary position on the first dims of each head."""

    def __init__(self, config: ModelConfig, weights: Mapping[str, Weight], base: str, ranks: Ranks = ALONE) -> None:
        self.ranks = ranks
        self.qkv = weights[f"{base}.qkv"]  # [(A+2K)D, H]
        self.out = weights[f"{base}.out"]  # [H, AD]
        self.heads, self.kv_heads, self.dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim

    def __call__(self, n: Tensor, batch: Batch, turn: Rotation, kv: Tensor) -> Tensor:
        """n [T, H], the rotation of its positions, kv [2, pages, page_size, K, D] written in place → output [T, H]."""
        a, k = self.heads, self.kv_heads
        qkv = linear(n, self.qkv).view(len(n), a + 2 * k, self.dim)
        turned = turn(qkv[:, : a + k])
        kv[0].flatten(0, 1).index_copy_(0, batch.kv_rows, turned[:, a:])
        kv[1].flatten(0, 1).index_copy_(0, batch.kv_rows, qkv[:, a + k :])
        o = paged_attention(turned[:, :a], kv[0], kv[1], batch.page_tables, batch.bounds, batch.lengths)
        return self.ranks.sum(linear(o.flatten(1), self.out))


class Experts:
    """Top-k routed SwiGLU experts, or one dense SwiGLU MLP, and an optional shared expert mixed in by a sigmoid."""

    def __init__(self, config: ModelConfig, weights: Mapping[str, Weight], base: str, ranks: Ranks = ALONE) -> None:
        self.ranks = ranks
        self.w13, self.w2 = weights[f"{base}.moe.w13"], weights[f"{base}.moe.w2"]  # [E, 2F, H], [E, H, F]
        self.gate = plain(weights[f"{base}.moe.gate"]) if config.num_local_experts > 1 else None  # [E, H] fp32
        self.top_k = config.num_experts_per_tok
        self.coefficient = (
            plain(weights[f"{base}.shared.coefficient"]) if config.shared_intermediate_size else None
        )  # [1, H] fp32
        self.shared = (
            (weights[f"{base}.shared.w13"], weights[f"{base}.shared.w2"]) if config.shared_intermediate_size else None
        )

    def __call__(self, n: Tensor) -> Tensor:
        """n [T, H] → [T, H]."""
        if self.gate is None:
            routed = swiglu(n, self.w13[0], self.w2[0])
        else:
            routed = grouped_experts(n, self.w13, self.w2, *route(n, self.gate, self.top_k))
        if self.shared is None or self.coefficient is None:
            return self.ranks.sum(routed)
        c = torch.sigmoid(F.linear(n.float(), self.coefficient))
        return self.ranks.sum((routed * (1 - c) + swiglu(n, *self.shared) * c).to(n.dtype))


def swiglu(n: Tensor, w13: Weight, w2: Weight) -> Tensor:
    """w2(silu(w1 n) * (w3 n)); w13 [2F, H] holds w1 over w3."""
    gate, up = linear(n, w13).chunk(2, dim=-1)
    return linear(F.silu(gate) * up, w2)
