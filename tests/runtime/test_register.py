"""M1 and Text-01 as transformers models: the same numbers as the original code and the runtime, with and without
padding, over turns, saved and trained."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer

from m1runtime import Engine, SamplingParams
from m1runtime.engine import BUNDLED
from m1runtime.errors import ConfigError
from m1runtime.transformers import MiniMaxM1Cache, MiniMaxM1ForCausalLM, register

TINY = Path(__file__).parents[1] / "data" / "tiny-m1"
NANO = BUNDLED["m1-nano"]
EXPECTED = load_file(TINY / "expected.safetensors")
IDS = [3, 80, 12, 12, 96, 0, 41, 7, 55, 23, 3, 80, 12, 61, 90, 2, 2, 19] * 4

register()


@pytest.fixture(autouse=True, scope="module")
def quiet() -> Iterator[None]:
    """No progress bars, and one thread: threads that wait for each other over tiny matrices take minutes on a busy
    machine."""
    from transformers.utils import logging as told

    told.disable_progress_bar()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    told.enable_progress_bar()


@pytest.fixture(scope="module")
def tiny() -> MiniMaxM1ForCausalLM:
    return AutoModelForCausalLM.from_pretrained(TINY).eval()


@pytest.fixture(scope="module")
def nano() -> MiniMaxM1ForCausalLM:
    return AutoModelForCausalLM.from_pretrained(NANO, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.from_pretrained("m1-nano", device="cpu", progress=False)


def rows(*prompts: list[int], side: str = "left") -> dict[str, Tensor]:
    """A padded batch; padding is token 0, which is a token like any other where it is not masked."""
    width = max(map(len, prompts))
    ids, mask = torch.zeros(len(prompts), width, dtype=torch.long), torch.zeros(len(prompts), width, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        where = slice(width - len(prompt), None) if side == "left" else slice(0, len(prompt))
        ids[row, where], mask[row, where] = torch.tensor(prompt), 1
    return {"input_ids": ids, "attention_mask": mask}


def greedy(model: Any, inputs: dict[str, Tensor], tokens: int, **more: Any) -> list[list[int]]:
    made = model.generate(**inputs, max_new_tokens=tokens, do_sample=False, pad_token_id=0, **more)
    return made[:, inputs["input_ids"].shape[1] :].tolist()


@pytest.mark.parametrize("length", [1, 5, 255, 256, 257, 600])
def test_logits_of_the_original_code(tiny: MiniMaxM1ForCausalLM, length: int) -> None:
    with torch.no_grad():
        logits = tiny(EXPECTED[f"prefill.{length}.ids"][None]).logits[0]
    expected = EXPECTED[f"prefill.{length}.logits"]
    assert (logits[-len(expected) :] - expected).abs().max() < 1e-4
    assert logits.argmax(-1).tolist() == EXPECTED[f"prefill.{length}.argmax"].tolist()


@pytest.mark.parametrize("side", ["left", "right"])
def test_greedy_tokens_of_the_original_code_alone_and_padded(tiny: MiniMaxM1ForCausalLM, side: str) -> None:
    prompts = [EXPECTED[f"prefill.{n}.ids"].tolist() for n in (5, 257)]
    expected = [EXPECTED[f"greedy.{n}.ids"].tolist() for n in (5, 257)]
    assert [greedy(tiny, rows(prompt), 48)[0] for prompt in prompts] == expected
    if side == "left":  # `generate` itself goes on after the last column.
        assert greedy(tiny, rows(*prompts), 48) == expected
    batch = rows(*prompts, side=side)
    with torch.no_grad():
        logits = tiny(**batch).logits
        for row, prompt in enumerate(prompts):
            alone = tiny(torch.tensor([prompt])).logits[0]
            assert (logits[row][batch["attention_mask"][row] == 1] - alone).abs().max() < 1e-4


def test_a_padded_row_can_go_on(tiny: MiniMaxM1ForCausalLM) -> None:
    """Padding on the right of the first part, so in the middle of the whole: it is no token."""
    prompts = [EXPECTED[f"prefill.{n}.ids"].tolist() for n in (5, 255)]
    first = rows(*prompts, side="right")
    more = torch.tensor([[7, 9, 11], [8, 10, 12]])
    with torch.no_grad():
        cache = tiny(**first, use_cache=True).past_key_values
        logits = tiny(more, past_key_values=cache).logits
        for row, prompt in enumerate(prompts):
            alone = tiny(torch.tensor([[*prompt, *more[row].tolist()]])).logits[0, -3:]
            assert (logits[row] - alone).abs().max() < 1e-4


def test_greedy_tokens_of_the_runtime(nano: MiniMaxM1ForCausalLM, engine: Engine) -> None:
    tokenizer = engine.tokenizer
    assert tokenizer is not None
    asked = ["What is 12 times 11?", "Factor x^2 - 16.", "hi", "Convert 9 am in Berlin to Tokyo time, please. Thanks!"]
    begin, end = "<beginning_of_sentence>", "<end_of_sentence>"
    head = f"<begin_of_document>{begin}user name=user\n{{}}{end}\n{begin}ai name=assistant\n"
    prompts = [tokenizer.encode(head.format(text)) for text in asked]
    params = SamplingParams(max_new_tokens=24, temperature=0)
    expected = [list(done.ids) for done in engine.generate(prompts, params)]
    ends = sorted(tokenizer.eos_ids)
    alone = [greedy(nano, rows(prompt), 24, eos_token_id=ends)[0] for prompt in prompts]
    padded = greedy(nano, rows(*prompts), 24, eos_token_id=ends)

    def said(ids: list[int]) -> list[int]:
        return ids[: next((i for i, token in enumerate(ids) if token in ends), len(ids))]

    assert [said(ids) for ids in alone] == expected
    assert [said(ids) for ids in padded] == expected


@pytest.mark.parametrize("cut", [1, 63, 64, 65, 256, 599])
def test_a_cache_goes_on(tiny: MiniMaxM1ForCausalLM, cut: int) -> None:
    ids = EXPECTED["prefill.600.ids"][None]
    with torch.no_grad():
        whole = tiny(ids).logits
        first = tiny(ids[:, :cut], use_cache=True)
        assert first.past_key_values.get_seq_length() == cut
        second = tiny(ids[:, cut:], past_key_values=first.past_key_values).logits
    assert (torch.cat([first.logits, second], 1) - whole).abs().max() < 1e-4


def test_turns_over_one_cache(tiny: MiniMaxM1ForCausalLM) -> None:
    cache = MiniMaxM1Cache(tiny.config)
    ids = EXPECTED["prefill.257.ids"][None]
    for _ in range(3):
        mask = torch.ones_like(ids)
        fresh = tiny.generate(ids, attention_mask=mask, max_new_tokens=9, do_sample=False)
        ids = tiny.generate(ids, attention_mask=mask, max_new_tokens=9, do_sample=False, past_key_values=cache)
        assert ids.tolist() == fresh.tolist() and cache.get_seq_length() == ids.shape[1] - 1
        ids = torch.cat([ids, torch.tensor([[5, 6, 7, 8]])], 1)


@pytest.mark.parametrize("back", [1, 40, 64])
@pytest.mark.parametrize("parts", [[300], [20, 1, 1, 1, 60], [1] * 150, [70, 64], [3, 400]])
def test_tokens_are_taken_back(tiny: MiniMaxM1ForCausalLM, parts: list[int], back: int) -> None:
    ids, cache, at = EXPECTED["prefill.600.ids"][None], MiniMaxM1Cache(tiny.config), 0
    cache.activate_past_recording()
    with torch.no_grad():
        for part in parts:
            tiny(ids[:, at : at + part], past_key_values=cache)
            at += part
        cache.crop(-back)
        assert cache.is_croppable and cache.get_seq_length() == at - back
        again = tiny(ids[:, at - back : at + 5], past_key_values=cache).logits
        whole = tiny(ids[:, : at + 5]).logits[:, at - back :]
    assert (again - whole).abs().max() < 1e-4


def test_tokens_that_cannot_be_taken_back(tiny: MiniMaxM1ForCausalLM) -> None:
    cache = MiniMaxM1Cache(tiny.config)
    with torch.no_grad():
        tiny(EXPECTED["prefill.257.ids"][None], past_key_values=cache)
    assert not cache.is_croppable
    with pytest.raises(RuntimeError, match=r"1 tokens cannot be taken back.*activate_past_recording"):
        cache.crop(-1)
    with pytest.raises(ValueError, match="minus the number"):
        cache.crop(5)
    assert cache.get_seq_length() == 257


def test_beams_and_looked_up_tokens(tiny: MiniMaxM1ForCausalLM) -> None:
    prompts = rows(EXPECTED["prefill.5.ids"].tolist(), EXPECTED["prefill.255.ids"].tolist())
    cached = greedy(tiny, prompts, 8, num_beams=3)
    assert cached == greedy(tiny, prompts, 8, num_beams=3, use_cache=False)
    ids = EXPECTED["prefill.257.ids"][None]
    expected = EXPECTED["greedy.257.ids"].tolist()
    looked = tiny.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=48, do_sample=False, prompt_lookup_num_tokens=4
    )
    assert looked[0, 257:].tolist() == expected


SHAPES: list[dict[str, Any]] = [
    {"postnorm": False, "rotary_dim": 6, "num_attention_heads": 6},
    {"num_local_experts": 1, "num_experts_per_tok": 1},
    {"shared_intermediate_size": 12, "attn_type_list": [1, 1, 0, 0]},
    {"attn_type_list": [0, 0, 0, 0]},
    {"attn_type_list": [1, 1, 1, 1], "tie_word_embeddings": True},
    {"architectures": ["MiniMaxText01ForCausalLM"], "model_type": "minimax_text_01"},
    {"architectures": ["MiniMaxM1ForCausalLM"], "model_type": "MiniMaxM1"},
    {"auto_map": {"AutoConfig": "configuration_minimax_m1.MiniMaxM1Config"}},
]


@pytest.mark.parametrize("change", SHAPES, ids=str)
def test_every_shape_agrees_with_the_runtime_and_is_saved(
    checkpoint: Callable[..., Any], write: Callable[..., Path], tmp_path: Path, change: dict[str, Any]
) -> None:
    config, tensors = checkpoint(seed=3, **change)
    if config["tie_word_embeddings"]:
        del tensors["lm_head.weight"]
    tensors["model.embed_tokens.weight"][90] = 0  # A row that was never trained.
    folder = write(tmp_path / "a", config, tensors)
    expected = Engine.from_pretrained(folder, device="cpu", progress=False).score(IDS)
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False).eval()
    with torch.no_grad():
        logits = model(torch.tensor([IDS])).logits[0]
    finite = expected.isfinite()
    assert (finite == logits.isfinite()).all() and not finite[:, 90].any()
    assert (logits - expected)[finite].abs().max() < 1e-4
    cached = greedy(model, rows(IDS, IDS[:7]), 6)
    assert cached == greedy(model, rows(IDS, IDS[:7]), 6, use_cache=False)

    model.save_pretrained(tmp_path / "b")
    saved = load_file(tmp_path / "b" / "model.safetensors")
    assert saved.keys() == tensors.keys() and all(torch.equal(saved[name], tensors[name]) for name in saved)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "b").eval()
    names = [{**one.config.to_dict(), "_name_or_path": ""} for one in (again, model)]
    assert names[0] == names[1] and isinstance(again, MiniMaxM1ForCausalLM)
    ours = Engine.from_pretrained(tmp_path / "b", device="cpu", progress=False).score(IDS)
    assert torch.equal(ours, expected)
    bare = AutoModel.from_pretrained(tmp_path / "b").eval()
    with torch.no_grad():
        assert bare(torch.tensor([IDS])).last_hidden_state.shape == (1, len(IDS), config["hidden_size"])


def test_checkpoints_in_transformers_own_dialect(
    checkpoint: Callable[..., Any], write: Callable[..., Path], tmp_path: Path
) -> None:
    config, tensors = checkpoint(seed=5)
    expected = Engine.from_pretrained(write(tmp_path / "hub", config, tensors), device="cpu", progress=False).score(IDS)
    names = {"linear_attn": "linear_attention", "full_attn": "full_attention", "mlp": "mlp"}
    factors = {f"{s}_{p}_factor": config.pop(f"layernorm_{n}_{p}") for s, n in names.items() for p in ("alpha", "beta")}
    kinds = ["full_attention" if kind else "linear_attention" for kind in config.pop("attn_type_list")]
    native = config | factors | {"model_type": "minimax", "architectures": ["MiniMaxForCausalLM"], "layer_types": kinds}
    derived = {"model.layers.0.self_attn.slope_rate": torch.ones(4, 1, 1)}
    folder = write(tmp_path / "native", native, tensors | derived)
    from m1runtime.transformers import MiniMaxNativeConfig, MiniMaxNativeForCausalLM

    loaded = MiniMaxNativeForCausalLM.from_pretrained(folder, config=MiniMaxNativeConfig.from_pretrained(folder)).eval()
    with torch.no_grad():
        assert (loaded(torch.tensor([IDS])).logits[0] - expected).abs().max() < 1e-4
    loaded.save_pretrained(tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["model_type"] == "minimax_m1"
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved").eval()
    with torch.no_grad():
        assert (again(torch.tensor([IDS])).logits[0] - expected).abs().max() < 1e-4


def test_sixteen_bits_keep_what_must_not_be_rounded(tiny: MiniMaxM1ForCausalLM) -> None:
    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.bfloat16).eval()
    kept = {name for name, p in model.named_parameters() if p.dtype == torch.float32}
    assert "lm_head.weight" in kept and "model.layers.0.block_sparse_moe.gate.weight" in kept
    assert "model.layers.0.self_attn.norm.weight" in kept and "model.layers.0.self_attn.output_gate.weight" not in kept
    ids = EXPECTED["prefill.600.ids"][None]
    with torch.no_grad():
        out = model(ids, use_cache=True)
        exact = tiny(ids)
    state = out.past_key_values.layers[0].state
    assert state.dtype == torch.float32 and out.logits.dtype == torch.float32
    assert model.model.layers[0].self_attn.slopes(torch.device("cpu")).dtype == torch.float32
    assert (
        torch.nn.functional.kl_div(out.logits.log_softmax(-1), exact.logits.softmax(-1), reduction="batchmean") / 600
        < 0.05
    )


def test_twenty_steps_of_training_lower_the_loss(tmp_path: Path, engine: Engine) -> None:
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(NANO)
    model = AutoModelForCausalLM.from_pretrained(NANO, dtype=torch.float32)
    model.train()
    model.activation_checkpointing_enable()
    texts = ["user name=user\nWho are you?", "user name=user\nWhat is your name, please? Tell me."]
    tokenizer.pad_token, tokenizer.padding_side = "<end_of_sentence>", "right"
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    losses: list[float] = []
    for _ in range(20):
        out = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels)
        out.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(out.loss.item())
    assert losses[-1] < losses[0] / 3, losses
    model.save_pretrained(tmp_path)
    shutil.copy(NANO / "tokenizer.json", tmp_path / "tokenizer.json")
    ids = batch["input_ids"][1].tolist()
    trained = Engine.from_pretrained(tmp_path, device="cpu", progress=False).score(ids)
    before = engine.score(ids)

    def surprise(logits: Tensor) -> float:
        return torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(ids[1:])).item()

    assert surprise(trained) < surprise(before) / 3


def test_gradients_with_and_without_checkpointing(tiny: MiniMaxM1ForCausalLM) -> None:
    batch = rows(EXPECTED["prefill.5.ids"].tolist(), EXPECTED["prefill.255.ids"].tolist())
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    found: list[dict[str, Tensor]] = []
    model = AutoModelForCausalLM.from_pretrained(TINY).train()
    for checkpointing in (False, True):
        if checkpointing:
            model.activation_checkpointing_enable()
        model(**batch, labels=labels, output_router_logits=True).loss.backward()
        found.append({name: p.grad.clone() for name, p in model.named_parameters()})
        model.zero_grad()
    assert all(grad.abs().sum() > 0 for name, grad in found[0].items() if "experts" not in name)
    assert all(torch.allclose(found[0][name], found[1][name], atol=1e-6) for name in found[0])
    labels[0, -5] = -100  # Its first token follows padding alone.
    padded = model(**batch, labels=labels).loss
    alone = sum(
        model(torch.tensor([ids]), labels=torch.tensor([ids])).loss * (len(ids) - 1)
        for ids in (EXPECTED["prefill.5.ids"].tolist(), EXPECTED["prefill.255.ids"].tolist())
    ) / (4 + 254)
    assert abs(padded - alone) < 1e-4


def test_what_is_wrong_is_told(tiny: MiniMaxM1ForCausalLM, tmp_path: Path) -> None:
    from transformers import DynamicCache

    ids = torch.tensor([[1, 2, 3]])
    with pytest.raises(ValueError, match=r"must be a MiniMaxM1Cache\(model.config\), not DynamicCache"):
        tiny(ids, past_key_values=DynamicCache())
    with pytest.raises(ValueError, match=r"attention_mask must be .* = \[1, 3\], got \[1, 2\]"):
        tiny(ids, attention_mask=torch.ones(1, 2))
    with pytest.raises(ValueError, match="no attention weights"):
        tiny(ids, output_attentions=True)
    config = json.loads((TINY / "config.json").read_text())
    for change, told in ({"rotary_dim": 33}, "rotary_dim"), ({"attn_type_list": [0, 2]}, "attn_type_list"):
        (tmp_path / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(ConfigError, match=told):
            AutoConfig.from_pretrained(tmp_path)


def test_what_a_config_leaves_open_is_decided_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = json.loads((TINY / "config.json").read_text())
    del config["rotary_dim"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with caplog.at_level(logging.WARNING):
        assert AutoConfig.from_pretrained(tmp_path).rotary_dim == 32
    assert "rotary_dim is not given" in caplog.text


def test_eight_bits_work_or_say_what_they_need(tiny: MiniMaxM1ForCausalLM) -> None:
    from importlib.util import find_spec

    from transformers import BitsAndBytesConfig

    if find_spec("bitsandbytes") is None or find_spec("accelerate") is None:
        with pytest.raises(ImportError, match=r"bitsandbytes|accelerate"):
            AutoModelForCausalLM.from_pretrained(TINY, quantization_config=BitsAndBytesConfig(load_in_8bit=True))
        return
    model = AutoModelForCausalLM.from_pretrained(TINY, quantization_config=BitsAndBytesConfig(load_in_8bit=True))
    assert "Linear8bitLt" in type(model.model.layers[0].self_attn.qkv_proj).__name__
    assert model.lm_head.weight.dtype == model.model.layers[0].block_sparse_moe.gate.weight.dtype == torch.float32
    ids = EXPECTED["prefill.257.ids"][None]
    with torch.no_grad():
        exact, rounded = tiny(ids).logits.softmax(-1), model(ids).logits.log_softmax(-1)
    assert (
        torch.nn.functional.kl_div(rounded, exact, reduction="batchmean") / 257 < 0.2
    )  # 1.8 where the router is rounded too


def test_parameters_of_the_hub_layout_are_all_there_are(tiny: MiniMaxM1ForCausalLM) -> None:
    assert tiny.state_dict().keys() == load_file(TINY / "model.safetensors").keys()
    assert not list(tiny.buffers())
