"""Lightning attention at MiniMax-M1's width: our kernels, and the plain reference: `python -m benchmarks.lightning`.

With `--device cuda` it times the Triton kernels; the floor is the bytes that must move over the bandwidth measured in
the same run by a large copy.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks import report
from m1kernels import decay_slopes, lightning_decode, lightning_prefill

HEADS, WIDTH = 64, 128


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lightning", description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tokens", type=int, nargs="*", default=None)
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 8, 64])
    options = parser.parse_args()
    cuda = options.device == "cuda"
    dtype = torch.bfloat16 if cuda else torch.float32
    slopes = decay_slopes(HEADS, 0, 80).to(options.device)
    bandwidth = _bandwidth(options.device)
    figures: dict[str, object] = {
        "heads": HEADS,
        "width": WIDTH,
        "dtype": str(dtype),
        "copy GB/s": round(bandwidth / 1e9),
    }
    for tokens in options.tokens or ([4096, 32768, 131072] if cuda else [512]):
        q, k, v = (torch.randn(tokens, HEADS, WIDTH, device=options.device, dtype=dtype) for _ in range(3))
        spent = _milliseconds(lambda q=q, k=k, v=v, n=tokens: lightning_prefill(q, k, v, slopes, [0, n]), cuda)
        moved = tokens * HEADS * WIDTH * (3 * q.element_size() + 4)
        figures[f"prefill {tokens} ms"] = _row(spent, moved / bandwidth)
    for batch in options.batches:
        q, k, v = (torch.randn(batch, HEADS, WIDTH, device=options.device, dtype=dtype) for _ in range(3))
        states = torch.randn(batch, HEADS, WIDTH, WIDTH, device=options.device)
        slots = torch.arange(batch, device=options.device)
        spent = _milliseconds(lambda q=q, k=k, v=v, s=states, at=slots: lightning_decode(q, k, v, slopes, s, at), cuda)
        figures[f"decode batch {batch} ms"] = _row(spent, 2 * states.numel() * 4 / bandwidth)
    report.save("lightning_" + options.device, figures)


def _row(milliseconds: float, floor_seconds: float) -> dict[str, float]:
    return {
        "median": round(milliseconds, 4),
        "floor": round(1000 * floor_seconds, 4),
        "times floor": round(milliseconds / (1000 * floor_seconds), 2),
    }


def _bandwidth(device: str) -> float:
    """Bytes read plus written a second by a large copy."""
    size = 2**30 if device == "cuda" else 2**27
    source = torch.empty(size, dtype=torch.uint8, device=device).random_(0, 255)
    target: Tensor = torch.empty_like(source)
    return 2 * size / (_milliseconds(lambda: target.copy_(source), device == "cuda") / 1000)


def _milliseconds(work: Callable[[], object], cuda: bool) -> float:
    if cuda:
        from triton.testing import do_bench

        return float(do_bench(work, warmup=50, rep=200, return_mode="median"))
    return 1000 * report.median(report.seconds(work, runs=7, warm_up=2))


if __name__ == "__main__":
    main()
