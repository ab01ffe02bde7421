"""A coding agent: it searches, edits and runs the tests of a folder until they pass, and shows the diff.

python examples/coding_agent.py . "parse() drops the last line. Fix it." --model openai:...
python examples/coding_agent.py . "Make parse() faster." --alternatives 3 --yes --branch faster --model openai:...
python examples/coding_agent.py . --resume --model openai:...

It works on copies of the folder, which itself stays as it is until the tests pass and you say yes.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from pydantic import BaseModel, PositiveFloat, PositiveInt

from m1agent import ApprovalRequest, Denied, Limits, M1AgentError, load_model
from m1agent.cli_agent import positive
from m1agent.models.base import Model
from m1agent.show import plain
from m1agent.store import ConversationStore
from m1tools.attempts import Attempts, Task
from m1tools.draft import Drafts, Runs, Suite
from m1tools.sandbox import isolation

WHY = {"steps": "the replies of --steps are used up", "tokens": "the tokens of --tokens are used up",
       "seconds": "the time of --seconds is over", "loop": "the model made the same call over and over",
       "given up": "the model gave up", "error": "the model failed",
       "changed": "the tests fail with what has changed meanwhile"}  # fmt: skip


class Job(BaseModel):
    """What was asked for, kept for --resume."""

    text: str
    test: str = "python -m pytest -q"
    test_seconds: PositiveFloat = 300
    read: list[Path] = []
    edit_tests: bool = False
    alternatives: PositiveInt = 1
    branch: str = ""
    trust: bool = False

    def task(self) -> Task:
        suite = Suite(self.test, replace(Suite("true").bounds, seconds=self.test_seconds), tuple(self.read))
        return Task(self.text, suite, self.alternatives, self.edit_tests, self.trust)


class Person:
    """Whoever sits at the terminal; with `yes`, nobody does and every answer is yes."""

    def __init__(self, yes: bool) -> None:
        self.yes = self.always = yes

    def __call__(self, request: ApprovalRequest) -> bool | Denied:
        if self.always:
            return True
        told = "\n".join(f"  {name}: {value}" for name, value in request.call.arguments.items())
        answer = self.ask(f"\n{request.call.name}\n{told}\nDo it, in the copy? [y]es, [a]lways, [n]o, or why not: ")
        self.always = answer in ("a", "always")
        if self.always or answer in ("y", "yes"):
            return True
        return Denied("" if answer in ("", "n", "no") else answer)

    def ask(self, question: str) -> str:
        with suppress(EOFError):
            return input(plain(question)).strip()
        return ""


async def work(drafts: Drafts, model: Model, limits: Limits, person: Person) -> str:
    """Go on until a change is in the folder; '' then, else why it is not."""
    job, folder = Job(**drafts.note), drafts.folder
    print(f"run {drafts.place.name}, in {drafts.place}")
    if drafts.left_out:
        print(f"not copied: {plain(', '.join(drafts.left_out))}")
    if await drafts.finish_landing() or drafts.landed:
        print(f"The change is in {folder}.")
        return ""
    if not isolation().namespaces and not job.trust:
        return f"{isolation().told} --trust runs the tests all the same."
    if job.branch:
        await drafts.check_branch(job.branch)
    with ConversationStore(drafts.place / "talks.db") as store:
        attempts = Attempts(job.task(), drafts, store, model, limits, person, lambda line: print(line, flush=True))
        best = await attempts.best()
    print(f"\n{plain((await best.draft.diff()).decode('utf-8', 'replace'))}{plain(best.answer)}")
    if best.stop != "done":
        return f"{WHY.get(best.stop, best.stop)}. {plain(best.reason)}".strip()
    where = f"branch {job.branch}" if job.branch else folder
    if not person.yes and person.ask(f"\nThe tests pass. Put it into {where}? [y/N] ") not in ("y", "yes"):
        return "you did not say yes"
    if job.branch:
        await best.draft.branch(job.branch, f"{job.text}\n\n{best.answer}\n")
    else:
        await best.draft.land()
    print(f"The tests pass, and the change is in {where}.")
    return ""


def options(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("text", nargs="?", metavar="task", help="what is to be done")
    parser.add_argument("--model", required=True, help="a checkpoint folder, hf:..., openai:...; m1-nano is too small")
    parser.add_argument("--yes", action="store_true", help="ask nothing")
    parser.add_argument("--resume", nargs="?", const="", metavar="RUN", help="go on with a run, else with the last one")
    for name, kind, default in (("steps", int, 50), ("tokens", int, None), ("seconds", float, None)):
        parser.add_argument(
            f"--{name}", type=kind, default=default, help=f"of each attempt (default: {default or 'no bound'})"
        )
    kept = parser.add_argument_group("kept for --resume")
    kept.add_argument("--test", help="the command that passes when all is well; default: python -m pytest -q")
    kept.add_argument("--test-seconds", type=float, help="how long it may take; default: 300")
    kept.add_argument("--read", type=Path, action="append", help="a folder that the tests need, such as a toolchain")
    kept.add_argument(
        "--alternatives", type=positive, metavar="N", help="ways to try; the smallest diff that passes is taken"
    )
    kept.add_argument("--branch", help="commit the change there, instead of changing the folder")
    for name, told in (
        ("edit-tests", "tests that are there may be changed"),
        ("trust", "git settings; tests unconfined"),
    ):
        kept.add_argument(f"--{name}", action="store_true", default=None, help=told)
    given = parser.parse_args(words)
    if given.resume is None and not given.text:
        parser.error("say what is to be done, or --resume")
    if given.resume is not None and (given.text or given.alternatives):
        parser.error("--resume keeps the task and --alternatives as they were")
    if not given.yes and not sys.stdin.isatty():
        parser.error("there is nobody to ask here; --yes says yes to everything")
    return given


async def main(words: list[str] | None = None, model: Model | None = None) -> int:
    given = options(words)
    folder, told = given.folder.resolve(), {name: getattr(given, name) for name in Job.model_fields}
    told = {name: value for name, value in told.items() if value is not None}
    limits = Limits(steps=given.steps, tokens=given.tokens, seconds=given.seconds)
    runs = Runs(folder, "coding")
    if given.resume is None:
        drafts = await runs.begin(Job(**told).model_dump(mode="json"), trusted=bool(given.trust))
    else:
        drafts = runs.resume(given.resume)
        drafts.keep(Job(**{**drafts.note, **told}).model_dump(mode="json"))
    with drafts:
        try:
            why = await work(drafts, model or load_model(given.model), limits, Person(given.yes))
        except (M1AgentError, OSError) as error:
            why = str(error)
        if not why:
            drafts.remove()
            return 0
        how = f"a part of the change is in {folder}" if drafts.landing else f"{folder} is as it was"
        print(f"\n{how}: {why}\nTo go on: --resume. To give up: rm -r {drafts.place}", file=sys.stderr)
        return 1


def run(words: list[str] | None = None, model: Model | None = None) -> int:
    """`main` for the shell."""
    try:
        return asyncio.run(main(words, model))
    except KeyboardInterrupt:
        print("\nStopped; --resume goes on.", file=sys.stderr)
        return 130
    except (M1AgentError, OSError, ValueError) as error:
        print(f"coding_agent: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(run())
