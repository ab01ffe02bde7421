"""What each of N tensor-parallel ranks holds: heads, KV groups, inner channels of every expert, and tokens.

A rank's share is the same network with fewer heads, narrower experts and a shorter vocabulary, so it is described by a
`ModelConfig`, and a tensor's share by comparing the whole shape with the rank's. Experts are split along their inner
dimension and not by expert: whatever the routing, every rank reads 1/N of the chosen experts, while top-2 routing of
one token would keep two ranks busy and N-2 waiting. It needs one sum either way.
"""

from __future__ import annotations

from dataclasses import replace

from m1runtime.config import ModelConfig
from m1runtime.errors import ConfigError
from m1runtime.layout import EMBED, HEAD


def tensor_parallel_sizes(config: ModelConfig) -> tuple[int, ...]:
    """Every number of ranks the model divides into; beyond num_key_value_heads ranks share KV heads."""
    return tuple(n for n in range(1, config.num_attention_heads + 1) if _divides(config, n))


def check_size(config: ModelConfig, size: int) -> None:
    """Raises ConfigError naming the sizes that work when this one does not."""
    sizes = tensor_parallel_sizes(config)
    if size not in sizes:
        raise ConfigError(
            f"tensor_parallel={size} does not divide num_attention_heads {config.num_attention_heads}, "
            f"num_key_value_heads {config.num_key_value_heads} and intermediate_size {config.intermediate_size} alike; "
            f"use one of {', '.join(map(str, sizes))}"
        )


def share(config: ModelConfig, size: int) -> ModelConfig:
    """The network one of `size` ranks computes. Its vocabulary is rounded up; the last ranks pad it with zero rows."""
    return replace(
        config,
        num_attention_heads=config.num_attention_heads // size,
        num_key_value_heads=max(1, config.num_key_value_heads // size),
        intermediate_size=config.intermediate_size // size,
        shared_intermediate_size=config.shared_intermediate_size // size,
        vocab_size=-(-config.vocab_size // size),
    )


def sources(
    name: str, whole: tuple[int, ...], own: tuple[int, ...], rank: int, size: int
) -> tuple[tuple[slice, ...], ...]:
    """Which part of a checkpoint's tensor of shape `whole` a rank holds as `own`; dimensions that differ are split.

    Two parts of fused experts, whose rows 0..F-1 and F..2F-1 are matrices of their own.
    """
    part = tuple(
        slice(0, w) if w == o else _tokens(w, o, rank) if name in (EMBED, HEAD) else _part(w, o, rank, size)
        for w, o in zip(whole, own, strict=True)
    )
    if not name.endswith(".gate_up_proj") or size == 1:
        return (part,)
    half, inner = whole[1] // 2, own[1] // 2
    starts = (rank * inner, half + rank * inner)
    return tuple((part[0], slice(start, start + inner), part[2]) for start in starts)


def _tokens(whole: int, own: int, rank: int) -> slice:
    return slice(min(rank * own, whole), min((rank + 1) * own, whole))


def _part(whole: int, own: int, rank: int, size: int) -> slice:
    start = rank * whole // size // own * own  # ranks that share a KV head start at the same one
    return slice(start, start + own)


def _divides(c: ModelConfig, n: int) -> bool:
    kv = c.num_key_value_heads
    split = (c.num_attention_heads, c.intermediate_size, c.shared_intermediate_size)
    return all(count % n == 0 for count in split) and (kv % n == 0 or n % kv == 0)
