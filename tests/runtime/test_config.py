"""Three dialects of config.json, the gaps of incomplete ones, and what is refused."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from m1runtime import ConfigError, ModelConfig

INCOMPLETE: dict[str, Any] = {
    "architectures": ["MinimaxM1ForCausalLM"],
    "model_type": "minimax_m1",
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "max_position_embeddings": 40960,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "vocab_size": 100352,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


BASE: dict[str, Any] = {
    "architectures": ["MiniMaxM1ForCausalLM"],
    "vocab_size": 97,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "attn_type_list": [0, 1, 0, 1],
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rotary_dim": 8,
    "intermediate_size": 48,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
}


def native(hub: dict[str, Any]) -> dict[str, Any]:
    """The transformers spelling of a hub config."""
    kinds = ["linear_attention" if kind == 0 else "full_attention" for kind in hub["attn_type_list"]]
    renamed = {
        f"{short}_{part}_factor": hub[f"layernorm_{long}_{part}"]
        for short, long in (("linear_attn", "linear_attention"), ("full_attn", "full_attention"), ("mlp", "mlp"))
        for part in ("alpha", "beta")
    }
    kept = {k: v for k, v in hub.items() if not k.startswith("layernorm_") and k not in ("attn_type_list", "postnorm")}
    kept |= {"architectures": ["MiniMaxForCausalLM"], "model_type": "minimax", "layer_types": kinds, **renamed}
    kept["rope_parameters"] = {"rope_type": "default", "rope_theta": kept.pop("rope_theta")}
    return kept


def test_the_native_dialect_means_the_same(checkpoint: Callable[..., Any]) -> None:
    hub, _ = checkpoint()
    ours, theirs = ModelConfig.from_dict(hub), ModelConfig.from_dict(native(hub))
    assert theirs.to_dict() == ours.to_dict()


def test_native_is_always_postnorm_and_rotates_all_of_head_dim_unless_told(checkpoint: Callable[..., Any]) -> None:
    raw = native(checkpoint()[0])
    del raw["rotary_dim"]
    config = ModelConfig.from_dict(raw | {"postnorm": False})
    assert config.postnorm
    assert config.rotary_dim == config.head_dim


def test_a_config_survives_its_own_dialect(checkpoint: Callable[..., Any]) -> None:
    config = ModelConfig.from_dict(checkpoint(eos_token_id=[3, 4])[0])
    assert ModelConfig.from_dict(config.to_dict()) == config
    assert config.eos_token_ids == (3, 4)


def test_gaps_are_filled_by_stated_defaults_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="m1runtime"):
        config = ModelConfig.from_dict(INCOMPLETE)
    assert set(config.attn_types) == {1}
    assert (config.head_dim, config.rotary_dim, config.num_local_experts) == (128, 128, 1)
    assert (config.postnorm, config.softmax_alpha, config.mlp_alpha, config.tie_word_embeddings) == (False, 1, 1, False)
    for name in ("attn_type_list", "head_dim", "rotary_dim", "num_local_experts", "postnorm", "layernorm_mlp_alpha"):
        assert name in caplog.text
    assert config.eos_token_ids == (2,)


def test_tensors_decide_what_the_config_leaves_open(
    checkpoint: Callable[..., Any], write: Callable[..., Path], tmp_path: Path
) -> None:
    full, tensors = checkpoint(attn_type_list=[0, 0, 1, 0])
    gaps = ("attn_type_list", "num_local_experts", "head_dim", "num_key_value_heads")
    folder = write(tmp_path, {k: v for k, v in full.items() if k not in gaps}, tensors)
    assert ModelConfig.from_file(folder) == ModelConfig.from_dict(full)


def test_dense_tensors_mean_one_expert(
    checkpoint: Callable[..., Any], write: Callable[..., Path], tmp_path: Path
) -> None:
    full, tensors = checkpoint(num_local_experts=1, num_experts_per_tok=1)
    del full["num_local_experts"], full["num_experts_per_tok"]
    assert ModelConfig.from_file(write(tmp_path, full, tensors) / "config.json").num_local_experts == 1


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"architectures": ["LlamaForCausalLM"]}, ["architectures", "LlamaForCausalLM", "MiniMaxM1ForCausalLM"]),
        ({"architectures": None, "model_type": "mamba"}, ["model_type", "mamba", "MiniMaxForCausalLM"]),
        ({"hidden_size": None}, ["hidden_size", "missing"]),
        ({"hidden_size": "64"}, ["hidden_size", "integer"]),
        ({"attn_type_list": [0, 1]}, ["attn_type_list", "2", "num_hidden_layers"]),
        ({"attn_type_list": [0, 1, 2, 0]}, ["attn_type_list", "0 (lightning)"]),
        ({"hidden_act": "gelu"}, ["hidden_act", "gelu", "silu"]),
        ({"sliding_window": 512}, ["sliding_window", "512"]),
        ({"rope_scaling": {"type": "yarn"}}, ["rope", "yarn"]),
        ({"quantization_config": {"bits": 4}}, ["quantization_config"]),
        ({"shared_intermediate_size": 8, "shared_moe_mode": "softmax"}, ["shared_moe_mode", "sigmoid"]),
        ({"num_key_value_heads": 3}, ["num_key_value_heads", "divide"]),
        ({"rotary_dim": 17}, ["rotary_dim", "even"]),
        ({"num_experts_per_tok": 9}, ["num_experts_per_tok"]),
        ({"num_local_experts": [4, 4, 4, 4]}, ["num_local_experts", "integer"]),
        ({"eos_token_id": "x"}, ["eos_token_id"]),
        ({"eos_token_id": [2, 10**6]}, ["eos_token_id", "vocabulary"]),
        ({"tie_word_embeddings": "false"}, ["tie_word_embeddings", "true or false"]),
        ({"architectures": "MiniMaxM1ForCausalLM"}, ["architectures", "list"]),
        ({"architectures": 5}, ["architectures", "list"]),
        ({"attn_type_list": None, "layer_types": 5}, ["layer_types", "list"]),
        ({"attn_type_list": None, "layer_types": [["x"]]}, ["layer_types", "full_attention"]),
        ({"rope_parameters": "x"}, ["rope_parameters", "object"]),
        ({"rope_theta": -1.0}, ["rope_theta", "positive"]),
        ({"rms_norm_eps": float("nan")}, ["rms_norm_eps", "positive"]),
        ({"max_position_embeddings": 0}, ["max_position_embeddings", "at least 1"]),
    ],
)
def test_what_cannot_be_right_is_refused_by_name(change: dict[str, Any], told: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        ModelConfig.from_dict(BASE | change)
    for part in told:
        assert part in str(error.value)


@pytest.mark.parametrize("text", ["", "[1]", "{"])
def test_a_config_that_is_no_json_object(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigError, match=r"config\.json"):
        ModelConfig.from_file(tmp_path)


def test_a_missing_config(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        ModelConfig.from_file(tmp_path)


def test_m1s_own_config(shared_m1: Path) -> None:
    config = ModelConfig.from_file(shared_m1)
    assert config.softmax_layers == tuple(range(7, 80, 8))
    assert (config.inner_size, config.rotary_dim, config.rope_theta) == (8192, 64, 1e7)
    assert config.softmax_alpha == pytest.approx(160**0.25)
    assert config.eos_token_ids == ()
    assert json.loads(json.dumps(config.to_dict()))["attn_type_list"] == list(config.attn_types)
