"""Long contexts at small width: memory beside the caches, speed, and errors against float64.

Run with `python -m benchmarks.engine_long`; `--tokens` names the lengths. The softmax layer costs the square
of the length: 1,048,576 tokens take some ten minutes of one core.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from benchmarks import report
from benchmarks.long_reference import Reference, recurrence, write_checkpoint
from m1kernels import apply_rotary, decay_slopes, lightning_prefill
from m1kernels.rotary import inverse_frequencies
from m1runtime import Engine

CHUNK = 4096


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engine_long", description=__doc__)
    parser.add_argument("--tokens", type=int, nargs="*", default=[65_536, 1_048_576])
    parser.add_argument("--heads", type=int, default=1)
    parser.add_argument("--dim", type=int, default=16)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.one:
        print(json.dumps(_prefill(options.folder, options.one)))
        return
    figures: dict[str, Any] = {"heads": options.heads, "head dim": options.dim, "chunk": CHUNK, "threads": 1}
    figures["rotary at 1,000,000, greatest error of a unit vector"] = rotary_error(1_000_000)
    figures["lightning at MiniMax-M1's slopes of layer 78"] = lightning_errors(max(options.tokens))
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(Path(folder), heads=options.heads, dim=options.dim)
        figures["prefill"] = {f"{tokens:,}": _apart(Path(folder), tokens, options) for tokens in options.tokens}
    report.save("engine_long", figures)


def rotary_error(position: int) -> float:
    """Greatest difference from the exact rotation of M1's 64 dims, of unit pairs at positions around `position`."""
    positions = torch.arange(position - 500, position + 500)
    x = torch.zeros(len(positions), 1, 64)
    x[..., :32] = 1
    turned = apply_rotary(x, positions, 64, 1e7).double()[:, 0]
    angles = positions.double()[:, None] * inverse_frequencies(64, 1e7)
    return float((turned - torch.cat([angles.cos(), angles.sin()], -1)).abs().max())


def lightning_errors(tokens: int) -> dict[str, float]:
    """The slowest, a middle and the fastest head of layer 78, prefilled in chunks: relative errors after `tokens`."""
    heads = [0, 31, 63]
    slopes = decay_slopes(64, 78, 80)[heads]
    random = torch.Generator().manual_seed(2)
    q, k, v = (torch.nn.functional.silu(torch.randn(tokens, 3, 16, generator=random)) for _ in range(3))
    state: torch.Tensor | None = None
    parts: list[torch.Tensor] = []
    for start in range(0, tokens, CHUNK):
        piece = [x[start : start + CHUNK] for x in (q, k, v)]
        run = lightning_prefill(*piece, slopes, [0, len(piece[0])], state)
        state = run.state
        parts.append(run.o[-8:])
    assert state is not None
    found: dict[str, float] = {}
    for i, head in enumerate(heads):
        slope = 2.0 ** (-8 * (head + 1) / 64) * (1 - 78 / 79 + 1e-5)
        o, last = recurrence(*(x[:, i].double() for x in (q, k, v)), slope)
        ends = torch.cat([o[max(0, end - 8) : end] for end in [*range(CHUNK, tokens, CHUNK), tokens]])
        ours = torch.cat(parts)[:, i].double()
        found[f"slope {slope:.2e}, outputs"] = float((ours - ends).abs().max() / ends.abs().max())
        found[f"slope {slope:.2e}, state"] = float((state[0, i].double() - last).abs().max() / last.abs().max())
    return found


def _apart(folder: Path, tokens: int, options: argparse.Namespace) -> dict[str, Any]:
    """A length in a process of its own: only there is the peak memory its own; then the reference, here."""
    command = [sys.executable, "-m", "benchmarks.engine_long", "--one", str(tokens), "--folder", str(folder)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    config = json.loads((folder / "config.json").read_text())
    rows = figures.pop("rows")
    exact = Reference(config, load_file(folder / "model.safetensors")).logits(prompt(tokens), rows)
    ours = torch.tensor(figures.pop("logits"), dtype=torch.float64)
    figures["greatest logit error"] = float((ours - exact).abs().max())
    figures["standard deviation of logits"] = float(exact.std())
    return figures


def prompt(tokens: int) -> list[int]:
    """Random tokens, always the same."""
    return torch.randint(0, 97, (tokens,), generator=torch.Generator().manual_seed(5)).tolist()


def _prefill(folder: Path, tokens: int) -> dict[str, Any]:
    ids = prompt(tokens)
    places = list(range(tokens // 16, tokens + 1, tokens // 16))
    with Engine.from_pretrained(folder, device="cpu", progress=False, prefill_chunk=CHUNK, snapshots=17) as engine:
        engine.session([1] * 2 * CHUNK).close()
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak up to here
        before, began = _memory("VmRSS"), time.process_time()
        with engine.session() as session:
            session.append(ids, boundaries=places)
            spent, stats, peak = time.process_time() - began, engine.stats(), _memory("VmHWM")
            began = time.process_time()
            session.append(ids[:1])
            step = time.process_time() - began
            logits: dict[int, list[float]] = {}
            for place in reversed(places):
                session.rewind(place)
                logits[place - 1] = session.logits.tolist()
            assert not engine.stats().tokens_recomputed, "a boundary was lost"
    return {
        "seconds": round(spent, 1),
        "decode ms at the end": round(1e3 * step, 1),
        "KV bytes": stats.kv_bytes,
        "peak bytes beside the KV": peak - before - stats.kv_bytes,
        "rows": list(logits),
        "logits": list(logits.values()),
    }


def _memory(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


if __name__ == "__main__":
    main()
