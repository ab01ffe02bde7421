"""Errors of grammars beside `m1runtime.errors.SchemaError`."""

from __future__ import annotations

from m1runtime.errors import M1RuntimeError


class BudgetError(M1RuntimeError, ValueError):
    """The token budget cannot hold the shortest text the grammar accepts; `minimum` is that, None if unknown."""

    def __init__(self, budget: int, minimum: int | None) -> None:
        self.budget = budget
        self.minimum = minimum
        known = f"at least {minimum} tokens" if minimum is not None else "more tokens than could be searched"
        super().__init__(f"max_new_tokens={budget} is too small: the grammar requires {known}; raise max_new_tokens")
