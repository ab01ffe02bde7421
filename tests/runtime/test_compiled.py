"""The compiled step gives what the packed pass gives, in logits and every cache, and is compiled once."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters
from torch._inductor import config as inductor

from m1runtime import ConfigError, Engine, SamplingParams
from m1runtime.cache import PagePool, StatePool
from m1runtime.checkpoint import load
from m1runtime.compiled import check
from m1runtime.config import ModelConfig
from m1runtime.layers import Batch
from m1runtime.model import Model
from m1runtime.quantize import quantization
from m1runtime.ring import ROWS

CPU = torch.device("cpu")
GREEDY = SamplingParams(max_new_tokens=8, temperature=0)


@pytest.fixture(scope="module", autouse=True)
def compiler() -> None:
    try:
        check(CPU, torch.float32)
    except ConfigError as error:
        pytest.skip(str(error))


def _both(folder: Path, scheme: str | None) -> list[tuple[Model, StatePool, PagePool]]:
    """The model compiled, and as it is without; each with pools of its own."""
    config = ModelConfig.from_file(folder)
    found: list[tuple[Model, StatePool, PagePool]] = []
    for compiled in (True, False):
        kept = quantization(scheme)
        weights = load(folder, config, dtype=torch.float32, quantization=kept, progress=False, output_major=compiled)
        model = Model(config, weights, threads=1)
        if compiled:
            model.compile(lambda _: None)
        pages = PagePool(config, device=CPU, dtype=torch.float32, page_size=16, pages=6)
        found.append((model, StatePool(config, device=CPU), pages))
    return found


def _batch(position: int, slot: int, table: torch.Tensor) -> Batch:
    def one(value: int) -> torch.Tensor:
        return torch.tensor([value])

    return Batch(
        ids=one(position * 7 % 50),
        positions=one(position),
        bounds=(0, 1),
        slots=one(slot),
        page_tables=[table],
        kv_rows=one(int(table[position // 16]) * 16 + position % 16),
        lengths=[position + 1],
        ring_rows=one(slot * ROWS + position % ROWS),
    )


@pytest.mark.parametrize(
    ("scheme", "changes"),
    [
        (None, {}),  # four heads on two of keys and values, two softmax layers
        (None, {"postnorm": False, "shared_intermediate_size": 24, "num_local_experts": 1}),
        ("int4-experts", {}),
    ],
)
def test_it_is_the_eager_pass(
    checkpoint: Callable[..., Any],
    write: Callable[..., Path],
    tmp_path: Path,
    scheme: str | None,
    changes: dict[str, Any],
) -> None:
    folder = write(tmp_path / "model", *checkpoint(seed=3, **changes))
    (model, states, pages), (plain, plain_states, plain_pages) = _both(folder, scheme)
    table = torch.tensor([5, 0, 3])
    for position in range(40):
        if position == 20:  # pools are replaced by longer ones, of other strides
            for pool in (states, plain_states):
                pool.grow(3)
            pages.grow(2)
            plain_pages.grow(2)
        graphs = counters["stats"]["unique_graphs"]
        batch = _batch(position, 2, table)
        ours = model.forward(batch, states, pages).logits
        assert counters["stats"]["unique_graphs"] == graphs
        _close(ours, plain.forward(batch, plain_states, plain_pages).logits)
    for name in ("states", "ring.kv", "ring.hidden", "pages"):
        ours, theirs = _remembered(states, pages)[name], _remembered(plain_states, plain_pages)[name]
        assert bool(ours.any())
        _close(ours, theirs)


def test_int8_rounds_activations_as_the_eager_pass_does(tiny_folder: Path) -> None:
    """A sum that differs in its last bit sends an activation here and there to a neighbour: most tokens must agree,
    each computed from the same caches."""
    (model, states, pages), (plain, plain_states, plain_pages) = _both(tiny_folder, "int8")
    agreed = 0
    for position in range(40):
        for ours, theirs in zip(_tensors(states, pages), _tensors(plain_states, plain_pages), strict=True):
            ours.copy_(theirs)
        batch = _batch(position, 1, torch.tensor([1, 4, 0]))
        ours = model.forward(batch, states, pages).logits
        theirs = plain.forward(batch, plain_states, plain_pages).logits
        agreed += bool((ours - theirs).abs().max() < 1e-5 * theirs.abs().max())
    assert agreed >= 32


def test_an_engine_is_compiled_while_loading_and_never_again(
    tiny_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="m1runtime.engine"):
        engine = Engine.from_pretrained(tiny_folder, device="cpu", compile=True, progress=False)
    assert sum("compil" in record.getMessage() for record in caplog.records) == 2
    graphs = counters["stats"]["unique_graphs"]
    with engine, Engine.from_pretrained(tiny_folder, device="cpu", progress=False) as plain:
        prompts = [[n + 5, n + 6, n + 7] for n in range(9)]
        alone = [engine.generate([prompt], GREEDY)[0].ids for prompt in prompts]
        assert alone == [plain.generate([prompt], GREEDY)[0].ids for prompt in prompts]
        together = [completion.ids for completion in engine.generate(prompts, GREEDY)]  # more slots than there were
        assert together == alone
        assert engine.generate(prompts[:1], GREEDY)[0].ids == alone[0]
        with engine.session(prompts[0]) as session:  # decode, taken back and decoded again
            reply = session.generate(GREEDY).ids
            session.rewind(len(prompts[0]) + 4)
            session.append(reply[4:6])
            assert session.generate(SamplingParams(max_new_tokens=2, temperature=0)).ids == reply[6:8]
    assert counters["stats"]["unique_graphs"] == graphs
    assert not counters["graph_break"]


def test_what_cannot_be_compiled_is_said_before_loading(tiny_folder: Path) -> None:
    for options, name in (({"dtype": "bfloat16"}, "bfloat16"), ({"tensor_parallel": 2}, "tensor_parallel")):
        with pytest.raises(ConfigError, match=f"compile=True .*{name}"):
            Engine.from_pretrained(tiny_folder, device="cpu", compile=True, progress=False, **options)
    with inductor.patch({"cpp.cxx": ("/nowhere/g++",)}), pytest.raises(ConfigError, match=r"apt install g\+\+"):
        Engine.from_pretrained(tiny_folder, device="cpu", compile=True, progress=False)


def _tensors(states: StatePool, pages: PagePool) -> list[torch.Tensor]:
    return [states.states, states.ring.kv, states.ring.hidden, pages.kv]


def _remembered(states: StatePool, pages: PagePool) -> dict[str, torch.Tensor]:
    """What the pools hold of the sequence in slot 2."""
    ring = states.ring
    kv = pages.read([5, 0, 3], 40)
    return {"states": states.read(2), "ring.kv": ring.kv[:, 2], "ring.hidden": ring.hidden[2], "pages": kv}


def _close(x: torch.Tensor, y: torch.Tensor) -> None:
    assert (x - y).abs().max() < 1e-5 * max(1.0, float(y.abs().max()))
