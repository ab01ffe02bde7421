"""What an engine has done and holds, for people who want to know why something took long."""

from __future__ import annotations

from dataclasses import dataclass

from m1runtime.executor import Executor


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Tokens since the engine was made, and bytes now.

    Tokens. computed: through the model, recomputed ones included. reused: prompt tokens whose cache was there already.
    recomputed: computed twice, by cause: "rewind" (beyond the ring, between boundaries), "evicted", "preempted",
    "no_state" (a beginning that others computed without a boundary at its end), "drafts", "interrupted". generated,
    forced: in replies; forced are those a grammar left no choice about. drafted: guesses that went through the model,
    of which `accepted` came true.

    Times. cache_hits: by what was found: "prefix", "fork", "ring", "boundary", "cold". evicted: boundaries given up.
    unkept: boundaries that found no room. preempted: sessions whose caches were taken.

    Bytes. state_bytes, snapshot_bytes, kv_bytes: of live sessions; snapshots are the boundaries they can come back to.
    prefix_bytes: of the prefix tree, pages included. cache_bytes: all pools and boundaries, what cache_memory bounds.
    """

    forwards: int
    tokens_computed: int
    tokens_reused: int
    tokens_recomputed: dict[str, int]
    tokens_generated: int
    tokens_forced: int
    tokens_drafted: int
    tokens_accepted: int
    sessions: int
    weight_bytes: int
    state_bytes: int
    snapshot_bytes: int
    kv_bytes: int
    cache_hits: dict[str, int]
    boundaries: int  # in the prefix tree
    prefix_bytes: int
    pages: int  # in use by sessions or the tree
    slots: int
    evicted: int
    evicted_bytes: int
    unkept: int
    preempted: int
    cold_boundaries: int  # on disk
    cold_bytes: int
    cold_damaged: int  # files left out
    cache_bytes: int
    cache_memory: int | None

    @classmethod
    def of(cls, executor: Executor) -> EngineStats:
        """Totals so far."""
        store, c = executor.store, executor.counters
        return cls(
            forwards=c.forwards,
            tokens_computed=c.computed,
            tokens_reused=c.reused,
            tokens_recomputed=dict(c.recomputed),
            tokens_generated=c.generated,
            tokens_forced=c.forced,
            tokens_drafted=c.drafted,
            tokens_accepted=c.accepted,
            sessions=len(store.live),
            weight_bytes=executor.model.bytes,
            state_bytes=store.states.used * store.states.bytes_per_slot,
            snapshot_bytes=store.held_bytes,
            kv_bytes=store.table_bytes,
            cache_hits=dict(store.losses.hits),
            boundaries=len(store.tree.kept),
            prefix_bytes=store.kept_bytes,
            pages=store.pages.used,
            slots=store.states.used,
            evicted=store.losses.evicted,
            evicted_bytes=store.losses.evicted_bytes,
            unkept=store.losses.unkept,
            preempted=store.losses.preempted,
            cold_boundaries=len(store.cold) if store.cold is not None else 0,
            cold_bytes=store.cold.bytes if store.cold is not None else 0,
            cold_damaged=store.cold.damaged if store.cold is not None else 0,
            cache_bytes=store.bytes,
            cache_memory=store.limit,
        )
