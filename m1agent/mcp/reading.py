"""Reading a configuration's fields: each of the wanted kind, or an error that says where; variables are replaced."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from m1agent.errors import McpError
from m1agent.problems import close_match, shown

VARIABLE = re.compile(r"\$\{(?P<name>\w+)(?::-(?P<default>[^}]*))?\}")


def read_document(path: Path) -> Mapping[str, Any]:
    """The JSON object in a file. Raises McpError."""
    try:
        document: Any = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_once_each)
    except _Twice as error:
        raise McpError(f"{path}: {error}; take one away, or give it another name") from None
    except OSError as error:
        raise McpError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise McpError(f"{path}: no valid JSON ({error})") from None
    except RecursionError:
        raise McpError(f"{path}: no valid JSON (it is nested too deeply)") from None
    if not isinstance(document, dict):
        raise McpError(f"{path}: expected a JSON object")
    return cast("Mapping[str, Any]", document)


class _Twice(Exception):
    pass


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of a file; what is there twice would silently count once."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise _Twice(f"{shown(next(name for name in names if names.count(name) > 1))} is there twice in one object")
    return found


def expand(text: str, where: str) -> str:
    """`text` with `${NAME}` and `${NAME:-default}` replaced from the environment. Raises McpError for one not set."""

    def value(match: re.Match[str]) -> str:
        default: str | None = match.group("default")
        found = os.environ.get(match["name"]) or default
        found = os.environ.get(match["name"]) if found is None else found
        if found is None:
            raise McpError(f"{where}: the environment variable {match['name']} is not set")
        return found

    return VARIABLE.sub(value, text)


def variables(*texts: object) -> dict[str, str]:
    """The environment variables that these texts, or lists of texts, name and that have a value."""
    found: dict[str, str] = {}
    for text in texts:
        if isinstance(text, list | tuple):
            found |= variables(*cast("Sequence[object]", text))
        elif isinstance(text, str):
            named = [match["name"] for match in VARIABLE.finditer(text)]
            found |= {name: os.environ[name] for name in named if os.environ.get(name)}
    return found


@dataclass(frozen=True, slots=True)
class Entry:
    """An object of a configuration and its place, for errors. A field may go by several names."""

    given: Mapping[str, Any]
    where: str

    @classmethod
    def of(cls, value: Any, where: str) -> Entry:
        """Raises McpError when `value` is no object."""
        if not isinstance(value, dict):
            raise McpError(f"{where}: expected an object, got {type(value).__name__}")
        return cls(cast("Mapping[str, Any]", value), where)

    def __contains__(self, key: str) -> bool:
        return key in self.given

    def only(self, known: Collection[str]) -> None:
        """Raises McpError for a field that looks like a known one misspelt; other programs' fields may be there."""
        for key in self.given:
            if key not in known and (meant := close_match(key, known)):
                raise McpError(f"{self.where}: there is no field {shown(key)}.{meant}")

    def text(self, *keys: str) -> str | None:
        """A text, or None. Raises McpError for anything else."""
        key, value = self._find(keys)
        return None if value is None else _text(value, f"{self.where}, {key}")

    def flag(self, *keys: str, default: bool = False) -> bool:
        """True or false. Raises McpError for anything else."""
        key, value = self._find(keys)
        if value is None or isinstance(value, bool):
            return default if value is None else value
        raise McpError(f"{self.where}, {key}: expected true or false, got {type(value).__name__}")

    def number(self, *keys: str, default: float) -> float:
        """A number. Raises McpError for anything else."""
        key, value = self._find(keys)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise McpError(f"{self.where}, {key}: expected a number, got {type(value).__name__}")
        try:
            return float(value)
        except OverflowError:
            raise McpError(f"{self.where}, {key}: the number is too large") from None

    def items(self, *keys: str) -> tuple[str, ...]:
        """A list of texts. Raises McpError for anything else."""
        key, value = self._find(keys)
        if value is None:
            return ()
        if not isinstance(value, list | tuple):
            raise McpError(
                f'{self.where}, {key}: expected a list of texts such as ["a", "b"], got {type(value).__name__}'
            )
        return tuple(_text(item, f"{self.where}, {key}") for item in cast("Sequence[Any]", value))

    def texts(self, *keys: str) -> dict[str, str]:
        """Texts by name. Raises McpError for anything else."""
        key, value = self._find(keys)
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise McpError(f"{self.where}, {key}: expected an object of texts, got {type(value).__name__}")
        named = cast("dict[str, Any]", value)
        return {name: _text(item, f"{self.where}, {key}.{name}") for name, item in named.items()}

    def _find(self, keys: Sequence[str]) -> tuple[str, Any]:
        named = [key for key in keys if key in self.given]
        if len(named) > 1:
            raise McpError(f"{self.where}: {' and '.join(named)} mean the same; give one of them")
        return (named[0], self.given[named[0]]) if named else (keys[0], None)


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise McpError(f"{where}: expected text, got {type(value).__name__}")
    return expand(value, where)
