"""Long contexts: scratch does not grow with them, and positions and decays stay exact."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.engine_long import lightning_errors, prompt, rotary_error
from benchmarks.long_reference import Reference, write_checkpoint
from m1kernels import paged_attention
from m1runtime import Engine

CHUNK = 1024


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Thousands of small operations: two threads on a busy machine would mostly wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("long")
    write_checkpoint(made, heads=2, dim=16)
    return made


def test_a_long_prefill_is_the_float64_network(folder: Path) -> None:
    ids, cuts = prompt(16_000), [4_096, 11_111, 16_000]
    engine = Engine.from_pretrained(folder, device="cpu", progress=False, prefill_chunk=CHUNK)
    config = json.loads((folder / "config.json").read_text())
    exact = Reference(config, load_file(folder / "model.safetensors")).logits(ids, [cut - 1 for cut in cuts])
    with engine.session() as session:
        for cut, expected in zip(cuts, exact, strict=True):
            session.append(ids[session.length : cut])
            assert (session.logits.double() - expected).abs().max() < 2e-5


def largest_allocation(length: int) -> int:
    """Bytes of the largest tensor made by the attention of a chunk over `length` positions on pages out of order."""
    order = torch.randperm(length // 64, generator=torch.Generator().manual_seed(1))
    pages, q = torch.randn(length // 64, 64, 1, 16), torch.randn(256, 2, 16)
    with torch.profiler.profile(profile_memory=True) as profile:
        paged_attention(q, pages, pages, [order], [0, 256], [length])
    return max(event.self_cpu_memory_usage for event in profile.events())


def test_attention_of_a_chunk_needs_the_same_after_a_long_past() -> None:
    assert 0 < largest_allocation(1 << 18) <= 1.01 * largest_allocation(1 << 15)


def test_positions_and_decays_of_m1_at_a_million() -> None:
    assert rotary_error(1_000_000) < 1e-7
    assert max(lightning_errors(20_000).values()) < 2e-6
