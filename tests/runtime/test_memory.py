"""The plan before loading: the arithmetic of MiniMax-M1, what loading then takes, and what is offered instead."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from m1runtime import ConfigError, Engine, MemoryPlanError, ModelConfig
from m1runtime.checkpoint import load
from m1runtime.memory import CARDS, Wish, devices_needed, gib, plan_memory
from m1runtime.shards import share, tensor_parallel_sizes

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
CONFIG = ModelConfig.from_dict(M1)
MILLION = 1 << 20
ASKED = Wish(torch.bfloat16, context=MILLION)


def test_m1_is_the_arithmetic_of_its_config(shared_m1: Path) -> None:
    for config in (CONFIG, ModelConfig.from_file(shared_m1)):
        plan = plan_memory(config, ASKED, device="cuda", available=2**40)
        assert plan.parameters == 456_089_655_296
        assert (gib(plan.kv_per_token), gib(plan.state_per_session)) == ("40.00 KiB", "280.00 MiB")
        full = 200064 * 6144 + 80 * 32 * 6144 + 160 * 6144 + 70 * 8192 + 6144
        assert plan.weights == {"bfloat16": 2 * (456_089_655_296 - full), "float32": 4 * full}
        assert plan.ring_per_session == 280 * 2**20 + 96 * (70 * 2 * 8192 + 6144) * 2
        assert plan.total == sum(plan.weights.values()) + plan.working + plan.per_session
        assert plan.per_session == plan.state_per_session + plan.ring_per_session + 40 * 2**30


@pytest.mark.parametrize(("scheme", "gigabytes"), [("int8-experts", 477.3), ("int8", 458.6), ("int4", 238.8)])
def test_quantised_m1(scheme: str, gigabytes: float) -> None:
    weights = plan_memory(CONFIG, replace(ASKED, quantization=scheme), device="cuda", available=2**40).weights
    head = 200064 * 6144 * 2  # the reference's head is bf16, ours fp32; in int4 its output gates have 8 bits
    assert sum(weights.values()) / 1e9 == pytest.approx(gigabytes + head / 1e9, rel=0.04)


def test_ranks_share_everything_but_the_small() -> None:
    one, eight, sixteen = (
        plan_memory(CONFIG, replace(ASKED, devices=n), device="cuda", available=2**40) for n in (1, 8, 16)
    )
    assert eight.kv_per_token * 8 == one.kv_per_token and sixteen.kv_per_token == eight.kv_per_token
    assert sixteen.state_per_session * 16 == one.state_per_session
    assert sum(eight.weights.values()) * 8 == pytest.approx(sum(one.weights.values()), rel=0.001)
    assert tensor_parallel_sizes(CONFIG) == (1, 2, 4, 8, 16, 32, 64)


def test_the_bytes_that_loading_takes(tiny_folder: Path) -> None:
    config = ModelConfig.from_file(tiny_folder)
    for dtype in (torch.float32, torch.bfloat16):
        plan = plan_memory(config, Wish(dtype, context=100), device="cpu", available=2**40)
        loaded = load(tiny_folder, config, dtype=dtype).values()
        assert sum(tensor.numel() * tensor.element_size() for tensor in loaded) == sum(plan.weights.values())
    assert Engine.from_pretrained(tiny_folder, device="cpu").stats().weight_bytes == plan_fp32(config)


def plan_fp32(config: ModelConfig) -> int:
    return sum(plan_memory(config, Wish(torch.float32, context=100), device="cpu", available=2**40).weights.values())


def test_the_nearest_plans_are_offered() -> None:
    asked = replace(ASKED, quantization="int8", sessions=8, devices=8)
    plan = plan_memory(CONFIG, asked, device="cuda", available=CARDS["80 GB"])
    assert not plan.fits
    changes = [(p.wish.quantization, p.wish.sessions, p.wish.context, p.wish.devices) for p in plan.nearest]
    assert changes == [
        ("int4-experts", 8, MILLION, 8),
        ("int8", plan.most_sessions, MILLION, 8),
        ("int8", 8, plan.longest_context // 1024 * 1024, 8),
        ("int8", 8, MILLION, 16),
    ]
    assert all(offer.fits for offer in plan.nearest)
    with pytest.raises(
        MemoryPlanError, match=r"needs 1\d\d,\d+,\d+,\d+ bytes[^$]*what would fit:\n  quantization int4"
    ):
        plan.check()


def test_one_session_more_or_one_kilotoken_more_would_not_fit() -> None:
    asked = replace(ASKED, quantization="int8", devices=8, sessions=2)
    plan = plan_memory(CONFIG, asked, device="cuda", available=CARDS["80 GB"])
    assert plan.fits and not plan.nearest
    for grown in (replace(asked, sessions=plan.most_sessions + 1), replace(asked, context=plan.longest_context + 1024)):
        assert not plan_memory(CONFIG, grown, device="cuda", available=CARDS["80 GB"]).fits
    assert plan_memory(
        CONFIG, replace(asked, sessions=plan.most_sessions), device="cuda", available=CARDS["80 GB"]
    ).fits


def test_the_fewest_cards_that_hold_m1() -> None:
    fewest = {
        (card, scheme): devices_needed(CONFIG, replace(ASKED, quantization=scheme), card)
        for card in CARDS
        for scheme in (None, "int8-experts", "int4")
    }
    devices = {key: plan and plan.wish.devices for key, plan in fewest.items()}
    assert devices["80 GB", None] == 16 and devices["141 GB", None] == 8
    assert devices["80 GB", "int8-experts"] == 8
    assert devices["80 GB", "int4"] == 4
    assert devices_needed(CONFIG, replace(ASKED, sessions=10**6), "80 GB") is None


def test_on_a_cpu_more_ranks_are_not_offered_and_nothing_may_be_left() -> None:
    plan = plan_memory(CONFIG, ASKED, device="cpu", available=2 * 2**30)
    assert plan.nearest == ()
    with pytest.raises(MemoryPlanError, match="use a larger device"):
        plan.check()
    plan = plan_memory(CONFIG, ASKED, device="cpu", available=300 * 2**30)
    assert {offer.wish.devices for offer in plan.nearest} == {1}
    assert plan.nearest[0].wish.quantization == "int4-experts"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"devices": 3}, r"tensor_parallel=3 .* 64, num_key_value_heads 8 .* use one of 1, 2, 4, 8, 16, 32, 64"),
        ({"quantization": "int3"}, r"'int3' is not supported; supported: int8-experts, int8"),
    ],
)
def test_what_cannot_be_planned(change: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        plan_memory(CONFIG, replace(ASKED, **change), device="cuda", available=2**40)


def test_a_rank_is_a_smaller_network() -> None:
    own = share(CONFIG, 16)
    assert (own.num_attention_heads, own.num_key_value_heads, own.intermediate_size, own.vocab_size) == (
        4,
        1,
        576,
        12504,
    )
