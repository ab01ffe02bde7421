"""What int8 and int4 weights cost in quality and save in bytes.

Run with `python -m benchmarks.engine_quant`.

m1-nano, which is trained, on freshly drawn requests: its greedy float32 replies are read by each quantised model, token
by token (teacher forcing), and its calls are judged as `training.evaluate` does. The 17M random model of
`engine_decode` is read on random tokens: its logits are as even as noise, which makes agreement a hard case.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks import report
from benchmarks.engine_decode import MODELS, write_model
from m1agent.models.local import LocalModel
from m1agent.prompt import template
from m1runtime import Engine, SamplingParams
from m1runtime.quantize import SCHEMES
from training.data.conversation import dialogue
from training.evaluate import SEED_BASE, evaluate


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engine_quant", description=__doc__)
    parser.add_argument("--requests", type=int, default=120, help="requests of m1-nano's own kinds and of unseen names")
    parser.add_argument("--texts", type=int, default=40, help="texts whose logits are compared")
    options = parser.parse_args()
    torch.set_num_threads(1)
    figures: dict[str, Any] = {"threads": 1, "requests": options.requests, "texts": options.texts}
    figures["m1-nano"] = _nano(options.texts, options.requests)
    with tempfile.TemporaryDirectory() as folder:
        figures["17M, random"] = _random(write_model(Path(folder), MODELS["17M"]), options.texts)
    report.save("engine_quant", figures)


def _nano(count: int, requests: int) -> dict[str, Any]:
    full = Engine.from_pretrained("m1-nano", device="cpu", threads=1)
    texts = [_conversation(full, n) for n in range(count)]
    found: dict[str, Any] = {"float32": {**_weights(full), **_exact(full, requests)}}
    expected = [full.score(ids)[start - 1 : -1] for ids, start in texts]
    for scheme in SCHEMES:
        engine = Engine.from_pretrained("m1-nano", device="cpu", threads=1, quantization=scheme)
        got = [engine.score(ids)[start - 1 : -1] for ids, start in texts]
        found[scheme] = {**_weights(engine), **compare(torch.cat(expected), torch.cat(got)), **_exact(engine, requests)}
    return found


def _random(folder: Path, count: int) -> dict[str, Any]:
    def engine(scheme: str | None) -> Engine:
        return Engine.from_pretrained(folder, device="cpu", threads=1, quantization=scheme, progress=False)

    drawn = torch.Generator().manual_seed(1)
    texts = [torch.randint(0, 4096, (128,), generator=drawn).tolist() for _ in range(count)]
    full = engine(None)
    expected = torch.cat([full.score(ids) for ids in texts])
    found: dict[str, Any] = {"float32": _weights(full)}
    for scheme in SCHEMES:
        small = engine(scheme)
        found[scheme] = {**_weights(small), **compare(expected, torch.cat([small.score(ids) for ids in texts]))}
    return found


def _conversation(engine: Engine, number: int) -> tuple[list[int], int]:
    """A request with the model's own reply to it, and where the reply begins."""
    one = dialogue(random.Random(SEED_BASE + 900_000 + number), held_out=bool(number % 2), turns=1)
    pieces = [*template.render_setup(one.setup), *template.render_message(one.messages[0])]
    prompt = LocalModel(engine).encode(pieces + template.render_reply_start())
    (reply,) = engine.generate([prompt], SamplingParams(max_new_tokens=128, temperature=0))
    return [*prompt, *reply.ids], len(prompt)


def compare(expected: Tensor, got: Tensor) -> dict[str, float]:
    """Of logits [N, V]: error beside spread (a constant added to a row is none), divergence, and the same likeliest."""
    expected, got = (logits - logits.mean(-1, keepdim=True) for logits in (expected, got))
    error = (got - expected).square().mean().sqrt() / expected.std()
    divergence = F.kl_div(got.log_softmax(-1), expected.log_softmax(-1), reduction="batchmean", log_target=True)
    same = (expected.argmax(-1) == got.argmax(-1)).float().mean()
    return {
        "logit error, of their standard deviation %": round(100 * float(error), 3),
        "KL divergence, nats": round(float(divergence), 6),
        "greedy agreement %": round(100 * float(same), 2),
        "tokens": len(expected),
    }


def _weights(engine: Engine) -> dict[str, float]:
    return {"weights MiB": round(engine.stats().weight_bytes / 2**20, 2)}


def _exact(engine: Engine, requests: int) -> dict[str, object]:
    suites = {name: evaluate(engine, name, requests, 5, True) for name in ("own", "unseen")}
    return {f"exact calls %, {name}": _share(figures) for name, figures in suites.items()}


def _share(figures: dict[str, Any]) -> float:
    return next(part["exact calls %"] for title, part in figures.items() if "all" in title)


if __name__ == "__main__":
    main()
