"""One frozen `ModelConfig` from three dialects of config.json.

Dialects: the hub layout of MiniMax-M1 and Text-01 (`attn_type_list`, `layernorm_*_alpha`), the transformers-native
`minimax` (`layer_types`, `*_alpha_factor`; always post-norm), and the incomplete `minimax_m1` configs in the wild,
whose gaps are filled from the tensors beside them or else by neutral defaults, each of them logged.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from m1runtime.errors import ConfigError
from m1runtime.gaps import infer_from_tensors
from m1runtime.headers import checkpoint_headers

log = logging.getLogger(__name__)

LIGHTNING, SOFTMAX = 0, 1
HUB_ARCHITECTURES = ("MiniMaxM1ForCausalLM", "MiniMaxText01ForCausalLM")
NATIVE_ARCHITECTURES = ("MiniMaxForCausalLM",)
SUPPORTED = HUB_ARCHITECTURES + NATIVE_ARCHITECTURES
MODEL_TYPES = {"minimax_m1": SUPPORTED[0], "minimaxm1": SUPPORTED[0], "minimax_text_01": SUPPORTED[1],
               "minimaxtext01": SUPPORTED[1], "minimax": SUPPORTED[2]}  # fmt: skip
NATIVE_NAMES = {
    "layernorm_full_attention_alpha": "full_attn_alpha_factor",
    "layernorm_full_attention_beta": "full_attn_beta_factor",
    "layernorm_linear_attention_alpha": "linear_attn_alpha_factor",
    "layernorm_linear_attention_beta": "linear_attn_beta_factor",
    "layernorm_mlp_alpha": "mlp_alpha_factor",
    "layernorm_mlp_beta": "mlp_beta_factor",
}
LAYER_TYPES = {"linear_attention": LIGHTNING, "full_attention": SOFTMAX}


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Hyper-parameters of a lightning/softmax hybrid; every field is decided, none is optional."""

    architecture: str
    vocab_size: int
    hidden_size: int
    attn_types: tuple[int, ...]  # one a layer: 0 lightning, 1 softmax
    num_attention_heads: int
    num_key_value_heads: int  # softmax layers only
    head_dim: int
    rotary_dim: int
    rope_theta: float
    intermediate_size: int  # of one expert
    num_local_experts: int  # 1: a dense SwiGLU MLP
    num_experts_per_tok: int
    shared_intermediate_size: int  # 0: no shared expert
    postnorm: bool  # the skip path carries the normalised tensor
    lightning_alpha: float
    lightning_beta: float
    softmax_alpha: float
    softmax_beta: float
    mlp_alpha: float
    mlp_beta: float
    rms_norm_eps: float
    tie_word_embeddings: bool
    max_position_embeddings: int
    eos_token_ids: tuple[int, ...] = ()
    inner_norm_eps: float = 1e-6  # of the norm after lightning attention; the original never passes its config's eps

    @classmethod
    def from_file(cls, path: str | Path) -> ModelConfig:
        """Reads a config.json, or the one in a checkpoint folder; tensors beside it fill its gaps.

        Raises ConfigError for a file that is not JSON, an unknown architecture or an unusable field.
        """
        path = Path(path)
        path = path / "config.json" if path.is_dir() else path
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ConfigError(f"{path}: no such file; a checkpoint folder needs a config.json") from None
        except ValueError as error:
            raise ConfigError(f"{path}: not valid JSON ({error})") from None
        if not isinstance(raw, dict):
            raise ConfigError(f"{path}: the top level must be an object, found {type(raw).__name__}")
        fields = cast("dict[str, Any]", raw)
        shapes = checkpoint_headers(path.parent) if _incomplete(fields) else None
        return cls.from_dict(fields, tensors={name: h.shape for name, h in shapes.items()} if shapes else None)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any], *, tensors: Mapping[str, tuple[int, ...]] | None = None) -> ModelConfig:
        """Reads a parsed config of any dialect; `tensors` (name → shape) decide what the config leaves open.

        Raises ConfigError naming the field and the remedy.
        """
        architecture = _architecture(raw)
        fields = _Fields(_hub_dialect(raw, native=architecture in NATIVE_ARCHITECTURES))
        _refuse_unsupported(fields)
        if tensors:
            fields.infer(infer_from_tensors(fields.raw, tensors))
        config = _build(architecture, fields)
        _validate(config)
        return config

    @property
    def num_hidden_layers(self) -> int:
        """Layers of both kinds."""
        return len(self.attn_types)

    @property
    def inner_size(self) -> int:
        """Heads times head_dim; not the hidden size in M1 (8192 against 6144)."""
        return self.num_attention_heads * self.head_dim

    @property
    def lightning_layers(self) -> tuple[int, ...]:
        """Absolute indices of the lightning layers."""
        return tuple(i for i, kind in enumerate(self.attn_types) if kind == LIGHTNING)

    @property
    def softmax_layers(self) -> tuple[int, ...]:
        """Absolute indices of the softmax layers."""
        return tuple(i for i, kind in enumerate(self.attn_types) if kind == SOFTMAX)

    def to_dict(self) -> dict[str, Any]:
        """The config in the hub dialect, ready for config.json; `from_dict` reads it back equal."""
        eos = list(self.eos_token_ids)
        return {
            "architectures": [HUB_ARCHITECTURES[0] if self.architecture in NATIVE_ARCHITECTURES else self.architecture],
            "model_type": "minimax_text_01" if self.architecture == HUB_ARCHITECTURES[1] else "minimax_m1",
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "num_hidden_layers": self.num_hidden_layers,
            "attn_type_list": list(self.attn_types),
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "head_dim": self.head_dim,
            "rotary_dim": self.rotary_dim,
            "rope_theta": self.rope_theta,
            "max_position_embeddings": self.max_position_embeddings,
            "intermediate_size": self.intermediate_size,
            "num_local_experts": self.num_local_experts,
            "num_experts_per_tok": self.num_experts_per_tok,
            "shared_intermediate_size": self.shared_intermediate_size,
            "shared_moe_mode": "sigmoid",
            "hidden_act": "silu",
            "rms_norm_eps": self.rms_norm_eps,
            "postnorm": self.postnorm,
            "layernorm_linear_attention_alpha": self.lightning_alpha,
            "layernorm_linear_attention_beta": self.lightning_beta,
            "layernorm_full_attention_alpha": self.softmax_alpha,
            "layernorm_full_attention_beta": self.softmax_beta,
            "layernorm_mlp_alpha": self.mlp_alpha,
            "layernorm_mlp_beta": self.mlp_beta,
            "tie_word_embeddings": self.tie_word_embeddings,
            "bos_token_id": None,
            "eos_token_id": None if not eos else eos[0] if len(eos) == 1 else eos,
        }

    def digest(self) -> str:
        """SHA-256 of every field, hex: what a saved session is checked against."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


class _Fields:
    """Raw fields with their gaps filled loudly: inferred from tensors, or by a stated default."""

    def __init__(self, raw: dict[str, Any]) -> None:
        self.raw = raw

    def infer(self, found: Mapping[str, Any]) -> None:
        for name, value in found.items():
            log.info("config: %s is not given; the tensors say %r", name, value)
            self.raw[name] = value

    def has(self, name: str) -> bool:
        return self.raw.get(name) is not None

    def integer(self, name: str, default: int | None = None, why: str = "") -> int:
        value = self._get(name, default, why)
        if isinstance(value, bool) or not isinstance(value, int):
            raise ConfigError(f"{name} must be an integer, found {value!r}")
        return value

    def number(self, name: str, default: float, why: str = "") -> float:
        value = self._get(name, default, why)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ConfigError(f"{name} must be a number, found {value!r}")
        return float(value)

    def boolean(self, name: str, default: bool, why: str = "") -> bool:
        value = self._get(name, default, why)
        if not isinstance(value, bool):
            raise ConfigError(f"{name} must be true or false, found {value!r}")
        return value

    def _get(self, name: str, default: Any, why: str) -> Any:
        value = self.raw.get(name)
        if value is not None:
            return value
        if default is None:
            raise ConfigError(f"{name} is missing; add it to config.json")
        log.warning("config: %s is not given; using %r%s", name, default, f" ({why})" if why else "")
        return default


def _architecture(raw: Mapping[str, Any]) -> str:
    given: Any = raw.get("architectures") or []
    if not isinstance(given, list):
        raise ConfigError(f"architectures must be a list of names, found {given!r:.80}")
    names = cast("list[Any]", given)
    known = {name.lower(): name for name in SUPPORTED}
    for name in names:
        if isinstance(name, str) and name.lower() in known:
            return known[name.lower()]
    model_type = str(raw.get("model_type", "")).lower()
    if not names and model_type in MODEL_TYPES:
        return MODEL_TYPES[model_type]
    field = f"architectures {names!r}" if names else f"model_type {raw.get('model_type')!r}"
    raise ConfigError(f"{field} is not supported; supported architectures: {', '.join(SUPPORTED)}")


def _hub_dialect(raw: Mapping[str, Any], *, native: bool) -> dict[str, Any]:
    """The same config under the hub's field names."""
    fields = {key: value for key, value in raw.items() if value is not None}
    for hub, other in NATIVE_NAMES.items():
        if hub not in fields and other in fields:
            fields[hub] = fields[other]
    if "attn_type_list" not in fields and "layer_types" in fields:
        kinds = fields["layer_types"]
        if not isinstance(kinds, list):
            raise ConfigError(f"layer_types must be a list of {', '.join(LAYER_TYPES)}, found {kinds!r:.80}")
        unknown = sorted({str(kind) for kind in cast("list[Any]", kinds) if str(kind) not in LAYER_TYPES})
        if unknown:
            raise ConfigError(f"layer_types has {', '.join(unknown)}; supported: {', '.join(LAYER_TYPES)}")
        fields["attn_type_list"] = [LAYER_TYPES[kind] for kind in fields["layer_types"]]
    rope = _rope(fields)
    if "rope_theta" in rope and "rope_theta" not in fields:
        fields["rope_theta"] = rope["rope_theta"]
    if native:
        fields["postnorm"] = True
    return fields


def _rope(raw: Mapping[str, Any]) -> dict[str, Any]:
    for name in ("rope_parameters", "rope_scaling"):
        rope = raw.get(name)
        if rope and not isinstance(rope, dict):
            raise ConfigError(f"{name} must be an object or null, found {rope!r:.80}")
        if rope:
            return cast("dict[str, Any]", rope)
    return {}


def _refuse_unsupported(fields: _Fields) -> None:
    raw = fields.raw
    rope = _rope(raw)
    kind = rope.get("rope_type", rope.get("type", "default"))
    checks: dict[str, tuple[bool, str]] = {
        "hidden_act": (raw.get("hidden_act", "silu") == "silu", "silu"),
        "sliding_window": (not raw.get("sliding_window"), "null"),
        "rope_parameters.rope_type": (kind == "default", "default"),
        "quantization_config": (not raw.get("quantization_config"), "none: unquantised weights"),
        "shared_moe_mode": (
            not raw.get("shared_intermediate_size") or raw.get("shared_moe_mode", "sigmoid") == "sigmoid",
            "sigmoid",
        ),
    }
    for name, (fine, supported) in checks.items():
        if not fine:
            raise ConfigError(f"{name} {raw.get(name, kind)!r} is not supported; supported: {supported}")


def _build(architecture: str, f: _Fields) -> ModelConfig:
    heads, hidden, layers = (f.integer(n) for n in ("num_attention_heads", "hidden_size", "num_hidden_layers"))
    if heads < 1 or layers < 1:
        raise ConfigError("num_attention_heads and num_hidden_layers must be at least 1")
    head_dim = f.integer("head_dim", hidden // heads, "hidden_size / num_attention_heads")
    experts = f.integer("num_local_experts", 1, "a dense SwiGLU MLP")
    return ModelConfig(
        architecture=architecture,
        vocab_size=f.integer("vocab_size"),
        hidden_size=hidden,
        attn_types=_attn_types(f, layers),
        num_attention_heads=heads,
        num_key_value_heads=f.integer("num_key_value_heads", heads, "as many as query heads"),
        head_dim=head_dim,
        rotary_dim=f.integer("rotary_dim", head_dim, "all of head_dim"),
        rope_theta=f.number("rope_theta", 1e6, "the original code's default"),
        intermediate_size=f.integer("intermediate_size"),
        num_local_experts=experts,
        num_experts_per_tok=f.integer("num_experts_per_tok", min(2, experts)) if experts > 1 else 1,
        shared_intermediate_size=f.integer("shared_intermediate_size", 0, "no shared expert"),
        postnorm=f.boolean("postnorm", False, "the original code's default"),
        lightning_alpha=f.number("layernorm_linear_attention_alpha", 1.0),
        lightning_beta=f.number("layernorm_linear_attention_beta", 1.0),
        softmax_alpha=f.number("layernorm_full_attention_alpha", 1.0),
        softmax_beta=f.number("layernorm_full_attention_beta", 1.0),
        mlp_alpha=f.number("layernorm_mlp_alpha", 1.0),
        mlp_beta=f.number("layernorm_mlp_beta", 1.0),
        rms_norm_eps=f.number("rms_norm_eps", 1e-5),
        tie_word_embeddings=f.has("tie_word_embeddings") and f.boolean("tie_word_embeddings", False),
        max_position_embeddings=f.integer("max_position_embeddings", 2**31 - 1, "unbounded"),
        eos_token_ids=_eos(f.raw.get("eos_token_id")),
    )


def _attn_types(f: _Fields, layers: int) -> tuple[int, ...]:
    if not f.has("attn_type_list"):
        log.warning("config: attn_type_list is not given; using softmax attention in all %d layers", layers)
        return (SOFTMAX,) * layers
    kinds = f.raw["attn_type_list"]
    if not isinstance(kinds, list) or any(kind not in (LIGHTNING, SOFTMAX) for kind in cast("list[Any]", kinds)):
        raise ConfigError(f"attn_type_list must be a list of 0 (lightning) and 1 (softmax), found {kinds!r:.80}")
    if len(cast("list[int]", kinds)) != layers:
        raise ConfigError(f"attn_type_list has {len(cast('list[int]', kinds))} entries, num_hidden_layers is {layers}")
    return tuple(cast("list[int]", kinds))


def _eos(value: Any) -> tuple[int, ...]:
    values = cast("list[Any]", value) if isinstance(value, list) else [] if value is None else [value]
    if any(isinstance(v, bool) or not isinstance(v, int) for v in values):
        raise ConfigError(f"eos_token_id must be an integer, a list of integers or null, found {value!r}")
    return tuple(values)


def _validate(c: ModelConfig) -> None:
    positive = (
        "vocab_size",
        "hidden_size",
        "head_dim",
        "num_key_value_heads",
        "intermediate_size",
        "num_local_experts",
        "max_position_embeddings",
    )
    for name in positive:
        if getattr(c, name) < 1:
            raise ConfigError(f"{name} must be at least 1, found {getattr(c, name)}")
    for name in ("rope_theta", "rms_norm_eps"):
        if not 0 < getattr(c, name) < math.inf:
            raise ConfigError(f"{name} must be a positive number, found {getattr(c, name)}")
    if any(not 0 <= token < c.vocab_size for token in c.eos_token_ids):
        raise ConfigError(
            f"eos_token_id {list(c.eos_token_ids)} must be within the vocabulary of {c.vocab_size}; "
            "set it to the token that ends a reply, or null"
        )
    if c.num_attention_heads % c.num_key_value_heads:
        raise ConfigError(
            f"num_key_value_heads {c.num_key_value_heads} must divide num_attention_heads {c.num_attention_heads}"
        )
    if c.rotary_dim % 2 or not 0 < c.rotary_dim <= c.head_dim:
        raise ConfigError(f"rotary_dim must be even and at most head_dim {c.head_dim}, found {c.rotary_dim}")
    if not 1 <= c.num_experts_per_tok <= c.num_local_experts:
        raise ConfigError(
            f"num_experts_per_tok must be 1..num_local_experts ({c.num_local_experts}), found {c.num_experts_per_tok}"
        )


def _incomplete(raw: Mapping[str, Any]) -> bool:
    return not (
        (raw.get("attn_type_list") or raw.get("layer_types"))
        and raw.get("num_local_experts") is not None
        and raw.get("head_dim") is not None
        and raw.get("num_key_value_heads") is not None
    )
