"""A model's attempts at a change to a folder of code: each in a draft of its own, until the tests pass.

    with Drafts.open(place) as drafts, ConversationStore(place / "talks.db") as store:
        best = await Attempts(Task("parse() drops the last line. Fix it."), drafts, store, model).best()
        if best.stop == "done":
            await best.draft.land()

Several attempts are forks of one conversation: the code is read once, and then each takes another way. Everything is
kept as it happens, so a killed program goes on where it was: with `Drafts.open`, the same store and the same task.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from contextlib import aclosing
from dataclasses import dataclass, field, replace

from m1agent import Agent, Approval, Conversation, Limits
from m1agent.approval import Answer, ApprovalRequest, Rule
from m1agent.errors import ConversationNotFound
from m1agent.events import RunFinished, ToolFinished
from m1agent.messages import AssistantMessage
from m1agent.models.base import Model
from m1agent.result import RunResult
from m1agent.schema import canonical_json
from m1agent.show import plain
from m1agent.store import ConversationStore, StoredConversation
from m1tools.draft import Draft, Drafts, Suite, Verdict
from m1tools.workspace import drafting

TESTS = re.compile(r"(^|/)(tests?/|test_|conftest\.py$)|_test\.\w+$")
HOW_TESTS_RUN = re.compile(r"(^|/)(conftest\.py|\.?pytest\.(ini|toml)|tox\.ini|setup\.cfg|(site|user)customize\.py)$")
"""Files that can have tests skipped, new ones too."""
CODER = (
    "You change code in a copy of a repository. Search and read before you edit. Change no more than the task needs. "
    "Run the tests, and go on until they pass. Then answer in a sentence what was wrong and what you did."
)
LOOK = "Only look for now, and change nothing. Then answer with {count} different ways to do it, numbered."
ONLY_LOOK = "Only look for now: nothing is changed before the ways are chosen."
WAY = "Take way {number} now: change the code until the tests pass."
AGAIN = (
    "The program was stopped here, and goes on. Calls without a result may have been run: look before you repeat one."
)
UNCHANGED = "You have changed nothing yet."
WRITES = ("write_file", "edit_file", "patch_files", "move_file", "undo_change")
LINE = 60


@dataclass(frozen=True, slots=True)
class Task:
    """What is to be done.

    `suite` says how the tests are run; those that are there are not to be changed, unless `edit_tests`. `attempts` is
    how many are made. Raises ValueError where that is none.
    """

    text: str
    suite: Suite
    attempts: int = 1
    edit_tests: bool = False
    trusted: bool = False

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise ValueError(f"Task.attempts must be at least 1, not {self.attempts!r}")


@dataclass(frozen=True, slots=True)
class Attempt:
    """How an attempt ended: `done` with passing tests, `given up`, `changed` where they fail with what has changed in
    the folder meanwhile, or why its run stopped; `reason` says more.

    `answer` is the model's last word, and `lines` how many lines its draft added or removed.
    """

    draft: Draft
    stop: str
    answer: str = ""
    reason: str = ""
    lines: int = 0


@dataclass(frozen=True, slots=True)
class Attempts:
    """Attempts at a task, in drafts and conversations of their own.

    Args:
        task: what is to be done.
        drafts: of the folder.
        store: keeps the conversations.
        model: who does it.
        limits: of each attempt.
        ask: is asked before each change to a draft; without it, nobody is.
        tell: is told, in a line, of each call and each run of the tests.
    """

    task: Task
    drafts: Drafts
    store: ConversationStore
    model: Model
    limits: Limits = field(default_factory=lambda: Limits(steps=50))
    ask: Callable[[ApprovalRequest], Answer] = lambda request: True
    tell: Callable[[str], None] = lambda line: None

    async def best(self) -> Attempt:
        """Make the attempts; of those whose tests pass the one with the fewest changed lines, else the last.

        Raises:
            OSError: the tests cannot be started.
            DraftError: a draft cannot be made or read.
        """
        if self.task.attempts > 1 and (looked := await self._look()).stop != "done":
            return looked
        made = [await self._attempt(number) for number in range(1, self.task.attempts + 1)]
        passed = [one for one in made if one.stop == "done"]
        return await self.carried(min(passed, key=lambda one: one.lines)) if passed else made[-1]

    async def carried(self, attempt: Attempt) -> Attempt:
        """An attempt with what has changed in the folder meanwhile; it ends as `changed` where the tests fail with it.

        Raises:
            DraftConflict: both changed the same lines.
        """
        while attempt.stop == "done" and await attempt.draft.update():
            self.tell(f"{self.drafts.folder} has changed meanwhile, which is taken up")
            if objection := await self.objection(attempt.draft):
                return replace(attempt, stop="changed", reason=objection)
        return attempt

    async def objection(self, draft: Draft) -> str:
        """What speaks against a draft as it is, or ''."""
        if not (changed := await draft.changed()):
            return UNCHANGED
        if not self.task.edit_tests and (objection := _against_tests(changed, await draft.made())):
            return objection
        verdict = await self._tested(draft)
        return "" if verdict.passed else verdict.told

    async def _look(self) -> Attempt:
        """The conversation that the attempts are forks of."""
        draft, talk = await self.drafts.copy("look"), self._talk("look")
        if _answered(talk):
            return Attempt(draft, "done")
        prompt = AGAIN if len(talk) else f"{await self._question()}\n\n{LOOK.format(count=self.task.attempts)}"
        agent = self._agent(draft, [Rule(name, "deny", reason=ONLY_LOOK) for name in WRITES])
        return _ended(draft, await self._run(agent, prompt, talk, self.limits, "look"))

    async def _attempt(self, number: int) -> Attempt:
        name = f"way-{number}"
        draft, fork = await self.drafts.copy(name), self.task.attempts > 1
        talk = self._talk(name, fork_of="look" if fork else "")
        own = len(talk) - (len(self._talk("look")) if fork else 0)
        if not own:
            prompt = WAY.format(number=number) if fork else await self._question()
        else:
            prompt = None if _answered(talk) else AGAIN
        try:
            return await self._until_green(draft, talk, prompt, name if fork else "")
        finally:
            await talk.aclose()

    async def _until_green(self, draft: Draft, talk: Conversation, prompt: str | None, name: str) -> Attempt:
        """Let the model work until its answer holds, it gives up, or its limits are reached."""
        agent, left, refused, answer = self._agent(draft), self.limits, "", ""
        if prompt is None:
            await draft.update()  # The folder may have changed since the answer was given.
        while True:
            if prompt is not None:
                result = await self._run(agent, prompt, talk, left, name)
                if result.stop != "done":
                    return _ended(draft, result)
                left, answer = _left(left, result), str(result.output)
            if not (objection := await self.objection(draft)):
                return Attempt(draft, "done", answer or _last_words(talk), lines=await draft.lines())
            if isinstance(left, str) or refused == await draft.tree():
                return Attempt(draft, left if isinstance(left, str) else "given up", answer, objection)
            refused, prompt = await draft.tree(), objection

    async def _question(self) -> str:
        verdict = await self._tested(await self.drafts.copy("look"))
        return f"{self.task.text}\n\n`{self.task.suite.command}` on the code as it is: {verdict.told}"

    async def _tested(self, draft: Draft) -> Verdict:
        verdict = await self.task.suite.run(draft)
        self.tell(f"tests {verdict.line} ({verdict.seconds:.1f} s)")
        return verdict

    def _agent(self, draft: Draft, rules: list[Rule] | None = None) -> Agent:
        tools = drafting(draft, self.task.suite, trusted=self.task.trusted)
        return Agent(self.model, [tools], CODER, approval=Approval(rules or (), ask=self.ask))

    def _talk(self, name: str, fork_of: str = "") -> StoredConversation:
        try:
            return self.store.open(name)
        except ConversationNotFound:
            return self.store.fork(fork_of, to=name) if fork_of else self.store.create(name)

    async def _run(self, agent: Agent, prompt: str, talk: Conversation, limits: Limits, name: str) -> RunResult:
        async with aclosing(agent.stream(prompt, conversation=talk, limits=limits)) as events:
            async for event in events:
                if isinstance(event, ToolFinished):
                    self.tell(f"{name} {_line(event)}".strip())
                if isinstance(event, RunFinished):
                    return event.result
        raise AssertionError("a run ends with RunFinished")


def _ended(draft: Draft, result: RunResult) -> Attempt:
    return Attempt(draft, result.stop, str(result.output or ""), result.reason or str(result.error or ""))


def _answered(talk: Conversation) -> bool:
    last = talk.messages[-1] if len(talk) else None
    return isinstance(last, AssistantMessage) and not last.calls


def _last_words(talk: Conversation) -> str:
    last = talk.messages[-1]
    return last.text if isinstance(last, AssistantMessage) else ""


def _left(limits: Limits, result: RunResult) -> Limits | str:
    """What a run left of its limits, or the name of one that it used up."""
    usage = result.usage
    tokens = usage.input_tokens - usage.reused_tokens + usage.output_tokens
    used = {"steps": result.steps, "tokens": tokens, "seconds": result.seconds}
    left = {name: bound - count for name, count in used.items() if (bound := getattr(limits, name)) is not None}
    return next((name for name, bound in left.items() if bound <= 0), None) or replace(limits, **left)


def _line(event: ToolFinished) -> str:
    first, *more = event.result.content.strip().splitlines() or [""]
    told = ("error: " if event.result.is_error else "") + _cut(first) + (f" [+{len(more)} lines]" if more else "")
    return plain(f"{event.call.name} {_cut(canonical_json(event.call.arguments))} -> {told} ({event.seconds:.1f} s)")


def _cut(text: str) -> str:
    return text if len(text) <= LINE else f"{text[:LINE]}..."


def _against_tests(changed: Collection[str], made: Collection[str]) -> str:
    if touched := [name for name in changed if TESTS.search(name) and name not in made]:
        return f"Undo your changes to tests that were there before: {', '.join(touched)}."
    if settings := [name for name in changed if HOW_TESTS_RUN.search(name)]:
        return f"Undo your changes to what says how tests are run: {', '.join(settings)}."
    return ""
