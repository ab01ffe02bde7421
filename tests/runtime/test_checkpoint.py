"""The tensors of a checkpoint: their names, both layouts, and every way they can fail to fit."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from m1runtime import CheckpointError, ConfigError, Engine, MemoryPlanError, ModelConfig
from m1runtime.checkpoint import expected_tensors, load, save_checkpoint

M1: dict[str, Any] = {
    "architectures": ["MiniMaxM1ForCausalLM"],
    "vocab_size": 200064,
    "hidden_size": 6144,
    "num_hidden_layers": 80,
    "attn_type_list": [0, 0, 0, 0, 0, 0, 0, 1] * 10,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "rotary_dim": 64,
    "intermediate_size": 9216,
    "num_local_experts": 32,
    "num_experts_per_tok": 2,
}
IDS = [5, 9, 1, 96, 0, 44, 44, 7]


def m1_names() -> set[str]:
    """The names of MiniMax-M1's tensors, by rule."""
    names = {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}
    for layer in range(80):
        attention = "q_proj k_proj v_proj o_proj" if layer % 8 == 7 else "qkv_proj output_gate out_proj norm"
        own = [f"self_attn.{name}" for name in attention.split()] + ["block_sparse_moe.gate"]
        own += ["input_layernorm", "post_attention_layernorm"]
        own += [f"block_sparse_moe.experts.{e}.w{i}" for e in range(32) for i in (1, 2, 3)]
        names |= {f"model.layers.{layer}.{name}.weight" for name in own}
    return names


def test_the_8243_tensors_of_m1() -> None:
    expected = expected_tensors(ModelConfig.from_dict(M1))
    assert len(expected) == 8243
    assert set(expected) == m1_names()
    assert sum(math.prod(shape) for shape in expected.values()) == 456_089_655_296


def test_the_index_of_m1(shared_m1: Path) -> None:
    index = json.loads((shared_m1 / "model.safetensors.index.json").read_text())["weight_map"]
    assert set(expected_tensors(ModelConfig.from_file(shared_m1 / "config.json"))) == set(index)


def score(folder: Path) -> torch.Tensor:
    return Engine.from_pretrained(folder, device="cpu", progress=False).score(IDS)


def test_shards_and_native_names_load_alike(
    checkpoint: Callable[..., Any], write: Callable[..., Path], tmp_path: Path
) -> None:
    config, tensors = checkpoint()
    expected = score(write(tmp_path / "single", config, tensors))
    assert torch.equal(score(sharded(tmp_path / "sharded", config, tensors)), expected)
    assert torch.equal(score(write(tmp_path / "native", config, fused(config, tensors))), expected)


def sharded(folder: Path, config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    names = sorted(tensors)
    shards = {f"model-0000{i}-of-00003.safetensors": names[i::3] for i in range(3)}
    for shard, held in shards.items():
        save_file({name: tensors[name] for name in held}, folder / shard)
    where = {name: shard for shard, held in shards.items() for name in held}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return folder


def fused(config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """transformers' in-memory names, with the derived buffers it saves."""
    native = {name: tensor for name, tensor in tensors.items() if "block_sparse_moe" not in name}
    for layer, kind in enumerate(config["attn_type_list"]):
        moe, mlp = f"model.layers.{layer}.block_sparse_moe", f"model.layers.{layer}.mlp"
        experts = [[tensors[f"{moe}.experts.{e}.w{i}.weight"] for i in (1, 3, 2)] for e in range(4)]
        native[f"{mlp}.gate.weight"] = tensors[f"{moe}.gate.weight"]
        native[f"{mlp}.experts.gate_up_proj"] = torch.stack([torch.cat(w[:2]) for w in experts])
        native[f"{mlp}.experts.down_proj"] = torch.stack([w[2] for w in experts])
        if kind == 0:
            for name in ("slope_rate", "query_decay", "key_decay", "diagonal_decay"):
                native[f"model.layers.{layer}.self_attn.{name}"] = torch.zeros(2)
    return native


def test_a_saved_checkpoint_loads_equal(tiny_folder: Path, tmp_path: Path) -> None:
    config = ModelConfig.from_file(tiny_folder)
    save_checkpoint(load(tiny_folder, config, dtype=torch.float32), config, tmp_path)
    written, original = (load_file(f / "model.safetensors") for f in (tmp_path, tiny_folder))
    assert written.keys() == original.keys()
    assert all(torch.equal(written[name], original[name]) for name in original)
    assert ModelConfig.from_file(tmp_path) == config


def test_bfloat16_weights_keep_router_norms_and_head_in_fp32(tiny_folder: Path) -> None:
    loaded = load(tiny_folder, ModelConfig.from_file(tiny_folder), dtype=torch.bfloat16)
    full = {name for name, tensor in loaded.items() if tensor.dtype == torch.float32}
    assert {"model.norm.weight", "lm_head.weight", "model.layers.0.moe.gate", "model.layers.0.self_attn.norm"} <= full
    assert loaded["model.layers.0.moe.w13"].dtype == torch.bfloat16


@pytest.mark.parametrize("part", [0.0, 0.0001, 0.01, 0.3, 0.9999])
def test_a_truncated_file(tiny_folder: Path, tmp_path: Path, part: float) -> None:
    (tmp_path / "config.json").write_text((tiny_folder / "config.json").read_text())
    whole = (tiny_folder / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: int(part * len(whole))])
    with pytest.raises(CheckpointError, match="truncated") as error:
        Engine.from_pretrained(tmp_path, progress=False)
    assert str(tmp_path / "model.safetensors") in str(error.value)


def test_bytes_that_are_no_safetensors(tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((tiny_folder / "config.json").read_text())
    (tmp_path / "model.safetensors").write_bytes((4).to_bytes(8, "little") + b"[1 2" + bytes(100))
    with pytest.raises(CheckpointError, match="damaged"):
        Engine.from_pretrained(tmp_path, progress=False)


@pytest.mark.parametrize(
    "change",
    [{"shape": None}, {"shape": ["a"]}, {"dtype": None}, {"data_offsets": [128, 0]}, {"data_offsets": [0, 128]}],
)
def test_a_damaged_entry_of_the_header(change: dict[str, Any], tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((tiny_folder / "config.json").read_text())
    whole = (tiny_folder / "model.safetensors").read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    header["model.norm.weight"] |= change
    text = json.dumps(header).encode()
    (tmp_path / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + whole[8 + length :])
    with pytest.raises(CheckpointError, match="damaged"):
        Engine.from_pretrained(tmp_path, progress=False)


def test_tensors_that_do_not_fit_are_listed_with_their_shapes(
    checkpoint: Callable[..., Any], write: Callable[..., Path], tmp_path: Path
) -> None:
    config, tensors = checkpoint()
    tensors["model.layers.9.extra.weight"] = tensors.pop("model.layers.1.self_attn.k_proj.weight")
    tensors["lm_head.weight"] = torch.zeros(97, 31)
    tensors["model.norm.weight"] = torch.zeros(32, dtype=torch.int8)
    with pytest.raises(CheckpointError) as error:
        Engine.from_pretrained(write(tmp_path, config, tensors), progress=False)
    told = str(error.value)
    assert "missing: model.layers.1.self_attn.k_proj.weight [32, 32]" in told
    assert "unknown: model.layers.9.extra.weight [32, 32]" in told
    assert "lm_head.weight expected [97, 32] found [97, 31]" in told
    assert "model.norm.weight is I8" in told


def test_an_index_that_names_a_missing_shard(checkpoint: Callable[..., Any], tmp_path: Path) -> None:
    folder = sharded(tmp_path / "sharded", *checkpoint())
    (folder / "model-00001-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match="1 of 3 shards are missing: model-00001-of-00003"):
        Engine.from_pretrained(folder, progress=False)


@pytest.mark.parametrize("text", ["{", "[]", '{"weight_map": 3}'])
def test_a_damaged_index(tiny_folder: Path, tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text((tiny_folder / "config.json").read_text())
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(CheckpointError, match="not an index"):
        Engine.from_pretrained(tmp_path, progress=False)


def test_a_folder_without_weights(tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((tiny_folder / "config.json").read_text())
    with pytest.raises(CheckpointError, match="no weights"):
        Engine.from_pretrained(tmp_path, progress=False)


def test_no_such_folder_names_the_bundled_models() -> None:
    with pytest.raises(ConfigError, match="m1-nano"):
        Engine.from_pretrained("no/such/folder")


@pytest.mark.parametrize(
    "wrong", [{"device": "foo"}, {"device": "cuda:99"}, {"dtype": "int8"}, {"dtype": torch.int32}], ids=str
)
def test_a_device_or_dtype_that_is_not_there(tiny_folder: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Engine.from_pretrained(tiny_folder, progress=False, **wrong)


def test_too_little_memory_is_told_before_a_weight_is_read(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text((tiny_folder / "config.json").read_text())
    with pytest.raises(MemoryPlanError, match=r"needs [\d,]+ bytes .* 100,000 .* are available"):
        Engine.from_pretrained(tmp_path, progress=True, memory_limit=100_000)
    assert "lightning state, a session" in capsys.readouterr().err


def test_rows_without_weights_are_never_likely(
    checkpoint: Callable[..., Any], write: Callable[..., Path], tmp_path: Path
) -> None:
    config, tensors = checkpoint()
    tensors["lm_head.weight"][90:] = 0
    tensors["model.embed_tokens.weight"][3] = 0
    logits = score(write(tmp_path, config, tensors))
    masked = torch.isinf(logits).all(0).nonzero().flatten().tolist()
    assert masked == [3, *range(90, 97)]
