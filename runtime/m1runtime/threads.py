"""How many CPU threads a forward pass uses.

Every operation of a pass ends at a barrier: threads that wait for a neighbour's time slice there cost more than they
bring, on shared machines many times over. So small matrices get one thread, and no pass more than the cores that are
really the process' own. The number holds within a pass alone: what the process has set for itself stays as it is.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import torch

_BYTES_PER_THREAD = 4 << 20  # of the largest matrix; reading it takes a thread some 0.3 ms
_MOST = 16


def choose(matrix_bytes: int) -> int | None:
    """Threads for a model whose largest layer matrix has these bytes; None when the process' own setting stays.

    It stays when the environment (OMP_NUM_THREADS, MKL_NUM_THREADS) or `torch.set_num_threads` made it other than what
    torch takes by itself.
    """
    if any(name in os.environ for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")):
        return None
    if torch.get_num_threads() not in (len(os.sched_getaffinity(0)), physical_cores()):
        return None
    return max(1, min(matrix_bytes // _BYTES_PER_THREAD, available_cores(), _MOST))


def available_cores() -> int:
    """Physical cores that the process may use: its affinity, and its control group's quota rounded down."""
    quota = min((limit for limit in map(_quota, _groups()) if limit), default=None)
    cores = physical_cores()
    return cores if quota is None else max(1, min(cores, int(quota)))


def physical_cores() -> int:
    """Cores behind the processors of the affinity mask; two hardware threads of a core count once."""
    return len({_siblings(cpu) for cpu in os.sched_getaffinity(0)})


@contextmanager
def limited(count: int | None) -> Generator[None]:
    """Runs the block with `count` torch threads and puts back what was set before; None changes nothing."""
    before = torch.get_num_threads()
    if count is None or count == before:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _siblings(cpu: int) -> str:
    try:
        return Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text(encoding="ascii")
    except OSError:
        return str(cpu)


def _groups() -> list[Path]:
    """The process' control group and those above it, of version 2 or of version 1's cpu controller."""
    root = Path("/sys/fs/cgroup")
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="ascii").splitlines()
    except OSError:
        return [root, root / "cpu"]
    found = [root, root / "cpu"]
    for line in lines:
        _, controllers, own = line.split(":", 2)
        if controllers in ("", "cpu", "cpu,cpuacct"):
            base = root / own.strip("/") if not controllers else root / "cpu" / own.strip("/")
            found += [base, *(parent for parent in base.parents if root in parent.parents)]
    return found


def _quota(group: Path) -> float | None:
    """CPUs' worth of time that a control group may use; None is all."""
    try:
        quota, period = (group / "cpu.max").read_text(encoding="ascii").split()
    except (OSError, ValueError):
        try:
            quota, period = ((group / f"cpu.cfs_{name}_us").read_text(encoding="ascii") for name in ("quota", "period"))
        except OSError:
            return None
    return None if quota.strip() in ("max", "-1") else float(quota) / float(period)
