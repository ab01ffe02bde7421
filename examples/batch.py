"""Thousands of prompts through one engine: many at a time, each answer a JSON line as soon as it is there, resumable.

python examples/batch.py prompts.txt answers.jsonl
python examples/batch.py prompts.jsonl answers.jsonl --tools maths --at-once 128 --model path/to/a/checkpoint

Prompts are lines of text, or JSON lines with "prompt". Start it again after a crash, and it does what is missing.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from m1agent import M1AgentError, Settings, UserMessage, load_toolset
from m1agent.cli_agent import positive
from m1agent.messages import Setup
from m1agent.models.local import LocalModel
from m1agent.models.turns import opening, question
from m1agent.prompt.envelope import Envelope
from m1agent.prompt.reply import ReplyParser


def read_prompts(path: Path) -> list[str]:
    """Raises ValueError, with the line's number, for JSON lines without a prompt."""
    prompts: list[str] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        if path.suffix != ".jsonl":
            prompts.append(line)
            continue
        try:
            entry = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number}: {error}") from None
        if not isinstance(entry, dict) or not isinstance(entry.get("prompt"), str):
            raise ValueError(f'{path}, line {number}: expected an object with "prompt", a text')
        prompts.append(entry["prompt"])
    return prompts


def finished(path: Path, prompts: list[str]) -> set[int]:
    """The prompts that have an answer. A line that a crash cut short is taken off the file.

    Raises:
        ValueError: the answers are those of other prompts.
    """
    if not path.exists():
        return set()
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        with path.open("r+b") as file:
            file.truncate(len(whole))
    done: set[int] = set()
    for line in whole.splitlines():
        entry = json.loads(line)
        index = entry["index"]
        if index >= len(prompts) or entry["prompt"] != digest(prompts[index]):
            raise ValueError(f"{path} has answers to other prompts; name another file")
        done.add(index)
    return done


def digest(prompt: str) -> str:
    """What an answer is told apart by."""
    return hashlib.sha256(prompt.encode()).hexdigest()[:16]


class Batch:
    """The same setup and settings for every prompt."""

    def __init__(self, model: LocalModel, setup: Setup, settings: Settings) -> None:
        self._model = model
        self._params = model.params(settings)
        self._envelope = Envelope(setup.tools)
        self._grammar = model.grammar(self._envelope)
        self._head = model.encode(opening(setup))

    async def run(self, prompts: list[str], out: Path, at_once: int) -> int:
        """Answer what `out` lacks; returns how many that were. `at_once` prompts are in the engine at a time."""
        done = finished(out, prompts)
        todo = iter([(index, prompt) for index, prompt in enumerate(prompts) if index not in done])
        bar = tqdm(total=len(prompts), initial=len(done), unit="prompt", file=sys.stderr, mininterval=1)
        with self._model.engine.session(self._head), out.open("a", encoding="utf-8") as file, bar:
            async with asyncio.TaskGroup() as group:  # Whoever is through takes the next: no batch waits for its last.
                for _ in range(at_once):
                    group.create_task(self._work(todo, file, bar))
        return len(prompts) - len(done)

    async def _work(self, todo: Iterator[tuple[int, str]], file: TextIO, bar: tqdm[Any]) -> None:
        for index, prompt in todo:
            line = {"index": index, "prompt": digest(prompt), **await self._answer(prompt)}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
            file.flush()  # Killed from here on, this answer is kept.
            bar.update()

    async def _answer(self, prompt: str) -> dict[str, Any]:
        """What goes wrong with one prompt, such as its length, is its answer; the others go on."""
        from m1runtime import M1RuntimeError  # It brings torch, which --help can do without.

        ids = [*self._head, *self._model.encode(question([UserMessage(prompt)]))]
        try:
            (completion,) = await self._model.engine.agenerate([ids], self._params, self._grammar)
        except M1RuntimeError as error:
            return {"error": str(error)}
        parser = ReplyParser(self._envelope)
        parser.feed(completion.text)
        message = parser.finish()[1]
        return {
            "text": message.text,
            "calls": [{"name": call.name, "arguments": call.arguments} for call in message.calls],
            "finish": completion.finish_reason,
            "tokens": [completion.prompt_tokens, completion.reused_tokens, len(completion.ids)],
        }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompts", type=Path)
    parser.add_argument("answers", type=Path, help="JSON lines; tokens are those read, of them reused, and written")
    parser.add_argument("--model", default="m1-nano", help="a bundled model or a checkpoint folder")
    parser.add_argument("--instructions", default="", help="what outranks every prompt")
    parser.add_argument("--tools", metavar="NAMES", default="", help="toolsets to call; calls are written, not run")
    parser.add_argument("--at-once", type=positive, default=64, metavar="N", help="prompts in the engine at a time")
    parser.add_argument("--max-tokens", type=positive, default=256, metavar="N", help="of one answer")
    parser.add_argument("--temperature", type=float, help="0 is greedy")
    given = parser.parse_args()
    from m1runtime import M1RuntimeError

    try:
        specs = tuple(made.spec for name in given.tools.split(",") if name for made in load_toolset(name))
        settings = Settings(max_tokens=given.max_tokens, temperature=given.temperature)
        batch = Batch(LocalModel(given.model), Setup(given.instructions, specs), settings)
        count = asyncio.run(batch.run(read_prompts(given.prompts), given.answers, given.at_once))
    except (M1AgentError, M1RuntimeError, OSError, ValueError) as error:
        print(f"batch: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nbatch: stopped; the same command goes on", file=sys.stderr)
        return 130
    print(f"{count} answered, {given.answers}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
