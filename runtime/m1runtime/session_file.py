"""Sessions on disk: one safetensors file with tokens, keys and values, lightning states and rewind points."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from m1runtime.errors import CheckpointError, SessionFileError
from m1runtime.executor import Executor
from m1runtime.headers import read_header, read_tensors, write_tensors
from m1runtime.model import KV, STATE
from m1runtime.sequence import SequenceState

FORMAT = "m1runtime-session-1"


def save_sequence(executor: Executor, sequence: SequenceState, path: Path) -> None:
    """Writes a sequence; its pending tokens are computed first. The file appears whole or not at all.

    Raises SessionFileError when it cannot be written.
    """
    executor.advance([sequence])
    kept = {n: node.kept for n, node in sorted(sequence.held.items()) if node.kept is not None}
    tensors = {
        "tokens": torch.tensor(sequence.tokens, dtype=torch.int64),
        "state": executor.model.whole(executor.states.read(sequence.slot), STATE),
        "kv": executor.model.whole(executor.pages.read(sequence.table, sequence.computed), KV),
    }
    if sequence.logits is not None:
        tensors["logits"] = sequence.logits
    for n, snapshot in kept.items():
        tensors[f"snapshot.{n}.state"], tensors[f"snapshot.{n}.logits"] = (
            executor.model.whole(snapshot.state, STATE),
            snapshot.logits,
        )
    header = {
        "format": FORMAT,
        "model": executor.model.fingerprint,
        "snapshots": json.dumps({str(n): n in sequence.pinned for n in kept}),
    }
    partial = path.with_name(path.name + ".part")
    try:
        write_tensors(partial, {name: t.clone().contiguous() for name, t in tensors.items()}, header)
        os.replace(partial, path)
    except (SafetensorError, OSError) as error:
        partial.unlink(missing_ok=True)
        raise SessionFileError(f"{path}: cannot be written ({error})") from None


def load_sequence(executor: Executor, path: Path, *, keep: int) -> SequenceState:
    """A sequence from a file. Raises SessionFileError when it is damaged or was written by another model."""
    pinned, tensors = _read(path, executor.model.fingerprint)
    sequence = executor.admit(keep=keep)
    try:
        with torch.inference_mode():
            _restore(executor, sequence, pinned, tensors)
    except BaseException as error:
        sequence.logits, sequence.computed = None, 0  # nothing of it is to be kept
        executor.release(sequence)
        if isinstance(error, (RuntimeError, IndexError, KeyError)):
            raise SessionFileError(f"{path}: damaged ({error})") from None
        raise
    return sequence


def _restore(executor: Executor, sequence: SequenceState, pinned: dict[int, bool], tensors: dict[str, Tensor]) -> None:
    stored: Any = tensors["tokens"]
    tokens: list[int] = stored.tolist()
    if not tokens:
        return
    logits, state = (
        tensors["logits"].to(executor.device),
        executor.model.share(tensors["state"].to(executor.device), STATE),
    )
    executor.make_room(sequence, len(tokens))
    executor.pages.write(sequence.table, executor.model.share(tensors["kv"].to(executor.device), KV))
    executor.store.place(sequence, tokens, state, logits)
    for n, pin in pinned.items():
        state, row = (tensors[f"snapshot.{n}.{part}"].to(executor.device) for part in ("state", "logits"))
        executor.store.keep(sequence, n, row, executor.model.share(state, STATE), pinned=pin)


def _read(path: Path, fingerprint: str) -> tuple[dict[int, bool], dict[str, Tensor]]:
    try:
        header = read_header(path)
    except CheckpointError as error:
        raise SessionFileError(str(error)) from None
    metadata: dict[str, Any] = header.pop("__metadata__", None) or {}
    if metadata.get("format") != FORMAT:
        raise SessionFileError(f"{path}: not a session of this version; expected {FORMAT}")
    if metadata.get("model") != fingerprint:
        raise SessionFileError(
            f"{path}: saved by another model (or other weights or dtype): its digest is {metadata.get('model')!r:.20}, "
            f"this model's {fingerprint!r:.20}; load it with the engine that wrote it"
        )
    try:
        snapshots = {int(n): bool(pin) for n, pin in json.loads(metadata["snapshots"]).items()}
        tensors = dict(read_tensors(path, list(header)))
        wanted = {"tokens", "state", "kv"} | {f"snapshot.{n}.{part}" for n in snapshots for part in ("state", "logits")}
    except (CheckpointError, ValueError, KeyError, AttributeError) as error:
        raise SessionFileError(f"{path}: damaged ({error})") from None
    if missing := sorted(wanted - set(tensors)):
        raise SessionFileError(f"{path}: damaged: {', '.join(missing)} missing")
    return snapshots, tensors
