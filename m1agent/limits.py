"""How far one run may go."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one run. None means unbounded; reaching one ends the run with a result, never an exception.

    `steps` counts replies of the model. `tokens` counts tokens computed in this run, read and written; tokens a session
    still held are free; `input_tokens` and `output_tokens` count the two apart. `seconds` is wall time. `tool_calls`
    counts calls run: past it the model is told to answer. `reply_tokens` bounds one reply, `thinking` the thinking in
    all of a run's replies: past it the model's thinking is closed and it goes on to answer; 0 allows none.

    `a & b` is the tighter of both, bound by bound. Raises ValueError naming the field when a bound isn't positive.
    """

    steps: int | None = 20
    tokens: int | None = None
    seconds: float | None = None
    tool_calls: int | None = None
    reply_tokens: int | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    thinking: int | None = None

    def __and__(self, other: Limits) -> Limits:
        """The tighter of both, bound by bound."""
        pairs = {field.name: (getattr(self, field.name), getattr(other, field.name)) for field in fields(self)}
        return Limits(**{name: min((x for x in pair if x is not None), default=None) for name, pair in pairs.items()})

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is None:
                continue
            kinds = (int, float) if field.name == "seconds" else (int,)
            if isinstance(value, bool) or not isinstance(value, kinds):
                raise ValueError(f"Limits.{field.name} must be a number or None, not {value!r}")
            if field.name == "thinking" and value == 0:
                continue
            if not value > 0:
                raise ValueError(f"Limits.{field.name} must be above 0, not {value!r}; None means no limit")
