"""M1 and Text-01 configs for transformers: every dialect is read, the hub's is written."""

# pyright: basic
# transformers is typed in part only.
from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig

from m1runtime.config import ModelConfig

NEEDED = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
AS_M1 = {"model_type": "minimax_m1", "architectures": ["MiniMaxM1ForCausalLM"]}


class MiniMaxM1Config(PreTrainedConfig):
    """The config of MiniMax-M1 in the hub's dialect. What is left open is decided as `ModelConfig` does, and logged.

    Raises ConfigError naming the field and the remedy, once the sizes in `NEEDED` are given.
    """

    model_type = "minimax_m1"
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012
    attribute_map = {"num_experts": "num_local_experts"}  # noqa: RUF012

    vocab_size: int | None = None
    hidden_size: int | None = None
    intermediate_size: int | None = None
    num_hidden_layers: int | None = None
    attn_type_list: list[int] | None = None
    num_attention_heads: int | None = None
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    rotary_dim: int | None = None
    rope_theta: float | None = None
    max_position_embeddings: int | None = None
    num_local_experts: int | None = None
    num_experts_per_tok: int | None = None
    shared_intermediate_size: int | None = None
    shared_moe_mode: str | None = None
    hidden_act: str = "silu"
    rms_norm_eps: float | None = None
    postnorm: bool | None = None
    layernorm_full_attention_alpha: float | None = None
    layernorm_full_attention_beta: float | None = None
    layernorm_linear_attention_alpha: float | None = None
    layernorm_linear_attention_beta: float | None = None
    layernorm_mlp_alpha: float | None = None
    layernorm_mlp_beta: float | None = None
    tie_word_embeddings: bool = False
    initializer_range: float = 0.02
    router_aux_loss_coef: float = 0.001
    output_router_logits: bool = False
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        given = {name: value for name, value in vars(self).items() if value is not None} | kwargs
        if all(given.get(name) is not None for name in NEEDED):
            for name, value in _decided(given, self.model_type).to_dict().items():
                if name not in ("architectures", "model_type", "bos_token_id", "eos_token_id"):
                    setattr(self, name, value)
        super().__post_init__(**{name: value for name, value in kwargs.items() if name != "auto_map"})

    def decided(self) -> ModelConfig:
        """The same as the runtime has it. Raises ConfigError naming the field and the remedy."""
        return _decided(self.to_dict(), self.model_type)


class MiniMaxText01Config(MiniMaxM1Config):
    """The config of MiniMax-Text-01, which is the same network."""

    model_type = "minimax_text_01"


class MiniMaxM1NamedConfig(MiniMaxM1Config):
    """M1 under the `model_type` of the original config class, which derived checkpoints carry. Saved as M1's."""

    model_type = "MiniMaxM1"

    def to_dict(self) -> dict[str, Any]:
        """Every field, for config.json."""
        return super().to_dict() | AS_M1


class MiniMaxNativeConfig(MiniMaxM1Config):
    """The dialect of transformers' own `minimax` (`layer_types`, `*_alpha_factor`), whose model does not turn
    `rotary_dim` of the dimensions but all. Saved as an M1 config, which it then is."""

    model_type = "minimax"

    def to_dict(self) -> dict[str, Any]:
        """Every field, for config.json."""
        return super().to_dict() | AS_M1


def _decided(given: dict[str, Any], model_type: str) -> ModelConfig:
    """`architectures` may name a class of ours, and the type says all there is to know; what is quantised, transformers
    loads."""
    left_out = ("architectures", "quantization_config")
    kept = {name: value for name, value in given.items() if name not in left_out}
    return ModelConfig.from_dict({**kept, "model_type": model_type})
