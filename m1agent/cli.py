"""The command line: `m1agent run`, `m1agent tools`, `m1agent models`."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import version
from io import TextIOWrapper
from typing import Any, cast

from m1agent.cli_agent import add_agent_options, agent_of
from m1agent.cli_bench import add_bench
from m1agent.cli_chat import add_chat
from m1agent.cli_mcp import add_mcp
from m1agent.cli_serve import add_serve
from m1agent.doctor import add_doctor
from m1agent.errors import M1AgentError, UsageError
from m1agent.tools import Tool
from m1agent.toolset import installed_toolsets, load_toolset

EXIT_DONE, EXIT_STOPPED, EXIT_USAGE, EXIT_INTERRUPTED = 0, 1, 2, 130

RUN_HELP = """\
Answer a question with a model and tools, and show what happens.

  m1agent run "What is the derivative of 3x^2 + 2x - 1?"
  m1agent run "What time is it in Tokyo?" --mcp-command "python -m mcp_server_time --local-timezone UTC"
"""
RUN_EPILOG = """\
exit codes: 0 answered, 1 stopped before an answer (a limit, a loop, a failing model), 2 wrong usage, 130 interrupted
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """The console script. Returns the exit code."""
    given = build_parser().parse_args(arguments)
    out: Any = sys.stdout
    if isinstance(out, TextIOWrapper):
        cast("TextIOWrapper[Any]", out).reconfigure(
            errors="replace"
        )  # A terminal without the answer's letters must not end the run.
    try:
        return given.command(given)
    except M1AgentError as error:
        print(f"m1agent: {error}", file=sys.stderr)
        return EXIT_USAGE
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader left; a second error while Python flushes stdout would only confuse.
        sys.stdout = None  # type: ignore[assignment]
        return EXIT_DONE


def build_parser() -> argparse.ArgumentParser:
    """The argument parser, with every command and option."""
    parser = argparse.ArgumentParser(prog="m1agent", description="Agents whose tool calls are valid by construction.")
    parser.add_argument("--version", action="version", version=f"m1agent {version('m1agent')}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_run(commands)
    tools = commands.add_parser("tools", help="list the installed tools", description="List the installed tools.")
    tools.add_argument("--json", action="store_true", help="print names, descriptions and schemas as JSON")
    tools.add_argument(
        "--report", action="store_true", help="and what of a schema no grammar enforces (it is checked afterwards)"
    )
    tools.set_defaults(command=list_tools)
    models = commands.add_parser("models", help="list the models", description="List the models that can be named.")
    models.add_argument("--json", action="store_true", help="print as JSON")
    models.set_defaults(command=list_models)
    add_chat(commands)
    add_mcp(commands)
    add_serve(commands)
    add_doctor(commands)
    add_bench(commands)
    completion = commands.add_parser(
        "completion",
        help="print what makes a shell complete these commands",
        description='Print a completion script, for example: eval "$(m1agent completion bash)"',
    )
    completion.add_argument("shell", choices=("bash", "zsh", "tcsh"))
    completion.set_defaults(command=print_completion)
    return parser


def _add_run(commands: Any) -> None:
    run: argparse.ArgumentParser = commands.add_parser(
        "run",
        help="answer a question",
        description=RUN_HELP,
        epilog=RUN_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    run.add_argument("question", help='what to ask; "-" reads it from stdin')
    add_agent_options(run)
    run.add_argument("--json", action="store_true", help="print the result as one JSON object, and nothing else")
    run.add_argument("--show-prompt", action="store_true", help="print what the model reads before its first reply")
    run.set_defaults(command=run_question)


def run_question(given: argparse.Namespace) -> int:
    """`m1agent run`."""
    question = sys.stdin.read().strip() if given.question == "-" else given.question
    if not question.strip():
        print("m1agent: the question is empty", file=sys.stderr)
        return EXIT_USAGE
    agent = agent_of(given)
    return asyncio.run(_run(agent, question, as_json=given.json, show_prompt=given.show_prompt))


async def _run(agent: Any, question: str, *, as_json: bool, show_prompt: bool) -> int:
    from m1agent.cancel import Cancel
    from m1agent.events import RunFinished
    from m1agent.show import Printer, prompt_of

    # What the servers' log says is printed below, with the command's name.
    logging.getLogger("m1agent.mcp").addHandler(logging.NullHandler())
    cancel, loop = Cancel(), asyncio.get_running_loop()

    def interrupt() -> None:
        loop.remove_signal_handler(signal.SIGINT)  # A second Ctrl-C does not wait for anything.
        cancel.cancel()

    printer = Printer(sys.stdout)
    async with agent:
        # Not earlier: while servers connect there is no run to cancel, and Ctrl-C ends the program.
        with suppress(NotImplementedError, ValueError, RuntimeError):  # Windows; not the main thread
            loop.add_signal_handler(signal.SIGINT, interrupt)
        for status in agent.servers:
            if status.state != "ready":
                print(f"m1agent: MCP server '{status.name}' is left out: {status.reason}", file=sys.stderr)
        if show_prompt and not as_json:
            printer.prompt(prompt_of(agent, question))
        async for event in agent.stream(question, cancel=cancel):
            if not as_json:
                printer.show(event)
            if isinstance(event, RunFinished):
                result = event.result
                if as_json:
                    print(json.dumps(as_data(result), ensure_ascii=False, default=str))
                if result.stop == "cancelled":
                    return EXIT_INTERRUPTED
                return EXIT_DONE if result.stop == "done" else EXIT_STOPPED
    raise AssertionError("a run ends with RunFinished")


def as_data(result: Any) -> dict[str, Any]:
    """A run's result as JSON values."""
    return {
        "output": result.output,
        "stop": result.stop,
        "error": str(result.error) if result.error else None,
        "steps": result.steps,
        "calls": [
            {
                "name": record.call.name,
                "arguments": record.call.arguments,
                "result": record.result.content,
                "is_error": record.result.is_error,
            }
            for record in result.calls
        ],
        "usage": asdict(result.usage),
        "seconds": round(result.seconds, 3),
    }


def print_completion(given: argparse.Namespace) -> int:
    """`m1agent completion`. Raises UsageError where shtab is missing."""
    try:
        import shtab
    except ModuleNotFoundError:
        raise UsageError("m1agent completion needs shtab: pip install 'm1agent[cli]'") from None
    print(shtab.complete(build_parser(), given.shell))
    return EXIT_DONE


def list_tools(given: argparse.Namespace) -> int:
    """`m1agent tools`."""
    found = {name: list(load_toolset(name)) for name in installed_toolsets()}
    left = {tool: _unenforced(tool) for tools in found.values() for tool in tools} if given.report else {}
    if given.json:
        print(json.dumps({name: [_tool_data(tool, left) for tool in tools] for name, tools in found.items()}, indent=2))
        return EXIT_DONE
    for name, tools in found.items():
        print(name)
        for tool in tools:
            print(f"  {tool.name}: {tool.spec.description.splitlines()[0] if tool.spec.description else ''}")
            for item in left.get(tool, ()):
                print(f"    checked afterwards: {item['keyword']} at {item['path'] or 'the top'} ({item['why']})")
    if given.report and not any(left.values()):
        print("The grammar enforces all of these schemas.")
    return EXIT_DONE


def _unenforced(tool: Tool) -> list[dict[str, str]]:
    from m1agent.models.local import LocalModel
    from m1agent.prompt.envelope import Envelope

    reports = LocalModel("m1-nano").reports(Envelope((tool.spec,), "required"))
    return [asdict(item) for report in reports for item in (*report.unenforced, *report.annotations)]


def list_models(given: argparse.Namespace) -> int:
    """`m1agent models`."""
    from m1agent.models import BUNDLED, FORMS

    if given.json:
        print(json.dumps({"bundled": BUNDLED, "forms": FORMS}))
    else:
        print("\n".join(BUNDLED))
        print(f"A model is {FORMS}.")
    return EXIT_DONE


def _tool_data(tool: Tool, left: Mapping[Tool, list[dict[str, str]]]) -> dict[str, Any]:
    data = {"name": tool.name, "description": tool.spec.description, "parameters": tool.spec.parameters}
    return data | ({"unenforced": left[tool]} if tool in left else {})


if __name__ == "__main__":
    sys.exit(main())
