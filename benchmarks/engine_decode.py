"""Decode and prefill on one CPU thread, fp32 and quantised, against transformers on the same weights.

Run with `python -m benchmarks.engine_decode`.

Two models of random weights in M1's layout, seven lightning layers to one of softmax: 17M (hidden 256, vocabulary 4096)
and 50M (hidden 512). The machine may be shared, so the figures are the process' CPU seconds, the best of several runs
that alternate with the peer's. The peer runs `generate` with its own cache, as its documentation advises. It rotates
whole heads where the model rotates half of each, so its tokens differ; the work is the same.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from benchmarks import report
from benchmarks.decode import peer_of
from m1runtime import Engine, ModelConfig, SamplingParams
from m1runtime.checkpoint import expected_tensors

MODELS = {
    "17M": {"hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 512},
    "50M": {"hidden_size": 512, "num_attention_heads": 8, "intermediate_size": 768},
}
PROMPT, NEW, LONG = 128, 64, 1024
Work = Callable[[], object]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engine_decode", description=__doc__)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--schemes", nargs="+", default=["fp32", "int8", "fp32 compiled", "int8 compiled"])
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--no-peer", action="store_true", help="leave transformers out")
    options = parser.parse_args()
    torch.set_num_threads(1)
    figures: dict[str, Any] = {"threads": 1, "prompt tokens": PROMPT, "new tokens": NEW, "long prompt": LONG}
    with tempfile.TemporaryDirectory() as folder:
        for name in options.models:
            figures[name] = _measure(write_model(Path(folder) / name, MODELS[name]), options)
    report.save("engine_decode", figures)


def write_model(folder: Path, sizes: dict[str, int], seed: int = 0) -> Path:
    """A random checkpoint in M1's layout: eight layers, four experts of which two are used."""
    raw = {
        "architectures": ["MiniMaxM1ForCausalLM"], "model_type": "minimax_m1", "vocab_size": 4096,
        "num_hidden_layers": 8, "attn_type_list": [0] * 7 + [1], "num_key_value_heads": 2, "head_dim": 64,
        "rotary_dim": 32, "rope_theta": 1e7, "num_local_experts": 4, "num_experts_per_tok": 2, "postnorm": True,
        "shared_intermediate_size": 0, "rms_norm_eps": 1e-5, "max_position_embeddings": 32768, "eos_token_id": None,
        "tie_word_embeddings": False, **sizes,
        **{f"layernorm_{kind}_{end}": value for kind in ("linear_attention", "full_attention", "mlp")
           for end, value in (("alpha", 3.5565588200778455), ("beta", 1.0))},
    }  # fmt: skip
    random = torch.Generator().manual_seed(seed)
    tensors = {
        name: torch.randn(shape, generator=random) * (shape[-1] ** -0.5 if len(shape) > 1 else 0.1) + (len(shape) == 1)
        for name, shape in expected_tensors(ModelConfig.from_dict(raw)).items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(raw))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def _measure(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    engines = {name: _engine(folder, name) for name in options.schemes}
    works: dict[str, dict[str, Work]] = {name: _ours(engine) for name, engine in engines.items()}
    if not options.no_peer:
        works["transformers"] = _theirs(peer_of(folder))
    spent = _best(works, options.runs)
    found = {name: _rates(seconds) for name, seconds in spent.items()}
    for name, engine in engines.items():
        found[name]["weights MiB"] = round(engine.stats().weight_bytes / 2**20, 1)
        for key in ("decode B=1", "decode B=8", "prefill") if "transformers" in found else ():
            found[name][f"{key} against transformers"] = round(found[name][key] / found["transformers"][key], 2)
    return found


def _engine(folder: Path, scheme: str) -> Engine:
    """`scheme`: fp32, int8, int4, ..., and " compiled" after it for the compiled decode step."""
    kind, _, compiled = scheme.partition(" ")
    return Engine.from_pretrained(
        folder,
        device="cpu",
        quantization=None if kind == "fp32" else kind,
        threads=1,
        compile=bool(compiled),
        progress=False,
    )


def _prompts(count: int, length: int) -> list[list[int]]:
    random = torch.Generator().manual_seed(1)
    return [torch.randint(10, 4000, (length,), generator=random).tolist() for _ in range(count)]


def _ours(engine: Engine) -> dict[str, Work]:
    def run(count: int, length: int, new: int) -> Work:
        prompts, params = _prompts(count, length), SamplingParams(max_new_tokens=new, temperature=0)

        def work() -> None:
            assert all(len(reply.ids) == new for reply in engine.generate(prompts, params))
            engine.clear_cache()  # a prompt seen before would cost nothing

        return work

    return _works(run)


def _theirs(model: Any) -> dict[str, Work]:
    def run(count: int, length: int, new: int) -> Work:
        ids = torch.tensor(_prompts(count, length))

        def work() -> None:
            with torch.inference_mode():
                model.generate(ids, max_new_tokens=new, min_new_tokens=new, do_sample=False)

        return work

    return _works(run)


def _works(run: Callable[[int, int, int], Work]) -> dict[str, Work]:
    return {
        "first B=1": run(1, PROMPT, 1),
        "all B=1": run(1, PROMPT, NEW + 1),
        "first B=8": run(8, PROMPT, 1),
        "all B=8": run(8, PROMPT, NEW + 1),
        "prefill": run(1, LONG, 1),
    }


def _best(works: dict[str, dict[str, Work]], runs: int) -> dict[str, dict[str, float]]:
    """CPU seconds of each work, the best of `runs`; all take turns, so that a slow moment of the machine hits all."""
    spent: dict[str, dict[str, float]] = {name: {} for name in works}
    for turn in range(runs + 1):
        for name, own in works.items():
            for key, work in own.items():
                began = time.process_time()
                work()
                seconds = time.process_time() - began
                if turn:  # the first warms up
                    spent[name][key] = min(seconds, spent[name].get(key, seconds))
    return spent


def _rates(seconds: dict[str, float]) -> dict[str, float]:
    return {
        **{f"decode B={b}": round(b * NEW / (seconds[f"all B={b}"] - seconds[f"first B={b}"]), 1) for b in (1, 8)},
        "prefill": round(LONG / seconds["prefill"]),
    }


if __name__ == "__main__":
    main()
