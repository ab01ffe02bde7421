"""Exceptions of the runtime, one tree.

::

    M1RuntimeError
    ├── ConfigError        a config.json that cannot be read as this architecture
    ├── CheckpointError    weights that are truncated, missing, unknown or misshapen
    ├── MemoryPlanError    the plan needs more memory than there is
    ├── TokenizerError     a tokenizer.json of an unsupported kind, or none where text is needed
    ├── SamplingError      a sampling parameter out of its range
    ├── SchemaError        a grammar or schema that nobody can compile
    ├── BudgetError        a token budget below the shortest text of its grammar
    ├── CacheFullError     cache_memory cannot hold what a session needs
    ├── GenerationError    a grammar left no token to choose from
    ├── SessionError       a session used out of its bounds
    │   └── SessionFileError   a saved session that is truncated or of another model
    ├── ParallelError      a rank of a model on several devices is gone or does not answer
    └── ClosedError        a session or engine used after close()
"""

from __future__ import annotations


class M1RuntimeError(Exception):
    """Base of every error the runtime raises on purpose."""


class ConfigError(M1RuntimeError):
    """A config names something unsupported; the message names the field and what is supported."""


class CheckpointError(M1RuntimeError):
    """Weights on disk do not fit the config or are damaged; the message lists names and shapes."""


class MemoryPlanError(M1RuntimeError):
    """The model does not fit; the message gives needed and available bytes."""


class TokenizerError(M1RuntimeError):
    """The tokenizer cannot be read, or text was asked of an engine that has no tokenizer."""


class SamplingError(M1RuntimeError):
    """A sampling parameter is out of range; the message names it and the remedy."""


class SchemaError(M1RuntimeError):
    """A grammar, regex or JSON Schema cannot be compiled."""


class BudgetError(M1RuntimeError, ValueError):
    """The token budget cannot hold the shortest text the grammar accepts; `minimum` is that, None if unknown."""

    def __init__(self, budget: int, minimum: int | None) -> None:
        self.budget = budget
        self.minimum = minimum
        known = f"at least {minimum} tokens" if minimum is not None else "more tokens than could be searched"
        super().__init__(f"max_new_tokens={budget} is too small: the grammar requires {known}; raise max_new_tokens")


class CacheFullError(M1RuntimeError):
    """A session's caches do not fit `cache_memory`: `needed` bytes of `limit`, beside `others` sessions with caches."""

    def __init__(self, *, needed: int, limit: int, others: int) -> None:
        self.needed, self.limit, self.others = needed, limit, others
        beside = f" beside {others} other sessions; close some of them, or" if others else "; shorten the session, or"
        super().__init__(
            f"the session's caches need {needed:,} bytes, and cache_memory={limit:,} cannot hold that{beside} "
            f"raise cache_memory to {needed * (others + 1):,} or more"
        )


class GenerationError(M1RuntimeError):
    """No token can be chosen: mask and bans exclude the whole vocabulary."""


class SessionError(M1RuntimeError):
    """A session was asked for a position or token it does not have."""


class SessionFileError(SessionError):
    """A saved session is truncated, damaged, or belongs to another model."""


class ParallelError(M1RuntimeError):
    """A rank of a model on several devices could not start, ended, or does not answer; the engine is of no use then."""


class ClosedError(M1RuntimeError):
    """A session or engine was used after it was closed."""
