"""One model on several devices: every rank computes its heads, its channels of each expert and its tokens.

Rank 0 drives: it holds the sessions and tells the others what to compute (`leader.py`). The others are processes that
it starts on this machine, or those that torchrun started, on any number of machines; they serve until it is done.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import threading
import time
import traceback
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed

from m1kernels.quant import Weight
from m1runtime import quantize
from m1runtime.checkpoint import load
from m1runtime.config import ModelConfig
from m1runtime.devices import as_device, as_dtype
from m1runtime.errors import ConfigError, ParallelError
from m1runtime.leader import Leader, follow
from m1runtime.model import Model
from m1runtime.ranks import Group

dist: Any = torch.distributed
START = 600.0
"""Seconds for the ranks to find each other; loading takes as long as it takes."""
ANSWER = 300.0
"""Seconds for every rank to take part in a step of a forward pass."""
_engines = itertools.count()


@dataclass(frozen=True, slots=True)
class Spec:
    """What every rank loads, as plain values."""

    folder: str
    size: int
    device: str  # "cpu" or "cuda"
    dtype: str
    quantization: str | None = None
    threads: int | None = None
    answer: float = ANSWER


def lead(spec: Spec, *, progress: bool | None = None) -> Leader:
    """Rank 0 of a model on `spec.size` ranks: those that torchrun started, or else processes of this machine.

    On the other ranks of torchrun this serves until rank 0 closes its engine, and then ends the process.
    Raises ConfigError when torchrun's WORLD_SIZE is another, and ParallelError when a rank cannot start.
    """
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return _lead_processes(spec, progress)
    world = int(os.environ["WORLD_SIZE"])
    if world != spec.size:
        raise ConfigError(f"tensor_parallel={spec.size}, but torchrun started {world} processes; make both the same")
    rank, local = int(os.environ["RANK"]), int(os.environ.get("LOCAL_RANK", os.environ["RANK"]))
    found = next(iter(dist.rendezvous("env://", rank, world, timeout=timedelta(seconds=START))))
    store = dist.PrefixStore(f"m1runtime {next(_engines)}", found[0])
    if rank == 0:
        return _connect(spec, store, local, Workers(store, world, []), progress)
    _serve(spec, store, rank, local)
    raise SystemExit(0)


def _lead_processes(spec: Spec, progress: bool | None) -> Leader:
    store = dist.TCPStore("127.0.0.1", 0, spec.size, is_master=True, wait_for_workers=False)
    processes: list[subprocess.Popen[bytes]] = []
    workers = Workers(store, spec.size, processes)
    try:
        for rank in range(1, spec.size):
            # Not multiprocessing: its children import the program's main module again.
            process = subprocess.Popen(
                [sys.executable, "-c", "from m1runtime.parallel import work; work()"],
                stdin=subprocess.PIPE,
                start_new_session=True,  # Ctrl-C is rank 0's to answer
            )
            processes.append(process)
            assert process.stdin is not None
            process.stdin.write(json.dumps({"port": store.port, "rank": rank, "spec": asdict(spec)}).encode() + b"\n")
            process.stdin.flush()
        return _connect(spec, store, 0, workers, progress)
    except BaseException:
        workers.stop(patience=0.5)
        raise


def _connect(spec: Spec, store: Any, local: int, workers: Workers, progress: bool | None) -> Leader:
    workers.await_all("here")
    group = Group(store, 0, spec.size, _device(spec, local), spec.answer)
    config, weights = _load(spec, group, progress)
    workers.await_all("loaded")
    store.set("begin", "")
    return Leader(config, weights, group, workers, spec.threads)


def work() -> None:
    """A process started by rank 0: it ends when its input does, be rank 0 done or dead."""
    asked = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_input, daemon=True).start()
    spec, rank = Spec(**asked["spec"]), int(asked["rank"])
    if spec.device == "cpu":
        torch.set_num_threads(spec.threads or max(1, torch.get_num_threads() // spec.size))
    store = dist.TCPStore("127.0.0.1", int(asked["port"]), spec.size, is_master=False)
    try:
        _serve(spec, store, rank, rank)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)  # not waiting for the thread that reads


def _end_with_input() -> None:
    while os.read(sys.stdin.fileno(), 4096):
        pass
    os._exit(0)


def _serve(spec: Spec, store: Any, rank: int, local: int) -> None:
    """Does what rank 0 says until it says farewell."""
    try:
        store.set(f"here {rank}", "")
        group = Group(store, rank, spec.size, _device(spec, local), spec.answer)
        config, weights = _load(spec, group, False)
        store.set(f"loaded {rank}", "")
        store.wait(["begin"], timedelta(days=1))
        follow(Model(config, weights, threads=spec.threads, ranks=group), group)
    except BaseException as error:
        with suppress(RuntimeError):
            store.set(f"error {rank}", f"{type(error).__name__}: {error}"[:2000])
        raise


def _load(spec: Spec, group: Group, progress: bool | None) -> tuple[ModelConfig, dict[str, Weight]]:
    config = ModelConfig.from_file(Path(spec.folder))
    weights = load(
        spec.folder,
        config,
        dtype=as_dtype(spec.dtype, group.device),
        device=group.device,
        quantization=quantize.quantization(spec.quantization),
        progress=progress,
        rank=group.rank,
        size=group.size,
    )
    return config, weights


def _device(spec: Spec, local: int) -> torch.device:
    if spec.device == "cpu":
        return torch.device("cpu")
    device = as_device(f"cuda:{local}")
    torch.cuda.set_device(device)
    return device


class Workers:
    """Ranks 1.. that this process started, and the store through which every rank is heard of."""

    def __init__(self, store: Any, size: int, processes: list[subprocess.Popen[bytes]]) -> None:
        self._store = store
        self._size = size
        self._processes = processes

    def await_all(self, step: str) -> None:
        """Returns when every other rank has come as far as `step`. Raises ParallelError when one ended instead."""
        waiting = list(range(1, self._size))
        while waiting:
            waiting = [rank for rank in waiting if not self._store.check([f"{step} {rank}"])]
            if waiting and (cause := self.failure()):
                raise ParallelError(cause)
            time.sleep(0.02)

    def failure(self, wait: float = 0.0) -> str | None:
        """Why a rank ended, if one did; one that is ending is given `wait` seconds to say so."""
        end = time.monotonic() + wait
        while True:
            for rank in range(1, self._size):
                with suppress(RuntimeError):  # the store is gone
                    if self._store.check([f"error {rank}"]):
                        return f"rank {rank} of {self._size} failed: {self._store.get(f'error {rank}').decode()}"
            for rank, process in enumerate(self._processes, 1):
                if process.poll() is not None:
                    return f"rank {rank} of {self._size} ended: {_ending(process.returncode)}; load the model again"
            if time.monotonic() >= end:
                return None
            time.sleep(0.02)

    def stop(self, patience: float = 5.0) -> None:
        """Ends the processes: they end by themselves when their input does, and are killed when they do not."""
        for process in self._processes:
            with suppress(OSError):
                assert process.stdin is not None
                process.stdin.close()
        for process in self._processes:
            try:
                process.wait(patience)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _ending(code: int) -> str:
    return f"killed by signal {-code}" if code < 0 else f"exit code {code}"
