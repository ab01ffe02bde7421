"""What one run of a program may use."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True)
class Bounds:
    """Bounds on one run.

    `seconds` of wall-clock time; `memory` bytes, for each process's address space and for what all of them hold
    together; `processes` and threads at a time; `file_size` bytes for one file; `scratch` bytes for all files of the
    run's own folder; `output` bytes after which the run is ended; `shown` characters of output that are kept.

    Raises:
        ValueError: a bound is not above 0.
    """

    seconds: float = 30.0
    memory: int = 1 << 30
    processes: int = 64
    file_size: int = 64 << 20
    scratch: int = 256 << 20
    output: int = 8 << 20
    shown: int = 16_000

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not value > 0:
                raise ValueError(f"Bounds.{field.name} must be above 0, not {value!r}")
