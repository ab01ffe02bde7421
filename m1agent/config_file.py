"""m1agent.toml: defaults of the command line, so that a folder has its agent.

    [agent]
    model = "m1-nano"
    instructions = "Answer in one sentence."
    tools = ["maths"]
    mcp = "servers.json"
    max_steps = 10
    store = "conversations.db"

Paths are relative to the file.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from m1agent.errors import ConfigFileError

NAME = "m1agent.toml"


class AgentConfig(BaseModel):
    """The table `agent`. Keys are never written there: they belong into the environment."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str | None = None
    instructions: str | None = None
    tools: list[str] | None = None
    mcp: str | None = None
    max_steps: Annotated[int, Field(ge=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0)] | None = None
    seed: Annotated[int, Field(ge=0)] | None = None
    store: str | None = None


def read_config(path: str | Path | None) -> AgentConfig:
    """The table of a file; without a path, of m1agent.toml in this folder, which need not be there.

    Raises:
        ConfigFileError: the file cannot be read, or a field is none; the text names it.
    """
    file = Path(path) if path is not None else Path(NAME)
    if path is None and not file.is_file():
        return AgentConfig()
    try:
        values: Any = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigFileError(f"{file}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise ConfigFileError(f"{file}: {error}") from None
    if others := sorted(set(values) - {"agent"}):
        raise ConfigFileError(f"{file}: [{others[0]}] is no table of this file; write [agent]")
    try:
        config = AgentConfig.model_validate(values.get("agent", {}))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        known = ", ".join(AgentConfig.model_fields)
        wrong = f"is no field; the fields are {known}" if first["type"] == "extra_forbidden" else first["msg"]
        raise ConfigFileError(f"{file}: agent.{field}: {wrong}") from None
    return config.model_copy(update={name: _beside(file, getattr(config, name)) for name in ("mcp", "store")})


def _beside(file: Path, path: str | None) -> str | None:
    return None if path is None else str(file.parent / Path(path).expanduser())
