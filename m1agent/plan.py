"""What an agent brings to a run."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from m1agent.approval import Approval
from m1agent.budget import ResultBudget, Spill
from m1agent.compaction import Compaction
from m1agent.guards import InputGuard, OutputGuard
from m1agent.hooks import Hooks
from m1agent.models.base import Model, Settings
from m1agent.observe import Observer
from m1agent.output import Output
from m1agent.toolset import Toolset


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPlan:
    """The parts of an agent, and what it was connected to, as one run uses them. Limits count for a whole run: they
    are with its `Progress`."""

    model: Model
    tools: Toolset
    name: str = ""
    instructions: str = ""
    settings: Settings = field(default_factory=Settings)
    output: Output | None = None
    approval: Approval = field(default_factory=Approval)
    hooks: Hooks = field(default_factory=Hooks)
    spill: Spill = field(default_factory=lambda: Spill(ResultBudget()))
    input_guards: Sequence[InputGuard] = ()
    output_guards: Sequence[OutputGuard] = ()
    compaction: Compaction | None = None
    observers: Sequence[Observer] = ()
    refresh: Callable[[], Awaitable[object]] | None = None
