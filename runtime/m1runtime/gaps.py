"""Fields of a config that tensor names and shapes decide, for configs that leave them out."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

Shapes = Mapping[str, tuple[int, ...]]
_LAYER = re.compile(r"^model\.layers\.(\d+)\.(.+)$")
_EXPERT = re.compile(r"experts\.(\d+)\.w1\.weight$")


def infer_from_tensors(raw: Mapping[str, Any], tensors: Shapes) -> dict[str, Any]:
    """The fields that `raw` lacks and the tensors decide, under the hub's names.

    `qkv_proj` or `output_gate` mark a lightning layer, `q_proj` a softmax layer; the largest expert index, or the fused
    expert tensor, gives
    `num_local_experts`; `mlp.gate_proj` means one dense MLP; the rows of a projection over the heads give `head_dim`.
    """
    layers = _by_layer(tensors)
    found: dict[str, Any] = {
        "attn_type_list": _kinds(layers),
        "num_local_experts": _experts(layers),
        "head_dim": _head_dim(layers, raw.get("num_attention_heads")),
    }
    head_dim = raw.get("head_dim") or found["head_dim"]
    found["num_key_value_heads"] = _rows(layers, "self_attn.k_proj.weight", head_dim)
    if raw.get("tie_word_embeddings") is None and "lm_head.weight" not in tensors:
        found["tie_word_embeddings"] = True
    return {name: value for name, value in found.items() if value is not None and raw.get(name) is None}


def _by_layer(tensors: Shapes) -> dict[int, dict[str, tuple[int, ...]]]:
    layers: dict[int, dict[str, tuple[int, ...]]] = {}
    for name, shape in tensors.items():
        if match := _LAYER.match(name):
            layers.setdefault(int(match[1]), {})[match[2]] = shape
    return layers


def _kinds(layers: Mapping[int, Shapes]) -> list[int] | None:
    kinds = [1 if "self_attn.q_proj.weight" in layers[i] else 0 for i in sorted(layers)]
    return kinds or None


def _experts(layers: Mapping[int, Shapes]) -> int | None:
    for names in layers.values():
        indices = [int(match[1]) for name in names if (match := _EXPERT.search(name))]
        if indices:
            return max(indices) + 1
        if fused := names.get("mlp.experts.gate_up_proj"):
            return fused[0]
        if "mlp.gate_proj.weight" in names:
            return 1
    return None


def _head_dim(layers: Mapping[int, Shapes], heads: Any) -> int | None:
    if not isinstance(heads, int) or heads < 1:
        return None
    for name, per_head in (("self_attn.qkv_proj.weight", 3), ("self_attn.q_proj.weight", 1)):
        if (dim := _rows(layers, name, per_head * heads)) is not None:
            return dim
    return None


def _rows(layers: Mapping[int, Shapes], name: str, divisor: Any) -> int | None:
    for names in layers.values():
        if name in names and isinstance(divisor, int) and divisor and names[name][0] % divisor == 0:
            return names[name][0] // divisor
    return None
