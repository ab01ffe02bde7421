"""A few tokens' own pass on a CPU gives what the packed pass gives, in logits and in every cache."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from m1runtime.cache import PagePool, StatePool
from m1runtime.checkpoint import load
from m1runtime.config import ModelConfig
from m1runtime.few import MOST, FewTokens
from m1runtime.layers import Batch
from m1runtime.model import Model
from m1runtime.quantize import quantization
from m1runtime.ring import ROWS

CPU = torch.device("cpu")
PAGE = 16
SHAPES: dict[str, dict[str, Any]] = {
    "grouped heads": {},
    "odd heads": {"num_attention_heads": 3, "num_key_value_heads": 3},
    "one key head": {"num_attention_heads": 5, "num_key_value_heads": 1, "attn_type_list": [1, 0, 1, 1]},
    "lightning alone": {"attn_type_list": [0, 0, 0, 0]},
    "softmax alone": {"attn_type_list": [1, 1, 1, 1]},
    "many experts": {"num_local_experts": 12, "num_experts_per_tok": 3},
    "one expert": {"num_local_experts": 1},
}
# (slot, length before, new tokens) of each sequence: across pages of 16, around the ring of 96, more of them than one.
BATCHES: dict[str, list[tuple[int, int, int]]] = {
    "two tokens": [(1, 20, 2)],
    "across pages": [(0, 13, 6)],
    "around the ring": [(2, ROWS - 3, 9)],
    "from nothing": [(0, 0, 5)],
    "as many as it takes": [(1, 40, MOST)],
    "one token each": [(0, 17, 1), (1, 31, 1), (2, 5, 1), (3, 60, 1)],
    "slots apart": [(3, 31, 1), (0, 47, 1)],
    "runs alike": [(1, 15, 4), (2, 40, 4), (3, 0, 4)],
    "runs alike, slots apart": [(2, 15, 3), (0, 40, 3)],
    "ragged": [(0, 15, 1), (3, 40, 5), (1, 29, 3)],
}


def model_of(
    checkpoint: Callable[..., Any], write: Callable[..., Path], folder: Path, scheme: str | None = None, **changes: Any
) -> Model:
    write(folder, *checkpoint(seed=5, **changes))
    config = ModelConfig.from_file(folder / "config.json")
    return Model(config, load(folder, config, dtype=torch.float32, quantization=quantization(scheme), progress=False))


@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_the_packed_pass(
    checkpoint: Callable[..., Any], write: Callable[..., Path], tmp_path: Path, shape: str
) -> None:
    model = model_of(checkpoint, write, tmp_path, **SHAPES[shape])
    for sequences in BATCHES.values():
        for one, other in zip(*_both(model, sequences), strict=True):
            assert (one - other).abs().max() < 1e-5 * max(1, other.abs().max())


def test_matrices_as_a_compiled_model_wants_them(
    checkpoint: Callable[..., Any], write: Callable[..., Path], tmp_path: Path
) -> None:
    write(tmp_path, *checkpoint(seed=5, num_local_experts=12))
    config = ModelConfig.from_file(tmp_path / "config.json")
    model, other = (
        Model(config, load(tmp_path, config, dtype=torch.float32, progress=False, output_major=kept))
        for kept in (True, False)
    )
    for sequences in BATCHES.values():
        for one, expected in zip(_both(model, sequences)[0], _both(other, sequences)[1], strict=True):
            assert (one - expected).abs().max() < 1e-5 * max(1, expected.abs().max())


@pytest.mark.parametrize("scheme", ["int8", "int8-experts", "int4-experts"])
def test_weights_of_fewer_bits(
    checkpoint: Callable[..., Any], write: Callable[..., Path], tmp_path: Path, scheme: str
) -> None:
    """Rounding may send an activation to a neighbour here and there, so most batches must agree and not all."""
    model = model_of(checkpoint, write, tmp_path, scheme)
    agreed = [
        all((one - other).abs().max() < 2e-5 * max(1, other.abs().max()) for one, other in zip(*both, strict=True))
        for both in (_both(model, sequences) for sequences in BATCHES.values())
    ]
    assert sum(agreed) >= 0.8 * len(agreed)


def test_a_row_does_not_depend_on_those_beside_it(
    checkpoint: Callable[..., Any], write: Callable[..., Path], tmp_path: Path
) -> None:
    """In 8 bits each row is rounded by its own scale, expert by expert."""
    model = model_of(checkpoint, write, tmp_path, "int8")
    together, _ = _both(model, BATCHES["one token each"])
    for row, sequence in enumerate(BATCHES["one token each"]):
        alone, _ = _both(model, [sequence, (4, 3, 1)])
        assert (alone[0][0] - together[0][row]).abs().max() < 1e-5


def test_what_it_leaves_to_the_packed_pass() -> None:
    def batch(tokens: int, export: tuple[int, ...] = ()) -> Batch:
        none = torch.zeros(0, dtype=torch.int64)
        ids = torch.zeros(tokens, dtype=torch.int64)
        return Batch(ids, ids, (0, tokens), torch.tensor([0]), [none], ids, [tokens], ids, export=export)

    assert FewTokens.takes(batch(MOST)) and not FewTokens.takes(batch(MOST + 1))
    assert not FewTokens.takes(batch(0)) and not FewTokens.takes(batch(4, (1,)))


def _both(model: Model, sequences: Sequence[tuple[int, int, int]]) -> list[list[Tensor]]:
    """Logits and caches of the own pass and of the packed one."""
    few = model._few  # pyright: ignore[reportPrivateUsage]
    assert few is not None
    results: list[list[Tensor]] = []
    for own in (few, None):
        states = StatePool(model.config, device=CPU, slots=5)
        pages = PagePool(model.config, device=CPU, dtype=torch.float32, page_size=PAGE, pages=64)
        model._few = None  # pyright: ignore[reportPrivateUsage]
        before = [(slot, 0, length) for slot, length, _ in sequences if length]
        if before:
            model.forward(_batch(before), states, pages)
        model._few = own  # pyright: ignore[reportPrivateUsage]
        output = model.forward(_batch(sequences), states, pages)
        results.append([output.logits, *(t for t in _caches(states, pages) if t.numel())])
    model._few = few  # pyright: ignore[reportPrivateUsage]
    return results


def _caches(states: StatePool, pages: PagePool) -> list[Tensor]:
    return [states.states, states.ring.kv, states.ring.hidden, pages.kv]


def _batch(sequences: Sequence[tuple[int, int, int]]) -> Batch:
    """Pages of a slot go backwards in one half of the slots, so that they are no run."""
    ids: list[int] = []
    positions: list[int] = []
    rows: list[int] = []
    ring: list[int] = []
    recent: list[int] = []
    bounds = [0]
    tables: list[Tensor] = []
    for slot, start, new in sequences:
        pages = list(range(12 * slot, 12 * slot + 12))
        table = pages[::-1] if slot % 2 else pages
        tables.append(torch.tensor(table))
        places = range(start, start + new)
        latest = places[-ROWS:]
        ids += [(7 * place + 31 * slot) % 90 for place in places]
        positions += places
        rows += [table[place // PAGE] * PAGE + place % PAGE for place in places]
        ring += [slot * ROWS + place % ROWS for place in latest]
        bounds.append(len(ids))
        recent += range(len(ids) - len(latest), len(ids))
    return Batch(
        ids=torch.tensor(ids),
        positions=torch.tensor(positions),
        bounds=tuple(bounds),
        slots=torch.tensor([slot for slot, _, _ in sequences]),
        page_tables=tables,
        kv_rows=torch.tensor(rows),
        lengths=[start + new for _, start, new in sequences],
        ring_rows=torch.tensor(ring),
        recent=None if len(recent) == len(ids) else torch.tensor(recent),
    )
