"""Prefill and decode of m1-nano on one CPU thread, against transformers on the same weights.

Run with `python -m benchmarks.decode`.

The peer runs `generate` with its own cache. It rotates whole heads where the model rotates half of each, so its tokens
differ; the work is the same.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import torch

import m1runtime
from benchmarks import report
from m1runtime import Engine, SamplingParams


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decode", description=__doc__)
    parser.add_argument("--model", default="m1-nano")
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    engine = Engine.from_pretrained(options.model)
    peer = peer_of(_folder(options.model))
    ids = torch.randint(10, 600, (options.prompt,), generator=torch.Generator().manual_seed(1)).tolist()
    prefill = report.paired(lambda: _ours(engine, ids, 1), lambda: _theirs(peer, ids, 1), options.runs)
    whole = report.paired(
        lambda: _ours(engine, ids, options.new + 1), lambda: _theirs(peer, ids, options.new + 1), options.runs
    )
    figures = {"prompt tokens": options.prompt, "new tokens": options.new, "threads": 1}
    for name, first, both in (("m1runtime", prefill[0], whole[0]), ("transformers", prefill[1], whole[1])):
        figures[name] = {
            "prefill tokens/s": round(options.prompt / report.median(first)),
            "decode tokens/s": round(options.new / (report.median(both) - report.median(first))),
        }
    report.save("decode", figures)


def _ours(engine: Engine, ids: list[int], new: int) -> None:
    greedy = SamplingParams(max_new_tokens=new, temperature=0)
    engine.clear_cache()  # A prompt seen before would cost nothing.
    with engine.session(ids) as session:
        assert len(session.generate(greedy).ids) == new, "the reply ended early: choose other prompt tokens"


def _theirs(model: torch.nn.Module, ids: list[int], new: int) -> None:
    with torch.inference_mode():
        model.generate(torch.tensor([ids]), max_new_tokens=new, min_new_tokens=new, do_sample=False)  # type: ignore[operator]


def _folder(model: str) -> Path:
    return Path(model) if Path(model).is_dir() else Path(m1runtime.__file__).parent / "nano"


def peer_of(folder: Path) -> torch.nn.Module:
    """The same checkpoint in transformers' own dialect."""
    from safetensors.torch import load_file, save_file
    from transformers import MiniMaxConfig, MiniMaxForCausalLM
    from transformers.utils import logging

    logging.set_verbosity_error()
    raw = json.loads((folder / "config.json").read_text())
    config = MiniMaxConfig(
        **{key: raw[key] for key in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")},
        **{key: raw[key] for key in ("num_attention_heads", "num_key_value_heads", "num_local_experts")},
        head_dim=raw["head_dim"], rope_theta=raw["rope_theta"],
        layer_types=["full_attention" if kind else "linear_attention" for kind in raw["attn_type_list"]],
        bos_token_id=None, eos_token_id=None, pad_token_id=0,
        **{f"{kind}_{end}_factor": raw[f"layernorm_{hub}_{end}"] for end in ("alpha", "beta")
           for kind, hub in (("full_attn", "full_attention"), ("linear_attn", "linear_attention"), ("mlp", "mlp"))},
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as copy:
        save_file(load_file(folder / "model.safetensors"), Path(copy) / "model.safetensors", metadata={"format": "pt"})
        config.save_pretrained(copy)
        return MiniMaxForCausalLM.from_pretrained(copy, dtype=torch.float32).eval()


if __name__ == "__main__":
    main()
