"""The world of a task: a folder, which may be a git repository, and a graph of memory; made, and looked at.

Steps that make it: `{write = {"path" = "text"}}`, `{commit = "message", author = "Ada <ada@example.org>"}` (everything
that is there), `{git = "switch --create side"}`, and `{graph = {entities = …, relations = …}}`.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

AUTHOR = "Ada <ada@example.org>"
CLEAN = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
"""Git as it is without anybody's settings."""
State = dict[str, Any]


def surroundings() -> dict[str, str]:
    """The environment for git: without what points it at another repository, as in a hook of git."""
    return {name: value for name, value in os.environ.items() if not name.startswith("GIT_")} | CLEAN


@dataclass(frozen=True, slots=True)
class World:
    """A working folder, and the file of the memory server beside it."""

    folder: Path
    memory: Path

    def make(self, steps: Iterable[dict[str, Any]]) -> None:
        """Empty it, and carry out the steps. Raises CalledProcessError where git refuses."""
        self.clear()
        steps = list(steps)
        if any({"git", "commit"} & step.keys() for step in steps):
            self._git("init", "--quiet", "--initial-branch=main")
            self._git("config", "user.name", "Ada")
            self._git("config", "user.email", "ada@example.org")
        for number, step in enumerate(steps):
            self._step(step, number)

    def clear(self) -> None:
        """Remove everything from it."""
        for path in self.folder.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()
        self.memory.unlink(missing_ok=True)

    def state(self) -> State:
        """What is there: `files`, `git` where it is a repository, and `graph`. Plain values, to be compared."""
        state: State = {"files": _files(self.folder), "graph": _graph(self.memory)}
        if (self.folder / ".git").exists():
            state["git"] = self._repository()
        return state

    def _step(self, step: dict[str, Any], number: int) -> None:
        for name, text in step.get("write", {}).items():
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        if "git" in step:
            self._git(*shlex.split(step["git"]))
        if "commit" in step:
            self._git("add", "--all")
            date = f"2026-03-02T{9 + number:02}:00:00+00:00"
            author = step.get("author", AUTHOR)
            self._git("commit", "--quiet", f"--message={step['commit']}", f"--author={author}", date=date)
        if "graph" in step:
            self.memory.write_text("".join(_lines(step["graph"])), encoding="utf-8")

    def _repository(self) -> State:
        branches = self._git("for-each-ref", "--format=%(refname:short)", "refs/heads").split()
        return {
            "branch": self._git("branch", "--show-current").strip(),
            "branches": {name: self._git("log", "--format=%s", name, "--").splitlines() for name in branches},
            "status": self._git("status", "--porcelain", "--untracked-files=all").splitlines(),
            "committed": {
                name: comparable(name, self._git("show", f"HEAD:{name}"))
                for name in self._git("ls-tree", "-r", "--name-only", "HEAD").splitlines()
            },
        }

    def _git(self, *words: str, date: str = "") -> str:
        dated = {"GIT_AUTHOR_DATE": date, "GIT_COMMITTER_DATE": date} if date else {}
        done = subprocess.run(
            ["git", *words],
            cwd=self.folder,
            env={**surroundings(), **dated},
            check=True,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
        )
        return done.stdout


def _files(folder: Path) -> dict[str, Any]:
    """Texts by path; a folder with nothing in it is `path/` with an empty text."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if name == ".git" or name.startswith(".git/"):
            continue
        if path.is_file():
            found[name] = comparable(name, path.read_text(encoding="utf-8", errors="replace"))
        elif path.is_dir() and not any(path.iterdir()):
            found[f"{name}/"] = ""
    return found


def comparable(name: str, text: str) -> str:
    """A file's text without the newlines at its end; JSON in one form, however it is written."""
    if name.endswith(".json"):
        with suppress(ValueError):
            return json.dumps(json.loads(text), sort_keys=True)
    return text.rstrip("\n")


def _lines(graph: dict[str, Any]) -> Iterable[str]:
    """The file of the memory server, from entities by name and relations as `["Ada", "knows", "Bob"]`."""
    for name, entity in graph.get("entities", {}).items():
        yield (
            json.dumps(
                {"type": "entity", "name": name, "entityType": entity["type"], "observations": entity["observations"]}
            )
            + "\n"
        )
    for source, kind, target in graph.get("relations", ()):
        yield json.dumps({"type": "relation", "from": source, "to": target, "relationType": kind}) + "\n"


def _graph(path: Path) -> State:
    entities: dict[str, Any] = {}
    relations: list[list[str]] = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        item = json.loads(line)
        if item["type"] == "entity":
            entities[item["name"]] = {"type": item["entityType"], "observations": sorted(item["observations"])}
        else:
            relations.append([item["from"], item["relationType"], item["to"]])
    return {"entities": entities, "relations": sorted(relations)}
