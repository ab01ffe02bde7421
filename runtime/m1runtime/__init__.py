"""m1runtime: tokens in, tokens out, for MiniMax-M1's hybrid of lightning and softmax attention."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from m1runtime.config import ModelConfig
from m1runtime.engine import Engine, EngineStats
from m1runtime.errors import (
    BudgetError,
    CacheFullError,
    CheckpointError,
    ClosedError,
    ConfigError,
    GenerationError,
    M1RuntimeError,
    MemoryPlanError,
    ParallelError,
    SamplingError,
    SchemaError,
    SessionError,
    SessionFileError,
    TokenizerError,
)
from m1runtime.generation import Chunk, Completion
from m1runtime.logprobs import TokenLogprob
from m1runtime.sampling import SamplingParams
from m1runtime.session import Branch, Session
from m1runtime.stream import Stream
from m1runtime.tokenizer import Tokenizer

if TYPE_CHECKING:
    from m1runtime.grammar import Grammar

__all__ = [
    "Branch",
    "BudgetError",
    "CacheFullError",
    "CheckpointError",
    "Chunk",
    "ClosedError",
    "Completion",
    "ConfigError",
    "Engine",
    "EngineStats",
    "GenerationError",
    "Grammar",
    "M1RuntimeError",
    "MemoryPlanError",
    "ModelConfig",
    "ParallelError",
    "SamplingError",
    "SamplingParams",
    "SchemaError",
    "Session",
    "SessionError",
    "SessionFileError",
    "Stream",
    "TokenLogprob",
    "Tokenizer",
    "TokenizerError",
]


def __getattr__(name: str) -> Any:
    if name == "Grammar":
        from m1runtime.grammar import Grammar

        return Grammar
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
