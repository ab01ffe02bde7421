"""One token's own pass on a CPU gives what the packed pass gives, in logits and in every cache."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from m1runtime.cache import PagePool, StatePool
from m1runtime.checkpoint import load
from m1runtime.config import ModelConfig
from m1runtime.layers import Batch
from m1runtime.model import Model
from m1runtime.quantize import quantization
from m1runtime.ring import ROWS

TINY = Path(__file__).parents[1] / "data" / "tiny-m1"
TOKENS, SLOT = 40, 2
CPU = torch.device("cpu")


@pytest.mark.parametrize(("scheme", "share"), [(None, 1), ("int4-experts", 1), ("int8", 0.8), ("int8-experts", 0.8)])
def test_it_is_the_packed_pass(scheme: str | None, share: float) -> None:
    """fp32 sums differ by rounding alone. In int8 such a difference sends an activation here and there to a neighbour,
    so most tokens must agree and not all: each is computed from the same caches twice."""
    config = ModelConfig.from_file(TINY / "config.json")
    model = Model(config, load(TINY, config, dtype=torch.float32, quantization=quantization(scheme), progress=False))
    own = model._one  # pyright: ignore[reportPrivateUsage]
    assert own is not None
    model._few = None  # pyright: ignore[reportPrivateUsage]
    states = StatePool(config, device=CPU, slots=SLOT + 1)
    pages = PagePool(config, device=CPU, dtype=torch.float32, page_size=16, pages=4)
    agreed = 0
    for position in range(TOKENS):
        before = _caches(states, pages)
        results: list[list[Tensor]] = []
        for one in (own, None):
            model._one = one  # pyright: ignore[reportPrivateUsage]
            for tensor, value in zip(_tensors(states, pages), before, strict=True):
                tensor.copy_(value)
            output = model.forward(_batch(position, torch.tensor([3, 0, 2])), states, pages)
            results.append([output.logits, *_caches(states, pages)])
        agreed += all((x - y).abs().max() < 2e-5 * max(1, y.abs().max()) for x, y in zip(*results, strict=True))
        assert all(not torch.equal(value, tensor) for value, tensor in zip(before, results[0][1:], strict=True))
    assert agreed >= share * TOKENS


def _tensors(states: StatePool, pages: PagePool) -> list[Tensor]:
    return [states.states, states.ring.kv, states.ring.hidden, pages.kv]


def _caches(states: StatePool, pages: PagePool) -> list[Tensor]:
    return [tensor.clone() for tensor in _tensors(states, pages)]


def _batch(position: int, table: Tensor) -> Batch:
    def one(value: int) -> Tensor:
        return torch.tensor([value])

    return Batch(
        ids=one(position * 7 % 50),
        positions=one(position),
        bounds=(0, 1),
        slots=one(SLOT),
        page_tables=[table],
        kv_rows=one(int(table[position // 16]) * 16 + position % 16),
        lengths=[position + 1],
        ring_rows=one(SLOT * ROWS + position % ROWS),
    )
