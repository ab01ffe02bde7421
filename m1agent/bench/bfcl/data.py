"""Reads the leaderboard's data: files of questions, and of accepted answers beside them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from m1agent.errors import BenchError
from m1agent.messages import AssistantMessage, Message, SystemMessage, UserMessage

FILE = re.compile(r"BFCL_v(\d+)_(\w+)\.json")
SCORED = re.compile(r"(live_)?(simple|multiple|parallel|parallel_multiple|irrelevance|relevance)|simple_python")
SOURCE = re.compile(r"(simple_)?java(script)?")
INSIDE = ("", "data", "bfcl_eval/data", "berkeley-function-call-leaderboard/bfcl_eval/data")
ROLES = {"user": UserMessage, "system": SystemMessage, "assistant": AssistantMessage}


@dataclass(frozen=True, slots=True)
class Item:
    """A question, the functions the model is offered, and the accepted calls. The last message is the user's."""

    id: str
    category: str
    messages: tuple[Message, ...]
    functions: tuple[dict[str, Any], ...]
    answers: tuple[dict[str, Any], ...]


@dataclass(frozen=True, slots=True)
class Data:
    """The files of a folder, by category. `left_out` says why a category that is there cannot be scored."""

    folder: Path
    version: str
    files: dict[str, Path]
    left_out: dict[str, str]

    def chosen(self, patterns: Sequence[str] = ()) -> list[str]:
        """The categories that fit one of the patterns (`live_*`), or all that can be scored.

        Raises:
            BenchError: a pattern fits none that can be scored.
        """
        names: list[str] = []
        for pattern in patterns or ["*"]:
            fit = [name for name in self.files if fnmatchcase(name, pattern) or name == f"{pattern}_python"]
            if not fit:
                raise BenchError(self._unfit(pattern))
            names += fit
        return [name for name in self.files if name in names]

    def items(self, category: str, limit: int | None = None) -> list[Item]:
        """A category's items, in the order of the file; the first `limit` of them.

        Raises:
            BenchError: a file is missing or an item unreadable; the text says where.
        """
        path = self.files[category]
        questions = _lines(path)[:limit]
        relevance = category.endswith("relevance")
        known = (
            {} if relevance else {line.get("id"): line for line in _lines(path.parent / "possible_answer" / path.name)}
        )
        return [_item(path, category, line, None if relevance else known.get(line.get("id"))) for line in questions]

    def _unfit(self, pattern: str) -> str:
        for name, why in self.left_out.items():
            if fnmatchcase(name, pattern):
                return f"category '{name}' is not scored here: {why}"
        return f"no category '{pattern}' in '{self.folder}'; there are {', '.join(self.files)}"


def find_data(folder: Path) -> Data:
    """The data in a folder: a checkout of the leaderboard, its installed package, or the folder of the files itself.

    Raises:
        BenchError: no such files are there; the text says which were looked for.
    """
    for inside in INSIDE:
        found: dict[str, tuple[int, Path]] = {}
        for path in sorted((folder / inside).glob("BFCL_v*_*.json"), key=_place):
            if match := FILE.fullmatch(path.name):
                found[match[2]] = max(found.get(match[2], (0, path)), (int(match[1]), path))
        if found:
            files = {name: path for name, (_, path) in found.items() if SCORED.fullmatch(name)}
            left_out = {name: _why_not(name) for name in found if name not in files}
            version = "v" + "+".join(sorted({str(number) for number, _ in found.values()}))
            return Data(folder / inside, version, files, left_out)
    raise BenchError(
        f"no questions of BFCL in '{folder}': point --data at a checkout of the leaderboard, or at its folder with "
        "BFCL_v4_simple_python.json and possible_answer"
    )


def _place(path: Path) -> tuple[bool, str]:
    """Questions of users after those that were made up, as the leaderboard lists them."""
    return "_live_" in path.name, path.name


def _why_not(category: str) -> str:
    if SOURCE.fullmatch(category):
        return "its values are source code of another language, which would have to be parsed"
    if category.startswith("multi_turn"):
        return "it is a conversation with simulated services, not one reply"
    return "it is not scored by comparing calls"


def _lines(path: Path) -> list[dict[str, Any]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BenchError(f"'{path}' cannot be read: {error}") from None
    found: list[dict[str, Any]] = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                found.append(json.loads(line))
            except ValueError as error:
                raise BenchError(f"'{path}', line {number}, is no JSON: {error}") from None
    return found


def _item(path: Path, category: str, line: dict[str, Any], answer: dict[str, Any] | None) -> Item:
    name = line.get("id", "an item without id")
    if answer is None and not category.endswith("relevance"):
        raise BenchError(f"'{path}': {name} has no accepted answer in possible_answer/{path.name}")
    try:
        (turn,) = line["question"]
        item = Item(
            line["id"],
            category,
            tuple(ROLES[message["role"]](message["content"]) for message in turn),
            tuple(line["function"]),
            tuple(answer["ground_truth"]) if answer else (),
        )
        _check(item)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BenchError(f"'{path}': {name} is not as the leaderboard writes items: {error!r}") from None
    return item


def _check(item: Item) -> None:
    """Raises ValueError or KeyError where the scoring would meet something that it has no rule for."""
    declared = {function["name"]: function["parameters"]["properties"] for function in item.functions}
    if not isinstance(item.messages[-1], UserMessage):
        raise ValueError("the last message is not the user's")
    for answer in item.answers:
        ((function, accepted),) = answer.items()
        _check_lists(accepted.values())
        for parameter in accepted.keys() & declared[function].keys():
            _ = declared[function][parameter]["type"]


def _check_lists(accepted: Iterable[Any]) -> None:
    for values in accepted:
        if not isinstance(values, list):
            raise ValueError(f"accepted values are a list, not {values!r}")
