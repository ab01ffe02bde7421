"""Which tensors a checkpoint holds, under the hub's names, and where each goes in the runtime's own parameters.

The runtime fuses what is multiplied together: the experts of a layer become `w13` [E, 2F, H] and `w2` [E, H, F], the
three
softmax projections one `qkv`. A checkpoint tensor is therefore placed into a slice of a parameter.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from m1runtime.config import LIGHTNING, ModelConfig

EMBED, NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"
_DERIVED = re.compile(r"\.(slope_rate|query_decay|key_decay|diagonal_decay|rotary_emb\.inv_freq)$")
Slice = tuple[int | slice, ...]
Kind = Literal["vector", "embedding", "head", "router", "linear", "gate", "expert"]


@dataclass(frozen=True, slots=True)
class Placement:
    """A checkpoint tensor of `shape` fills `parameter[where]`."""

    shape: tuple[int, ...]
    parameter: str
    where: Slice = ()


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter of the runtime; `full` ones are kept in fp32 whatever the model's dtype; `kind` decides its bits."""

    shape: tuple[int, ...]
    full: bool = False
    kind: Kind = "vector"

    @property
    def product(self) -> bool:
        """Whether activations are multiplied by it."""
        return self.kind not in ("vector", "embedding")


def expected_tensors(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of a checkpoint in the hub layout: name → shape."""
    return {name: placement.shape for name, placement in placements(config).items()}


def placements(config: ModelConfig) -> dict[str, Placement]:
    """Hub name → where it goes."""
    return dict(_all_placements(config))


def fused_placements(config: ModelConfig) -> dict[str, Placement]:
    """The transformers-native names of the same experts: router, `gate_up_proj`, `down_proj`, one of each a layer."""
    e, f, h = config.num_local_experts, config.intermediate_size, config.hidden_size
    names: dict[str, Placement] = {}
    for layer in range(config.num_hidden_layers if e > 1 else 0):
        mlp, own = f"model.layers.{layer}.mlp", f"model.layers.{layer}.moe"
        names[f"{mlp}.gate.weight"] = Placement((e, h), f"{own}.gate")
        names[f"{mlp}.experts.gate_up_proj"] = Placement((e, 2 * f, h), f"{own}.w13")
        names[f"{mlp}.experts.down_proj"] = Placement((e, h, f), f"{own}.w2")
    return names


def is_derived(name: str) -> bool:
    """Decay tables and rotary frequencies that some writers save; the runtime computes them."""
    return _DERIVED.search(name) is not None


def parameters(config: ModelConfig) -> dict[str, Parameter]:
    """The runtime's parameters: name → shape and precision."""
    h, v = config.hidden_size, config.vocab_size
    found = {EMBED: Parameter((v, h), kind="embedding"), NORM: Parameter((h,), full=True)}
    if not config.tie_word_embeddings:
        found[HEAD] = Parameter((v, h), full=True, kind="head")
    for layer, kind in enumerate(config.attn_types):
        base = f"model.layers.{layer}"
        found[f"{base}.input_layernorm.weight"] = Parameter((h,), full=True)
        found[f"{base}.post_attention_layernorm.weight"] = Parameter((h,), full=True)
        found |= _lightning_parameters(config, base) if kind == LIGHTNING else _softmax_parameters(config, base)
        found |= _mlp_parameters(config, base)
    return found


def _lightning_parameters(c: ModelConfig, base: str) -> dict[str, Parameter]:
    return {
        f"{base}.self_attn.qkv": Parameter((3 * c.inner_size, c.hidden_size), kind="linear"),
        f"{base}.self_attn.output_gate": Parameter((c.inner_size, c.hidden_size), kind="gate"),
        f"{base}.self_attn.norm": Parameter((c.inner_size,), full=True),
        f"{base}.self_attn.out": Parameter((c.hidden_size, c.inner_size), kind="linear"),
    }


def _softmax_parameters(c: ModelConfig, base: str) -> dict[str, Parameter]:
    rows = c.inner_size + 2 * c.num_key_value_heads * c.head_dim
    return {
        f"{base}.self_attn.qkv": Parameter((rows, c.hidden_size), kind="linear"),
        f"{base}.self_attn.out": Parameter((c.hidden_size, c.inner_size), kind="linear"),
    }


def _mlp_parameters(c: ModelConfig, base: str) -> dict[str, Parameter]:
    e, f, h, s = c.num_local_experts, c.intermediate_size, c.hidden_size, c.shared_intermediate_size
    found = {
        f"{base}.moe.w13": Parameter((e, 2 * f, h), kind="expert"),
        f"{base}.moe.w2": Parameter((e, h, f), kind="expert"),
    }
    if e > 1:
        found[f"{base}.moe.gate"] = Parameter((e, h), full=True, kind="router")
    if s:
        found[f"{base}.shared.coefficient"] = Parameter((1, h), full=True, kind="router")
        found[f"{base}.shared.w13"] = Parameter((2 * s, h), kind="linear")
        found[f"{base}.shared.w2"] = Parameter((h, s), kind="linear")
    return found


def _all_placements(c: ModelConfig) -> Iterator[tuple[str, Placement]]:
    h, v = c.hidden_size, c.vocab_size
    yield EMBED, Placement((v, h), EMBED)
    for layer, kind in enumerate(c.attn_types):
        base = f"model.layers.{layer}"
        for norm in ("input_layernorm.weight", "post_attention_layernorm.weight"):
            yield f"{base}.{norm}", Placement((h,), f"{base}.{norm}")
        yield from _lightning_placements(c, base) if kind == LIGHTNING else _softmax_placements(c, base)
        yield from _expert_placements(c, base) if c.num_local_experts > 1 else _dense_placements(c, base)
        if c.shared_intermediate_size:
            yield from _shared_placements(c, base)
    yield NORM, Placement((h,), NORM)
    if not c.tie_word_embeddings:
        yield HEAD, Placement((v, h), HEAD)


def _lightning_placements(c: ModelConfig, base: str) -> Iterator[tuple[str, Placement]]:
    attn, h, n = f"{base}.self_attn", c.hidden_size, c.inner_size
    yield f"{attn}.qkv_proj.weight", Placement((3 * n, h), f"{attn}.qkv")
    yield f"{attn}.output_gate.weight", Placement((n, h), f"{attn}.output_gate")
    yield f"{attn}.norm.weight", Placement((n,), f"{attn}.norm")
    yield f"{attn}.out_proj.weight", Placement((h, n), f"{attn}.out")


def _softmax_placements(c: ModelConfig, base: str) -> Iterator[tuple[str, Placement]]:
    attn, h, n, kv = f"{base}.self_attn", c.hidden_size, c.inner_size, c.num_key_value_heads * c.head_dim
    yield f"{attn}.q_proj.weight", Placement((n, h), f"{attn}.qkv", (slice(0, n),))
    yield f"{attn}.k_proj.weight", Placement((kv, h), f"{attn}.qkv", (slice(n, n + kv),))
    yield f"{attn}.v_proj.weight", Placement((kv, h), f"{attn}.qkv", (slice(n + kv, n + 2 * kv),))
    yield f"{attn}.o_proj.weight", Placement((h, n), f"{attn}.out")


def _expert_placements(c: ModelConfig, base: str) -> Iterator[tuple[str, Placement]]:
    moe, h, f = f"{base}.block_sparse_moe", c.hidden_size, c.intermediate_size
    yield f"{moe}.gate.weight", Placement((c.num_local_experts, h), f"{base}.moe.gate")
    for e in range(c.num_local_experts):
        yield f"{moe}.experts.{e}.w1.weight", Placement((f, h), f"{base}.moe.w13", (e, slice(0, f)))
        yield f"{moe}.experts.{e}.w3.weight", Placement((f, h), f"{base}.moe.w13", (e, slice(f, 2 * f)))
        yield f"{moe}.experts.{e}.w2.weight", Placement((h, f), f"{base}.moe.w2", (e,))


def _dense_placements(c: ModelConfig, base: str) -> Iterator[tuple[str, Placement]]:
    mlp, h, f = f"{base}.mlp", c.hidden_size, c.intermediate_size
    yield f"{mlp}.gate_proj.weight", Placement((f, h), f"{base}.moe.w13", (0, slice(0, f)))
    yield f"{mlp}.up_proj.weight", Placement((f, h), f"{base}.moe.w13", (0, slice(f, 2 * f)))
    yield f"{mlp}.down_proj.weight", Placement((h, f), f"{base}.moe.w2", (0,))


def _shared_placements(c: ModelConfig, base: str) -> Iterator[tuple[str, Placement]]:
    mlp, own, h, s = f"{base}.shared_mlp", f"{base}.shared", c.hidden_size, c.shared_intermediate_size
    yield f"{base}.coefficient.weight", Placement((1, h), f"{own}.coefficient")
    yield f"{mlp}.gate_proj.weight", Placement((s, h), f"{own}.w13", (slice(0, s),))
    yield f"{mlp}.up_proj.weight", Placement((s, h), f"{own}.w13", (slice(s, 2 * s),))
    yield f"{mlp}.down_proj.weight", Placement((h, s), f"{own}.w2")
