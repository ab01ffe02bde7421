"""The type an agent answers with: its JSON Schema for the model, its check for the answer."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError

from m1agent.messages import JsonSchema
from m1agent.schema import canonical_json

REQUEST = "Give your final answer as JSON that fits this schema, and nothing else:\n{schema}"


class OutputMismatch(Exception):
    """A text is not a value of the output type; the message says where."""


class Output:
    """What `Agent(output=…)` asks for: any type pydantic knows, such as a model, a list or a Literal."""

    def __init__(self, kind: Any) -> None:
        try:
            self._adapter: TypeAdapter[Any] = TypeAdapter(kind)
            self.schema: JsonSchema = self._adapter.json_schema()
        except PydanticUserError as error:
            reason = str(error).splitlines()[0]
            raise TypeError(
                f"output={kind!r} is no type an answer can have, such as a pydantic model: {reason}"
            ) from error

    def parse(self, text: str) -> Any:
        """The value a text holds. Raises OutputMismatch."""
        try:
            return self._adapter.validate_json(text.strip())
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            path = ".".join(map(str, first["loc"]))
            raise OutputMismatch(f"{path}: {first['msg']}" if path else first["msg"]) from None
        except Exception as error:  # A validator of the type itself failed.
            raise OutputMismatch(f"{type(error).__name__}: {error}") from error

    def instructions(self) -> str:
        """What the model is told before it answers."""
        return REQUEST.format(schema=canonical_json(self.schema))

    def request(self, mismatch: OutputMismatch) -> str:
        """What the model is told when its answer was no such value."""
        return f"{self.instructions()}\nYour last answer did not fit: {mismatch}"
