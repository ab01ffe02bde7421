"""`m1agent bench`: how often a model does what it should."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from m1agent.cli_agent import MODEL, positive

if TYPE_CHECKING:
    from m1agent.bench.bfcl.data import Item
    from m1agent.bench.record import Record
    from m1agent.bench.tasks.catalog import Task
    from m1agent.models.base import Model, Settings

EXIT_DONE, EXIT_FAILED = 0, 1
BFCL_HELP = """\
Ask a model for the function calls of the Berkeley Function Calling Leaderboard, and compare them by its published
rules. The data is no part of m1agent: get a checkout of github.com/ShishirPatil/gorilla, or the package bfcl-eval.

  m1agent bench bfcl --data gorilla --model m1-nano --categories simple,multiple --limit 50
  m1agent bench bfcl --data gorilla --model openai:NAME@http://localhost:8000/v1 --out results.jsonl --resume
"""
BFCL_EPILOG = """\
Categories: simple, multiple, parallel, parallel_multiple, irrelevance, and live_ before each; live_relevance. Each
question is asked once, and calls are not corrected. --concurrency shares the model, and so its seconds.

exit codes: 0 measured, 1 the model failed on some items (--resume asks them again), 2 wrong usage, 130 interrupted
"""
TASKS_HELP = """\
Let a model do tasks on real MCP servers (git, filesystem, memory, time) in folders made for them, and look at what is
left: files, commits, the graph, the answer. Tasks whose servers are not installed are skipped, and said so.

  m1agent bench tasks --model m1-nano
  m1agent bench tasks --model openai:NAME@http://localhost:8000/v1 --tasks git,files_* --repeats 3 --concurrency 4
"""
TASKS_EPILOG = """\
The servers: pip install mcp-server-git mcp-server-time, with git; and with Node.js
  npm install @modelcontextprotocol/server-filesystem @modelcontextprotocol/server-memory
in this folder, or in one that --node-modules names. Nothing is downloaded. Every call is allowed; servers are told to
keep to the folder of the task.

exit codes: 0 measured, 1 nothing could be measured or the model failed on some tasks (--resume does them again),
2 wrong usage, 130 interrupted
"""


def add_bench(commands: Any) -> None:
    """Add `bench` and its commands to the parser."""
    bench: argparse.ArgumentParser = commands.add_parser(
        "bench",
        help="measure how often a model does what it should",
        description="Measure how often a model does what it should.",
    )
    inner = bench.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_bfcl(inner)
    _add_tasks(inner)


def _add_bfcl(commands: Any) -> None:
    bfcl: argparse.ArgumentParser = commands.add_parser(
        "bfcl",
        help="function calls of the Berkeley leaderboard",
        description=BFCL_HELP,
        epilog=BFCL_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    bfcl.add_argument("--data", metavar="FOLDER", type=Path, required=True, help="a checkout of the leaderboard")
    bfcl.add_argument(
        "--categories", metavar="NAMES", type=_names, help="comma separated, * fits any text (default: all)"
    )
    bfcl.add_argument("--limit", metavar="N", type=positive, help="the first N items of each category")
    _add_common(bfcl, concurrency=4, seconds=300)
    bfcl.set_defaults(command=bench_bfcl)


def _add_tasks(commands: Any) -> None:
    tasks: argparse.ArgumentParser = commands.add_parser(
        "tasks",
        help="tasks on git, filesystem, memory and time servers",
        description=TASKS_HELP,
        epilog=TASKS_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    tasks.add_argument("--tasks", metavar="NAMES", type=_names, help="names or groups, comma separated (default: all)")
    tasks.add_argument("--list", action="store_true", help="list the tasks, and do none")
    tasks.add_argument(
        "--node-modules", metavar="FOLDER", type=Path, help="where npm installed servers (default: here)"
    )
    tasks.add_argument("--repeats", type=positive, metavar="N", default=1, help="how often each is done (default: 1)")
    tasks.add_argument("--max-steps", type=positive, metavar="N", default=20, help="replies for a task (default: 20)")
    _add_common(tasks, concurrency=1, seconds=300)
    tasks.set_defaults(command=bench_tasks)


def _add_common(parser: argparse.ArgumentParser, *, concurrency: int, seconds: int) -> None:
    parser.add_argument("--model", default=MODEL, help=f"as for m1agent run (default: {MODEL})")
    parser.add_argument("--temperature", type=float, default=0.0, metavar="T", help="default: 0, greedy")
    parser.add_argument("--seed", type=int, metavar="N", help="makes sampling reproducible")
    parser.add_argument(
        "--concurrency", type=positive, metavar="N", default=concurrency, help=f"default: {concurrency}"
    )
    parser.add_argument(
        "--seconds", type=positive, metavar="N", default=seconds, help=f"for one item at most (default: {seconds})"
    )
    parser.add_argument("--max-tokens", type=positive, metavar="N", default=1024, help="of a reply (default: 1024)")
    parser.add_argument("--out", metavar="FILE", type=Path, help="keep each result in this file, a JSON line each")
    parser.add_argument("--resume", action="store_true", help="go on with what is in --out")
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON object")


def bench_bfcl(given: argparse.Namespace) -> int:
    """`m1agent bench bfcl`."""
    from m1agent.bench.bfcl.data import find_data
    from m1agent.bench.bfcl.run import AGAIN
    from m1agent.models import load_model

    data = find_data(given.data)
    categories = data.chosen(given.categories or ())
    items = [item for name in categories for item in data.items(name, given.limit)]
    left_out = {} if given.categories else data.left_out
    for why in dict.fromkeys(left_out.values()):
        names = ", ".join(name for name, reason in left_out.items() if reason == why)
        print(f"m1agent: left out: {names}: {why}", file=sys.stderr)
    model, settings = load_model(given.model), _settings(given)
    about = _about(given, f"BFCL {data.version}", categories=categories, limit=given.limit)
    with _record(given, about, AGAIN) as record:
        try:
            asyncio.run(_ask(given, model, items, record, settings))
        finally:
            _tell(given, record, categories)
    return _exit_code(record, AGAIN)


async def _ask(given: argparse.Namespace, model: Model, items: list[Item], record: Record, settings: Settings) -> None:
    from m1agent.bench.bfcl.run import ask_all

    with _watched(len(items), record) as told:
        try:
            await _load(model)
            limits = {"concurrency": given.concurrency, "seconds": given.seconds}
            await ask_all(model, items, record, settings, told=told, **limits)
        finally:
            await model.aclose()


def bench_tasks(given: argparse.Namespace) -> int:
    """`m1agent bench tasks`."""
    from m1agent.bench.tasks.catalog import GROUPS, all_tasks, choose
    from m1agent.bench.tasks.run import AGAIN
    from m1agent.models import load_model

    tasks = choose(all_tasks(), given.tasks or ())
    if given.list:
        return _list_tasks(given, tasks)
    model, settings = load_model(given.model), _settings(given)
    names = [task.name for task in tasks]
    about = _about(given, "m1agent tasks", tasks=names, repeats=given.repeats, max_steps=given.max_steps)
    skipped: dict[str, str] = {}
    with _record(given, about, AGAIN) as record:
        try:
            skipped |= asyncio.run(_do(given, model, tasks, record, settings))
        finally:
            _tell(given, record, GROUPS, skipped=skipped)
    return _exit_code(record, AGAIN)


async def _do(
    given: argparse.Namespace, model: Model, tasks: list[Task], record: Record, settings: Settings
) -> dict[str, str]:
    from m1agent.bench.tasks.run import do_all
    from m1agent.bench.tasks.servers import find_servers

    logging.getLogger("m1agent.mcp").addHandler(logging.NullHandler())  # What they say is told with the skipped tasks.
    with _watched(len(tasks) * given.repeats, record) as told:
        try:
            await _load(model)
            limits = {"concurrency": given.concurrency, "seconds": given.seconds, "steps": given.max_steps}
            servers = find_servers(given.node_modules)
            return await do_all(model, tasks, record, settings, servers, repeats=given.repeats, told=told, **limits)
        finally:
            await model.aclose()


def _list_tasks(given: argparse.Namespace, tasks: list[Task]) -> int:
    from m1agent.bench.tasks.servers import find_servers

    missing = {name: found for name, found in find_servers(given.node_modules).items() if isinstance(found, str)}
    if given.json:
        print(json.dumps([{"name": one.name, "servers": one.servers, "prompt": one.prompt} for one in tasks]))
        return EXIT_DONE
    for task in tasks:
        print(f"{task.name} ({', '.join(task.servers)}): {task.prompt}")
    for name, why in missing.items():
        print(f"m1agent: server {name} is missing: {why}", file=sys.stderr)
    return EXIT_DONE


def _tell(
    given: argparse.Namespace, record: Record, categories: Sequence[str], skipped: Mapping[str, str] | None = None
) -> None:
    from m1agent.bench import report

    results = record.results.values()
    if given.json:
        more = {} if skipped is None else {"skipped": skipped}
        print(json.dumps({**record.about, **report.figures(results, categories), **more}, ensure_ascii=False))
        return
    print(f"{record.about['benchmark']}, {given.model}, temperature {given.temperature:g}")
    print(report.text(results, categories))
    for why in dict.fromkeys((skipped or {}).values()):
        names = [name for name, reason in (skipped or {}).items() if reason == why]
        print(f"{len(names)} skipped, not counted ({why}): {', '.join(names)}")


def _exit_code(record: Record, again: frozenset[str]) -> int:
    failed = sum(result["kind"] in again for result in record.results.values())
    if failed:
        print(f'm1agent: {failed} items say nothing of the model: see their "why"', file=sys.stderr)
    return EXIT_FAILED if failed or not record.results else EXIT_DONE


def _about(given: argparse.Namespace, benchmark: str, **more: Any) -> dict[str, Any]:
    """What a record is about: with any of it changed, results would not go together."""
    names = ("model", "temperature", "seed", "max_tokens")
    return {"benchmark": benchmark, **{name: getattr(given, name) for name in names}, **more}


@contextmanager
def _watched(total: int, record: Record) -> Generator[Callable[[dict[str, Any]], None]]:
    """What is to be told of each new result."""
    from m1agent.bench.progress import Progress

    progress = Progress(total, len(record.results))
    try:
        yield lambda result: progress.add(right=result["passed"])
    finally:
        progress.end()


def _settings(given: argparse.Namespace) -> Settings:
    from m1agent.errors import UsageError
    from m1agent.models.base import Settings

    try:
        return Settings(max_tokens=given.max_tokens, temperature=given.temperature, seed=given.seed)
    except ValueError as error:
        raise UsageError(str(error)) from None


def _record(given: argparse.Namespace, about: dict[str, Any], again: frozenset[str]) -> Record:
    from m1agent.bench.record import Record
    from m1agent.errors import UsageError

    if given.resume and given.out is None:
        raise UsageError("--resume needs the file to go on with: --out FILE")
    return Record(about, given.out, resume=given.resume, again=again)


async def _load(model: Model) -> None:
    """Read weights now, so that a model that cannot be used is told at once."""
    load = getattr(model, "load", None)
    if load is not None:
        await load()


def _names(text: str) -> list[str]:
    """Names with commas between them, for argparse."""
    return [name.strip() for name in text.split(",") if name.strip()]
